"""The paper's Figures 2, 3 and 6 to 10, drawn from rows and scores, and figures of the verdicts.

What the rows do not hold is named in the figure, and nothing is put in its place.

Colours are Okabe and Ito's, told apart by the colour-blind; hatches and line styles repeat what
colours say, so that grey prints stay legible.
"""

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from marshtest.attacks.presentation import EffectFigure
from marshtest.metrics.presentation import Column, Score
from marshtest.metrics.shift_columns import ALL
from marshtest.metrics.tradeoff import (
    gaussian_tradeoff,
    gaussian_tradeoff_two_sided,
    tpr_at_fpr,
    tpr_at_fpr_one_sided,
    tradeoff,
)
from marshtest.plumbing.whole_files import write
from marshtest.reporting.states import came_back, left_by_state
from marshtest.reporting.tables import as_drawn, drawn_label, rivals
from marshtest.results.line_to_beat import LINE, has_tuned
from marshtest.results.requests import PARTS, axis_in, values_of
from marshtest.results.summary import Results, wider_error

Floats = NDArray[np.float64]
Bar = tuple[str, str, str, str]  # column, its name in the legend, colour, hatch
Series = tuple[str, pd.DataFrame, dict[str, Any]]  # name, lines of the table, how they look
BLUE, ORANGE, GREEN, BROWN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C510A", "#555555"
RED = "#B2182B"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: many publishers refuse the default, Type 3
}


def draw_all(results: Results, folder: Path, before: str = "") -> dict[str, Path]:
    """Draw every figure that the rows can fill, as PNG and PDF; their PNG paths by figure name.

    Those of one poison budget show `results.poison_budget`; Figures 9 and 10 show all.

    Args:
        before: beginning of the files' names.
    """
    # In a context, and by Figure objects below: pyplot keeps style and figures for the whole process,
    # which is the caller's.
    with matplotlib.rc_context(STYLE):
        figures = figures_of(results, results.poison_budget)
        if len(results.poison_budgets) > 1:
            figures |= figures_by_size(results)
        return {name: save(figure, folder / f"{before}{name}") for name, figure in figures.items()}


def figures_of(results: Results, share: float) -> dict[str, Figure]:
    """The figures of one poison budget; of several compute budgets at `results.budget`."""
    # Most figures show one compute budget; those along the budgets take every line.
    every, shown = _table(results, share), results.recipe.attack.shown
    table = every[(every["role"] != "updated") | (every["budget"] == results.budget)]
    drawn = {"dependence": dependence(table, shown.scores, results.recipe.verdict.margin)}
    if titled := {n: c for n, c in results.recipe.metric_columns.items() if c.title}:
        drawn["metrics"] = metrics(table, titled)
    if results.recipe.states:
        drawn["came-back"] = _came_back(results, share)
    if len(moved := results.moved):
        moved = moved[moved["poison_budget"] == share]
        labels = [drawn_label(line, results.recipe) for _, line in moved.iterrows()]
        drawn["shift"] = shift(moved.assign(label=labels))
    if len(results.budgets) > 1:
        drawn["figure8"] = by_unlearner(every, "budget", shown.effect)
        drawn["left-by-budget"] = ablation(results, "budget", "poison_budget", share)
    if shown.effect and shown.effect.figure:
        drawn[shown.effect.figure] = accuracy_and(table, shown.effect)
    if (axis := axis_in(results)) is not None:
        drawn[f"left-by-{axis}"] = left_by(results, axis, share)
    return drawn | _of_scores(results, table)


def _came_back(results: Results, share: float) -> Figure:
    """The states of all controls, and of unlearners at one compute budget."""
    lines = left_by_state(results, share)
    return came_back(
        results, lines[(lines["role"] != "updated") | (lines["budget"] == results.budget)]
    )


def _of_scores(results: Results, table: pd.DataFrame) -> dict[str, Figure]:
    """The paper's Figures 6 and 7, of the first score that has one of fresh noise beside it."""
    scores = results.scores_shown.items()
    name, score = next(((n, s) for n, s in scores if s.fresh), (None, None))
    if name is None or score is None:
        return {}
    pair = _before_and_after(results, table, name, score.fresh)
    if pair is None:
        return {}
    initial, updated, after = pair
    parts = [
        ("fresh noise, initial model", initial[score.fresh], BROWN),
        ("poisons, initial model", initial[name], ORANGE),
        (f"poisons, after {after}", updated[name], BLUE),
    ]
    curves = [
        (title, of[[name, score.fresh]].set_axis(["own", "fresh"], axis=1), colour)
        for title, of, colour in (("no unlearning", initial, ORANGE), (after, updated, BLUE))
    ]
    fpr = float(results.recipe.attack.shown.fpr)
    return {
        "figure6": histograms(parts, score.symbol),
        "figure7": tradeoffs(curves, fpr, score.symbol),
    }


def figures_by_size(results: Results) -> dict[str, Figure]:
    """The paper's Figure 9, of its texts Figure 10, and what is left by size of the forget set."""
    table, budget = _table(results), results.budget
    table = table[(table["role"] != "updated") | (table["budget"] == budget)]
    drawn = {"left-by-size": ablation(results, "forget_size", "budget", budget)}
    if results.budgets:  # else there is no unlearner
        name = BY_SIZE.get(results.recipe.data.name, "figure9")
        drawn[name] = by_unlearner(table, "forget_size", results.recipe.attack.shown.effect)
    return drawn


def save(figure: Figure, stem: Path) -> Path:
    """Write a figure as PNG and PDF, the same bytes each time; the PNG's path."""
    box = figure.get_tightbbox().padded(0.1)  # of all that is drawn, legends outside the axes too
    for suffix in ("png", "pdf"):
        # Neither a date nor a version: a figure that is drawn again shows no difference in git.
        meta = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, dpi=140, bbox_inches=box, metadata=meta)
        write(drawn.getvalue(), Path(f"{stem}.{suffix}"))
    return Path(f"{stem}.png")


GIVEN, COMING = "95 % interval given these models", "95 % interval of trainings to come"


def dependence(table: pd.DataFrame, scores: Mapping[str, Score], margin: float) -> Figure:
    """What is left in each model by each score, with both 95 % intervals and the margin of REMOVED.

    Args:
        table: one line a model, the initial one first: `label`, `verdict`, and each score's
            dependence and intervals.
        scores: by name.
        margin: share of the initial effect.
    """
    names = list(scores)
    figure = Figure(figsize=(3.6 * max(len(names), 1.5), 0.9 + 0.28 * len(table)))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)
    # Reversed, since axes count upwards and tables are read downwards.
    places = np.arange(len(table))[::-1]
    for panel, name in zip(panels[0], names, strict=True):
        value = table[f"{name}_dependence"]
        if "role" not in table or table["role"].iloc[0] == "initial":
            half = margin * value.iloc[0]
            panel.axvspan(-half, half, color=GREEN, alpha=0.18, lw=0, label="margin of REMOVED")
        panel.axvline(0, color=GREY, lw=0.8)
        for verdict, colour, marker in _verdict_styles():
            judged = (table["verdict"] == verdict).to_numpy()
            for bar, (low, high) in _intervals(table[judged], name).items():
                panel.hlines(places[judged], low, high, color=colour, **BARS[bar])
            # Drawn even of none, so that the legend always names all three.
            panel.plot(value[judged], places[judged], marker, color=colour, ms=5, label=verdict)
        panel.set_xlabel(f"dependence, {scores[name].title}")
    panels[0][0].set_yticks(places, table["label"])
    if "role" in table:
        pooled = f"{names[0]}_poisons" in table
        _footnote(figure, table, "Mean over the poisons of" if pooled else "Mean over")
    handles = panels[0][0].get_legend_handles_labels()[0]
    drawn = {bar: None for name in names for bar in _intervals(table, name)}
    handles += [Line2D([], [], color=GREY, label=bar, **BARS[bar]) for bar in drawn]
    figure.legend(handles=handles, **LEGEND)
    figure.tight_layout()
    return figure


BARS: dict[str, dict[str, Any]] = {GIVEN: {"lw": 5, "alpha": 0.4}, COMING: {"lw": 1.2}}
LEGEND: dict[str, Any] = {
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "ncols": 3,
    "frameon": False,
}


def _intervals(table: pd.DataFrame, name: str) -> dict[str, tuple[pd.Series, pd.Series]]:
    """The ends of a score's 95 % intervals, by what they speak of; without those that nothing tells."""
    has_law = f"{name}_poisons" in table  # else only trainings tell how far it varies
    columns = {GIVEN if has_law else COMING: name}
    if has_law and f"{name}_trainings_low" in table:
        columns[COMING] = f"{name}_trainings"
    ends = {
        bar: (table[f"{column}_low"], table[f"{column}_high"]) for bar, column in columns.items()
    }
    return {bar: both for bar, both in ends.items() if both[0].notna().any()}


def _verdict_styles() -> list[tuple[str, str, str]]:
    return [("REMOVED", GREEN, "o"), ("NOT REMOVED", ORANGE, "D"), ("INCONCLUSIVE", GREY, "s")]


ACROSS = 4  # panels of metrics side by side
MANY = 12  # unlearners side by side, from which on their names stand upright
WIDEST = 24  # letters of a name in a line below a bar
OFFSETS = (-0.2, 0.2)  # of two bars side by side
ACCURACY: Bar = ("test_accuracy", "test accuracy", BLUE, "")
REFERENCES = {"retrained": ("retraining", "--"), "initial": ("no unlearning", "-")}
THIN: dict[str, Any] = {"lw": 1.2, "zorder": 3}
# In the colour of bars that it goes over: with a white rim it is seen there too.
TO_BEAT: dict[str, Any] = {
    "ls": "-.",
    "lw": 1.8,
    "zorder": 4,
    "path_effects": [withStroke(linewidth=3.2, foreground="white")],
}


def _bars_of(effect: EffectFigure | None) -> list[Bar]:
    """The effect's columns as bars; none without an effect."""
    looks = ((ORANGE, ""), (BROWN, "//"))
    columns = effect.columns.items() if effect else ()
    return [(*column, *look) for column, look in zip(columns, looks, strict=False)]


def _effect_axis(panel: Axes, effect: EffectFigure) -> None:
    """Name the effect's axis, and draw the level where nothing is left."""
    panel.set_ylabel(effect.axis)
    if effect.nothing is not None:
        level = float(effect.nothing)
        panel.axhline(level, color=GREY, lw=0.8, ls=":", label="nothing left")
    panel.set_ylim(bottom=0)


def accuracy_and(table: pd.DataFrame, effect: EffectFigure) -> Figure:
    """Figures 2 and 3: test accuracy and the attack's effect, mean ± s.d. over seeds.

    Full retraining is dashed, no unlearning solid, and the line to beat dash-dotted.

    Args:
        table: one line a model.
        effect: how it is drawn.
    """
    bars = table[table["role"] == "updated"]
    many = len(bars) > MANY
    figure = Figure(figsize=(max(7.2, 1.2 + 0.45 * len(bars)), 5.6 if many else 4.4))
    top, bottom = panels = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(bars))
    _bars(top, places, bars, "test_accuracy", BLUE, "", 0.6, "test accuracy")
    _references(top, table, "test_accuracy", BLUE)
    _level_to_beat(top, table, "test_accuracy", BLUE)
    for offset, (column, name, colour, hatch) in zip(OFFSETS, _bars_of(effect), strict=False):
        _bars(bottom, places + offset, bars, column, colour, hatch, 0.4, name)
        _references(bottom, table, column, colour, labels=False)
        _level_to_beat(bottom, table, column, colour, labels=False)
    _footnote(figure, table, "Mean ± s.d. over")
    top.set_ylabel("test accuracy")
    top.set_ylim(0, 1)
    _effect_axis(bottom, effect)
    titles = [textwrap.fill(name, WIDEST) for name in bars["label"]]
    turned: dict[str, Any] = {"rotation": 90} if many else {"rotation": 25, "ha": "right"}
    bottom.set_xticks(places, titles, **turned)
    for panel in panels:
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8)
    figure.tight_layout()
    if effect.high is not None:
        bottom.set_ylim(top=effect.high)
    return figure


def metrics(table: pd.DataFrame, columns: Mapping[str, Column]) -> Figure:
    """Metrics that serve all attacks, a panel each, a point a model: mean ± s.d. over seeds.

    Args:
        table: one line a model, with a `label`.
        columns: by name.
    """
    shown = {name: one for name, one in columns.items() if table[name].notna().any()} or columns
    across = min(len(shown), ACROSS)
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(3.0 * max(across, 1.5), (0.9 + 0.28 * len(table)) * down))
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    places = np.arange(len(table))[::-1]
    for panel in panels[len(shown) :]:
        panel.axis("off")
    for panel, (name, column) in zip(panels, shown.items(), strict=False):
        spread = table[f"{name}_sd"].fillna(0)
        panel.errorbar(
            table[name], places, xerr=spread, fmt="o", color=BLUE, ms=5, capsize=2, clip_on=False
        )
        panel.set(xlabel=column.title, xlim=(column.low, column.high))
    panels[0].set_yticks(places, table["label"])
    _footnote(figure, table, "Mean ± s.d. over")
    figure.tight_layout()
    return figure


def differences(table: pd.DataFrame) -> Figure:
    """B − A of two runs with 95 % intervals, one panel a measure, one line a pair of unlearners.

    Args:
        table: lines of one unit of `marshtest.results.comparison.compare`, with a `label`.
    """
    measures = table["measure"].unique().tolist()
    names = table["label"].unique().tolist()
    figure = Figure(figsize=(3.0 * max(len(measures), 1.5), 0.9 + 0.28 * len(names)))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        # Every pair has its place in every panel, whether this measure is there of it or not.
        lines = table[table["measure"] == measure].set_index("label").reindex(names)
        half = [lines["difference"] - lines["low"], lines["high"] - lines["difference"]]
        places = np.arange(len(names))[::-1]
        panel.errorbar(lines["difference"], places, xerr=half, fmt="o", color=BLUE, ms=5, capsize=2)
        panel.axvline(0, color=GREY, lw=0.8)
        panel.set_xlabel(f"{table.loc[table['measure'] == measure, 'title'].iloc[0]}, B − A")
    panels[0].set_yticks(np.arange(len(names))[::-1], [*map(as_drawn, names)])
    text = f"Mean difference with its 95 % interval (paired t) over {table['unit'].iloc[0]}."
    figure.text(0.01, -0.05, text, ha="left", va="top", fontsize=7, color=GREY)
    figure.tight_layout()
    return figure


def shift(moved: pd.DataFrame) -> Figure:
    """How far models moved from the initial one and whether towards the retrained one, ± s.d. over seeds.

    Args:
        moved: one line a model and layer, the retrained model's included, with a `label`.
    """
    moved = moved[moved["role"] != "retrained"]
    # All layers together above, each by itself below: over all, the largest layers decide.
    whole, parts = moved[moved["layer"] == ALL], moved[moved["layer"] != ALL]
    layers = parts["layer"].unique().tolist()
    figure = Figure(figsize=(7.2, 0.9 + 0.28 * len(whole) + (2.6 if len(layers) > 1 else 0)))
    rows = 2 if len(layers) > 1 else 1
    panels = figure.subplots(rows, 2, squeeze=False, height_ratios=[len(whole) + 1, 9][:rows])
    far, way = panels[0]
    places = np.arange(len(whole))[::-1]
    for panel, column in ((far, "travelled"), (way, "cosine")):
        spread = whole[f"{column}_sd"].fillna(0)
        panel.errorbar(whole[column], places, xerr=spread, fmt="o", color=BLUE, ms=4, capsize=2)
        panel.set_yticks(places, whole["label"] if panel is far else [""] * len(whole))
    far.axvline(1, color=GREY, lw=0.8, ls="--")
    way.axvline(0, color=GREY, lw=0.8)
    # Logarithmic: some unlearners hardly move, and full retraining moves far.
    far.set(xscale="log", xlabel="share of the way moved")
    way.set(xlabel="cosine with the way")
    if rows == 2:
        for panel in panels[1]:
            panel.remove()
        below = figure.add_subplot(2, 1, 2)
        styles = zip(
            parts.groupby("label", sort=False), itertools.cycle("osDv^<>PX*"), strict=False
        )
        for (name, lines), marker in styles:
            below.plot(lines["layer"], lines["cosine"], marker=marker, ms=4, lw=1, label=name)
        below.axhline(0, color=GREY, lw=0.8)
        below.set_ylabel("cosine, by layer")
        below.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=7)
        below.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


BY_SIZE = {"imdb": "figure10"}  # the paper's figure by size of the forget set, of its other data
SERIES = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#8C510A",
    "#333333",
    "#882255",
]
AXES = {"budget": "compute budget, share of training", "forget_size": "size of the forget set"}


def by_unlearner(table: pd.DataFrame, by: str, effect: EffectFigure | None) -> Figure:
    """Figures 8 to 10: accuracy and the attack's effect of each unlearner, by budget or forget-set size.

    Bars are means ± s.d. over seeds, dashed lines retraining, solid ones no unlearning and dash-dotted ones
    the line to beat, which has a budget and so is short, one over each bar; by size all of them are.

    Args:
        table: one line a model.
        by: `budget` or `forget_size`.
        effect: how it is drawn; without one accuracy alone.
    """
    columns = _bars_of(effect)
    updated = table[table["role"] == "updated"]
    names, values = updated["name"].unique().tolist(), np.sort(updated[by].unique())
    # Every unlearner has all places, so that a bar that is missing leaves a gap and moves no other.
    cells = pd.MultiIndex.from_product([names, values], names=["name", by])
    bars = updated.set_index(["name", by]).reindex(cells).reset_index()
    step = len(values) + 0.8  # between an unlearner's first bar and the next one's
    starts = step * np.arange(len(names))
    places = np.concatenate([start + np.arange(len(values)) for start in starts])
    rows = 2 if columns else 1
    figure = Figure(figsize=(1.2 + max(0.16 * step, 0.9) * len(names), 0.9 + 1.5 * rows))
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    _bars_and_levels(panels[0], table, bars, by, places, ACCURACY, 0.8)
    for bar, offset in zip(columns, OFFSETS, strict=False):
        _bars_and_levels(panels[1], table, bars, by, places + offset, bar, 0.4)
    heads = {name: textwrap.fill(name, 13) for name in names}
    for start, name in zip(starts, names, strict=True):
        middle = start + (len(values) - 1) / 2
        where = panels[0].get_xaxis_transform()
        panels[0].text(middle, 1.02, heads[name], transform=where, ha="center", fontsize=8)
    titles = [f"{value:.0%}" if by == "budget" else f"{value:.0f}" for value in bars[by]]
    panels[-1].set_xticks(places, titles, rotation=90, fontsize=7)
    panels[-1].set_xlabel(AXES[by])
    panels[0].set(ylabel="test accuracy", ylim=(0, 1))
    if effect is not None:
        _effect_axis(panels[1], effect)
    legends = [panel.get_legend_handles_labels() for panel in panels]
    handles, labels = (list(itertools.chain(*part)) for part in zip(*legends, strict=True))
    above = 0.94 + 0.04 * max(head.count("\n") for head in heads.values())  # each line has room
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, above), ncols=3, frameon=False
    )
    _footnote(figure, table, "Mean ± s.d. over")
    return figure


def _bars_and_levels(
    panel: Axes,
    table: pd.DataFrame,
    bars: pd.DataFrame,
    by: str,
    places: Floats,
    bar: Bar,
    width: float,
) -> None:
    """One column of all unlearners as bars, with the levels of retraining and of no unlearning."""
    column, title, colour, hatch = bar
    _bars(panel, places, bars, column, colour, hatch, width, title)
    named = bar is ACCURACY  # the levels stand in the legend once
    if len(lines := _to_beat(table)):
        at = lines.set_index(by)[column].reindex(bars[by]).to_numpy()
        _over_bars(panel, places, at, width, _named(lines) * named, color=colour, **TO_BEAT)
    if by == "budget":
        _references(panel, table, column, colour, labels=named)
        return
    levels = table.set_index(by)
    for role, (name, style) in REFERENCES.items():  # each size has controls of its own
        at = levels.loc[levels["role"] == role, column].reindex(bars[by]).to_numpy()
        _over_bars(panel, places, at, width, name * named, color=colour, ls=style, **THIN)


def ablation(results: Results, by: str, fixed: str, at: float) -> Figure:
    """Accuracy ± s.d. over seeds and what is left ± its wider standard error, by unlearner, as lines.

    Args:
        by: the column along which it is drawn, `budget` or `forget_size`.
        fixed, at: the other one of compute and poison budget, and its value.
    """
    table, names = _table(results), list(results.scores_shown)
    wider = {f"{n}_wider": [wider_error(x, n) for _, x in table.iterrows()] for n in names}
    table = table.assign(**wider)
    # References have no compute budget, so they are held to the poison budget alone.
    whole = table[table["poison_budget"] == at] if fixed == "poison_budget" else table
    updated = table[(table["role"] == "updated") & (table[fixed] == at)]
    to_beat = _to_beat(updated)
    unlearners = updated.drop(to_beat.index)
    series = [*_of_unlearners(unlearners, by), *_of_references(whole), *_of_line(to_beat, by)]
    columns = [("test_accuracy", "test_accuracy_sd", "test accuracy")]
    columns += [
        (f"{name}_dependence", f"{name}_wider", f"dependence, {score.title}")
        for name, score in results.scores_shown.items()
    ]
    figure = Figure(figsize=(3.4 * len(columns), 3.0))
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, (column, error, what) in zip(panels, columns, strict=True):
        _lines(panel, series, by, column, error)
        panel.set(xlabel=AXES[by], ylabel=what)
    panels[0].set_ylim(0, 1)
    _footnote(figure, whole, "Accuracy ± s.d., dependence ± standard error, over")
    handles, titles = panels[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, titles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False
    )
    return figure


ASKED = {"known": "share of the poisons that was known", "request": "request"}
PANELS = {  # of what is left, by the axis
    "known": {"asked_": "of the known poisons", "unasked_": "of the unknown poisons", "": "of all"},
    "request": {"asked_": "of those asked for", "unasked_": "of those to come", "": "of all"},
}


def left_by(results: Results, axis: str, share: float) -> Figure:
    """What is left by each score ± its wider standard error, by share known or request, as lines.

    A row of panels a score; the columns are the poisons asked for, the others, and all. Exact unlearning is
    dashed, and ends at full retraining; no unlearning is a level.

    Args:
        axis: `known` or `request`.
        share: the poison budget.
    """
    series = _by_request(results, axis, share)
    table = results.by_request
    shown = {
        before: title
        for before, title in PANELS[axis].items()
        if any(f"{before}{name}_dependence" in table for name in results.scores_shown)
    }
    scores = results.scores_shown
    figure = Figure(figsize=(3.0 * max(len(shown), 1.5), 2.4 * len(scores)))
    panels = figure.subplots(len(scores), len(shown), sharex=True, sharey="row", squeeze=False)
    none = results.summary[results.summary["poison_budget"] == share]
    for line, (name, score) in zip(panels, scores.items(), strict=True):
        for panel, before in zip(line, shown, strict=True):
            column = f"{before}{name}"
            _lines(panel, series, axis, f"{column}_dependence", f"{column}_wider")
            panel.axhline(0, color=GREY, lw=0.8, ls=":", label="nothing left")
            for level in none.loc[none["role"] == "initial", f"{name}_dependence"]:
                panel.axhline(level, color="black", lw=1, label=REFERENCES["initial"][0])
        line[0].set_ylabel(f"left, {score.title}")
    for panel, title in zip(panels[0], shown.values(), strict=True):
        panel.set_title(title, fontsize=9)
    for panel in panels[-1]:
        panel.set(xlabel=ASKED[axis], xticks=values_of(results, axis))
    handles, titles = panels[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, titles, **{**LEGEND, "ncols": 5})
    _footnote(figure, none, "What is left ± standard error, over")
    return figure


def _by_request(results: Results, axis: str, share: float) -> list[Series]:
    """The unlearners at `results.budget`, and exact unlearning, as lines along the axis."""
    table = results.by_request
    table = table[table["poison_budget"] == share]
    for column in [f"{before}{name}" for before in (*PARTS, "") for name in results.scores_shown]:
        if f"{column}_dependence" in table:
            wider = [wider_error(line, column) for _, line in table.iterrows()]
            table = table.assign(**{f"{column}_wider": wider})
        else:
            table = table.assign(**{f"{column}_dependence": np.nan, f"{column}_wider": np.nan})
    names = [drawn_label(line, results.recipe, with_budget=False) for _, line in table.iterrows()]
    table = table.assign(name=names)
    updated = table[(table["role"] == "updated") & (table["budget"] == results.budget)]
    exact = table[table["role"].isin(["exact", "retrained"])].sort_values(axis)
    style = {"color": "black", "marker": "x", "ls": "--"}
    return [*_of_unlearners(updated, axis), ("exact unlearning", exact, style)]


def _of_unlearners(updated: pd.DataFrame, by: str) -> Iterator[Series]:
    styles = zip(itertools.cycle(SERIES), itertools.cycle("osDv^<>PX*"), strict=False)
    unlearners = updated.groupby("name", sort=False)
    for (name, lines), (colour, marker) in zip(unlearners, styles, strict=False):
        yield str(name), lines.sort_values(by), {"color": colour, "marker": marker, "ls": "-"}


def _of_references(table: pd.DataFrame) -> Iterator[Series]:
    for role, (name, dashes) in REFERENCES.items():
        if role in set(table["role"]):
            yield name, table[table["role"] == role], {"color": "black", "ls": dashes}


def _of_line(lines: pd.DataFrame, by: str) -> Iterator[Series]:
    if len(lines):
        style = {"color": "black", "marker": "*", "ls": TO_BEAT["ls"]}
        yield _named(lines), lines.sort_values(by), style


def _lines(panel: Axes, series: Sequence[Series], by: str, column: str, error: str) -> None:
    """One column of all series as lines with error bars; a reference at no budget is a level."""
    for name, lines, style in series:
        if "marker" not in style and by == "budget":
            panel.axhline(lines[column].iloc[0], lw=1, label=name, **style)
        else:
            spread = lines[error].fillna(0)
            panel.errorbar(
                lines[by], lines[column], spread, ms=4, lw=1, capsize=2, label=name, **style
            )


def _bars(
    panel: Axes,
    places: np.ndarray,
    table: pd.DataFrame,
    column: str,
    colour: str,
    hatch: str,
    width: float,
    name: str,
) -> None:
    panel.bar(
        places,
        table[column],
        width,
        yerr=table[f"{column}_sd"].fillna(0),
        color=colour,
        hatch=hatch,
        edgecolor="white",
        capsize=2,
        label=name,
    )


def _over_bars(
    panel: Axes, places: Floats, levels: Floats, width: float, name: str, **style: Any
) -> None:
    """A short level line over each bar."""
    half = width / 2 + 0.1
    ends = places - half, places + half
    panel.hlines(levels, *ends, label=name, **style)


def _references(
    panel: Axes, table: pd.DataFrame, column: str, colour: str, labels: bool = True
) -> None:
    """Retraining dashed and no unlearning solid, as far as they are there."""
    for role, (name, style) in REFERENCES.items():
        level = table.loc[table["role"] == role, column]
        if len(level):
            panel.axhline(
                level.iloc[0],
                color=colour,
                ls=style,
                label=name if labels else None,
                **THIN,
            )


def _level_to_beat(
    panel: Axes, table: pd.DataFrame, column: str, colour: str, labels: bool = True
) -> None:
    """The line to beat, dash-dotted; the table is of one compute budget."""
    if len(lines := _to_beat(table)):
        name = _named(lines) if labels else None
        panel.axhline(lines[column].iloc[0], color=colour, label=name, **TO_BEAT)


def _to_beat(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of a table that are to be beaten; none where no retraining was tuned."""
    return table[table["standing"] == LINE] if has_tuned(table) else table.head(0)


def _named(lines: pd.DataFrame) -> str:
    """The name of the line to beat in a legend."""
    return f"line to beat: {rivals(lines)}"


def _footnote(figure: Figure, table: pd.DataFrame, what: str) -> None:
    """What is drawn over how many seeds, and what is not there."""
    # Merged rows need not have the same seeds for all unlearners.
    fewest, most = table["seeds"].min(), table["seeds"].max()
    seeds = f"{fewest} to {most}" if fewest < most else f"{most}"
    text = f"{what} {seeds} seed{'s' if most > 1 else ''}."
    figure.text(0.01, -0.05, text, ha="left", va="top", fontsize=7, color=GREY)
    missing = [name for role, (name, _) in REFERENCES.items() if role not in set(table["role"])]
    if missing:
        text = f"Not among the rows: {', '.join(missing)}."
        figure.text(0.99, -0.05, text, ha="right", va="top", fontsize=8, color=RED)


def histograms(parts: Sequence[tuple[str, pd.Series, str]], score: str = "I") -> Figure:
    """Figure 6: scores of several groups (title, scores, colour), with the fitted and the null density."""
    figure = Figure(figsize=(2.4 * len(parts), 2.4))
    panels = figure.subplots(1, len(parts), sharey=True, sharex=True, squeeze=False)[0]
    grid = np.linspace(-5, 5, 201)
    for panel, (title, scores, colour) in zip(panels, parts, strict=True):
        scores = scores.dropna()
        mean, deviation = scores.mean(), scores.std(ddof=1)
        panel.hist(scores, bins=40, range=(-5, 5), density=True, color=colour, alpha=0.6)
        panel.plot(
            grid,
            [*map(NormalDist(mean, deviation).pdf, grid)],
            color=colour,
            lw=1.5,
            label="fitted",
        )
        panel.plot(
            grid, [*map(NormalDist().pdf, grid)], color="black", lw=1, ls="--", label="N(0, 1)"
        )
        panel.set_title(f"{title}\nmean {mean:+.2f}, s.d. {deviation:.2f}", fontsize=8)
        panel.set_xlabel(score)
        panel.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("density")
    figure.tight_layout()
    return figure


class Test(NamedTuple):
    """A test of scores: title with a place for their letter, statistic, analytic curve, tables' TPR."""

    title: str
    statistic: Callable[[Floats], Floats]
    analytic: Callable[[float, Floats], Floats]
    tpr: Callable[[Floats, float], float]


TESTS = (
    Test("two-sided, |{}| > τ (paper)", np.abs, gaussian_tradeoff_two_sided, tpr_at_fpr),
    Test("one-sided, −{} > τ", np.negative, gaussian_tradeoff, tpr_at_fpr_one_sided),
)


def tradeoffs(
    curves: Sequence[tuple[str, pd.DataFrame, str]], fpr: float, symbol: str = "I"
) -> Figure:
    """Figure 7: trade-off curves of several models (title, scores, colour), empirical and Gaussian.

    Args:
        curves: scores are in the columns `own` and `fresh`.
        fpr: at which the TPR of the tables is marked.
    """
    figure = Figure(figsize=(6.4, 3.2))
    panels = figure.subplots(1, len(TESTS), sharey=True)
    for panel, test in zip(panels, TESTS, strict=True):
        for title, scores, colour in curves:
            _curves(panel, test, title, scores, colour, fpr)
        panel.plot([1e-3, 1], [1e-3, 1], color=GREY, lw=0.8, ls=":", label="nothing left")
        # Logarithmic, for what counts is the TPR at low FPR, in a corner of linear axes.
        panel.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1.05))
        panel.set(xlabel="FPR")
        panel.set_title(test.title.format(symbol), fontsize=9)
    panels[0].set_ylabel("TPR")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, **LEGEND)
    figure.tight_layout()
    return figure


def _curves(
    panel: Axes, test: Test, title: str, scores: pd.DataFrame, colour: str, fpr: float
) -> None:
    """One model's curves of a test, and its TPR at the FPR of the tables."""
    own, fresh = (scores[name].to_numpy() for name in ("own", "fresh"))
    at, tpr = tradeoff(test.statistic(own), test.statistic(fresh))
    panel.plot(at, tpr, color=colour, lw=1.5, label=f"{title}, empirical")
    grid = np.logspace(-3, 0, 200)
    # Of normal scores with that mean and deviation 1: what the paper's analysis says the curve is.
    analytic = test.analytic(-float(np.nanmean(own)), grid)
    panel.plot(grid, analytic, color=colour, lw=1.2, ls="--", label=f"{title}, Gaussian")
    tpr_title = f"{title}, TPR at FPR {fpr:g}"
    panel.plot([fpr], [test.tpr(own, fpr)], "D", color=colour, mec="black", ms=5, label=tpr_title)


def _table(results: Results, share: float | None = None) -> pd.DataFrame:
    """The summary (at one poison budget), with a `label` a line, and a `name` without its budget."""
    table = results.summary
    if share is not None:
        table = table[table["poison_budget"] == share].reset_index(drop=True)
    labels, names = (
        [drawn_label(line, results.recipe, with_budget=with_budget) for _, line in table.iterrows()]
        for with_budget in (True, False)
    )
    return table.assign(label=labels, name=names)


def _before_and_after(
    results: Results, table: pd.DataFrame, name: str, fresh: str
) -> tuple[pd.DataFrame, pd.DataFrame, str] | None:
    """Scores of the initial model and of one updated model: NGD as in the paper, or the first.

    None where rows came without scores.
    """
    initial = table[table["role"] == "initial"]
    updated = table[(table["role"] == "updated") & table[f"{name}_dependence"].notna()]
    chosen = updated[updated["unlearner"] == "ngd"]
    after = (chosen if len(chosen) else updated if len(updated) else initial).tail(1)
    has_scores = {name, fresh} <= set(results.scores)
    if not len(initial) or not len(after) or not has_scores:
        return None
    before, then = (
        results.scores_of(line["poison_budget"], line) for line in (initial.iloc[0], after.iloc[0])
    )
    return (before, then, str(after["label"].iloc[0])) if len(before) and len(then) else None
