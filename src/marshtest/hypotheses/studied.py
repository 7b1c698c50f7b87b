"""A finished study of a hypothesis, read from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, ConfigDict

from marshtest.experiment.columns import MEND, check_columns
from marshtest.experiment.row_file import Rows, read_frame
from marshtest.hypotheses.statements import STATEMENTS
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import file_name

CURVES = "curves.parquet"
NEEDED: dict[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {  # rows, curves, sets
    "shift": (
        [
            *("weight_decay", "l1", "l2", "size_before", "accuracy_before", "accuracy", "distance"),
            *("target_probability_before", "target_probability"),
        ],
        ["weight_decay", "set", "seed", "beta", "l1", "l2"],
        ["random"],
    ),
    "orthogonality": (
        ["count", "l1", "l2", "informative", "cosine_corrupted", "cosine_random", "distance"],
        ["set", "curve", "seed", "step", "cosine"],
        ["poisons", "random"],
    ),
}


class StudySettings(Settings):
    """The settings that rows were made with: to be read, not run."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(file_name)]
    description: str = ""
    hypothesis: Literal["shift", "orthogonality"]


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: the folder of its files.
        settings: the settings that it was run with.
        rows: a line for each set of samples taken out, and seed (and weight decay).
        curves: a line for each set, seed, and step (or fraction β taken out).
        about: the metadata of its rows file; see marshtest.experiment.row_file.
    """

    folder: Path
    settings: StudySettings
    rows: pd.DataFrame
    curves: pd.DataFrame
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> "Study":
        """The study that a file of rows belongs to; its curves lie beside the file.

        Raises:
            MarshtestError: the curves, a column or a set is missing, or there are rows of several studies.
        """
        curves = rows.path.parent / CURVES
        if not curves.is_file():
            raise MarshtestError(
                f"{rows.path}: {CURVES} is missing beside this file. Put it there."
            )
        if len(rows.runs) != 1:
            raise MarshtestError(
                f"{rows.path}: holds rows of {len(rows.runs)} hypotheses. Give the rows of one."
            )
        (about,) = rows.runs.values()
        settings = StudySettings.parse(about["values"], f"{rows.path}: settings")
        of_rows, of_curves, sets = NEEDED[settings.hypothesis]
        check_columns(rows.frame, of_rows, f"{rows.path}: {settings.hypothesis} rows")
        if lacking := [name for name in sets if name not in set(rows.frame["set"])]:
            raise MarshtestError(f"{rows.path}: has no rows of set {lacking[0]!r}. {MEND}")
        table = read_frame(curves)
        check_columns(table, of_curves, str(curves))
        return cls(rows.path.parent, settings, rows.frame, table, about)

    @property
    def statement(self) -> str:
        """Whether the hypothesis holds, in plain words and with its tests."""
        return STATEMENTS[self.settings.hypothesis](self.rows)
