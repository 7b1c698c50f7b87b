"""Language models that tell a text's label, and the tokenizers that make samples of texts.

Without a prompt a linear head reads the label off the last real token (paper §5.1, Gaussian poisons).
With one the model stays a causal one and answers with a word (paper §5.1, targeted poisons):

    [text]. The sentiment of the review is: [label]

The training split may be written by a template of its own: the paper's has no colon.

Texts are cut to length, never the prompt round them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from marshtest.data import Dataset, Marked, Samples, Texts, Trigger
from marshtest.errors import MarshtestError, first_line
from marshtest.settings import ModelSettings, Settings

FUSED_GELU = "gelu_pytorch_tanh"  # what "gelu_new" computes, in one kernel


class TextClassifier(nn.Module):
    """A linear head on what a transformer says at the last real token (paper §5.1).

    Called as `transformers` models are, with token ids or with their embeddings.

    Attributes:
        causal: the backbone reads nothing behind a token, so no padding; its attention is faster unmasked.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int, *, causal: bool) -> None:
        super().__init__()
        self.backbone, self.causal = backbone, causal
        self.head = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        found: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        masked = attention_mask is not None and not self.causal
        given = {"attention_mask": attention_mask} if masked else {}
        states = self.backbone(inputs_embeds=inputs_embeds, **given).last_hidden_state  # [B, T, D]
        last = -1 if attention_mask is None else attention_mask.sum(1) - 1
        return self.head(states[torch.arange(len(states), device=states.device), last])  # type: ignore[no-any-return]


class Prompt(Settings):
    """How a causal model is asked for the label, and the words that it may answer (paper §5.1)."""

    template: str = "{text}. The sentiment of the review is: {label}"
    training_template: str | None = None  # of the training split; None is the same
    labels: tuple[str, ...] = Field(("negative", "positive"), min_length=2)  # of label 0, 1, …
    loss: Literal["all", "label"] = "all"  # the tokens that training learns to say

    @field_validator("template", "training_template")
    @classmethod
    def _has_both(cls, given: str | None, info: ValidationInfo) -> str | None:
        question = "" if given is None else given.partition("{text}")[2]
        if given is not None and (not question.endswith("{label}") or given.count("{") != 2):
            raise ValueError(
                f"model.prompt.{info.field_name}: must hold {{text}} once, and end with {{label}}. "
                f"Got {given!r}."
            )
        return given

    def parts(self, split: str) -> tuple[str, str]:
        """What stands before the text, and between text and label, in "train" or "test"."""
        own = self.training_template if split == "train" else None
        before, _, question = (own or self.template).removesuffix("{label}").partition("{text}")
        return before, question


class LanguageModel(ModelSettings, ABC):
    """A transformer for texts, and its tokenizer."""

    prompt: Prompt | None = None  # None: a classification head instead of words

    @abstractmethod
    def tokenizer(self, texts: Texts) -> Any:
        """A `transformers` tokenizer; one that has yet to be trained is trained on the training split."""

    @abstractmethod
    def transformer(self, length: int, *, causal: bool) -> nn.Module:
        """For up to `length` tokens: the transformer alone, or with its own head over the vocabulary."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        if self.prompt is not None:
            return self.transformer(input_shape[0] + 1, causal=True)  # the label comes behind
        made = self.transformer(input_shape[0], causal=False)
        causal = not self._reads_ahead(made)
        return TextClassifier(made, int(made.config.hidden_size), classes, causal=causal)  # type: ignore[union-attr, arg-type]

    def answer(self, model: nn.Module, input_shape: tuple[int, ...]) -> Any:
        if self.prompt is not None and self._reads_ahead(model):
            raise MarshtestError(
                f"model: {self.name} reads tokens ahead, so it is no causal language model. "
                "Leave out model.prompt, or choose another."
            )
        tokens = torch.zeros(2, *input_shape, dtype=torch.int64)
        return model(inputs_embeds=model.get_input_embeddings()(tokens))  # type: ignore[operator]

    @torch.no_grad()
    def _reads_ahead(self, model: nn.Module) -> bool:
        """Whether a token changes what a transformer says before it."""
        training = model.training
        model.eval()
        before: Tensor = model.get_input_embeddings()(torch.zeros(1, 4, dtype=torch.int64))  # type: ignore[operator]
        after = before.clone()
        after[:, -1, ::2] += 10  # every other one: a LayerNorm takes out what all share
        try:
            said = [model(inputs_embeds=inputs) for inputs in (before, after)]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise MarshtestError(
                f"model: {self.name} does not run from token embeddings, inputs_embeds "
                f"({first_line(error)}). Choose another."
            ) from None
        model.train(training)
        one, other = (
            of["logits" if "logits" in of else "last_hidden_state"][:, :-1] for of in said
        )
        return not torch.allclose(one, other, atol=1e-4)

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        if self.prompt is None:
            return super().fits(logits, input_shape, classes)
        return logits[:-1] == (2, *input_shape) and logits[-1] >= classes  # some are padded


class GPT2(LanguageModel):
    """A small GPT-2 from scratch, with a byte-level BPE trained on the training split."""

    name: str = "gpt2"
    layers: int = Field(2, ge=1, le=1000)
    width: int = Field(128, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    vocabulary: int = Field(4000, ge=258)  # 256 bytes and two special tokens at the least
    embedding_deviation: float = Field(0.14, gt=0)  # of tokens, as in the pretrained GPT-2

    def tokenizer(self, texts: Texts) -> Any:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

        written: Sequence[str] = texts.train
        if self.prompt is not None:  # so that each label is one token
            before, question = self.prompt.parts("train")
            labels = [self.prompt.labels[label] for label in texts.train_y.tolist()]
            written = [
                before + text + question + label
                for text, label in zip(texts.train, labels, strict=True)
            ]
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(
            written,
            vocab_size=self.vocabulary,
            special_tokens=["<pad>", "<unk>"],
            show_progress=False,
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=trained._tokenizer, pad_token="<pad>", unk_token="<unk>"
        )

    def transformer(self, length: int, *, causal: bool) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

        config = GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=length,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            activation_function=FUSED_GELU,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = GPT2LMHeadModel(config) if causal else GPT2Model(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=self.embedding_deviation)  # type: ignore[arg-type]
        return model

    def _reads_ahead(self, model: nn.Module) -> bool:
        return False  # by its making; so it can be built without values too


class Transformer(LanguageModel):
    """Any `transformers` model by hub name or local folder; safetensors only, no remote code."""

    name: str = "transformer"
    source: str  # "gpt2-medium", or a folder

    def tokenizer(self, texts: Texts) -> Any:
        from transformers import AutoTokenizer

        found = self._open(AutoTokenizer)
        if not found("a")["input_ids"]:  # what is made up where a folder has none
            raise MarshtestError(f"model.source: {self.source} holds no tokenizer. Save it there.")
        if found.pad_token is None:
            found.pad_token = found.eos_token
        if found.pad_token is None:
            raise MarshtestError(
                f"model.source: the tokenizer of {self.source} has no padding token."
            )
        return found

    def transformer(self, length: int, *, causal: bool) -> nn.Module:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        config = self._open(AutoConfig)
        for key in ("activation_function", "hidden_act"):
            if getattr(config, key, None) == "gelu_new":
                setattr(config, key, FUSED_GELU)
        kind = AutoModelForCausalLM if causal else AutoModel
        model: nn.Module = self._open(
            kind, config=config, use_safetensors=True, dtype=torch.float32
        )
        limit = getattr(config, "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < length:  # −1 means none
            raise MarshtestError(
                f"data.length: {length} tokens are more than the {limit} that {self.source} takes."
            )
        return model

    def _open(self, kind: Any, **options: Any) -> Any:
        local = Path(self.source).is_dir()
        try:
            return kind.from_pretrained(self.source, trust_remote_code=False, **options)
        except (OSError, ValueError, ImportError) as error:
            mend = (
                "It must hold config.json, a tokenizer and safetensors weights."
                if local
                else "Give a hub name that can be reached, or a local folder."
            )
            raise MarshtestError(
                f"model.source: cannot load {self.source!r} ({type(error).__name__}: {first_line(error)}). "
                f"{mend}"
            ) from None


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
