"""How the numbers of a text column are written, and what is no plain number."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from marshtest.plumbing.errors import MarshtestError

PLAIN = r"-?(?:0|[1-9]\d*)(?:\.\d+)?"
EXPONENT = r"-?\d(?:\.\d+)?e[+-]\d\d+"  # as Python and NumPy write it
THOUSANDS = re.compile(
    r"[-+]?\d{1,3}([,' \u00a0\u202f]\d{3})+(\.\d+)?|[-+]?\d{1,3}(\.\d{3}){2,}(,\d+)?"
)
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?")
ZEROS = re.compile(r"-?0\d+")
CHOSEN = 12  # decimals at most that somebody chose; numbers in full have some sixteen
NUMBER = re.compile(rf"[-+]?(?:{PLAIN[2:]}|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class Style(NamedTuple):
    """How a column's numbers are written."""

    least: int = 0  # decimals that each of them has, or more
    exponents: bool = False  # whether tiny and huge ones have an exponent

    def text(self, value: float) -> str:
        """A number as the column writes it."""
        if self.exponents and "e" in repr(value):
            return repr(value)
        text = np.format_float_positional(value, trim="k", min_digits=self.least)
        return text.removesuffix(".")


def style_of(texts: "pd.Series[str]", where: Callable[[int], str]) -> Style:
    """The style of cells of numbers, none of which is missing.

    Raises:
        MarshtestError: a cell is no number that can be written again in the same way, with its place.
    """
    plain, exponent = texts.str.fullmatch(PLAIN), texts.str.fullmatch(EXPONENT)
    if exponent.any():
        # Noise is written as Python writes it: 1.4 and 1e-05, and not 1.40e+00 and 0.00001.
        python = texts[plain | exponent].map(lambda text: repr(float(text))).reindex(texts.index)
        plain &= ~python.str.contains("e", regex=False, na=False)
        exponent &= texts == python
    odd = texts[~plain & ~exponent]
    if len(odd):
        row = int(odd.index[0])
        raise MarshtestError(f"{where(row)}: {odd.iloc[0]!r} {fault_of(odd.iloc[0])}")
    digits = [len(text.partition(".")[2]) for text in texts[plain]]
    least = min(digits, default=0)
    return Style(least if least <= CHOSEN else 0, bool(exponent.any()))


def fault_of(text: str) -> str:
    """Why a text is no plain number, and the mend, as the rest of a sentence."""
    if THOUSANDS.fullmatch(text):
        return "has separators of thousands. Write numbers without them."
    if DECIMAL_COMMA.fullmatch(text):
        return "has a decimal comma. Write numbers with a point."
    if DATE.fullmatch(text):
        return "is a date, and a date with noise may be none. Name other columns."
    if ZEROS.fullmatch(text):
        return (
            "begins with 0: a code, and no number. Name other columns, or put a letter before it."
        )
    if NUMBER.fullmatch(text):
        return "is not written as plain numbers are, such as -12 or 3.40. Write it so."
    return "is no number, and other cells are. Mend or empty it, or name other columns."
