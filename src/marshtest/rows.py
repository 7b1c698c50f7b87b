"""Files of rows: each says of itself which recipes, versions and machines its rows come from.

Rows travel alone: into a paper's archive, to another machine, next to those of somebody else's run. So the
Parquet file carries, in its metadata, all values of every recipe behind it and what ran it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from marshtest.errors import MarshtestError, first_line
from marshtest.files import write

FORMAT = 2  # raised when rows of before can no longer be read as they are
NAME = "marshtest"  # of the entry in the file's metadata
FILE = "rows.parquet"
HASH = re.compile("[0-9a-f]{8}")

Kind = Literal["recipe", "hypothesis"]
# How a row is told from others, and what no row is without.
KEYS = [
    "recipe",
    "poison_budget",
    "seed",
    "role",
    "entry",
    "unlearner",
    "hyperparameters",
    "budget",
]
NEEDED = {
    "recipe": [
        *KEYS,
        *("test_accuracy", "forget_accuracy", "validation_accuracy", "forget_size"),
        *("spent", "seconds", "note", "precision", "device"),
    ],
    "hypothesis": ["seed", "set"],
}


@dataclass(frozen=True)
class Rows:
    """A file of rows.

    Attributes:
        path: where it lies.
        frame: one line a model, or a set of samples of a hypothesis; columns as in docs/rows.md.
        kind: of what they are.
        runs: by the hash of a recipe, its `values` and what ran it: `marshtest`, `algorithm`, `torch`,
            `python`, `machine`, of a run when it `started`, and the digest of `data` that the recipe
            does not determine.
    """

    path: Path
    frame: pd.DataFrame
    kind: Kind
    runs: Mapping[str, Mapping[str, Any]]


def write_rows(
    frame: pd.DataFrame,
    path: Path,
    runs: Mapping[str, Mapping[str, Any]],
    kind: Kind = "recipe",
) -> None:
    """Write rows with their origin.

    Raises:
        MarshtestError: the disk is full, or does not let itself be written.
    """
    described = frame.copy(deep=False)
    described.attrs = {NAME: {"format": FORMAT, "kind": kind, "runs": dict(runs)}}
    write(described, path)


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
    described, frame.attrs = frame.attrs.get(NAME), {}
    if not isinstance(described, Mapping) or "format" not in described:
        raise MarshtestError(
            f"{path}: is no table of rows: it does not say which recipe it comes from. Give the "
            f"{FILE} of a run or a sweep, or what `marshtest rows --out FILE.parquet` writes."
        )
    if described["format"] > FORMAT:
        raise MarshtestError(
            f"{path}: was written by a newer marshtest (rows of format {described['format']}; this one "
            f"knows {FORMAT}). Update marshtest."
        )
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
    except (OSError, ValueError) as error:
        raise MarshtestError(
            f"{path}: not a readable Parquet file ({first_line(error)}). Give the one that was written."
        ) from None


def _check(rows: Rows) -> None:
    frame, needed = rows.frame, NEEDED[rows.kind]
    missing = [name for name in needed if name not in frame]
    if missing:
        raise MarshtestError(
            f"{rows.path}: is no table of rows: it has no column {_listed(missing)}. Give the rows as "
            "they were written."
        )
    if not len(frame):
        raise MarshtestError(
            f"{rows.path}: holds no rows. Run its recipe again, or ask for other rows."
        )
    for name in (name for name in ("recipe", "seed", "role", "poison_budget") if name in needed):
        if frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax())
            raise MarshtestError(f"{rows.path}: row {row} has no {name}. Give rows as written.")
    if strange := [recipe for recipe in rows.runs if not HASH.fullmatch(recipe)]:
        raise MarshtestError(
            f"{rows.path}: {strange[0]!r} is no hash of a recipe. Give the rows as they were written."
        )
    if "recipe" in needed and (unknown := set(frame["recipe"]) - rows.runs.keys()):
        raise MarshtestError(
            f"{rows.path}: rows of recipe {_listed(sorted(unknown))} come without it. Give the rows as "
            "they were written."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
