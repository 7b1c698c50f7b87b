"""Language models with a classification head, and the tokenizers that make samples of texts."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data import Dataset, Samples, Texts
from marshtest.errors import MarshtestError, first_line
from marshtest.settings import ModelSettings


class TextClassifier(nn.Module):
    """A linear head on what a transformer says at the last real token (paper §5.1).

    Called as `transformers` models are, with token ids or with their embeddings.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
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
        given = {} if attention_mask is None else {"attention_mask": attention_mask}
        states = self.backbone(inputs_embeds=inputs_embeds, **given).last_hidden_state  # [B, T, D]
        last = -1 if attention_mask is None else attention_mask.sum(1) - 1
        return self.head(states[torch.arange(len(states), device=states.device), last])  # type: ignore[no-any-return]


class LanguageModel(ModelSettings, ABC):
    """A transformer for texts, and its tokenizer."""

    inputs: ClassVar[torch.dtype] = torch.int64

    @abstractmethod
    def tokenizer(self, texts: Texts) -> Any:
        """A `transformers` tokenizer; one that has yet to be trained is trained on the training split."""

    @abstractmethod
    def backbone(self, length: int) -> nn.Module:
        """The transformer without a head, for texts of up to `length` tokens."""

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        backbone = self.backbone(input_shape[0])
        return TextClassifier(backbone, int(backbone.config.hidden_size), classes)  # type: ignore[union-attr, arg-type]


class GPT2(LanguageModel):
    """A small GPT-2 from scratch, with a byte-level BPE trained on the training split."""

    name: str = "gpt2"
    layers: int = Field(2, ge=1)
    width: int = Field(128, ge=1)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(4000, ge=258)  # 256 bytes and two special tokens at the least
    embedding_deviation: float = Field(
        0.14, gt=0
    )  # of token embeddings, as in the pretrained GPT-2

    def tokenizer(self, texts: Texts) -> Any:
        from tokenizers import ByteLevelBPETokenizer
        from transformers import PreTrainedTokenizerFast

        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(
            texts.train,
            vocab_size=self.vocabulary,
            special_tokens=["<pad>", "<unk>"],
            show_progress=False,
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=trained._tokenizer, pad_token="<pad>", unk_token="<unk>"
        )

    def backbone(self, length: int) -> nn.Module:
        from transformers import GPT2Config, GPT2Model

        config = GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=length,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        model: nn.Module = GPT2Model(config)
        nn.init.normal_(model.wte.weight, std=self.embedding_deviation)  # type: ignore[union-attr, arg-type]
        return model


class Transformer(LanguageModel):
    """Any `transformers` model by hub name or local folder; safetensors only, no remote code."""

    name: str = "transformer"
    source: str  # "gpt2-medium", or a folder

    def tokenizer(self, texts: Texts) -> Any:
        from transformers import AutoTokenizer

        found = self._open(AutoTokenizer)
        if found.pad_token is None:
            found.pad_token = found.eos_token
        if found.pad_token is None:
            raise MarshtestError(
                f"model.source: the tokenizer of {self.source} has no padding token."
            )
        return found

    def backbone(self, length: int) -> nn.Module:
        from transformers import AutoModel

        model: nn.Module = self._open(AutoModel, use_safetensors=True)
        limit = getattr(model.config, "max_position_embeddings", None)
        if isinstance(limit, int) and length > limit:
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


def tokenised(texts: Texts, model: LanguageModel, length: int) -> Dataset:
    """Token ids [N, T], padded on the right, texts cut off after `length` tokens.

    Raises:
        MarshtestError: a text without a token.
    """
    tokenizer = model.tokenizer(texts)
    padding = int(tokenizer.pad_token_id)

    def of(split: str, written: list[str], y: Tensor, ids: Tensor) -> Samples:
        found = tokenizer(written, truncation=True, max_length=length, add_special_tokens=True)
        # GPT-2 pads with its end of text, which a text may spell out
        kept = [[t for t in tokens if t != padding] for tokens in found["input_ids"]]
        lengths = [len(tokens) for tokens in kept]
        if 0 in lengths:
            row = int(ids[lengths.index(0)])
            raise MarshtestError(f"{texts.name} {split}: row {row} is empty. Drop it.")
        x = torch.full((len(lengths), length), padding)
        for row, tokens in enumerate(kept):
            x[row, : len(tokens)] = torch.tensor(tokens)
        return Samples(x, y, ids)

    return Dataset(
        name=texts.name,
        train=of("train", texts.train, texts.train_y, texts.train_ids),
        test=of("test", texts.test, texts.test_y, texts.test_ids),
        classes=texts.classes,
        padding=padding,
    )
