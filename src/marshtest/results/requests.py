"""Rows where poisons were asked for in part or in turn: which of them are judged, and what is left."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from marshtest.experiment.requests import AXES, axis_of
from marshtest.metrics.dependence import Dependence, pooled
from marshtest.metrics.presentation import Score
from marshtest.metrics.trainings import Difference, error_of_mean, interval_over

Results: TypeAlias = (
    Any  # a marshtest.results.summary.Results, which asks this module for its lines
)

PARTIAL = ["updated", "exact"]  # roles of models that a request can be told of
PARTS = ("asked_", "unasked_")  # how the columns of what is left of either part begin
CELL = ["role", "entry", "unlearner", "hyperparameters", "budget"]  # pooled over seeds


def of_verdict(frame: pd.DataFrame) -> pd.DataFrame:
    """The lines that tables and verdicts are of: the largest share known, and the last request."""
    for axis in (axis for axis in AXES if axis in frame):
        updated = frame["role"] == "updated"
        last = frame[axis] == frame.loc[updated, axis].max()
        frame = frame[(updated & last) | ~frame["role"].isin(PARTIAL)]
    return frame


def with_costs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose costs add up: of requests in turn the last ones, which tell the cost of all."""
    if "request" not in frame:
        return frame
    last: pd.DataFrame = frame[
        (frame["role"] != "updated") | (frame["request"] == frame["request"].max())
    ]
    return last


def axis_in(results: Results) -> str | None:
    """The column that tells the rows' requests apart; None of a recipe without one."""
    return axis_of(results.recipe)


def values_of(results: Results, axis: str) -> list[Any]:
    """The axis's values that there are rows of after unlearning."""
    updated = results.rows["role"] == "updated"
    return sorted(results.rows.loc[updated, axis].unique().tolist())


def in_words(results: Results) -> str:
    """The share known, or the request, that tables and verdicts are of; nothing without such an axis."""
    axis = axis_in(results)
    if axis is None or not (values := values_of(results, axis)):
        return ""
    if axis == "known":
        return f"Tables and verdicts elsewhere are of unlearners that knew {values[-1]:.0%} of the poisons."
    return (
        f"Tables and verdicts elsewhere are of the models after the last of {values[-1]} requests."
    )


def at(results: Results, axis: str, value: Any) -> Results:
    """The results as if one value of the axis were all there is; exact retraining is a control then."""

    def those(frame: pd.DataFrame) -> pd.DataFrame:
        if axis not in frame:
            return frame
        lines: pd.DataFrame = frame[~frame["role"].isin(PARTIAL) | (frame[axis] == value)]
        return lines.drop(columns=axis)

    rows, scores, shifts = map(those, (results.rows, results.scores, results.shifts))
    return replace(results, rows=rows, scores=scores, shifts=shifts)


def by_request(results: Results) -> pd.DataFrame:
    """One line a (poison budget, unlearner, budget, share known or request); empty without such an axis.

    Columns are those of the summary, the axis's, and what is left of the poisons asked for (`asked_`) and
    of the others (`unasked_`) by each score, where the attack's effect is a poison's own. The unlearners of
    one value are judged together. A request that is not the last has no verdict.
    """
    axis = axis_in(results)
    if axis is None:
        return pd.DataFrame()
    values = values_of(results, axis)
    tables = [_lines(at(results, axis, value), PARTIAL).assign(**{axis: value}) for value in values]
    # Of all poisons exact unlearning is full retraining.
    everything = results.rows.loc[results.rows["role"] == "retrained", axis].max()
    tables.append(_lines(results, ["retrained"]).assign(**{axis: everything}))
    joined = pd.concat(tables, ignore_index=True)
    if axis == "request":
        joined.loc[joined[axis] < joined[axis].max(), "verdict"] = ""
    return joined


def _lines(results: Results, roles: Sequence[str]) -> pd.DataFrame:
    """The summary's lines of some roles, with what is left of either part of the poisons."""
    summary, parts = results.summary, _parts(results, roles)
    lines: pd.DataFrame = summary[summary["role"].isin(roles)]
    return lines.merge(parts, on=["poison_budget", *CELL], how="left")


def _parts(results: Results, roles: Sequence[str]) -> pd.DataFrame:
    """What is left of either part of the poisons, a line for each of the summary's."""
    lines: list[dict[str, Any]] = []
    for share in results.poison_budgets:
        chosen = results.chosen(share)
        chosen = chosen[chosen["role"].isin(roles)]
        for key, rows in chosen.groupby(CELL, sort=False):
            line = {"poison_budget": share, **dict(zip(CELL, key, strict=True))}
            for name, score in results.scores_shown.items():
                for before in PARTS:
                    line |= _left(results, rows, name, score, before)
            lines.append(line)
    return pd.DataFrame(lines, columns=None if lines else ["poison_budget", *CELL])


def _left(
    results: Results, rows: pd.DataFrame, name: str, score: Score, before: str
) -> dict[str, float]:
    """What is left by a score of one part, over the rows of one line; nothing where no row tells."""
    column = score.column or f"{name}_dependence"
    asked = f"asked_{column}"
    if asked not in results.rows:  # the effect is no poison's own
        return {}
    told = bool(rows[asked].notna().any())
    # Where all poisons have been asked for, the whole effect is that of what was asked for.
    if not told and before != "asked_":
        return {}
    source = before if told else ""
    if score.column:
        left = rows[f"{source}{column}"] - rows[f"twin_{source}{column}"]
        return Difference(left.to_numpy(dtype=np.float64)).columns(f"{before}{name}")
    fpr = float(results.recipe.attack.shown.fpr)
    parts = [Dependence.of(row, f"{source}{name}", fpr) for _, row in rows.iterrows()]
    whole = pooled(parts)
    means = np.array([part.value for part in parts])
    error = error_of_mean(means[~np.isnan(means)])
    low, high = interval_over(int((~np.isnan(means)).sum()), whole.value, error)
    of_trainings = {"error": error, "low": low, "high": high}
    coming = {f"{before}{name}_trainings_{end}": value for end, value in of_trainings.items()}
    return whole.columns(f"{before}{name}") | coming
