"""How a poison's effect, what is left of it, and accuracy go with images, width and epochs.

The rows are those of the sweep `cifar10-scale`: its variants leave a middle in one direction each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from experiments import ROWS, SCALE, SCALE_AGAIN, SEVEN, missing, there
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import special, stats

from marshtest.experiment.recipe import load_recipe
from marshtest.reporting.figures import GREY, LEGEND, SERIES, TO_BEAT
from marshtest.reporting.tables import NAMES, as_markdown, plus_minus
from marshtest.results.leaderboard import CONTROLS
from marshtest.results.line_to_beat import TUNED
from marshtest.results.merging import read_all
from marshtest.sweeps.settings import read_sweep

Floats = NDArray[np.float64]
AXES = {"images": 50_000, "width": 64, "epochs": 100}  # each direction, and how far the paper goes
INITIAL, RETRAINED = CONTROLS["initial"], CONTROLS["retrained"]
LATER = "shrink-perturb"
EDGE = 0.005  # of the way between bounds; a measured value may lie on one, or by its noise beyond
SHOWN = (*SEVEN, LATER, "retrain", TUNED)
EVERY = (INITIAL, RETRAINED, *SHOWN)


@cache
def by_variant(name: str = SCALE) -> pd.DataFrame:
    """One line a model: its variant, precision, seed, name, effect, share left, accuracy."""
    parts = []
    for of in read_all([ROWS / name]).results:
        rows = of.rows[["precision", "seed", "unlearner", "rank_dependence", "test_accuracy"]]
        rows = rows.set_axis(["precision", "seed", "model", "dependence", "accuracy"], axis=1)
        # A sweep that goes on may have rows of a part of a training's models.
        rows = rows.groupby("seed").filter(lambda own: {*EVERY} <= {*own["model"]})
        initial = rows[rows["model"] == INITIAL].set_index("seed")["dependence"]
        place = dict(zip(AXES, _place(of.recipe.model_dump()), strict=True))
        parts.append(rows.assign(**place, left=rows["dependence"] / rows["seed"].map(initial)))
    return pd.concat(parts, ignore_index=True)


def _place(recipe: Mapping[str, Any]) -> tuple[int, ...]:
    """Where a variant stands on each of AXES."""
    return recipe["data"]["train"], recipe["model"]["width"], recipe["training"]["epochs"]


def along(axis: str) -> pd.DataFrame:
    """The variants that differ from the middle in this axis alone, and the middle."""
    table = by_variant()
    others = [name for name in AXES if name != axis]
    # The middle is where most variants are.
    middle = {name: table.drop_duplicates([*AXES])[name].mode().iloc[0] for name in others}
    at = np.logical_and.reduce([table[name] == value for name, value in middle.items()])
    return table[at].sort_values(axis)


def scale() -> str:
    """A line a variant: the initial effect, what is left by the seven, accuracies."""
    if not there(SCALE):
        return missing([SCALE])
    lines = []
    table = pd.concat([by_variant(name) for name in (SCALE, SCALE_AGAIN) if there(name)])
    for (*place, precision), own in table.groupby([*AXES, "precision"], sort=True):
        of = dict(list(own.groupby("model")))
        line = dict(zip(AXES, map("{:,}".format, place), strict=True))
        line |= {
            "precision": precision,
            "seeds": str(own["seed"].nunique()),
            "initial effect": _told(of[INITIAL], "dependence", 2),
        }
        line |= {f"left, {NAMES[name]}": f"{of[name]['left'].mean():z.0%}" for name in SHOWN}
        for name, title in ACCURACIES.items():
            line[f"accuracy, {title}"] = _told(of[name], "accuracy", 3)
        lines.append(line)
    return "\n\n".join(filter(None, [as_markdown(pd.DataFrame(lines)), _absent()]))


def _absent() -> str:
    """The variants of the sweep that have no rows, in a sentence; or nothing."""
    have = set(by_variant()[[*AXES]].itertuples(index=False, name=None))
    variants = read_sweep(SCALE).variants()
    asked = [_place(load_recipe(variant.values).model_dump()) for variant in variants]
    told = [
        f"{images:,} images, width {width}, {epochs} epochs"
        for images, width, epochs in asked
        if (images, width, epochs) not in have
    ]
    return f"No rows yet of {'; '.join(told)}." if told else ""


ACCURACIES = {
    INITIAL: "no unlearning",
    RETRAINED: "full retraining",
    TUNED: "tuned retraining",
    LATER: "shrink and perturb",
}


def _told(of: pd.DataFrame, column: str, digits: int) -> str:
    return plus_minus(of[column].mean(), of[column].std(), digits)


# What the paper's scale should show


@dataclass(frozen=True)
class Trend:
    """A quantity that is told of each training, and how it is written."""

    says: str
    of: Callable[[pd.DataFrame], float]
    form: str
    bounds: tuple[float, float]  # between which it lies whatever the size

    def stretched(self, values: Floats) -> Floats:
        """The values by the logit of their place between the bounds, where a line crosses none."""
        low, high = self.bounds
        return special.logit(np.clip((values - low) / (high - low), EDGE, 1 - EDGE))

    def back(self, logits: Floats) -> Floats:
        """The values that have these logits."""
        low, high = self.bounds
        return low + (high - low) * special.expit(logits)


def _left_by_euk(own: pd.DataFrame) -> float:
    return float(own.loc[own["model"] == "euk", "left"].iloc[0])


def _lead(own: pd.DataFrame) -> float:
    of = own.set_index("model")["accuracy"]
    return float(of[TUNED] - of[RETRAINED])


def most(draws: int) -> float:
    """The mean rank score where every poison's loss is lower than at each of so many fresh noises.

    Such a rank is uniform on (0, 1 / (draws + 1)), and the score is the normal quantile of it.
    """
    rank = 1 / (draws + 1)
    return float(stats.norm.pdf(stats.norm.ppf(rank)) / rank)


TRENDS = (
    Trend(
        "the initial effect",
        lambda own: float(own.loc[own["model"] == INITIAL, "dependence"].iloc[0]),
        "{:.2f}",
        (0.0, most(read_sweep(SCALE).change["attack.draws"])),
    ),
    Trend("what EUk leaves", _left_by_euk, "{:.0%}", (0.0, 1.0)),
    Trend("tuned retraining's accuracy less full retraining's", _lead, "{:+.3f}", (-0.9, 0.9)),
)


def foretold() -> str:
    """How each quantity goes with each size, and what that says of the paper's scale, in sentences."""
    if not there(SCALE):
        return missing([SCALE])
    trainings = [(place, own) for place, own in by_variant().groupby([*AXES, "seed"])]
    places = np.log2(np.array([place[:-1] for place, _ in trainings], float))
    still = [name for name, values in zip(AXES, places.T, strict=True) if len(set(values)) == 1]
    if still:
        return f"Nothing can be foretold: all rows have the same {' and '.join(still)}."
    paper = np.log2(np.array([*AXES.values()], float))
    told = []
    for trend in TRENDS:
        values = np.array([trend.of(own) for _, own in trainings])
        has = ~np.isnan(values)
        slopes, _ = foretell(places[has], values[has], paper)
        _, logits = foretell(places[has], trend.stretched(values[has]), paper)
        low, middle, high = trend.back(np.array(logits))
        form = trend.form.format
        changes = ", ".join(
            f"{form(slope)} ± {form(error).lstrip('+')} with twice the {name}"
            for name, (slope, error) in zip(AXES, slopes, strict=True)
        )
        ends = f"{form(middle)}, from {form(low)} to {form(high)}"
        told.append(f"- {trend.says}: {changes}; at the paper's scale {ends}")
    return "\n".join(told)


def foretell(
    places: Floats, values: Floats, at: Floats
) -> tuple[list[tuple[float, float]], tuple[float, float, float]]:
    """Least squares of values [N] on places [N, D], and the 95 % interval of one more value at `at` [D].

    Returns:
        Each slope with its standard error; the interval's lower end, middle and upper end.
    """
    design = np.column_stack([np.ones(len(places)), places])
    inverse = np.linalg.inv(design.T @ design)
    weights = inverse @ design.T @ values
    free = len(values) - design.shape[1]
    variance = float(((values - design @ weights) ** 2).sum() / free)
    errors = np.sqrt(variance * np.diag(inverse))
    point = np.array([1.0, *at])
    middle = float(point @ weights)
    half = float(stats.t.ppf(0.975, free) * np.sqrt(variance * (1 + point @ inverse @ point)))
    slopes = list(zip(weights[1:].tolist(), errors[1:].tolist(), strict=True))
    return slopes, (middle - half, middle, middle + half)


# The figure


def figure() -> Figure:
    """Effect, what is left and accuracy against images, width and epochs; mean and range over seeds."""
    drawn = Figure(figsize=(9.0, 7.2))
    panels = drawn.subplots(3, len(AXES), sharex="col", sharey="row")
    for column, axis in zip(panels.T, AXES, strict=True):
        table = along(axis)
        _line(column[0], table, axis, INITIAL, "dependence", color="black", marker="o")
        for name, colour, marker in zip((*SEVEN, LATER), SERIES, "osDv^<>P", strict=False):
            _line(column[1], table, axis, name, "left", color=colour, marker=marker, ls="-")
        _line(column[1], table, axis, TUNED, "left", color="black", marker="*", ls=TO_BEAT["ls"])
        looks = ((INITIAL, "-", "o"), (RETRAINED, "--", "x"), (TUNED, TO_BEAT["ls"], "*"))
        for name, dashes, marker in looks:
            _line(column[2], table, axis, name, "accuracy", color="black", marker=marker, ls=dashes)
        column[1].axhline(0, color=GREY, lw=0.8, ls=":")
        column[2].set(xlabel=axis, xscale="log")
        values = sorted(table[axis].unique())
        column[2].set_xticks(values, [f"{value:,}" for value in values])
        column[2].minorticks_off()
    titles = ("initial effect, rank score", "share of it left", "test accuracy")
    for panel, title in zip(panels[:, 0], titles, strict=True):
        panel.set_ylabel(title)
    handles = (
        panels[1, 0].get_legend_handles_labels()[0]
        + panels[2, 0].get_legend_handles_labels()[0][:2]
    )
    drawn.tight_layout()
    drawn.legend(handles=handles, **{**LEGEND, "ncols": 6})
    return drawn


def _line(
    panel: Axes, table: pd.DataFrame, axis: str, model: str, column: str, **style: object
) -> None:
    """The mean of a model over seeds, and between its lowest and highest value a bar."""
    seeds = table[table["model"] == model].groupby(axis)[column]
    mean, ends = seeds.mean(), (seeds.min(), seeds.max())
    title = {INITIAL: "no unlearning", RETRAINED: "full retraining"}.get(model) or NAMES[model]
    spread = (mean - ends[0], ends[1] - mean)
    panel.errorbar(mean.index, mean, spread, ms=4, lw=1, capsize=2, label=title, **style)
