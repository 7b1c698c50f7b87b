"""Open a model of any make, so that it can be asked.

    weights.safetensors      a checkpoint of marshtest      both scores
    weights.safetensors@pkg.mod:fn  the same, for a model that your factory builds
    model.pt2                a torch.export program         both scores
    folder/                  a Hugging Face classifier      both scores; rank score alone if no gradient
    pkg.mod:load             load() → inputs to logits      both scores; rank score alone if no gradient
    cmd:COMMAND              a command, by files            rank score
    box:pkg.mod:function     a callable, by files           rank score

A command has {inputs} and {outputs} where the two paths go. Foreign code (all but the checkpoint and the
folder) runs in a process of its own; see `marshtest.kit.process`.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marshtest.kit.black_box import BlackBox, command_call
from marshtest.kit.exported import open_program
from marshtest.kit.hugging_face import open_folder, preprocessed
from marshtest.kit.inputs import scaled_ways
from marshtest.kit.key import Key
from marshtest.kit.labels import LabelModel, by_box, by_function
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import AskedModel, Format, FunctionModel, Kind, Way
from marshtest.kit.noise import Scaling
from marshtest.kit.process import GuardedModel, SeparateModel
from marshtest.models.checkpoint import load_model
from marshtest.models.state import copied
from marshtest.plumbing.device import CPU
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.imports import load_object

TRIED = 2  # samples that a model is tried with when it is opened


def open_model(
    spec: str,
    key: Key,
    samples: Value,
    scaling: Scaling | None,
    device: torch.device,
    in_process: bool = False,
    functions: torch.device = CPU,
    answers: Kind = "losses",
    names: tuple[str, ...] = (),
) -> AskedModel:
    """Open a model; code that is not ours in a process of its own.

    Args:
        spec: one of the forms in the module's text.
        key: gives the format of the data; the key itself stays in this process.
        samples: some of the data [M, ...], M > 0, as they lie in the file.
        scaling: how values become this model's inputs; see `audit`.
        device: where the model is to run.
        in_process: let callables and programs run in this process. A command never does.
        functions: where a function is asked that is no `nn.Module`, and may not be PyTorch's at all.
        answers: what a black box, or a user's function, answers with.
        names: of the classes, where the data set has names.

    Raises:
        MarshtestError: no such model, or one that cannot be read or does not take the samples.
    """
    path, is_command = Path(spec), spec.startswith("cmd:")
    scaling_used = scaling or key.noise.scaling
    data = Format(key.classes, key.noise.pixels, scaling_used, answers, names)
    own = path.is_dir() or not (is_command or ":" in spec or path.suffix == ".pt2")
    tells_more = own or path.suffix == ".pt2" or ".safetensors@" in spec
    if answers == "labels" and tells_more and not spec.startswith(("cmd:", "box:")):
        raise MarshtestError(
            f"{spec}: --answers labels is for models that give nothing but labels ('pkg.mod:load', "
            "'box:…', 'cmd:…'). This one tells more: leave the option out."
        )
    if own:
        return open_here(spec, data, samples, device, own_processor=scaling is None)
    # Foreign code sees the trial before any question, so the trial holds no real sample: the
    # first ones have their values shuffled.
    first = samples[:TRIED]
    trial = np.random.default_rng(0).permutation(first.reshape(-1)).reshape(first.shape)
    return opened_apart(spec, partial(open_here, spec, data, trial, device, functions), in_process)


def opened_apart(spec: str, opener: Callable[[], AskedModel], in_process: bool) -> AskedModel:
    """A model whose code is not ours, in a process of its own; in this one if asked, but for a command."""
    if in_process and not spec.startswith("cmd:"):
        return GuardedModel(spec, opener)
    if spec.removeprefix("box:").startswith("__main__:"):
        raise MarshtestError(
            f"{spec}: the model's own process does not have what a script or notebook defines. Put it "
            "into a file of its own, or give in_process=True."
        )
    return SeparateModel(spec, opener)


def open_here(
    spec: str,
    data: Format,
    samples: Value,
    device: torch.device,
    functions: torch.device = CPU,
    own_processor: bool = False,
) -> AskedModel:
    """Open a model in this process, as `open_model` says, and see that it takes the samples.

    A Hugging Face folder's own image processor takes the place of the scaling, if `own_processor`.
    """
    ways: Iterable[Way] = scaled_ways(data.scaling, data.pixels, samples.shape[1:])
    kind, _, rest = spec.partition(":")
    if kind in ("cmd", "box"):
        inputs, notes = next(iter(ways))
        call = command_call(spec, rest) if kind == "cmd" else load_object(rest, spec)
        if data.answers == "labels":
            labels = by_box(spec, call)
            return LabelModel(spec, labels, inputs, data.classes, data.names, notes)
        return BlackBox(spec, call, inputs, data.classes, notes)
    batch: int | None = None
    folder_notes = tuple[str, ...]()
    function: Callable[[Tensor], Any]
    if Path(spec).is_dir():
        folder = open_folder(Path(spec))
        function, folder_notes = folder.model.to(device), folder.notes
        if folder.processor is not None and own_processor and data.pixels:
            ways = preprocessed(folder, samples)
    elif Path(spec).suffix == ".pt2":
        function, batch = open_program(Path(spec), device)
    else:
        made = loaded(spec)
        if data.answers == "labels":
            if isinstance(made, nn.Module):
                made = _module_function(made, CPU)
            return first_that_answers(
                (
                    LabelModel(spec, by_function(spec, made), way, data.classes, data.names, notes)
                    for way, notes in ways
                ),
                samples,
            )
        function, device = asked_function(spec, made, device, functions)
    models = (
        FunctionModel(spec, function, inputs, data.classes, device, batch, (*folder_notes, *notes))
        for inputs, notes in ways
    )
    return first_that_answers(models, samples)


def loaded(spec: str) -> Any:
    """Our checkpoint, or what a user's load() returns."""
    if spec.endswith(".safetensors") or ".safetensors@" in spec:
        file, at, factory = spec.partition(".safetensors@")
        return load_model(f"{file}.safetensors" if at else spec, factory or None)
    if ":" not in spec:
        raise MarshtestError(
            f"{spec}: no such model. Give a .safetensors checkpoint, a .pt2 program, a Hugging Face "
            "folder, 'pkg.mod:load', 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'."
        )
    return load_object(spec, spec)()


def asked_function(
    spec: str, function: Any, device: torch.device, functions: torch.device
) -> tuple[Callable[[Tensor], Any], torch.device]:
    """A function from inputs to logits, and the device to ask it on: a module's, or that of functions."""
    if not callable(function):
        raise MarshtestError(
            f"{spec}: must return a function from inputs to logits. Got {type(function).__name__}."
        )
    if isinstance(function, nn.Module):
        return _module_function(function, device), device
    return function, functions


def _module_function(module: nn.Module, device: torch.device) -> Callable[[Tensor], Any]:
    """The module in eval mode, asked in the precision of its parameters."""
    if any(parameter.device.type != device.type for parameter in module.parameters()):
        with suppress(MarshtestError):  # it cannot be copied
            module = copied(module)  # the user may ask the module itself where it is
    module = module.to(device)
    with suppress(NotImplementedError):  # an exported program's module has one mode
        module.eval()
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(dtypes, torch.float32)
    return lambda x: module(x.to(dtype))


def first_that_answers(models: Iterable[AskedModel], samples: Value) -> AskedModel:
    """The first of one model's ways to be fed in which it takes the first samples."""
    refusals = []
    for model in models:
        try:
            model.ask(samples[:TRIED], np.zeros(len(samples[:TRIED]), np.int64))
        except MarshtestError as error:
            refusals.append(error)
        else:
            return model
    raise refusals[0]  # the plain way comes first, and its refusal says most
