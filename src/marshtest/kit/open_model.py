"""The ways into a model that is not ours.

    weights.safetensors      our checkpoint                 both scores
    weights.safetensors@pkg.mod:fn  the same, of a model that your factory builds
    model.pt2                a torch.export program         both scores
    folder/                  a Hugging Face classifier      both scores; rank score alone if no gradient
    pkg.mod:load             load() → inputs to logits      both scores; rank score alone if no gradient
    cmd:COMMAND              a program, by files            rank score
    box:pkg.mod:function     a callable, by files           rank score

A command has {inputs} and {outputs} where the two paths go. What is code of others (all but the checkpoint
and the folder) runs in a process of its own; see `marshtest.kit.process`.
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
from marshtest.kit.layouts import Value
from marshtest.kit.model import Door, Format, Program, Way
from marshtest.kit.noise import Scaling
from marshtest.kit.process import Apart, Guarded
from marshtest.models.checkpoint import load_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.imports import load_object

TRIED = 2  # samples that a model is tried with when it is opened


def open_door(
    spec: str,
    key: Key,
    samples: Value,
    scaling: Scaling | None,
    device: torch.device,
    in_process: bool = False,
) -> Door:
    """Open a model; code that is not ours in a process of its own.

    Args:
        spec: as `open_here` takes it.
        key: tells the format of the data, and stays here.
        samples: some of the data [M, ...], M > 0, as they lie in the file.
        scaling: how values become this model's inputs; by default a Hugging Face folder's own
            image processor, and the key's scaling for all others.
        device: where the model is to run.
        in_process: let callables and programs run in this process. A command never does.

    Raises:
        MarshtestError: no such model, or one that cannot be read.
    """
    path, command = Path(spec), spec.startswith("cmd:")
    data = Format(key.classes, key.noise.pixels, scaling or key.noise.scaling)
    if path.is_dir() or not (command or ":" in spec or path.suffix == ".pt2"):
        return open_here(spec, data, samples, device, own_processor=scaling is None)
    first = samples[:TRIED]  # in disorder: what is sent before a question is no sample
    tried = np.random.default_rng(0).permutation(first.reshape(-1)).reshape(first.shape)
    opened = partial(open_here, spec, data, tried, device)
    if in_process and not command:
        return Guarded(spec, opened)
    if spec.removeprefix("box:").startswith("__main__:"):
        raise MarshtestError(
            f"{spec}: what a script or notebook defines is not there in the model's own process. Put it "
            "into a file of its own, or give in_process=True."
        )
    return Apart(spec, opened)


def open_here(
    spec: str, data: Format, samples: Value, device: torch.device, own_processor: bool = False
) -> Door:
    """Open a model in this process, and see that it takes the samples.

    Args:
        spec: one of the forms in the module's text.
        data: its format.
        samples: some of the data [M, ...], or as good as some, M > 0, as they lie in the file.
        device: where the model is to run.
        own_processor: let a Hugging Face folder's own image processor, if it has one, take the place of the
            scaling.

    Raises:
        MarshtestError: no such model, or one that cannot be read or does not take the samples.
    """
    notes = tuple[str, ...]()
    (inputs, told), *others = scaled_ways(data.scaling, data.pixels, samples.shape[1:])
    kind, _, rest = spec.partition(":")
    path = Path(spec)
    if kind == "cmd":
        return BlackBox(spec, command_call(spec, rest), inputs, data.classes, told)
    if kind == "box":
        return BlackBox(spec, load_object(rest, spec), inputs, data.classes, told)
    ways: Iterable[Way] = [(inputs, told), *others]
    batch: int | None = None
    function: Callable[[Tensor], Any]
    if path.is_dir():
        folder = open_folder(path)
        function, notes = folder.model.to(device), folder.notes
        if folder.processor is not None and own_processor and data.pixels:
            ways = preprocessed(folder, samples)
    elif path.suffix == ".pt2":
        function, batch = open_program(path, device)
    elif path.suffix == ".safetensors" or ".safetensors@" in spec:
        file, at, factory = spec.partition(".safetensors@")
        function = load_model(f"{file}.safetensors" if at else path, factory or None).to(device)
    elif ":" in spec:
        function = _loaded(spec, device)
    else:
        raise MarshtestError(
            f"{spec}: no such model. Give a .safetensors checkpoint, a .pt2 program, a Hugging Face "
            "folder, 'pkg.mod:load', 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'."
        )
    doors = (
        Program(spec, function, inputs, data.classes, device, batch, (*notes, *told))
        for inputs, told in ways
    )
    return _first_that_answers(doors, samples)


def _first_that_answers(doors: Iterable[Door], samples: Value) -> Door:
    """The first door that takes the first samples."""
    refusals = []
    for door in doors:
        try:
            door.ask(samples[:TRIED], np.zeros(len(samples[:TRIED]), np.int64))
        except MarshtestError as error:
            refusals.append(error)
        else:
            return door
    raise refusals[0]


def _loaded(spec: str, device: torch.device) -> Callable[[Tensor], Any]:
    function = load_object(spec, spec)()
    if not callable(function):
        raise MarshtestError(
            f"{spec}: must return a function from inputs to logits. Got {type(function).__name__}."
        )
    return _module(function, device) if isinstance(function, nn.Module) else function


def _module(module: nn.Module, device: torch.device) -> Callable[[Tensor], Any]:
    """The module in eval mode, asked in the precision of its parameters."""
    module = module.to(device)
    with suppress(NotImplementedError):  # an exported program's module has one mode
        module.eval()
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(dtypes, torch.float32)
    return lambda x: module(x.to(dtype))
