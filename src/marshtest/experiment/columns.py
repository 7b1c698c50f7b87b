"""What the columns of rows must hold: files of others are looked at before anything is made of them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from marshtest.attacks.presentation import Presentation, refuse_taken
from marshtest.experiment.roles import CLEAN, Role
from marshtest.metrics.presentation import Column, Name
from marshtest.plumbing.errors import MarshtestError

if TYPE_CHECKING:  # rows are looked at without torch
    from marshtest.attacks.base import Attack
    from marshtest.metrics.base import Metric

ROLES = tuple(role.value for role in Role if role not in CLEAN)
# What the harness measures of every model; an attack's figures of these names are left out.
MEASURED = ("test_accuracy", "forget_accuracy", "validation_accuracy", "scoring_seconds")
MEND = "Give the rows as they were written."


@dataclass(frozen=True)
class Kind:
    """What a value of a column must be: the same in words, and whether each of a column [R] is none."""

    words: str
    wrong: Callable[[pd.Series], NDArray[np.bool_]]


def _values(words: str, holds: Callable[[Any], bool]) -> Kind:
    """A kind that is asked value by value; equal texts are asked once."""
    remembered = cache(holds)

    def wrong(column: pd.Series) -> NDArray[np.bool_]:
        return np.array([not (isinstance(value, str) and remembered(value)) for value in column])

    return Kind(words, wrong)


def _numbers(
    words: str, least: float = -np.inf, most: float = np.inf, *, kinds: str = "iuf", **may: bool
) -> Kind:
    """Numbers in a column of NumPy's `kinds`; they `may` be `infinite`, `broken` or `missing`."""

    def wrong(column: pd.Series) -> NDArray[np.bool_]:
        kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else ""
        if kind not in (*kinds, "f"):
            # The first value that is no number is the fault; if all are numbers, the column's type is.
            plain = [isinstance(v, int | float) and not isinstance(v, bool) for v in column]
            return np.full(len(column), True) if all(plain) else ~np.array(plain)
        values = column.to_numpy(dtype=np.float64)
        bad = (values < least) | (values > most)
        if not may.get("infinite"):
            bad |= np.isinf(values)
        if not may.get("broken", True):
            bad |= (values != np.floor(values)) & ~np.isnan(values)
        if not may.get("missing", True):
            bad |= np.isnan(values)
        if kind not in kinds:  # NaN needs a column of floats
            bad = np.isnan(values) if np.isnan(values).any() else np.full(len(values), True)
        return bad

    return Kind(words, wrong)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):  # a file from outside may nest as deep as it likes
        return False


SLACK = 1e-6  # of a share that was computed: rounding may carry it a little beyond 0 or 1
TEXT = _values("text", lambda _: True)
NUMBER = _numbers("a finite number, or NaN for none")
AMOUNT = _numbers("a finite number from 0, or NaN for none", 0)
SHARE = _numbers("a share from 0 to 1, or NaN for none", -SLACK, 1 + SLACK)
COUNT = _numbers("a whole number from 0, or NaN for none", 0, broken=False)
LENGTH = _numbers("a number, or NaN for none", infinite=True)  # infinite of a model that diverged
WHOLE = _numbers("a whole number", kinds="iu")

KINDS = {  # by the name's pattern; the first that fits. What fits none is an axis, and may be anything.
    "role": _values(f"one of {', '.join(ROLES)}", ROLES.__contains__),
    "hyperparameters": _values("a JSON object", _is_object),
    "recipe|unlearner|precision|device|note|set|layer|state": TEXT,
    "seed": _numbers("a whole number from 0", 0, kinds="iu"),
    "forget_size|parameters": _numbers("a whole number from 1", 1, kinds="iu"),
    "entry|id": WHOLE,
    "poison_budget|budget": _numbers("a share from 0 to 1", 0, 1, missing=False),
    "chance|((twin_)?test_|forget_|validation_)?accuracy": SHARE,
    "crafting_stopped": COUNT,
    "l1|l2|left_l1|left_l2|cosine": LENGTH,
    "known": SHARE,
    "request": COUNT,
    "spent|state_spent|seconds|scoring_seconds": AMOUNT,
    "(un)?asked_[a-z0-9_]+|twin_[a-z0-9_]+": NUMBER,
}


def kinds_of(shown: Presentation, columns: Mapping[str, Column]) -> dict[str, Kind]:
    """What an attack's scores and further columns must hold, by the name's pattern."""
    kinds = dict[str, Kind]()
    for name, column in columns.items():
        kinds[f"{name}(_low|_high)?"] = _in_range(column)
        if isinstance(column.count, str):
            kinds[re.escape(column.count)] = COUNT
    for name in shown.scores:
        # Counts stand first: the first pattern that fits decides, and the next one fits them too.
        kinds[f"{name}_(poisons|undefined|cells|tail)"] = COUNT
        kinds[f"{name}(_[a-z_]+)?"] = NUMBER
    return kinds | dict.fromkeys(shown.reference_columns.values(), NUMBER)


def refuse_taken_columns(metrics: "Iterable[Metric]", attack: "Attack") -> None:
    """Raise MarshtestError where a metric's column is not named as columns are, or its name is taken."""
    shown, owners = attack.shown, dict[str, str]()
    for metric in metrics:
        where = f"metrics.{metric.name}"
        try:
            TypeAdapter(dict[Name, Column]).validate_python(dict(metric.columns))
            refuse_taken(shown.scores, metric.columns, where)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise MarshtestError(
                f"{where}: columns: {fault['msg']}. Got {fault['loc'][0]!r}."
            ) from None
        except ValueError as error:
            raise MarshtestError(str(error)) from None
        known_names = (*KINDS, *shown.columns, *shown.reference_columns.values())
        for name in metric.columns:
            # Patterns hold names too that only other recipes' rows have, such as a twin's.
            known = any(re.fullmatch(pattern, name) for pattern in known_names)
            if known or name in owners:
                owner = "another metric" if name in owners else "every row"
                raise MarshtestError(
                    f"{where}: {name!r} is a column of {owner}. Take another name."
                )
            owners[name] = metric.name


def _in_range(column: Column) -> Kind:
    if (column.low, column.high) == (0, 1):
        return SHARE
    low, high = column.low, column.high
    words = {"from": low, "to": high}
    bounds = " ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
    least, most = (
        -np.inf if low is None else low - SLACK * max(1, abs(low)),
        np.inf if high is None else high + SLACK * max(1, abs(high)),
    )
    return _numbers(f"a finite number {bounds}".rstrip() + ", or NaN for none", least, most)


def check_columns(
    frame: pd.DataFrame, needed: Iterable[str], where: str, kinds: Mapping[str, Kind] = KINDS
) -> None:
    """Raise MarshtestError where a needed column is lacking, or a known one holds what it must not.

    Args:
        where: how a complaint begins.
        kinds: what columns must hold, by the name's pattern; the first that fits.
    """
    if missing := [name for name in needed if name not in frame]:
        raise MarshtestError(f"{where}: has no column {', '.join(map(repr, missing))}. {MEND}")
    # pandas reads such a file, and gives two columns by one name where one is expected.
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise MarshtestError(f"{where}: column {twice[0]!r} is there twice. {MEND}")
    for name in frame:
        kind = _kind_of(str(name), kinds)
        if kind is not None:
            _check(frame[name], kind, where)


def check_values(values: Mapping[str, Any], where: str, kinds: Mapping[str, Kind]) -> None:
    """Raise MarshtestError where a value of one row is not what its column must hold."""
    for name, value in values.items():
        kind = _kind_of(name, kinds)
        if kind is not None and kind.wrong(pd.Series([value])).any():
            raise MarshtestError(f"{where}: {name!r} is {value}, and must be {kind.words}.")


def refuse_column_names(names: Iterable[str], where: str) -> None:
    """Raise MarshtestError where a name is that of a row's own column."""
    for name in names:
        if _kind_of(name, KINDS) is not None:
            raise MarshtestError(f"{where}: {name!r} is a column of every row. Take another name.")


def _kind_of(name: str, kinds: Mapping[str, Kind]) -> Kind | None:
    fitting = (kind for pattern, kind in kinds.items() if re.fullmatch(pattern, name))
    return next(fitting, None)


def _check(column: pd.Series, kind: Kind, where: str) -> None:
    wrong = kind.wrong(column)
    if wrong.any():
        row = int(wrong.argmax())
        value = repr(column.tolist()[row])
        value = value if len(value) < 80 else f"{value[:80]}…"
        raise MarshtestError(
            f"{where}: column {column.name!r} ({column.dtype}) holds {value} in row {row}; it must be "
            f"{kind.words}. {MEND}"
        )
