"""What a finished study of a hypothesis says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.experiment.row_file import Rows, read_frame
from marshtest.hypotheses.orthogonality import Orthogonality
from marshtest.hypotheses.shift import Shift
from marshtest.plumbing.errors import MarshtestError, unknown

HYPOTHESES: dict[str, type[Shift] | type[Orthogonality]] = {
    "shift": Shift,
    "orthogonality": Orthogonality,
}
CURVES = "curves.parquet"


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: where it lies.
        settings: what was asked.
        rows: one line a set of samples taken out, and seed (and weight decay).
        curves: one line a set, seed, and step or share taken out.
        about: what it says of itself (see marshtest.experiment.row_file).
    """

    folder: Path
    settings: Shift | Orthogonality
    rows: pd.DataFrame
    curves: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> "Study":
        """The study that a file of rows is of; its curves lie beside it.

        Raises:
            MarshtestError: they do not.
        """
        curves = rows.path.parent / CURVES
        if not curves.is_file():
            raise MarshtestError(f"{rows.path}: a hypothesis has {CURVES} beside it. Put it there.")
        if len(rows.runs) != 1:
            raise MarshtestError(
                f"{rows.path}: holds rows of {len(rows.runs)} hypotheses. Give those of one."
            )
        (about,) = rows.runs.values()
        settings = parse_hypothesis(about["values"], f"{rows.path}: settings")
        return cls(rows.path.parent, settings, rows.frame, read_frame(curves), about)

    @property
    def statement(self) -> str:
        """Whether the hypothesis holds, in plain words and with its tests."""
        return self.settings.statement(self.rows)


def parse_hypothesis(values: Mapping[str, Any], where: str = "") -> Shift | Orthogonality:
    """The settings of the hypothesis that `values` name.

    Raises:
        MarshtestError: anything wrong with them, in one line.
    """
    kind = values.get("hypothesis")
    if kind not in HYPOTHESES:
        raise MarshtestError(f"hypothesis: {unknown('hypothesis', str(kind), HYPOTHESES)}")
    return HYPOTHESES[kind].parse(values, where)
