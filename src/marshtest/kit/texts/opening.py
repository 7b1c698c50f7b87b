"""Open a language model of any make, so that it can be asked.

    folder/                  a causal model of Hugging Face's, with its tokenizer
    folder@adapter           the same, with an adapter that `peft` wrote
    pkg.mod:load             load() → a function from questions to losses, or (model, tokenizer)
    cmd:COMMAND              a command, by files in JSON lines
    box:pkg.mod:function     a callable, by the same files
    http://HOST:PORT/v1#MODEL  a completions endpoint that returns the prompt's log-probabilities

A command has {inputs} and {outputs} where the two paths go; `marshtest.kit.texts.boxes` says what is in the
files. Commands and callables run in a process of their own; see `marshtest.kit.process`.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from marshtest.kit.black_box import command_call
from marshtest.kit.process import GuardedTexts, SeparateTexts
from marshtest.kit.records.base import Asked
from marshtest.kit.texts.base import TextModel
from marshtest.kit.texts.boxes import BoxTexts, FunctionTexts
from marshtest.kit.texts.causal import CausalModel, open_causal
from marshtest.kit.texts.endpoint import Endpoint
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.imports import load_object

Quantize = Literal["int8", "int4"]
# Foreign code sees the trial before any question, so the trial holds no real record.
TRIAL = (Asked(scored=" was closed.", before="Ticket 314"),)


def open_texts(
    spec: str,
    device: torch.device,
    *,
    quantize: Quantize | None = None,
    rate: float | None = None,
    in_process: bool = False,
) -> TextModel:
    """Open a language model; code that is not ours in a process of its own.

    Args:
        spec: one of the forms in the module's text.
        device: where the model is to run.
        quantize: weights of a folder's model are rounded to so many bits.
        rate: the most requests a second that an endpoint is sent; None: as many as it takes.
        in_process: let callables run in this process. A command never does.

    Raises:
        MarshtestError: no such model, or one that cannot be read or asked.
    """
    folder, _, adapter = spec.partition("@")
    if Path(spec).is_dir():  # its own name may have an @
        folder, adapter = spec, ""
    if Path(folder).is_dir():
        bits = None if quantize is None else int(quantize.removeprefix("int"))
        model = open_causal(Path(folder), device, Path(adapter) if adapter else None, bits)
        model(TRIAL)
        return model
    if ":" not in spec:
        raise MarshtestError(
            f"{spec}: no such model. Give the folder of a causal language model, FOLDER@ADAPTER, "
            "'pkg.mod:load', 'box:pkg.mod:function', 'cmd:COMMAND {inputs} {outputs}' or "
            "http://HOST:PORT/v1#MODEL."
        )
    if quantize is not None:
        raise MarshtestError(
            f"{spec}: only a folder's weights can be rounded. Leave out --quantize."
        )
    if is_endpoint(spec):
        return Endpoint(spec, rate)
    opener = partial(open_here, spec, device)
    if in_process and not spec.startswith("cmd:"):
        return GuardedTexts(spec, opener)
    if spec.removeprefix("box:").startswith("__main__:"):
        raise MarshtestError(
            f"{spec}: the model's own process does not have what a script or notebook defines. Put it "
            "into a file of its own, or give in_process=True."
        )
    return SeparateTexts(spec, opener)


def is_endpoint(spec: str) -> bool:
    """Whether a model is given as a completions endpoint, by its URL."""
    return re.match(r"\w+://", spec) is not None


def open_here(spec: str, device: torch.device) -> TextModel:
    """Open foreign code in this process, as `open_texts` says, and see that it takes questions."""
    kind, _, rest = spec.partition(":")
    model: TextModel
    if kind == "cmd":
        model = BoxTexts(spec, command_call(spec, rest))
    elif kind == "box":
        model = BoxTexts(spec, load_object(rest, spec))
    else:
        model = _loaded(spec, load_object(spec, spec)(), device)
    model(TRIAL)
    return model


def _loaded(spec: str, value: Any, device: torch.device) -> TextModel:
    """What a user's load() returned, as a model."""
    if isinstance(value, tuple) and len(value) == 2:
        return CausalModel(spec, *value, device)
    if not callable(value):
        raise MarshtestError(
            f"{spec}: must return a function from questions to losses, or (model, tokenizer). Got "
            f"{type(value).__name__}."
        )
    return FunctionTexts(spec, value)
