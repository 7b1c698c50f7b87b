"""Interactive charts of the page, as Vega-Lite: hover tells the numbers, the page's controls choose.

All charts of some results read two tables that the page embeds once, `models` (one line a model) and
`scores` (one line a histogram), and three signals that its controls set: `hidden` (names), `budget` and
`poison` (compute and poison budget); the histogram has a fourth, `model`. Colours stand out from white
and from black, text takes the page's colour, and shapes and dashes say again what colours say.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import vl_convert
from scipy.stats import norm

from marshtest.report.tables import SCORE_NAMES, label
from marshtest.results import Results

Spec = dict[str, Any]


class Chart(NamedTuple):
    """A chart of the page: title, what there is to see, and whether the choice of one model stands "
    "above.
    """

    title: str
    text: str
    spec: Spec
    chooses: bool = False


PALETTE = ["#0072B2", "#D55E00", "#009E73", "#B0478C", "#7E6BC4", "#A0722A", "#D1495B", "#5F7F8F"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right"]
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2]]
VERDICTS = {
    "NOT REMOVED": ("#D55E00", "diamond"),
    "INCONCLUSIVE": ("#767676", "square"),
    "REMOVED": ("#009E73", "circle"),
}
SHOWN_OF_A_MODEL = [
    *("model", "order", "control", "role", "poison_budget", "forget_size", "of_training", "seeds"),
    *("test_accuracy", "test_accuracy_sd", "accuracy_low", "accuracy_high", "accuracy_cost"),
    *("spent", "verdict", "left", "left_low", "left_high", "by"),
]
BINS = 40
STEPS = alt.Step(26)  # height of a chart with one line a model
RANGES = {
    "gus": (-5.0, 5.0),
    "rank": (-5.0, 5.0),
    "target": (0.0, 1.0),
}  # of scores with a histogram
INK = "currentColor"
CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.15,
        "domainColor": INK,
        "tickColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 150,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 150},
    "text": {"color": INK, "fontSize": 12},
}


def models(results: Results) -> pd.DataFrame:
    """One line a model: what charts, table and controls of the page read.

    `of_training` is the compute budget, null of controls, which stay at every setting; `left`, with
    `_low` and `_high`, is the dependence as a share of the initial model's by the score that has most
    left.
    """
    summary = results.summary
    lines = summary.assign(
        model=[label(x, results.recipe, with_budget=False) for _, x in summary.iterrows()]
    )
    lines["order"] = lines.groupby("poison_budget", sort=False)["model"].transform(
        lambda names: pd.factorize(names)[0]
    )
    lines["of_training"] = lines["budget"].where(lines["role"] == "updated")
    lines["control"] = lines["role"] != "updated"
    lines["accuracy_low"] = lines["test_accuracy"] - lines["test_accuracy_sd"].fillna(0)
    lines["accuracy_high"] = lines["test_accuracy"] + lines["test_accuracy_sd"].fillna(0)
    shares: dict[str, pd.DataFrame] = {}
    initial = lines[lines["role"] == "initial"].set_index("poison_budget")
    for name in results.score_names:
        effect = lines["poison_budget"].map(initial[f"{name}_dependence"])
        lines[f"{name}_margin"] = results.recipe.verdict.margin * effect
        parts = {part: lines[f"{name}_{part}"] / effect for part in ("dependence", "low", "high")}
        shares[name] = pd.DataFrame(parts)
    most = pd.DataFrame({name: of["dependence"].abs() for name, of in shares.items()})
    worst = most.fillna(-1).idxmax(axis=1)
    for part, column in (("dependence", "left"), ("low", "left_low"), ("high", "left_high")):
        of_part = np.stack([of[part] for of in shares.values()])
        lines[column] = of_part[most.columns.get_indexer(pd.Index(worst)), np.arange(len(lines))]
    lines["by"] = worst.map(SCORE_NAMES)
    kept = ("dependence", "error", "low", "high", "margin")
    of_scores = [f"{name}_{part}" for name in results.score_names for part in kept]
    return lines[[*SHOWN_OF_A_MODEL, *of_scores]]


def histograms(results: Results) -> pd.DataFrame:
    """One line a model and score: `density` and left edges `bin` of its histogram; empty without scores."""
    names = [name for name in results.score_names if name in RANGES]
    lines = []
    told = results.summary if names and len(results.scores) else results.summary.head(0)
    for _, line in told.iterrows():
        own = results.scores_of(line["poison_budget"], line)
        for name in names:
            values = own[name].dropna().clip(*RANGES[name])
            if not len(values):
                continue
            density, edges = np.histogram(values, BINS, RANGES[name], density=True)
            lines.append(
                {
                    "model": label(line, results.recipe, with_budget=False),
                    "poison_budget": line["poison_budget"],
                    "of_training": line["budget"] if line["role"] == "updated" else None,
                    "score": name,
                    "count": len(values),
                    "mean": round(float(values.mean()), 4),
                    "density": density.round(4).tolist(),
                    "bin": edges[:-1].round(4).tolist(),
                }
            )
    return pd.DataFrame(lines)


def charts(results: Results) -> list[Chart]:
    """In the page's order."""
    found = [
        Chart(
            f"What is left, by {SCORE_NAMES[name]}",
            "Dependence of each model on the poison with its 95 % interval. Within the shaded band it "
            "counts as removed.",
            left(name),
        )
        for name in results.score_names
    ]
    found.append(
        Chart(
            "What is left, and what it cost",
            "The best corner is the lower left: nothing left, no accuracy lost against retraining. "
            "Left: the "
            "share of the initial effect, by the score that shows most.",
            left_and_cost(),
        )
    )
    axes = []
    if len(results.budgets) > 1:
        axes.append(("of_training", "compute budget"))
    if len(results.poison_budgets) > 1:
        axes.append(("forget_size", "size of the forget set"))
    for column, title in axes:
        for y, what in (("left", "share of the effect left"), ("test_accuracy", "test accuracy")):
            text = "One line an unlearner; the controls are dashed and carry their names."
            spec = lines(column, title, y, what)
            found.append(Chart(f"{what.capitalize()}, by {title}", text, spec))
    drawn = [name for name in results.score_names if name in RANGES and len(results.scores)]
    for name in drawn:
        of = "targets" if name == "target" else "poisons"
        text = f"Histogram over single {of} of one model."
        if name != "target":
            text += " Dashed: the law where a model does not depend on the poison."
        title = f"Scores of single {of}, {SCORE_NAMES[name]}"
        found.append(Chart(title, text, histogram(name), chooses=name == drawn[0]))
    return found


def left(name: str) -> Spec:
    """Dependence by one score, one line a model."""
    shown = _models().transform_filter(f"{CHOSEN} && isValid(datum.{name}_dependence)")
    y = alt.Y("model:N", sort=alt.EncodingSortField("order", op="min"), title=None)
    x = alt.X(f"{name}_dependence:Q", title=f"dependence, {SCORE_NAMES[name]}")
    band = (
        shown.transform_filter("datum.role == 'initial'")
        .transform_calculate(low=f"-datum.{name}_margin")
        .mark_rect(color=PALETTE[2], opacity=0.18)
        .encode(x=alt.X("low:Q"), x2=alt.X2(f"{name}_margin:Q"))
    )
    zero = alt.Chart(alt.InlineData([{}])).mark_rule(color=INK, opacity=0.6).encode(x=alt.datum(0))
    bar = shown.mark_rule(strokeWidth=1.5, color=INK).encode(
        x=alt.X(f"{name}_low:Q"), x2=alt.X2(f"{name}_high:Q"), y=y
    )
    point = shown.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, **_verdict(), tooltip=_tooltip(name)
    )
    return _spec(alt.layer(band, zero, bar, point), STEPS)


def left_and_cost() -> Spec:
    """Share of the effect left against the accuracy lost, one point a model."""
    shown = _models().transform_filter(f"{CHOSEN} && isValid(datum.left)")
    x = alt.X("accuracy_cost:Q", title="test accuracy lost against retraining")
    y = alt.Y("left:Q", title="share of the effect left")
    bar = shown.mark_rule(color=INK, opacity=0.5).encode(
        x=x, y=alt.Y("left_low:Q"), y2=alt.Y2("left_high:Q")
    )
    by = _model()
    point = shown.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, color=by["color"], shape=by["shape"], tooltip=_tooltip()
    )
    return _spec(alt.layer(bar, point), 320)


def lines(column: str, title: str, y: str, what: str) -> Spec:
    """A line an unlearner, along the compute budget or the size of the forget set."""
    fixed = "poison" if column == "of_training" else "budget"
    here = SHOWN + " && " + (AT_POISON if fixed == "poison" else AT_BUDGET)
    shown = _models().transform_filter(f"{here} && isValid(datum.{y})")
    by = _model()
    low, high = ("left_low", "left_high") if y == "left" else ("accuracy_low", "accuracy_high")
    unlearners = shown.transform_filter("!datum.control")
    x, of_y = alt.X(f"{column}:Q", title=title), alt.Y(f"{y}:Q", title=what)
    bar = unlearners.mark_rule(opacity=0.4).encode(
        x=x, y=alt.Y(f"{low}:Q"), y2=alt.Y2(f"{high}:Q"), color=by["color"]
    )
    line = unlearners.mark_line().encode(
        x=x, y=of_y, color=by["color"], strokeDash=by["strokeDash"]
    )
    point = unlearners.mark_point(filled=True, size=60, opacity=1).encode(
        x=x, y=of_y, color=by["color"], shape=by["shape"], tooltip=_tooltip()
    )
    controls = shown.transform_filter("datum.control")
    if column == "of_training":
        reference = controls.mark_rule(color=INK, strokeDash=[5, 3]).encode(y=of_y)
        name = controls.mark_text(align="left", dy=-5, color=INK).encode(
            x=alt.value(2), y=of_y, text="model:N"
        )
    else:
        reference = controls.mark_line(color=INK, strokeDash=[5, 3]).encode(
            x=x, y=of_y, detail="model:N"
        )
        name = controls.mark_text(align="left", dy=-5, color=INK).encode(
            x=alt.X("min(forget_size):Q"), y=alt.Y(f"mean({y}):Q"), text="model:N"
        )
    return _spec(alt.layer(reference, name, bar, line, point), 320)


def histogram(name: str) -> Spec:
    """Scores of one model by one score."""
    low, high = RANGES[name]
    width = (high - low) / BINS
    shown = (
        alt.Chart(alt.NamedData(name="scores"))
        .transform_filter(
            f"datum.score == '{name}' && datum.model == model && {AT_POISON} && {AT_BUDGET}"
        )
        .transform_flatten(["density", "bin"])
        .transform_calculate(end=f"datum.bin + {width}")
    )
    bars = shown.mark_bar(color=PALETTE[0], opacity=0.75).encode(
        x=alt.X("bin:Q", title=SCORE_NAMES[name]),
        x2=alt.X2("end:Q"),
        y=alt.Y("density:Q", title="density"),
        y2=alt.Y2(datum=0),
        tooltip=["model:N", "count:Q", "mean:Q", "bin:Q", "density:Q"],
    )
    if name == "target":
        return _spec(bars, 240)
    x = np.linspace(low, high, 81)
    law = [{"x": round(at, 3), "y": round(float(norm.pdf(at)), 4)} for at in x.tolist()]
    null = alt.Chart(alt.InlineData(law)).mark_line(color=INK, strokeDash=[5, 3])
    return _spec(alt.layer(bars, null.encode(x="x:Q", y="y:Q")), 240)


@cache
def library() -> str:
    """The JavaScript that draws: Vega, Vega-Lite and Vega-Embed in one piece, fit to stand in a page."""
    bundle: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # None: all of it
    return bundle.replace("</script", r"<\/script")


# What the page's controls have chosen, as Vega's conditions on a line.
AT_BUDGET = "(!isValid(datum.of_training) || abs(datum.of_training - budget) < 1e-9)"
AT_POISON = "abs(datum.poison_budget - poison) < 1e-9"
SHOWN = "indexof(hidden, datum.model) < 0"
CHOSEN = f"{SHOWN} && {AT_BUDGET} && {AT_POISON}"


def _models() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="models"))


def _model() -> dict[str, Any]:
    """A model by colour, by shape and by dashes."""
    sort = alt.EncodingSortField("order", op="min")
    legend = alt.Legend(orient="bottom", columns=3, title=None, symbolLimit=0)
    return {
        "color": alt.Color("model:N", sort=sort, legend=legend).scale(range=PALETTE),
        "shape": alt.Shape("model:N", sort=sort, legend=legend).scale(range=SHAPES),
        "strokeDash": alt.StrokeDash("model:N", sort=sort, legend=None).scale(range=DASHES),
    }


def _verdict() -> dict[str, Any]:
    """A verdict by colour and by shape."""
    names = list(VERDICTS)
    colours, shapes = ([look[i] for look in VERDICTS.values()] for i in (0, 1))
    legend = alt.Legend(orient="bottom", title=None)
    return {
        "color": alt.Color("verdict:N", legend=legend).scale(domain=names, range=colours),
        "shape": alt.Shape("verdict:N", legend=legend).scale(domain=names, range=shapes),
    }


def _tooltip(name: str = "") -> list[alt.Tooltip]:
    of_score = [
        alt.Tooltip(f"{name}_{part}:Q", title=title, format=".3f")
        for part, title in (("dependence", "dependence"), ("low", "from"), ("high", "to"))
        if name
    ]
    return [
        alt.Tooltip("model:N"),
        alt.Tooltip("verdict:N"),
        *of_score,
        alt.Tooltip("left:Q", title="share of the effect left", format=".1%"),
        alt.Tooltip("test_accuracy:Q", title="test accuracy", format=".3f"),
        alt.Tooltip("accuracy_cost:Q", title="lost against retraining", format="+.3f"),
        alt.Tooltip("of_training:Q", title="compute budget", format=".1%"),
        alt.Tooltip("spent:Q", title="spent", format=".1%"),
        alt.Tooltip("forget_size:Q", title="poisons", format=",.0f"),
        alt.Tooltip("seeds:Q"),
    ]


def _spec(chart: Any, height: Any) -> Spec:
    signals: Sequence[tuple[str, Any]] = [
        ("hidden", []),
        ("budget", 0),
        ("poison", 0),
        ("model", ""),
    ]
    params = [alt.param(name=name, value=value) for name, value in signals]
    sized = chart.properties(width="container", height=height).add_params(*params)
    made: Spec = sized.to_dict()
    made["config"] = CONFIG
    made["autosize"] = {"type": "pad" if height is STEPS else "fit-x", "contains": "padding"}
    return made
