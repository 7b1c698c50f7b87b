"""The paper's Figure 5, and the table behind it."""

import pandas as pd
from matplotlib.figure import Figure

from marshtest.report.figures import BLUE, GREY, ORANGE
from marshtest.report.tables import as_markdown, plus_minus

CURVES = {
    "corrupted": ("from θ(S_corr)", BLUE, "-"),
    "random": ("from a random θ", ORANGE, "--"),
}
LEGEND = (
    "Shift: of θ when the samples are taken out, mean ± s.d. over seeds; informative: the share of its "
    "square that lies in the coordinates of variance 1. Cosine: of v with mini-batch gradients of descent "
    "on the clean samples, mean over its steps, from θ(S_corr) and from a random θ. Error: no solution is "
    "further from the true minimum (L2)."
)
PANELS = {"poisons": "(a) poisons", "random": "(b) random clean samples"}
COLUMNS = {
    "count": ("samples", 0),
    "l1": ("shift, L1", 3),
    "l2": ("shift, L2", 3),
    "informative": ("informative", 3),
    "cosine_corrupted": ("cosine", 3),
    "cosine_random": ("from random θ", 3),
}


def figure5(curves: pd.DataFrame) -> Figure:
    """Cosine between clean mini-batch gradients and the way to be unlearned, ± s.d. over seeds."""
    figure = Figure(figsize=(7.2, 3))
    for panel, (name, title) in zip(
        figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True
    ):
        for curve, (text, colour, line) in CURVES.items():
            own = curves[(curves["set"] == name) & (curves["curve"] == curve)]
            by_step = own.groupby("step")["cosine"]
            mean, spread = by_step.mean(), by_step.std(ddof=1).fillna(0)
            panel.plot(mean.index, mean, color=colour, ls=line, label=text)
            panel.fill_between(
                mean.index, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0
            )
        panel.axhline(0, color=GREY, lw=0.8)
        panel.set(xlabel="step", title=title)
        panel.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("cosine(v, g_t)")
    figure.tight_layout()
    return figure


def hypothesis_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a set of samples taken out: mean ± s.d. over seeds, and the worst certificate."""
    lines = []
    for name, own in rows.groupby("set", sort=False):
        line = {"taken out": str(name)}
        for column, (title, digits) in COLUMNS.items():
            spread = float("nan") if column == "count" else float(own[column].std(ddof=1))
            line[title] = plus_minus(float(own[column].mean()), spread, digits)
        line["error ≤"] = f"{own['distance'].max():.0e}"
        lines.append(line)
    return pd.DataFrame(lines)


def hypothesis_markdown(name: str, rows: pd.DataFrame, statement: str) -> str:
    """The table, what its columns mean, and the statement."""
    return f"# {name}\n\n{as_markdown(hypothesis_table(rows))}\n\n{LEGEND}\n\n**{statement}**\n"
