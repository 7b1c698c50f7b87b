"""Files of rows: each says of itself which recipes, versions and machines its rows come from.

Rows travel alone: into a paper's archive, to another machine, next to those of somebody else's run. So the
Parquet file carries, in its metadata, all values of every recipe behind it and what ran it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marshtest.attacks.presentation import Presentation
from marshtest.experiment.cells import CELL, STATE
from marshtest.experiment.columns import MEND, check_columns
from marshtest.experiment.states import ITSELF
from marshtest.metrics.presentation import Column, Name
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.whole_files import write

FORMAT = 2  # raised when rows of before can no longer be read as they are
NAME = "marshtest"  # of the entry in the file's metadata
ATTRS = b"PANDAS_ATTRS"  # in which pandas keeps it
FILE = "rows.parquet"
MODELS = "models.parquet"  # beside it, the list of the models that a run kept

Kind = Literal["recipe", "hypothesis"]
# How a row is told from others, and what no row is without.
KEYS = ["recipe", *CELL, "entry"]
NEEDED = {
    "recipe": [
        *KEYS,
        *("test_accuracy", "forget_accuracy", "validation_accuracy", "forget_size"),
        *("spent", "seconds", "note", "precision", "device", "chance"),
    ],
    "hypothesis": ["seed", "set"],
}


class Run(BaseModel):
    """What a file says of a recipe's run; what others add is let be."""

    model_config = ConfigDict(strict=True)

    values: dict[str, Any]
    marshtest: str
    commit: str | None = None
    algorithm: int
    torch: str
    python: str
    machine: str
    data: str | None
    started: str | None = None
    presentation: Presentation | None = None
    metrics: dict[Name, Column] = {}


class _Described(BaseModel):
    """A file's metadata."""

    model_config = ConfigDict(strict=True)

    format: int
    kind: Kind
    # Hex digits and nothing else: a reader looks for the folder of that name.
    runs: dict[Annotated[str, Field(pattern="^[0-9a-f]{8}$")], Run] = Field(min_length=1)


@dataclass(frozen=True)
class Rows:
    """A file of rows.

    Attributes:
        path: where it lies.
        frame: one line a model, or a set of samples of a hypothesis; columns as in docs/rows.md.
        kind: of what they are.
        runs: by the hash of a recipe, its `values` and what ran it: `marshtest`, its `commit` where it ran
            from a git checkout, `algorithm`, `torch`, `python`, `machine`, of a run when it `started`, the
            digest of `data` that the recipe does not determine; and what a report must know of its attack
            (`presentation`) and of the columns of further `metrics`.
    """

    path: Path
    frame: pd.DataFrame
    kind: Kind
    runs: Mapping[str, Mapping[str, Any]]


def write_rows(
    frame: pd.DataFrame, path: Path, runs: Mapping[str, Mapping[str, Any]], kind: Kind = "recipe"
) -> None:
    """Write rows with their origin.

    Raises:
        MarshtestError: the disk is full, or does not let itself be written.
    """
    # pandas puts `attrs` into a Parquet file's metadata. The copy keeps them off the caller's frame.
    described = frame.copy(deep=False)
    if STATE in described:  # of several recipes, some without after-care
        described[STATE] = described[STATE].fillna(ITSELF)
    described.attrs = {NAME: {"format": FORMAT, "kind": kind, "runs": dict(runs)}}
    write(described, path)


def recipes_in(path: Path) -> set[str]:
    """Hashes of the recipes that a file of rows is of, by its metadata alone; none of another file."""
    try:
        described = json.loads((pq.read_schema(path).metadata or {})[ATTRS])[NAME]
        return set(described["runs"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def read_file(source: str | Path) -> Rows:
    """Read a file of rows, or the one in a folder.

    Raises:
        MarshtestError: there is none, it is damaged, of a newer version, empty, or no rows.
    """
    path = Path(source)
    if path.is_dir() or not path.suffix:
        path /= FILE
    if not path.is_file():
        what = f"holds no finished run (no {FILE})" if path.name == FILE else "no such file"
        raise MarshtestError(f"{path.parent if path.name == FILE else path}: {what}.")
    frame = read_frame(path)
    # Taken off the frame: pandas would copy them into all that is made of it.
    described, frame.attrs = frame.attrs.get(NAME), {}
    if not isinstance(described, Mapping) or "format" not in described:
        raise MarshtestError(
            f"{path}: is not a marshtest rows file: its metadata name no recipe. Give the "
            f"{FILE} of a run or a sweep, or what `marshtest rows --out FILE.parquet` writes."
        )
    newer = isinstance(described["format"], int) and described["format"] > FORMAT
    if newer:  # whose metadata may be others
        raise MarshtestError(
            f"{path}: was written by a newer marshtest (rows of format {described['format']}; this one "
            f"knows {FORMAT}). Update marshtest."
        )
    _check_described(described, path)
    if described["format"] < FORMAT and described["kind"] == "recipe":
        raise MarshtestError(
            f"{path}: was written by an older marshtest (rows of format {described['format']}; this one "
            f"needs {FORMAT}), and lacks what verdicts rest on. Run its recipe again."
        )
    rows = Rows(path, frame, described["kind"], described["runs"])
    _check(rows)
    return rows


def read_frame(path: Path) -> pd.DataFrame:
    """A Parquet file.

    Raises:
        MarshtestError: it cannot be read.
    """
    try:
        return pd.read_parquet(path)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,
        RecursionError,
    ) as error:
        raise MarshtestError(
            f"{path}: not a readable Parquet file ({first_line(error)}). Give the one that was written."
        ) from None


def _check_described(described: Mapping[str, Any], path: Path) -> None:
    try:
        _Described.model_validate(described)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        value = repr(first["input"])
        got = f" Got {value}." if first["type"] != "missing" and len(value) < 80 else ""
        raise MarshtestError(f"{path}: metadata {key}: {first['msg']}.{got} {MEND}") from None


def _check(rows: Rows) -> None:
    frame, needed = rows.frame, NEEDED[rows.kind]
    if not len(frame):
        raise MarshtestError(
            f"{rows.path}: holds no rows. Run its recipe again, or ask for other rows."
        )
    check_columns(frame, needed, str(rows.path))
    if "recipe" in needed and (unknown := set(frame["recipe"]) - rows.runs.keys()):
        names = ", ".join(map(repr, sorted(unknown)))
        raise MarshtestError(f"{rows.path}: rows of recipe {names} come without it. {MEND}")
