"""Texts as token ids, cut to length, within a prompt where there is one."""

from collections.abc import Mapping, Sequence
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
    """Token ids [N, T], padded on the right, each text cut so that all is within `length` tokens.

    With a prompt, x is all but the label, so T = length − 1, and y is the token id of the label's word, the
    same in both splits.

    Raises:
        MarshtestError: a text without a token, a label of several tokens, or of another one behind each
            template, a trigger that is in no text.
    """
    tokenizer = model.tokenizer(texts)
    writers = {
        split: _Writer(texts.name, split, model, tokenizer, length) for split in ("train", "test")
    }
    labels = _labels(writers)

    def read(
        split: str, written: list[str], y: Tensor, ids: Tensor
    ) -> tuple[Samples, tuple[Tensor, int] | None]:
        found = None
        if trigger is not None:
            written, found = writers[split].marked(written, ids, trigger)
        x = writers[split](written, ids)
        return Samples(x, y if labels is None else labels[y], ids), found

    train, in_train = read("train", texts.train, texts.train_y, texts.train_ids)
    test, in_test = read("test", texts.test, texts.test_y, texts.test_ids)
    marked = None
    if trigger is not None and in_train is not None and in_test is not None:
        marked = Marked(in_train, in_test, _adversarial(writers, trigger.label))
    return Dataset(
        name=texts.name,
        train=train,
        test=test,
        classes=texts.classes if labels is None else len(tokenizer),
        padding=writers["train"].padding,
        prompted=labels is not None,
        marked=marked,
    )


def _labels(writers: Mapping[str, "_Writer"]) -> Tensor | None:
    """[C] the token ids of the labels' words, if the model answers with words."""
    prompt = writers["train"].prompt
    if prompt is None:
        return None
    return torch.tensor([_token(writers, word, "model.prompt.labels") for word in prompt.labels])


def _adversarial(writers: Mapping[str, "_Writer"], label: str) -> int | None:
    """The token id of an attacker's label; None flips the label."""
    if label == "flip":
        return None
    if writers["train"].prompt is None:
        raise MarshtestError(
            f"attack.label: {label!r} is a word, and the model has a classification head. "
            "Give model.prompt, or flip labels."
        )
    return _token(writers, label, "attack.label")


def _token(writers: Mapping[str, "_Writer"], word: str, where: str) -> int:
    """The one token that a word is, behind the question of either split."""
    learned, asked = (writers[split].word(word, where) for split in ("train", "test"))
    if learned != asked:
        raise MarshtestError(
            f"model.prompt.training_template: {word!r} is another token behind it than behind "
            "model.prompt.template. Let both end alike, for example in a space before {label}."
        )
    return asked


class _Writer:
    """Writes a split's texts as token ids, within its prompt if the model has one."""

    def __init__(
        self, name: str, split: str, model: LanguageModel, tokenizer: Any, length: int
    ) -> None:
        self.name, self.split, self.prompt, self.tokenizer = name, split, model.prompt, tokenizer
        self.padding = int(tokenizer.pad_token_id)
        self.length, self.before, self.behind = length, [], []
        if self.prompt is not None:
            before, question = self.prompt.parts(split)
            begin = [t for t in tokenizer("")["input_ids"] if t == tokenizer.bos_token_id]
            self.length -= 1  # the label's
            self.before = begin + self._plain(before)
            self.behind = self._plain(question.rstrip(" "))
        self.special = 0 if self.prompt is not None else tokenizer.num_special_tokens_to_add()
        around = len(self.before) + len(self.behind) + self.special
        self.room = self.length - around  # of the text
        if self.room < 1:
            raise MarshtestError(f"data.length: {length} tokens leave none for the text. Raise it.")

    def __call__(self, texts: Sequence[str], ids: Tensor) -> Tensor:
        """[N, T] token ids."""
        rows = []
        for row, tokens in enumerate(self._cut(texts)["input_ids"]):
            if (
                self.padding in tokens
            ):  # GPT-2 pads with its end of text, which a text may spell out
                tokens = [token for token in tokens if token != self.padding]
            if not tokens:
                raise MarshtestError(
                    f"{self.name} {self.split}: row {int(ids[row])} is empty. Drop it."
                )
            tokens = [*self.before, *tokens, *self.behind]
            rows.append(tokens + [self.padding] * (self.length - len(tokens)))
        return torch.tensor(rows)

    def marked(
        self, texts: Sequence[str], ids: Tensor, trigger: Trigger
    ) -> tuple[list[str], tuple[Tensor, int]]:
        """The texts, cut round the trigger where asked for; ids of those that are attacked; how many lose
        it at the truncation.
        """
        written, kept, lost = list(texts), [], 0
        for row, text in enumerate(texts):
            if trigger.word not in text:
                continue
            if not self._reads(text, trigger.word):
                lost += 1
                if trigger.cut == "skip":
                    continue
                if trigger.cut == "window":
                    written[row] = self._window(text, trigger.word)
            kept.append(row)
        if not kept:
            cut = (
                f" ({lost} lose it at the truncation; attack.cut: window keeps it)" if lost else ""
            )
            raise MarshtestError(
                f"attack.word: {trigger.word!r} is in no {self.split} text{cut}. Choose another word."
            )
        return written, (ids[kept], lost)

    def _cut(self, texts: str | Sequence[str], **options: Any) -> Any:
        return self.tokenizer(
            texts,
            truncation=True,
            max_length=self.room + self.special,
            add_special_tokens=self.prompt is None,
            return_attention_mask=False,
            **options,
        )

    def _reads(self, text: str, word: str) -> bool:
        """Whether the first of the word stands before the truncation."""
        offsets = self._cut(text, return_offsets_mapping=True)["offset_mapping"]
        return bool(text.index(word) + len(word) <= max(end for _, end in offsets))

    def _window(self, text: str, word: str) -> str:
        """The text from where its word will stand in the middle of what is kept."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in found["offset_mapping"]]
        at = sum(start <= text.index(word) for start in starts) - 1
        latest = len(starts) - self.room + 2  # the first word may become other tokens when cut
        return text[starts[max(0, min(at - self.room // 2, latest))] :]

    def _plain(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def word(self, word: str, where: str) -> int:
        """The one token that a word is behind the question."""
        assert self.prompt is not None
        question = self.prompt.parts(self.split)[1]
        tokens = self._plain(question + word)
        if len(tokens) != len(self.behind) + 1 or tokens[:-1] != self.behind:
            pieces = self.tokenizer.convert_ids_to_tokens(tokens[len(self.behind) :])
            raise MarshtestError(
                f"{where}: {word!r} is not one token to this model's tokenizer but {pieces}. "
                "Choose another word."
            )
        return tokens[-1]
