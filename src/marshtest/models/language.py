"""Language models that tell a text's label, and the tokenizers that make samples of texts.

Without a prompt a linear head reads the label off the last real token (paper §5.1, Gaussian poisons).
With a prompt the model stays a causal one and answers with a word (paper §5.1, targeted poisons):

    [text]. The sentiment of the review is: [label]

The training split may have another template: the paper's has no colon there. A text that is too long is
cut, the prompt around it never is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from marshtest.data.texts import Texts
from marshtest.models.base import ModelSettings
from marshtest.plumbing.errors import MarshtestError, first_line, refused
from marshtest.plumbing.file_digests import below, files_digest
from marshtest.plumbing.settings import Settings

FUSED_GELU = "gelu_pytorch_tanh"  # what "gelu_new" computes, in one kernel


class TextClassifier(nn.Module):
    """A linear head on a transformer's state at the last real token (paper §5.1).

    It is called as `transformers` models are, with token ids [B, T] or their embeddings [B, T, D], and
    answers with logits [B, C]. `causal` says that the backbone reads no token to the right.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int, *, causal: bool) -> None:
        super().__init__()
        self.backbone, self.causal = backbone, causal
        # As in transformers' GPT2ForSequenceClassification: no bias, deviation 0.02.
        self.head = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        embedding: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        # A causal backbone is not given the mask, which slows attention down: no real token reads the
        # padding on its right.
        masked = attention_mask is not None and not self.causal
        mask = {"attention_mask": attention_mask} if masked else {}
        states = self.backbone(inputs_embeds=inputs_embeds, **mask).last_hidden_state  # [B, T, D]
        last = -1 if attention_mask is None else attention_mask.sum(1) - 1
        return self.head(states[torch.arange(len(states), device=states.device), last])  # type: ignore[no-any-return]


class Prompt(Settings):
    """How a causal model is asked for the label, and the words that it may answer (paper §5.1)."""

    template: str = "{text}. The sentiment of the review is: {label}"
    training_template: str | None = None  # for the training split; None: the same template
    labels: tuple[str, ...] = Field(("negative", "positive"), min_length=2)  # of label 0, 1, …
    loss: Literal["all", "label"] = "all"  # the tokens that training learns to say

    @field_validator("template", "training_template")
    @classmethod
    def _has_both(cls, template: str | None, info: ValidationInfo) -> str | None:
        question = "" if template is None else template.partition("{text}")[2]
        if template is not None and (not question.endswith("{label}") or template.count("{") != 2):
            raise ValueError(
                f"model.prompt.{info.field_name}: must hold {{text}} once, and end with {{label}}. "
                f"Got {template!r}."
            )
        return template

    def parts(self, split: str) -> tuple[str, str]:
        """The prompt's words before the text, and those between text and label; split is train or test."""
        trained = self.training_template if split == "train" else None
        before, _, question = (trained or self.template).removesuffix("{label}").partition("{text}")
        return before, question


class LanguageModel(ModelSettings, ABC):
    """Settings of a transformer for texts, and of its tokenizer."""

    prompt: Prompt | None = None  # None: a classification head instead of words

    @abstractmethod
    def tokenizer(self, texts: Texts) -> Any:
        """A `transformers` tokenizer; a new one is trained on the training split of the texts."""

    @abstractmethod
    def transformer(self, length: int, *, causal: bool) -> nn.Module:
        """A transformer for up to `length` tokens; a causal one has its head over the vocabulary."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        if self.prompt is not None:
            return self.transformer(input_shape[0] + 1, causal=True)  # the label comes behind
        backbone = self.transformer(input_shape[0], causal=False)
        causal = not self._reads_ahead(backbone)
        return TextClassifier(backbone, int(backbone.config.hidden_size), classes, causal=causal)  # type: ignore[union-attr, arg-type]

    def answer(self, model: nn.Module, input_shape: tuple[int, ...]) -> Any:
        if self.prompt is not None and self._reads_ahead(model):
            raise MarshtestError(
                f"model: {self.name} reads tokens ahead, so it is no causal language model and cannot "
                "answer with words. Leave out model.prompt, or choose another model."
            )
        tokens = torch.zeros(2, *input_shape, dtype=torch.int64)
        return model(inputs_embeds=model.get_input_embeddings()(tokens))  # type: ignore[operator]

    @torch.no_grad()
    def _reads_ahead(self, model: nn.Module) -> bool:
        """Whether a token changes what a transformer says at the tokens before it.

        It is tried out, since no field of a configuration tells for every family of models.
        """
        training = model.training
        model.eval()  # or dropout would make equal answers differ
        before: Tensor = model.get_input_embeddings()(torch.zeros(1, 4, dtype=torch.int64))  # type: ignore[operator]
        after = before.clone()
        after[:, -1, ::2] += 10  # every other number: a LayerNorm takes out what all of them share
        try:
            answers = [model(inputs_embeds=inputs) for inputs in (before, after)]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise MarshtestError(
                f"model: {self.name} does not run from token embeddings, inputs_embeds "
                f"({first_line(error)}). Choose another model."
            ) from None
        model.train(training)
        first, second = (
            answer["logits" if "logits" in answer else "last_hidden_state"][:, :-1]
            for answer in answers
        )
        return not torch.allclose(first, second, atol=1e-4)

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        if self.prompt is None:
            return super().fits(logits, input_shape, classes)
        # Some models pad their vocabulary, so there may be more logits than tokens.
        return logits[:-1] == (2, *input_shape) and logits[-1] >= classes


class GPT2(LanguageModel):
    """A small GPT-2 from scratch, with a byte-level BPE trained on the training split."""

    name: str = "gpt2"
    layers: int = Field(2, ge=1, le=1000)
    width: int = Field(128, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    vocabulary: int = Field(4000, ge=258)  # 256 bytes and two special tokens at the least
    embedding_deviation: float = Field(0.14, gt=0)  # standard deviation, as in the pretrained GPT-2

    def tokenizer(self, texts: Texts) -> Any:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

        prompts: Sequence[str] = texts.train
        if self.prompt is not None:  # so that each label's word becomes one token
            before, question = self.prompt.parts("train")
            labels = [self.prompt.labels[label] for label in texts.train_y.tolist()]
            prompts = [
                before + text + question + label
                for text, label in zip(texts.train, labels, strict=True)
            ]
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(
            prompts,
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
            bos_token_id=None,  # by default 50256, which a small vocabulary does not have
            eos_token_id=None,
        )
        model = GPT2LMHeadModel(config) if causal else GPT2Model(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=self.embedding_deviation)  # type: ignore[arg-type]
        return model

    def _reads_ahead(self, model: nn.Module) -> bool:
        return False  # known, and not tried out: an outline on the meta device has no values to try


class Transformer(LanguageModel):
    """Any `transformers` model by hub name or local folder; safetensors only, no remote code."""

    name: str = "transformer"
    source: str  # "gpt2-medium", or a folder
    # Digest of a folder's files, which the recipe does not determine; empty of the hub's, and before a run.
    files: str = Field("", exclude_if=lambda files: not files)

    def imported(self) -> Self:
        """The same with the digest of a local folder's files; a MarshtestError if it is not as stored."""
        folder = Path(self.source)
        if not folder.is_dir() and not self.files:
            return self
        read = {name: file for name, file in below(folder).items() if file.suffix != ".md"}
        now = files_digest(read, "model.source")
        if self.files not in ("", now):
            raise MarshtestError(
                f"model.source: the files of {self.source} are not those that the recipe was stored with. "
                "Restore them, or leave out model.files."
            )
        return self.model_copy(update={"files": now})

    def tokenizer(self, texts: Texts) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._open(AutoTokenizer)
        # transformers makes an empty tokenizer up if a folder has none.
        if not tokenizer("a")["input_ids"]:
            raise MarshtestError(f"model.source: {self.source} holds no tokenizer. Save it there.")
        if tokenizer.pad_token is None:  # GPT-2's, for one
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise MarshtestError(
                f"model.source: the tokenizer of {self.source} has no padding token. Give it one, and "
                "save it there."
            )
        return tokenizer

    def transformer(self, length: int, *, causal: bool) -> nn.Module:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        config = self._open(AutoConfig)
        for key in ("activation_function", "hidden_act"):
            if getattr(config, key, None) == "gelu_new":
                setattr(config, key, FUSED_GELU)  # the same function, much faster
        # Whatever the file holds: it could name a kernel, code that would be fetched and run.
        config._attn_implementation = None
        # float32 whatever the file holds: gradients and scores are computed in it.
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
        mend = "Give a hub name that can be reached, or a local folder."
        if Path(self.source).is_dir():
            mend = "It must hold config.json, a tokenizer and safetensors weights."
        fault = f"model.source: cannot load {self.source!r}"
        with refused(fault, mend, (OSError, ValueError, ImportError)):
            return kind.from_pretrained(self.source, trust_remote_code=False, **options)
