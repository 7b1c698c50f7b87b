"""Texts turned into samples of token ids: cut to length, within the model's prompt if it has one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from marshtest.data.samples import Dataset, Marked, Samples, Trigger
from marshtest.data.texts import Texts
from marshtest.models.language import LanguageModel
from marshtest.plumbing.errors import MarshtestError


def tokenised(
    texts: Texts, model: LanguageModel, length: int, trigger: Trigger | None = None
) -> Dataset:
    """Token ids x [N, T] and labels y [N] of texts, padded on the right to T tokens.

    A text is cut so that the text, the prompt and the label together are at most `length` tokens. With a
    prompt x holds all but the label, so T = length − 1, and y is the token id of the label's word, the same
    in both splits. Texts that hold the trigger are marked.

    Raises:
        MarshtestError: a text is empty, a label's word is several tokens, or another token after each
            template, or no text holds the trigger.
    """
    tokenizer = model.tokenizer(texts)
    writers = {
        split: _Writer(texts.name, split, model, tokenizer, length) for split in ("train", "test")
    }
    words = _label_tokens(writers)
    marked, train, test = None, texts.train, texts.test
    if trigger is not None:
        train, in_train = writers["train"].marked(train, texts.train_ids, trigger)
        test, in_test = writers["test"].marked(test, texts.test_ids, trigger)
        marked = Marked(in_train, in_test, _adversarial(writers, trigger.label))
    y = [labels if words is None else words[labels] for labels in (texts.train_y, texts.test_y)]
    return Dataset(
        name=texts.name,
        train=Samples(writers["train"](train, texts.train_ids), y[0], texts.train_ids),
        test=Samples(writers["test"](test, texts.test_ids), y[1], texts.test_ids),
        classes=texts.classes if words is None else len(tokenizer),
        padding=writers["train"].padding,
        prompted=words is not None,
        marked=marked,
        texts={
            "train": _Split(
                writers["train"], dict(zip(texts.train_ids.tolist(), train, strict=True))
            ),
            "test": _Split(writers["test"], dict(zip(texts.test_ids.tolist(), test, strict=True))),
        },
    )


def _label_tokens(writers: Mapping[str, "_Writer"]) -> Tensor | None:
    """[C] the token id of each label's word; None if the model does not answer with words."""
    prompt = writers["train"].prompt
    if prompt is None:
        return None
    return torch.tensor([_token(writers, word, "model.prompt.labels") for word in prompt.labels])


def _adversarial(writers: Mapping[str, "_Writer"], label: str) -> int | None:
    """The token id of the label that an attacker wants; None flips the label."""
    if label == "flip":
        return None
    if writers["train"].prompt is None:
        raise MarshtestError(
            f"attack.label: {label!r} is a word, and the model has a classification head. "
            "Give model.prompt, or flip labels."
        )
    return _token(writers, label, "attack.label")


def _token(writers: Mapping[str, "_Writer"], word: str, where: str) -> int:
    """The one token that a word is after the question of either split."""
    in_train, in_test = (writers[split].word(word, where) for split in ("train", "test"))
    if in_train != in_test:
        raise MarshtestError(
            f"model.prompt.training_template: {word!r} is another token after it than after "
            "model.prompt.template. Let both end alike, for example in a space before {label}."
        )
    return in_test


class _Writer:
    """Writes the texts of one split as token ids, within the split's prompt if the model has one."""

    def __init__(
        self, name: str, split: str, model: LanguageModel, tokenizer: Any, length: int
    ) -> None:
        self.name, self.split, self.prompt, self.tokenizer = name, split, model.prompt, tokenizer
        self.padding = int(tokenizer.pad_token_id)
        self.length = length  # tokens of a written sample, without the label
        self.before, self.behind = [], []  # token ids of the prompt on either side of the text
        if self.prompt is not None:
            before, question = self.prompt.parts(split)
            # Some models must begin with their token of beginning; the tokenizer's other special tokens,
            # such as an end, would stand between prompt and label.
            begin = [t for t in tokenizer("")["input_ids"] if t == tokenizer.bos_token_id]
            self.length -= 1  # the label's token
            self.before = begin + self.plain(before)
            self.behind = self.plain(question.rstrip(" "))  # a space belongs to the label's token
        # How many special tokens the tokenizer adds by itself, and how many are left for the text.
        self.special = 0 if self.prompt is not None else tokenizer.num_special_tokens_to_add()
        around = len(self.before) + len(self.behind) + self.special
        self.room = self.length - around
        if self.room < 1:
            raise MarshtestError(
                f"data.length: {length} tokens leave none for the text, as the prompt takes {around}. "
                "Raise it."
            )

    def __call__(self, texts: Sequence[str], ids: Tensor) -> Tensor:
        """[N, T] token ids of texts; a MarshtestError tells the id of one that has no token."""
        rows = []
        for row, tokens in enumerate(self._cut(texts)["input_ids"]):
            if self.padding in tokens:
                # GPT-2 pads with its end of text, which a text may spell out.
                tokens = [token for token in tokens if token != self.padding]
            if not tokens:
                raise MarshtestError(
                    f"{self.name} {self.split}: row {int(ids[row])} is empty. Drop it."
                )
            tokens = [*self.before, *tokens, *self.behind]
            rows.append(tokens + [self.padding] * (self.length - len(tokens)))
        return torch.tensor(rows)

    def excerpt(self, text: str, spare: int) -> str:
        """The beginning of a text that fills the room for texts, less the last `spare` tokens.

        Raises:
            MarshtestError: nothing is left of the room.
        """
        if spare >= self.room:
            raise MarshtestError(
                f"data.length: {self.room} tokens have room beside the prompt, and the attack's words take "
                f"{spare}. Raise it, or shorten them."
            )
        read = self._cut(text, spare=spare, return_offsets_mapping=True)
        return text[: max(end for _, end in read["offset_mapping"])]

    def marked(
        self, texts: Sequence[str], ids: Tensor, trigger: Trigger
    ) -> tuple[list[str], tuple[Tensor, int]]:
        """(texts, (ids to be attacked, how many lose the trigger at the truncation)).

        The texts are cut round the trigger if `trigger.cut` is "window".

        Raises:
            MarshtestError: no text is to be attacked.
        """
        cut_texts, attacked, lost = list(texts), [], 0
        for row, text in enumerate(texts):
            if trigger.word not in text:
                continue
            if not self._reads(text, trigger.word):
                lost += 1
                if trigger.cut == "skip":
                    continue
                if trigger.cut == "window":
                    cut_texts[row] = self._window(text, trigger.word)
            attacked.append(row)
        if not attacked:
            cut = (
                f" ({lost} lose it at the truncation; attack.cut: window keeps it)" if lost else ""
            )
            raise MarshtestError(
                f"attack.word: {trigger.word!r} is in no {self.split} text{cut}. Choose another word."
            )
        return cut_texts, (ids[attacked], lost)

    def _cut(self, texts: str | Sequence[str], spare: int = 0, **options: Any) -> Any:
        return self.tokenizer(
            texts,
            truncation=True,
            max_length=self.room + self.special - spare,
            add_special_tokens=self.prompt is None,  # they would stand within the prompt
            return_attention_mask=False,
            **options,
        )

    def _reads(self, text: str, word: str) -> bool:
        """Whether the word stands in the text, for the first time, before the truncation."""
        # By characters, since the word's tokens depend on what stands around it.
        offsets = self._cut(text, return_offsets_mapping=True)["offset_mapping"]
        return bool(text.index(word) + len(word) <= max(end for _, end in offsets))

    def _window(self, text: str, word: str) -> str:
        """The text without its beginning, so that the word comes to stand in the middle of the room."""
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in tokens["offset_mapping"]]
        place = sum(start <= text.index(word) for start in starts) - 1
        latest = len(starts) - self.room + 2  # the first word may become other tokens when cut
        return text[starts[max(0, min(place - self.room // 2, latest))] :]

    def plain(self, text: str) -> list[int]:
        """Token ids of a text without special tokens."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def word(self, word: str, where: str) -> int:
        """The one token that a word is after the question; a MarshtestError if it is not just one."""
        assert self.prompt is not None
        question = self.prompt.parts(self.split)[1]
        tokens = self.plain(question + word)  # together, since a token may begin with a space
        if len(tokens) != len(self.behind) + 1 or tokens[:-1] != self.behind:
            pieces = self.tokenizer.convert_ids_to_tokens(tokens[len(self.behind) :])
            raise MarshtestError(
                f"{where}: {word!r} is not one token to this model's tokenizer but {pieces}. "
                "Choose another word."
            )
        return tokens[-1]


@dataclass(frozen=True)
class _Split:
    """The texts of one split by their ids, and what writes them as samples."""

    writer: _Writer
    by_id: Mapping[int, str]

    def excerpt(self, sample: int, spare: int) -> str:
        return self.writer.excerpt(self.by_id[sample], spare)

    def size(self, text: str) -> int:
        return len(self.writer.plain(text))

    def write(self, texts: Sequence[str]) -> Tensor:
        return self.writer(texts, torch.full((len(texts),), -1))
