"""The paper's figures, drawn from a run's rows and scores: Figures 2, 3 and 6 to 9, and the verdicts.

Colours are Okabe and Ito's, told apart by the colour-blind; hatches and line styles repeat what
colours say, so that grey prints stay legible.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from marshtest.metrics.shift import ALL
from marshtest.metrics.tradeoff import gaussian_tradeoff, tradeoff
from marshtest.report.tables import SCORE_NAMES, label
from marshtest.results import GROUP, Results

BLUE, ORANGE, GREEN, BROWN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C510A", "#555555"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}


def draw_all(results: Results, folder: Path) -> dict[str, list[Path]]:
    """Draw every figure that the run can fill, as PNG and PDF; their PNG paths by figure name."""
    drawn: dict[str, list[Path]] = {}
    with matplotlib.rc_context(STYLE):
        for share in results.recipe.poison_budgets:
            for name, figure in figures_of(results, share).items():
                drawn.setdefault(name, []).append(save(figure, folder / f"{name}-{share:g}"))
        if len(results.recipe.poison_budgets) > 1:
            for budget in results.recipe.budgets:
                figure = ablation(results, "forget_size", "budget", budget)
                drawn.setdefault("figure9", []).append(save(figure, folder / f"figure9-{budget:g}"))
    return drawn


def figures_of(results: Results, share: float) -> dict[str, Figure]:
    """The figures of one poison budget."""
    table, names = _table(results, share), results.score_names
    drawn = {"dependence": dependence(table, names, results.recipe.verdict.margin)}
    if len(moved := results.moved):
        moved = moved[moved["poison_budget"] == share]
        labels = [label(line, results.recipe) for _, line in moved.iterrows()]
        drawn["shift"] = shift(moved.assign(label=labels))
    if len(results.recipe.budgets) > 1:
        drawn["figure8"] = ablation(results, "budget", "poison_budget", share)
    if "target" in names:
        columns = TRIGGERED if "rest_accuracy" in table else TARGETED
        drawn["figure3"] = accuracy_and(table, columns, "share of targets")
        drawn["figure3"].axes[1].set_ylim(0, 1.05)
    if "gus" in names:
        fpr = results.recipe.attack.model_dump().get("fpr", 0.01)
        drawn["figure2"] = accuracy_and(table, RATES, f"TPR at FPR = {fpr:g}", fpr)
        initial, updated, name = _before_and_after(results, share)
        parts = [
            ("fresh noise, initial model", initial["gus_fresh"], BROWN),
            ("poisons, initial model", initial["gus"], ORANGE),
            (f"poisons, after {name}", updated["gus"], BLUE),
        ]
        drawn["figure6"] = histograms(parts)
        drawn["figure7"] = tradeoffs([("no unlearning", initial, ORANGE), (name, updated, BLUE)])
    return drawn


def save(figure: Figure, stem: Path) -> Path:
    """Write a figure as PNG and PDF, the same bytes each time; the PNG's path."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        meta = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        figure.savefig(f"{stem}.{suffix}", dpi=160, bbox_inches="tight", metadata=meta)
    return Path(f"{stem}.png")


def dependence(table: pd.DataFrame, names: Sequence[str], margin: float) -> Figure:
    """What is left in each model by each score, with 95 % intervals and the margin of REMOVED.

    Args:
        table: one line a model, the initial one first: `label`, `verdict`, and each score's
            dependence and interval.
        names: of the scores.
        margin: share of the initial effect.
    """
    figure = Figure(figsize=(3.6 * max(len(names), 1.5), 0.9 + 0.28 * len(table)))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)
    places = np.arange(len(table))[::-1]
    for panel, name in zip(panels[0], names, strict=True):
        value = table[f"{name}_dependence"]
        half = margin * value.iloc[0]
        panel.axvspan(-half, half, color=GREEN, alpha=0.18, lw=0, label="margin of REMOVED")
        panel.axvline(0, color=GREY, lw=0.8)
        spread = [value - table[f"{name}_low"], table[f"{name}_high"] - value]
        for verdict, colour, marker in _verdict_styles():
            of = (table["verdict"] == verdict).to_numpy()
            panel.errorbar(
                value[of],
                places[of],
                xerr=[side[of] for side in spread],
                fmt=marker,
                color=colour,
                ms=5,
                capsize=2,
                label=verdict,
            )
        panel.set_xlabel(f"dependence, {SCORE_NAMES[name]}")
    panels[0][0].set_yticks(places, table["label"])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False
    )
    figure.tight_layout()
    return figure


def _verdict_styles() -> list[tuple[str, str, str]]:
    return [("REMOVED", GREEN, "o"), ("NOT REMOVED", ORANGE, "D"), ("INCONCLUSIVE", GREY, "s")]


RATES = [("tpr", "|I| > τ (paper)", ORANGE, ""), ("tpr_rank", "rank score", BROWN, "//")]
TARGETED = [
    ("target_misclassified", "misclassified (paper)", ORANGE, ""),
    ("target_success", "as the attacker wants", BROWN, "//"),
]
TRIGGERED = [
    ("target_success", "the attacker's label (paper)", ORANGE, ""),
    ("target_success_among_labels", "among the label words", BROWN, "//"),
]


def accuracy_and(
    table: pd.DataFrame,
    columns: Sequence[tuple[str, str, str, str]],
    what: str,
    nothing: float | None = None,
) -> Figure:
    """Figures 2 and 3: test accuracy and the attack's effect, mean ± s.d. over seeds; retraining dashed.

    Args:
        table: one line a model.
        columns: of the effect: name, title, colour, hatch.
        what: the effect's axis.
        nothing: value where nothing is left of the poison, if it is known.
    """
    bars = table[table["role"] == "updated"]
    initial, retrained = (table[table["role"] == role].iloc[0] for role in ("initial", "retrained"))
    figure = Figure(figsize=(7.2, 4.4))
    top, bottom = panels = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(bars))
    _bars(top, places, bars, "test_accuracy", BLUE, "", 0.6, "test accuracy")
    _reference(top, retrained["test_accuracy"], initial["test_accuracy"], BLUE)
    for offset, (column, name, colour, hatch) in zip((-0.2, 0.2), columns, strict=True):
        _bars(bottom, places + offset, bars, column, colour, hatch, 0.4, name)
        _reference(bottom, retrained[column], initial[column], colour, labels=False)
    top.set_ylabel("test accuracy")
    top.set_ylim(0, 1)
    bottom.set_ylabel(what)
    if nothing is not None:
        bottom.axhline(nothing, color=GREY, lw=0.8, ls=":", label="FPR: nothing left")
    bottom.set_ylim(bottom=0)
    bottom.set_xticks(places, bars["label"], rotation=25, ha="right")
    for panel in panels:
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def shift(moved: pd.DataFrame) -> Figure:
    """How far models moved from the initial one and whether towards the retrained one, ± s.d. over seeds.

    Args:
        moved: one line a model and layer, the retrained model's included, with a `label`.
    """
    moved = moved[moved["role"] != "retrained"]
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


SERIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C510A", "#333333"]
AXES = {"budget": "compute budget, share of training", "forget_size": "size of the forget set"}


def ablation(results: Results, by: str, fixed: str, at: float) -> Figure:
    """Figures 8 and 9: accuracy ± s.d. over seeds and what is left ± standard error, by unlearner.

    Args:
        by: the column along which it is drawn, `budget` or `forget_size`.
        fixed, at: the other one of compute and poison budget, and its value.
    """
    table, names = results.summary, results.score_names
    updated = table[(table["role"] == "updated") & (table[fixed] == at)]
    labels = [label(line, results.recipe, with_budget=False) for _, line in updated.iterrows()]
    styles = zip(itertools.cycle(SERIES), itertools.cycle("osDv^<>PX*"), strict=False)
    series: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        (str(name), lines.sort_values(by), {"color": colour, "marker": marker, "ls": "-"})
        for (name, lines), (colour, marker) in zip(
            updated.assign(label=labels).groupby("label", sort=False), styles, strict=False
        )
    ]
    whole = table[table["poison_budget"] == at] if fixed == "poison_budget" else table
    for role, name, dashes in (
        ("initial", "no unlearning", "-"),
        ("retrained", "retraining", "--"),
    ):
        series.append((name, whole[whole["role"] == role], {"color": "black", "ls": dashes}))
    columns = [("test_accuracy", "test_accuracy_sd", "test accuracy")]
    columns += [(f"{n}_dependence", f"{n}_error", f"dependence, {SCORE_NAMES[n]}") for n in names]
    figure = Figure(figsize=(3.4 * len(columns), 3.0))
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, (column, error, what) in zip(panels, columns, strict=True):
        for name, lines, style in series:
            if "marker" not in style and by == "budget":  # a reference, at no budget
                panel.axhline(lines[column].iloc[0], lw=1, label=name, **style)
            else:
                spread = lines[error].fillna(0)
                panel.errorbar(
                    lines[by], lines[column], spread, ms=4, lw=1, capsize=2, label=name, **style
                )
        panel.set(xlabel=AXES[by], ylabel=what)
    panels[0].set_ylim(0, 1)
    handles, titles = panels[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, titles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False
    )
    return figure


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


def _reference(
    panel: Axes, retrained: float, initial: float, colour: str, labels: bool = True
) -> None:
    panel.axhline(retrained, color=colour, ls="--", lw=1.2, label="retraining" if labels else None)
    panel.axhline(initial, color=colour, ls="-", lw=1.2, label="no unlearning" if labels else None)


def histograms(parts: Sequence[tuple[str, pd.Series, str]], score: str = "I") -> Figure:
    """Figure 6: scores of several groups (title, scores, colour), with the fitted and the null density."""
    figure = Figure(figsize=(2.4 * len(parts), 2.4))
    panels = figure.subplots(1, len(parts), sharey=True, sharex=True, squeeze=False)[0]
    grid = np.linspace(-5, 5, 201)
    for panel, (title, scores, colour) in zip(panels, parts, strict=True):
        scores = scores.dropna()
        mean, deviation = scores.mean(), scores.std(ddof=1)
        panel.hist(scores, bins=40, range=(-5, 5), density=True, color=colour, alpha=0.6)
        panel.plot(grid, norm.pdf(grid, mean, deviation), color=colour, lw=1.5, label="fitted")
        panel.plot(grid, norm.pdf(grid), color="black", lw=1, ls="--", label="N(0, 1)")
        panel.set_title(f"{title}\nmean {mean:+.2f}, s.d. {deviation:.2f}", fontsize=8)
        panel.set_xlabel(score)
        panel.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("density")
    figure.tight_layout()
    return figure


def tradeoffs(curves: Sequence[tuple[str, pd.DataFrame, str]]) -> Figure:
    """Figure 7: trade-off curves of several models (title, scores, colour), empirical and Gaussian."""
    figure = Figure(figsize=(3.6, 3.2))
    panel = figure.subplots()
    grid = np.logspace(-3, 0, 200)
    for title, scores, colour in curves:
        fpr, tpr = tradeoff(scores["gus"].to_numpy(), scores["gus_fresh"].to_numpy())
        panel.plot(fpr, tpr, color=colour, lw=1.5, label=f"{title}, empirical")
        analytic = gaussian_tradeoff(-float(scores["gus"].mean()), grid)
        panel.plot(grid, analytic, color=colour, lw=1.2, ls="--", label=f"{title}, Gaussian")
    panel.plot([1e-3, 1], [1e-3, 1], color=GREY, lw=0.8, ls=":", label="nothing left")
    panel.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    panel.set(xlabel="FPR", ylabel="TPR")
    panel.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def _table(results: Results, share: float) -> pd.DataFrame:
    """The summary at one poison budget, with a label a line."""
    table = results.summary[results.summary["poison_budget"] == share].reset_index(drop=True)
    return table.assign(label=[label(line, results.recipe) for _, line in table.iterrows()])


def _before_and_after(results: Results, share: float) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Scores of the initial model and of one updated model: NGD as in the paper, or the first."""
    table = _table(results, share)
    updated = table[(table["role"] == "updated") & table["gus_dependence"].notna()]
    chosen = updated[updated["unlearner"] == "ngd"]
    line = (chosen if len(chosen) else updated if len(updated) else table).iloc[-1]
    scores = results.scores[results.scores["poison_budget"] == share]
    of_line = np.logical_and.reduce([scores[key] == line[key] for key in GROUP])
    return scores[scores["role"] == "initial"], scores[of_line], str(line["label"])
