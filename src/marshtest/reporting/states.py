"""After-care in a report: each model's states as a table, and a figure of what came back."""

import math

import pandas as pd
from matplotlib.figure import Figure

from marshtest.experiment.states import ITSELF
from marshtest.reporting.shares_left import shares_left
from marshtest.reporting.tables import as_drawn, dependence_text, label, number, plus_minus
from marshtest.results.summary import Results

AS_MADE = "as it is"
COLOURS = ("#555555", "#0072B2", "#E69F00", "#009E73", "#B0478C", "#D55E00", "#7E6BC4")
SIGNS = {"NOT REMOVED": "D", "REMOVED": "o", "INCONCLUSIVE": "s"}
LEGEND = (
    "After-care: each model is measured again in other states. int8, int4: weights of convolution and "
    "linear layers rounded to so many bits in each output channel; trained_on k: k passes over held-out "
    "samples, which hold neither poison nor forget set, by the training's own settings. Left: share of the "
    "initial model's effect, by the score that shows most of those that REMOVED rests on. A model's "
    "verdict is that of its worst state: REMOVED needs every state, and for NOT REMOVED all states and "
    "unlearners are one family of Holm's correction. What comes back in a state was hidden, not removed."
)


def left_by_state(results: Results, share: float) -> pd.DataFrame:
    """The lines of `Results.states` at a poison budget, with a `label`, and what is `left`.

    `left`, with the ends `left_low` and `left_high` of its 95 % interval, is the dependence as a share of
    the initial model's own, by the telling score that shows most in the state; `title` names its state.
    """
    table = results.states
    table = table[table["poison_budget"] == share].reset_index(drop=True)
    return table.join(shares_left(results, table)).assign(
        label=[label(line, results.recipe) for _, line in table.iterrows()],
        title=table["state"].replace(ITSELF, AS_MADE),
    )


def states_table(results: Results) -> pd.DataFrame:
    """One line a model and state, as text; empty in a recipe without after-care."""
    lines = []
    for share in results.poison_budgets if results.recipe.states else ():
        for _, line in left_by_state(results, share).iterrows():
            text = {"model": line["label"], "state": line["title"]}
            if len(results.poison_budgets) > 1:
                text["poison"] = f"{100 * share:g}%"
            left = number(100 * line["left"], 0)
            text["left"] = left if math.isnan(line["left"]) else f"{left} %"
            text["accuracy"] = plus_minus(line["test_accuracy"], line["test_accuracy_sd"], 3)
            for name, score in results.scores_shown.items():
                text[score.title] = dependence_text(line, name)
            note = f" [{line['note']}]" if line["note"] else ""
            lines.append(text | {"verdict": f"{line['verdict']}{note}"})
    return pd.DataFrame(lines)


def came_back(results: Results, table: pd.DataFrame) -> Figure:
    """What is left of the poison in each model, as it is and in each state, with 95 % intervals.

    Args:
        table: from `left_by_state`.
    """
    labels, titles = table["label"].unique(), table["title"].unique()
    figure = Figure(figsize=(7.2, 1.0 + (0.16 + 0.13 * len(titles)) * len(labels)))
    panel = figure.subplots()
    margin = 100 * results.recipe.verdict.margin
    panel.axvspan(-margin, margin, color="#009E73", alpha=0.18, lw=0, label="margin of REMOVED")
    panel.axvline(0, color="#555555", lw=0.8)
    rows = {name: len(labels) - 1 - place for place, name in enumerate(labels)}
    step = 0.8 / len(titles)
    for place, (title, of) in enumerate(table.groupby("title", sort=False)):
        colour = COLOURS[place % len(COLOURS)]
        y = of["label"].map(rows) + step * ((len(titles) - 1) / 2 - place)
        panel.hlines(y, 100 * of["left_low"], 100 * of["left_high"], color=colour, lw=1.2)
        panel.plot([], [], "-", color=colour, lw=3, label=title)
        for verdict, marker in SIGNS.items():
            own = of["verdict"] == verdict
            panel.plot(100 * of["left"][own], y[own], marker, color=colour, ms=5)
    for verdict, marker in SIGNS.items():
        panel.plot([], [], marker, color="black", ls="", ms=5, label=verdict)
    panel.set_yticks(list(rows.values()), map(as_drawn, rows))
    panel.set_xlabel("left of the initial model's effect, %")
    columns = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4, "frameon": False}
    figure.tight_layout()
    figure.legend(**columns)
    return figure
