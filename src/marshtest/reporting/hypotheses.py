"""The paper's Figures 4 and 5, and the tables behind them."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marshtest.reporting.figures import BLUE, BROWN, GREEN, GREY, ORANGE
from marshtest.reporting.tables import plus_minus

CURVES = {
    "corrupted": ("from θ(S_corr)", BLUE, "-"),
    "random": ("from a random θ", ORANGE, "--"),
}
PANELS = {"poisons": "(a) poisons", "random": "(b) random clean samples"}
NORMS = {"l1": "L1", "l2": "L2"}
LOOKS = [(BLUE, "-"), (BROWN, "--"), (ORANGE, "-."), (GREEN, ":"), (GREY, "-")]  # of sets, in turn


def figure4(curves: pd.DataFrame) -> Figure:
    """How far θ shifts as a share β of a set is taken out, in two norms, ± s.d. over seeds."""
    # The first λ is the study's own; smaller ones have one seed only.
    main = curves[curves["weight_decay"] == curves["weight_decay"].iloc[0]]
    figure = Figure(figsize=(7.2, 3))
    for panel, (norm, title) in zip(figure.subplots(1, 2), NORMS.items(), strict=True):
        for (name, lines), look in zip(main.groupby("set", sort=False), itertools.cycle(LOOKS)):
            percent = lines.assign(percent=100 * lines["beta"])
            _band(panel, percent, "percent", norm, str(name), look)
        panel.set(xlabel="taken out, % of the set", title=title, ylim=(0, None))
    figure.axes[0].set_ylabel("‖θ(S_corr) − θ(S_corr ∖ S^(β))‖")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def figure5(curves: pd.DataFrame) -> Figure:
    """Cosine between clean mini-batch gradients and the way to be unlearned, ± s.d. over seeds."""
    figure = Figure(figsize=(7.2, 3))
    for panel, (name, title) in zip(
        figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True
    ):
        for curve, (text, colour, line) in CURVES.items():
            lines = curves[(curves["set"] == name) & (curves["curve"] == curve)]
            _band(panel, lines, "step", "cosine", text, (colour, line))
        panel.axhline(0, color=GREY, lw=0.8)
        panel.set(xlabel="step", title=title)
        panel.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("cosine(v, g_t)")
    figure.tight_layout()
    return figure


def _band(
    panel: Axes, lines: pd.DataFrame, x: str, y: str, text: str, look: tuple[str, str]
) -> None:
    colour, style = look
    by_x = lines.groupby(x)[y]
    mean, spread = by_x.mean(), by_x.std(ddof=1).fillna(0)
    panel.plot(mean.index, mean, color=colour, ls=style, label=text)
    panel.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)


@dataclass(frozen=True)
class Shown:
    """How a hypothesis is reported: its figure, and the columns of its table with title and digits."""

    name: str
    figure: Callable[[pd.DataFrame], Figure]
    caption: str
    columns: Mapping[str, tuple[str, int]]
    legend: str


SHOWN = {
    "shift": Shown(
        "figure4",
        figure4,
        "How far θ shifts as poisons, or clean samples, are taken out: mean ± s.d. over seeds (the paper's "
        "Figure 4).",
        {
            "l1": ("shift, L1", 1),
            "l2": ("shift, L2", 2),
            "size_before": ("‖θ‖", 1),
            "accuracy_before": ("accuracy", 3),
            "accuracy": ("after", 3),
            "target_probability_before": ("target", 2),
            "target_probability": ("then", 2),
        },
        "Shift: of θ when the whole set is taken out, mean ± s.d. over seeds. ‖θ‖: L2, of θ(S_corr). "
        "Accuracy: on the test samples, of θ(S_corr), and after the set is taken out. Target: probability "
        "of the attacker's label for the target, and then. Error: both solutions together are no further "
        "from the true minima (L2).",
    ),
    "orthogonality": Shown(
        "figure5",
        figure5,
        "Cosine between gradients of clean samples, step by step, and the way that would undo the samples "
        "taken out: mean ± s.d. over seeds (the paper's Figure 5).",
        {
            "count": ("samples", 0),
            "l1": ("shift, L1", 3),
            "l2": ("shift, L2", 3),
            "informative": ("informative", 3),
            "cosine_corrupted": ("cosine", 3),
            "cosine_random": ("from random θ", 3),
        },
        "Shift: of θ when the samples are taken out, mean ± s.d. over seeds; informative: the share of its "
        "square that lies in the coordinates of variance 1. Cosine: of v with mini-batch gradients of "
        "descent on the clean samples, mean over its steps, from θ(S_corr) and from a random θ. Error: "
        "both solutions together are no further from the true minima (L2).",
    ),
}


def _rounded_up(bound: float) -> str:
    """A bound of one digit that holds: 1.2e-3 is no more than 2e-03."""
    if not 0 < bound < math.inf:
        return f"{bound:.0e}"
    unit = 10.0 ** math.floor(math.log10(bound))
    return f"{math.ceil(bound / unit - 1e-9) * unit:.0e}"


def hypothesis_table(kind: str, rows: pd.DataFrame) -> pd.DataFrame:
    """One line a set of samples taken out: how many seeds, mean ± s.d. over them, the worst certificate."""
    lines = []
    keys = [key for key in ("weight_decay", "set") if key in rows]
    if "weight_decay" in keys:
        rows = rows.sort_values("weight_decay", ascending=False, kind="stable")
    for key, of_set in rows.groupby(keys, sort=False):
        line = {"taken out": str(key[-1])}
        if "weight_decay" in keys:
            line["λ"] = f"{key[0]:g}"
        line["seeds"] = str(of_set["seed"].nunique())
        for column, (title, digits) in SHOWN[kind].columns.items():
            # How many samples are taken out is set, and does not vary.
            spread = float("nan") if column == "count" else float(of_set[column].std(ddof=1))
            line[title] = plus_minus(float(of_set[column].mean()), spread, digits)
        line["error ≤"] = _rounded_up(of_set["distance"].max())
        lines.append(line)
    return pd.DataFrame(lines)
