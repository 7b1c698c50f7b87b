"""Open a model of rows, so that it can be asked.

    pkg.mod:load             load() → an object with predict_proba     rank score
                             load() → numbers [B, C] to logits         both scores, or rank score alone
    model.pt2                a torch.export program of numbers [B, C]  both scores
    weights.safetensors      a checkpoint of marshtest, the same       both scores
    cmd:COMMAND              a command, by files                       rank score
    box:pkg.mod:function     a callable, by files                      rank score

An object with predict_proba gets a pandas DataFrame of all columns but the label, with names and types as
pandas reads them from the file; a command gets them as CSV.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from marshtest.kit.black_box import command_call
from marshtest.kit.exported import open_program
from marshtest.kit.key import Key, NoiseKey
from marshtest.kit.layouts import open_layout
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import AskedModel, FunctionModel, Kind
from marshtest.kit.noise import Scaling
from marshtest.kit.open_model import (
    TRIED,
    asked_function,
    first_that_answers,
    loaded,
    open_model,
    opened_apart,
)
from marshtest.kit.tables.boxes import FrameModel, TableBox
from marshtest.kit.tables.key import TableKey
from marshtest.kit.tables.schema import Schema
from marshtest.plumbing.device import CPU
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.imports import load_object


def open_any(
    specs: Sequence[str],
    key: NoiseKey,
    data: str | Path,
    samples: Value,
    scaling: Scaling | None,
    device: torch.device,
    in_process: bool = False,
    functions: torch.device = CPU,
    answers: Kind = "losses",
) -> list[AskedModel]:
    """Open models of rows or of images, by the kind of the key; see `open_model`.

    `data` are the data before dosing, of which a model of rows is told the columns, and one of images that
    answers with labels the classes' names.
    """
    where = device, in_process, functions
    if isinstance(key, TableKey):
        schema = key.layout(data).schema
        return [open_table_model(spec, schema, samples, *where) for spec in specs]
    assert isinstance(key, Key)
    names = open_layout(data).names if answers == "labels" else ()
    return [open_model(spec, key, samples, scaling, *where, answers, names) for spec in specs]


def open_table_model(
    spec: str,
    schema: Schema,
    samples: Value,
    device: torch.device,
    in_process: bool = False,
    functions: torch.device = CPU,
) -> AskedModel:
    """Open a model of rows; code that is not ours in a process of its own.

    Args:
        spec: one of the forms in the module's text.
        schema: the table's columns and classes, which are all that the model's process learns.
        samples: some of the rows [M, C], M > 0, as numbers.
        device: where a module is to run.
        in_process: let callables and programs run in this process. A command never does.
        functions: where a function is asked that is no `nn.Module`.

    Raises:
        MarshtestError: no such model, or one that cannot be read or does not take the rows.
    """
    if Path(spec).is_dir():
        raise MarshtestError(
            f"{spec}: is a folder, and of a table no folder can be asked. Give 'pkg.mod:load', a .pt2 "
            "program, or 'cmd:COMMAND {inputs} {outputs}'."
        )
    # Foreign code sees the trial before any question, so the trial holds no real row.
    trial = np.random.default_rng(0).permuted(samples, axis=0)[:TRIED]
    opener = partial(open_here, spec, schema, trial, device, functions)
    if ":" not in spec and Path(spec).suffix != ".pt2":
        return opener()
    return opened_apart(spec, opener, in_process)


def open_here(
    spec: str, schema: Schema, samples: Value, device: torch.device, functions: torch.device
) -> AskedModel:
    """Open a model in this process, and see that it takes the rows."""
    model = _opened(spec, schema, device, functions)
    return model if isinstance(model, TableBox) else first_that_answers([model], samples)


def _opened(spec: str, schema: Schema, device: torch.device, functions: torch.device) -> AskedModel:
    kind, _, rest = spec.partition(":")
    if kind in ("cmd", "box"):
        call = command_call(spec, rest) if kind == "cmd" else load_object(rest, spec)
        return TableBox(spec, call, schema)
    batch: int | None = None
    if Path(spec).suffix == ".pt2":
        function, batch = open_program(Path(spec), device)
    else:
        model = loaded(spec)
        if hasattr(model, "predict_proba"):
            return FrameModel(spec, model, schema)
        function, device = asked_function(spec, model, device, functions)
    schema.refuse_texts(spec)
    return FunctionModel(spec, function, lambda x: x, len(schema.classes), device, batch)
