"""Dose a table on disk: noise in some columns of a random part of its rows, every other cell as it was."""

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marshtest.kit.controls import refuse_untold
from marshtest.kit.key import current_versions
from marshtest.kit.layouts.base import Place, Value
from marshtest.kit.layouts.folders import digest
from marshtest.kit.places import Dosed, Places, checked_seed, chosen, read_undosed
from marshtest.kit.tables.columns import named_laws, number_laws
from marshtest.kit.tables.key import TableKey
from marshtest.kit.tables.laws import Category, Law
from marshtest.kit.tables.layout import Table
from marshtest.kit.tables.noise import TableNoise
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive

TRIED = 20  # draws of each row by which it is seen how often two are equal
SOME = 1000  # rows that are tried, about
MOST_TIED = 0.1  # share of equal draws beyond which an audit could tell next to nothing


@dataclass(frozen=True)
class TableDose(Dosed):
    """A dosed table, with its key and forget request."""

    key: TableKey
    left_out: int  # rows that have no value in one of the dosed columns, and could not be chosen
    others: tuple[str, ...]  # columns without a dose, where none were named
    ties: float  # share of a row's other draws that equal its own


def dose_table(
    source: Path,
    out: Path,
    *,
    label: str | None,
    columns: Sequence[str] | None,
    fraction: float,
    variance: float,
    seed: int | None = None,
    key_file: str | Path | None = None,
    forget_file: str | Path | None = None,
) -> TableDose:
    """Write a table to `out` with noise in some columns of a part of its rows; see `marshtest.dose`."""
    places = Places(
        source,
        out,
        Path(key_file or f"{out}.key.json"),
        Path(forget_file or f"{out}.forget.csv"),
    )
    seed = checked_seed(seed)
    places.refuse()
    table, laws, others = _opened(source, out, label, columns, variance)
    noise = TableNoise.parse({"seed": seed, "variance": variance, "columns": laws}, "dose")
    complete = _complete(table, laws)
    ids = complete[chosen(len(complete), fraction, seed)]
    clean = [label for *_, label in read_undosed(table.each, table.samples, ids, seed)]
    refuse_untold(table.labels[ids], np.array(clean, np.int64), seed)
    ties = _ties(noise, table, ids)
    writer = _Writer(noise)

    def seal(staged: Path, dosed: Sequence[Place]) -> tuple[TableKey, str]:
        key = TableKey(
            noise=noise,
            label=table.label,
            samples=table.samples,
            classes=table.classes,
            ids=tuple(ids.tolist()),
            input=digest(source).whole,
            output=digest(staged).whole,
            dosed=writer.digested.hexdigest(),
            versions=current_versions(TableKey.depends),
        )
        return key, _forget_request(dosed)

    key = places.write(lambda staged: table.copy(staged, writer, ids), seal)
    left_out = table.samples - len(complete)
    return TableDose(key, out, places.forget_file, places.key_file, left_out, others, ties)


def _opened(
    source: Path, out: Path, label: str | None, columns: Sequence[str] | None, variance: float
) -> tuple[Table, list[Law], tuple[str, ...]]:
    """The table, the laws of the columns to dose, and the columns that nobody named and that stay."""
    if not 0 < variance < math.inf:
        raise MarshtestError(f"dose: the variance must be above 0 and finite. Got {variance:g}.")
    if label is None:
        raise MarshtestError(
            "--label: name the column of class labels; --columns names those that get noise."
        )
    if source.is_file() and out.suffix != source.suffix:
        raise MarshtestError(f"{out}: must end in {source.suffix}, as {source} does.")
    table = Table(source, label)
    if columns is not None:
        return table, named_laws(table, columns), ()
    laws, others = number_laws(table)
    return table, laws, tuple(others)


def _complete(table: Table, laws: Sequence[Law]) -> NDArray[np.int64]:
    """The rows that have a value in each column to dose."""
    frame = table.source.frame[[law.name for law in laws]]
    complete: NDArray[np.int64] = np.flatnonzero(frame.notna().all(axis=1).to_numpy())
    if len(complete) < 3:
        fewest = frame.count().idxmin()
        raise MarshtestError(
            f"{table.path}: only {len(complete)} rows have a value in each column; {fewest!r} lacks most. "
            "Name other columns, or fill them."
        )
    return complete


def _ties(noise: TableNoise, table: Table, ids: NDArray[np.int64]) -> float:
    """How often two draws of a row are equal: chance would decide its rank then."""
    # By a seed of its own: neither the dose nor a fresh noise decides whether there is a dose.
    tried = noise.model_copy(update={"seed": derive(noise.seed, "ties of draws")})
    equal = []
    for i, value, _ in table.each(ids[:: max(1, len(ids) // SOME)]):
        draws = tried.fresh(value, i, TRIED)
        equal.append((draws[1:] == draws[:-1]).all(1).mean())
    share = float(np.mean(equal))
    if share > MOST_TIED:
        names = ", ".join(law.name for law in noise.columns if isinstance(law, Category))
        raise MarshtestError(
            f"dose: {share:.0%} of a row's draws would equal one another, and tell nothing. Name more "
            f"columns{f' than {names}' * bool(names)}, or give another --variance."
        )
    return share


class _Writer:
    """A function that gives each dosed row its noise, and digests what was written."""

    def __init__(self, noise: TableNoise) -> None:
        self.noise, self.digested = noise, hashlib.sha256()

    def __call__(self, seed_id: int, value: Value) -> Value:
        written = self.noise.written(value, seed_id)
        self.digested.update(written.tobytes())
        return written


def _forget_request(places: Sequence[Place]) -> str:
    """CSV of each dosed row's number."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["row"])
    writer.writerows([place.row] for place in places)
    return text.getvalue()
