"""Causal language models in Hugging Face folders, with an adapter on them and rounded weights if asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from marshtest.kit.hugging_face import load_weights, reading
from marshtest.kit.records.base import Asked, Floats
from marshtest.kit.texts.adapter import adapted
from marshtest.kit.texts.base import TextModel
from marshtest.kit.texts.reading import Reader
from marshtest.kit.texts.scoring import Scorer
from marshtest.models.rounding import rounded
from marshtest.plumbing.errors import MarshtestError, refused


class CausalModel(TextModel):
    """A causal model of `transformers` with its tokenizer, on a device."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self._notes = name, notes
        self.reader = Reader(name, tokenizer, _context(model))
        self.scorer = Scorer(name, model, device)

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        with refused(f"{self.name}: cannot be asked", "Does its tokenizer belong to it?"):
            losses = self.scorer(self.reader(asked))
        self.notes = (*self._notes, *self.reader.notes)
        return losses


def open_causal(
    path: Path, device: torch.device, adapter: Path | None = None, bits: int | None = None
) -> CausalModel:
    """Open a folder; nothing is fetched, and no code or pickle in it is run.

    Args:
        path: folder of the model and its tokenizer.
        device: where the model is to run.
        adapter: folder of an adapter that `peft` wrote, which is merged into the model.
        bits: the weights are rounded to so many bits; None: they stay.

    Raises:
        MarshtestError: no causal model, no tokenizer, code of its own, pickled or missing weights, damaged
            files, or an adapter of another base.
    """
    name = str(path) if adapter is None else f"{path}@{adapter}"
    model, notes = _model(path)
    tokenizer = _tokenizer(path)
    if adapter is not None:
        model, more = adapted(model, path, adapter)
        notes += more
        if (adapter / "tokenizer_config.json").is_file():
            tokenizer = _tokenizer(adapter)
            notes += ("the adapter's own tokenizer is used",)
    if bits is not None:
        model = rounded(model, bits)
        notes += (_rounding(bits),)
    return CausalModel(name, model, tokenizer, device, notes)


def _rounding(bits: int) -> str:
    # torch.ao's own quantiser scales activations by the whole batch, so that a text's loss would depend on
    # the texts beside it; it has no 4 bits, and passes GPT-2's layers over.
    return (
        f"weights are rounded to {bits} bits in each output channel, to the nearest, by marshtest; "
        "embeddings and activations are not"
    )


def _model(path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    import transformers

    with reading(path) as safely:
        config = transformers.AutoConfig.from_pretrained(path, **safely)
        kind = (config.architectures or ["?"])[0]
        loader = transformers.AutoModelForCausalLM
        if not kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
            raise MarshtestError(f"{path}: holds a {kind}; a causal language model is needed.")
        try:  # PyTorch's own attention is the fastest, and not every family has it
            return load_weights(path, loader, config, "sdpa", **safely)
        except ValueError as error:
            if isinstance(error, MarshtestError) or "attention" not in str(error):
                raise
            return load_weights(path, loader, config, "eager", **safely)


def _tokenizer(path: Path) -> Any:
    import transformers

    with reading(path, model=False) as safely:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **safely)
        # transformers makes an empty tokenizer up if a folder has none.
        if not tokenizer("a")["input_ids"]:
            raise MarshtestError(f"{path}: holds no tokenizer. Save it there.")
    return tokenizer


def _context(model: Any) -> int | None:
    """The most tokens that a model reads; None if its configuration sets no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # −1 means none
