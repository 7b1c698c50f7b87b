"""What the columns of rows must hold: files of others are looked at before anything is made of them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.experiment.roles import Role
from marshtest.plumbing.errors import MarshtestError

ROLES = tuple(role.value for role in Role if role != Role.TWIN)
MEND = "Give the rows as they were written."


@dataclass(frozen=True)
class Kind:
    """What a value of a column must be: the same in words, and whether each of a column [R] is none."""

    words: str
    wrong: Callable[[pd.Series], NDArray[np.bool_]]


def _values(words: str, holds: Callable[[Any], bool]) -> Kind:
    """A kind that is asked value by value; equal texts are asked once."""
    asked = cache(holds)

    def wrong(column: pd.Series) -> NDArray[np.bool_]:
        return np.array([not (isinstance(value, str) and asked(value)) for value in column])

    return Kind(words, wrong)


def _numbers(
    words: str, least: float = -np.inf, most: float = np.inf, *, kinds: str = "iuf", **may: bool
) -> Kind:
    """Numbers in a column of NumPy's `kinds`; they `may` be `infinite`, `broken` or `missing`."""

    def wrong(column: pd.Series) -> NDArray[np.bool_]:
        kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else ""
        if kind not in (*kinds, "f"):
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
    except (ValueError, RecursionError):
        return False


SLACK = 1e-6  # of a share that was computed
TEXT = _values("text", lambda _: True)
NUMBER = _numbers("a finite number, or NaN for none")
SHARE = _numbers("a share from 0 to 1, or NaN for none", -SLACK, 1 + SLACK)
COUNT = _numbers("a whole number from 0, or NaN for none", 0, broken=False)
LENGTH = _numbers("a number, or NaN for none", infinite=True)  # infinite of a model that diverged
WHOLE = _numbers("a whole number", kinds="iu")

KINDS = {  # by the name's pattern; the first that fits. What fits none is an axis, and may be anything.
    "role": _values(f"one of {', '.join(ROLES)}", ROLES.__contains__),
    "hyperparameters": _values("a JSON object", _is_object),
    "recipe|unlearner|precision|device|note|set|layer": TEXT,
    "seed": _numbers("a whole number from 0", 0, kinds="iu"),
    "forget_size|parameters": _numbers("a whole number from 1", 1, kinds="iu"),
    "entry|id": WHOLE,
    "poison_budget|budget": _numbers("a share from 0 to 1", 0, 1, missing=False),
    "chance|([a-z_]+_)?accuracy|tpr(_[a-z_]+)?": SHARE,
    "(gus|rank)_(poisons|undefined|cells|tail)|vanished|ties|crafting_stopped": COUNT,
    "l1|l2|left_l1|left_l2|cosine": LENGTH,
    "(gus|rank|target|rest|twin|test)(_[a-z_]+)?|spent|seconds|scoring_seconds|error": NUMBER,
}


BESIDE = (
    "recipe|data|model|attack|epochs|passes|flops|note|crafting_.*"  # what is looked at nowhere
)


def is_known(column: str) -> bool:
    """Whether a column's name has a meaning in rows, so that no metric may take it."""
    return any(re.fullmatch(pattern, column) for pattern in (*KINDS, BESIDE))


def check_columns(frame: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    """Look whether the needed columns are there, and whether all known ones hold what they must.

    Args:
        where: how a complaint begins.

    Raises:
        MarshtestError: they do not; names the column, the row and what it must hold.
    """
    if missing := [name for name in needed if name not in frame]:
        told = ", ".join(map(repr, missing))
        raise MarshtestError(f"{where}: is no table of rows: it has no column {told}. {MEND}")
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise MarshtestError(f"{where}: column {twice[0]!r} is there twice. {MEND}")
    for name in frame:
        kind = next((kind for of, kind in KINDS.items() if re.fullmatch(of, str(name))), None)
        if kind is not None:
            _check(frame[name], kind, where)


def _check(column: pd.Series, kind: Kind, where: str) -> None:
    wrong = kind.wrong(column)
    if wrong.any():
        row = int(wrong.argmax())
        told = repr(column.tolist()[row])
        told = told if len(told) < 80 else f"{told[:80]}…"
        raise MarshtestError(
            f"{where}: column {column.name!r} ({column.dtype}) holds {told} in row {row}; it must be "
            f"{kind.words}. {MEND}"
        )
