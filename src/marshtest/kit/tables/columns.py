"""Which columns can be dosed, and the law of each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from marshtest.kit.tables.laws import MOST_DECIMALS, Category, Law, Number, decimals, significant
from marshtest.kit.tables.layout import Table, crowded
from marshtest.kit.tables.schema import EXACT, Floats
from marshtest.kit.tables.sources import is_category
from marshtest.kit.tables.texts import CHOSEN, DATE, DECIMAL_COMMA, NUMBER, THOUSANDS, fault_of
from marshtest.plumbing.errors import MarshtestError

LOOKED_AT = 10_000  # numbers of a column whose decimals are counted
TYPICAL = 0.25  # share of the numbers that may have fewer decimals: 1.50 is often written 1.5
STEPS = 5  # steps of the last decimal in a deviation, below which rounding would take the noise


def named_laws(table: Table, names: Sequence[str]) -> list[Law]:
    """The laws of the columns that a user names.

    Raises:
        MarshtestError: no such column, the label, one twice, or one that cannot be dosed.
    """
    if not any(names):
        raise MarshtestError("--columns: names no column. Give names with commas between.")
    table.refuse_unknown(list(names), "--columns")
    if table.label in names:
        raise MarshtestError(
            f"--columns: {table.label!r} is the label, which stays. Leave it out of --columns."
        )
    if len(set(names)) < len(names):
        raise MarshtestError(f"--columns: {max(names, key=list(names).count)!r} is named twice.")
    return [law_of(table, name) for name in names]


def number_laws(table: Table) -> tuple[list[Law], list[str]]:
    """The laws of all columns of numbers that can be dosed, and the names of the other columns."""
    laws: list[Law] = []
    others: list[str] = []
    for name in table.column_names:
        try:
            law = law_of(table, name)
        except MarshtestError:
            others.append(name)
            continue
        laws.append(law) if isinstance(law, Number) else others.append(name)
    if not laws:
        raise MarshtestError(
            f"{table.path}: has no column of numbers beside {table.label!r} that can be dosed. Name "
            "columns of categories by --columns."
        )
    return laws, others


def law_of(table: Table, name: str) -> Law:
    """The law of a column.

    Raises:
        MarshtestError: it holds dates, texts, several types or one value, or is an id.
    """
    what = f"{table.path}: column {name!r}"
    place, series = table.column_names.index(name), table.source.frame[name]
    known = table.values[~series.isna().to_numpy(), place]
    feature = table.schema.features[place]
    if not len(known):
        raise MarshtestError(f"{what} is empty. Name other columns.")
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "mM":
        raise MarshtestError(f"{what} holds dates, and a date with noise may be none. Name others.")
    if feature.book is not None:
        _refuse_mixed(table, name, series)
    values, counts = np.unique(known, return_counts=True)
    if len(values) == 1:
        raise MarshtestError(f"{what} has one value in all rows. Name other columns.")
    if feature.book is None and (feature.scale is not None or not is_category(series)):
        table.source.style(name)  # raises where a cell is no plain number
        bits = {"float16": 16, "float32": 32}.get(str(series.dtype), 64)
        return _number(what, name, place, known, bits)
    if feature.book is not None and series.dtype.kind in "iu":
        raise MarshtestError(f"{what} holds numbers above 2⁵³: ids, it seems. Name other columns.")
    if crowded(len(values), len(known)):
        raise MarshtestError(
            f"{what} has {len(values):,} values in {len(known):,} rows: an id or a text, and no category. "
            "Name other columns."
        )
    return Category(
        name=name, place=place, values=tuple(values.tolist()), counts=tuple(counts.tolist())
    )


def _number(what: str, name: str, place: int, known: Floats, bits: int) -> Number:
    """The law of a column of numbers, with its deviation, range and decimals."""
    low, high = float(known.min()), float(known.max())
    if not np.isfinite(known).all() or max(-low, high) >= EXACT:
        raise MarshtestError(f"{what} holds infinite or huge numbers. Mend it, or name others.")
    whole = (known % 1 == 0).all()
    if whole and high - low == len(known) - 1 and len(np.unique(known)) == len(known):
        raise MarshtestError(f"{what} numbers the rows. Name other columns.")
    deviation = float(np.std(known))
    if not 0 < deviation < np.inf:
        raise MarshtestError(f"{what} has no deviation that noise could be measured by.")
    some = known[:: max(1, len(known) // LOOKED_AT)].tolist()
    most = max(decimals(x) for x in some)
    if bits == 64 and most > CHOSEN and (known == known.astype(np.float32)).all():
        bits = 32  # they were such before they came into the file, and noise must look so, too
    law: dict[str, Any] = {"deviation": deviation, "low": low, "high": high, "bits": bits}
    law |= {"name": name, "place": place, "digits": max(map(significant, some))}
    step = _step(known, 10.0 ** min(most, MOST_DECIMALS))
    exact = most if step > 1 else _decimals(some, deviation, bits)
    return Number.parse(law | {"decimals": exact, "step": step}, what)


def _step(known: Floats, scale: float) -> int:
    """The largest step of which all numbers are multiples, in units of the last decimal."""
    steps = np.rint(known * scale)
    if np.abs(steps).max() >= EXACT or (steps / scale != known).any():
        return 1
    return int(np.gcd.reduce(steps.astype(np.int64)))


def _decimals(some: Sequence[float], deviation: float, bits: int) -> int:
    """The decimals that noise is rounded to: as many as most of the numbers have.

    Where a quarter of them are whole, such as zeros, these may be too few for the noise: then as many as
    make STEPS steps of a deviation, if the other numbers have them.
    """
    counts = np.array([decimals(x, bits) for x in some])
    if not counts.any():
        return 0
    most, fractions = (int(np.quantile(part, TYPICAL)) for part in (counts, counts[counts > 0]))
    enough = math.ceil(math.log10(STEPS / deviation))
    return max(most, min(enough, fractions))


def _refuse_mixed(table: Table, name: str, series: "pd.Series[Any]") -> None:
    """Raise if texts are dates, or some of them numbers: then noise was meant, and cannot be written."""
    known = series[series.notna()]
    if not known.map(lambda cell: isinstance(cell, str)).all():
        return
    texts = known.astype(str).reset_index(drop=True)
    rows = np.flatnonzero(series.notna().to_numpy())
    numbers = texts.map(lambda text: bool(NUMBER.fullmatch(text))).to_numpy(bool)
    odd = texts.map(lambda t: bool(THOUSANDS.fullmatch(t) or DECIMAL_COMMA.fullmatch(t)))
    dates = texts.map(lambda text: bool(DATE.fullmatch(text))).to_numpy(bool)
    where = f"{table.where(int(rows[np.argmin(numbers)]))}, column {name!r}"
    if numbers.all():
        raise MarshtestError(f"{where}: holds numbers as texts. Store them as numbers.")
    if numbers.any() or odd.all() or dates.all():
        text = texts[int(np.argmin(numbers))]
        raise MarshtestError(f"{where}: {text!r} {fault_of(text)}")
