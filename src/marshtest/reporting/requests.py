"""What is left where poisons were asked for in part or in turn, as a table."""

import pandas as pd

from marshtest.reporting.tables import (
    dependence_text,
    label,
    number,
    plus_minus,
)
from marshtest.results.requests import PARTS, axis_in, in_words
from marshtest.results.summary import Results

TITLES = {  # of the parts, by the axis
    "known": {"asked_": "known", "unasked_": "unknown"},
    "request": {"asked_": "asked so far", "unasked_": "to come"},
}
HEADS = {"known": "Known in part", "request": "Request after request"}
LEGENDS = {
    "known": "Known: share of the poisons that the unlearner was told of; the others stayed in the retain "
    "set. All, known, unknown: what is left of all poisons, of those, and of the others. Exact unlearning: "
    "trained from scratch without the known ones. The unlearners of one share are judged together, by all "
    "poisons.",
    "request": "Request: the poisons are asked for in parts of equal size, one after the other, each time "
    "of the model that the last request left, with an equal part of the budget. All, asked so far, to "
    "come: what is left of all poisons, of those asked for so far, and of the others. Exact unlearning: "
    "trained from scratch without those asked for so far. The verdict is that of the last request.",
}


def request_table(results: Results) -> pd.DataFrame:
    """What is left by share known, or request, as text; one line a model. Empty without such an axis."""
    axis, lines = axis_in(results), []
    if axis is None:
        return pd.DataFrame()
    table = results.by_request
    names = table["entry"].where(table["entry"] >= 0, len(results.recipe.unlearners))
    for _, line in (
        table.assign(order=names)
        .sort_values(["poison_budget", "order", "budget", axis], kind="stable")
        .iterrows()
    ):
        text = {"model": label(line, results.recipe)}
        if len(results.poison_budgets) > 1:
            text["poison"] = f"{100 * line['poison_budget']:g}%"
        text[axis] = f"{line[axis]:.0%}" if axis == "known" else number(line[axis], 0)
        text["accuracy"] = plus_minus(line["test_accuracy"], line["test_accuracy_sd"], 3)
        text["spent"] = f"{line['spent']:.1%}"
        for name, score in results.scores_shown.items():
            text[f"{score.title}, all"] = dependence_text(line, name)
            for before in PARTS:
                # Where no row tells a part, the attack's effect is no poison's own.
                if f"{before}{name}_dependence" in table:
                    title = f"{score.title}, {TITLES[axis][before]}"
                    text[title] = dependence_text(line, f"{before}{name}")
        lines.append(text | {"verdict": line["verdict"] or "–"})
    return pd.DataFrame(lines)


def request_legend(results: Results) -> str:
    """The meaning of the table's columns."""
    axis = axis_in(results)
    return "" if axis is None else f"{LEGENDS[axis]} {in_words(results)}"


def request_head(results: Results) -> str:
    """The heading of the table."""
    axis = axis_in(results)
    return "" if axis is None else HEADS[axis]
