"""What a report must know of an attack, without torch: stored beside the attack's rows, too."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from marshtest.metrics.dependence import NOTHING
from marshtest.metrics.presentation import Column, Name, Score, Text, Title
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.settings import Settings

# Endings of the names of columns that rows, summaries and figures have for each score.
OF_A_SCORE = [
    *NOTHING.columns(""),
    *("_trainings", "_trainings_error", "_trainings_low", "_trainings_high"),
    *("_margin", "_ties", "_wider"),
]


class EffectFigure(Settings):
    """How the attack's effect is drawn, beside the test accuracy."""

    axis: Text  # name of the axis
    # names in the figure's legend, by the row's column; two at most
    columns: dict[Name, Text] = Field(min_length=1, max_length=2)
    # the effect if nothing is left of the poison, as a number or the name of one of the attack's
    # options; None if it is not known
    nothing: float | str | None = None
    high: float | None = None  # end of the axis; None leaves it to the values
    # name of the figure of one poison budget and compute budget; "" draws none
    figure: str = Field("", pattern="^[a-z0-9-]*$", max_length=60)
    caption: Text = ""  # what that figure shows


class Presentation(Settings):
    """An attack in a report: its names, its scores, its further columns.

    Numbers may be given by the name of one of the attack's options, and texts may hold `{option}`; `filled`
    puts the values in their places.
    """

    title: Title  # the attack's short name, heads a column of the leaderboard
    kind: Text  # its poisons, in words
    # what verdicts rest on: any number of scores with a known null law, or one without
    scores: dict[Name, Score] = Field(min_length=1, max_length=8)
    columns: dict[Name, Column] = {}  # the further columns of its rows
    effect: EffectFigure | None = None  # its figure; None shows accuracy and what is left
    fpr: float | str = 0.01  # false positive rate of the tail test and of all TPRs
    # fresh draws among which a score ranks each poison, which bounds the score; None for no bound
    draws: int | str | None = None
    table2: bool = False  # whether rows fill the paper's Table 2, test accuracy by compute budget
    shuffled: Text = ""  # what its control of shuffled poisons is, in words; "" for none
    on_texts: Text = ""  # what was done to a text beside its label, in words

    @model_validator(mode="after")
    def _is_one_story(self) -> Self:
        if self.needs_twin and len(self.scores) > 1:
            raise ValueError(
                "presentation.scores: a score without a null law must be the only one. Leave out others."
            )
        in_figure = self.effect.columns if self.effect else {}
        if strange := in_figure.keys() - self.columns:
            raise ValueError(
                f"presentation.effect: {min(strange)!r} is not among the columns. Name it there."
            )
        refuse_taken(self.scores, self.columns, "presentation.columns")
        return self

    @property
    def needs_twin(self) -> bool:
        """Whether the effect has no known null law, and is compared with that of a clean twin."""
        return bool(self.reference_columns)

    @property
    def null_scores(self) -> dict[str, Score]:
        """The scores with a known null law."""
        return {name: score for name, score in self.scores.items() if score.column is None}

    @property
    def reference_columns(self) -> dict[str, str]:
        """The row's column that is compared with a clean twin's, for each score without a null law."""
        return {name: score.column for name, score in self.scores.items() if score.column}

    def filled(self, options: Mapping[str, Any]) -> Self:
        """The presentation with the values of options in the places of their names.

        Raises:
            MarshtestError: the name in the place of a number is no option of the attack.
        """
        values = self.model_dump()
        values["fpr"] = _number(values["fpr"], options, "fpr")
        values["draws"] = _number(values["draws"], options, "draws")
        if values["effect"]:
            values["effect"]["nothing"] = _number(values["effect"]["nothing"], options, "nothing")
        for column in values["columns"].values():
            if column["count"] in options:
                column["count"] = _number(column["count"], options, "count")
        return self.parse(_worded(values, options), "presentation")


def refuse_taken(scores: Iterable[str], columns: Iterable[str], where: str) -> None:
    """Raise ValueError if a column has the name of a score, or of a column that summaries add for one."""
    of_scores = {f"{score}{part}" for score in scores for part in ("", *OF_A_SCORE)}
    if clashing := of_scores.intersection(columns):
        raise ValueError(f"{where}: {min(clashing)!r} is a column of a score's. Take another name.")


def _number(value: Any, options: Mapping[str, Any], field: str) -> Any:
    if not isinstance(value, str):
        return value
    option = options.get(value)
    if not isinstance(option, int | float) or isinstance(option, bool):
        raise MarshtestError(
            f"presentation.{field}: {value!r} names no number among the attack's options. Give a number."
        )
    return option


def _worded(value: Any, options: Mapping[str, Any]) -> Any:
    """The value with options in the places of `{option}` in its texts."""
    if isinstance(value, dict):
        return {key: _worded(item, options) for key, item in value.items()}
    if not isinstance(value, str):
        return value

    def option(match: re.Match[str]) -> str:
        number = options.get(match[1], match[0])
        return f"{number:g}" if isinstance(number, float) else str(number)

    return re.sub(r"\{(\w+)\}", option, value)
