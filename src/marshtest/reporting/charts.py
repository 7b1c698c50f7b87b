"""Interactive charts of the page, as Vega-Lite: hover tells the numbers, the page's controls choose.

All charts of some results read two tables that the page embeds once, `models` (one line a model) and
`scores` (one line a histogram), and four signals that its controls set: `shown` (names), `budget` and
`poison` (compute and poison budget), and the histogram's `model`. A model has the same look in all of
them. Colours stand out from white and from black, text takes the page's colour, and shapes and dashes
say again what colours say.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from marshtest.metrics.presentation import Score
from marshtest.reporting.shares_left import shares_left
from marshtest.reporting.states import COLOURS, left_by_state
from marshtest.reporting.tables import label, rivals
from marshtest.results.line_to_beat import LINE, has_tuned
from marshtest.results.summary import Results

Spec = dict[str, Any]


class Chart(NamedTuple):
    """A chart of the page; `chooses` where the choice of one model stands above it."""

    title: str
    text: str
    spec: Spec
    chooses: bool = False


# Of unequal lengths: where models outnumber the colours, the next one has another shape and dash.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#B0478C", "#7E6BC4", "#A0722A", "#D1495B", "#5F7F8F"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right"]
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 4]]
VERDICTS = {
    "NOT REMOVED": ("#D55E00", "diamond"),
    "INCONCLUSIVE": ("#767676", "square"),
    "REMOVED": ("#009E73", "circle"),
}
SHOWN_OF_A_MODEL = [
    *("model", "order", "control", "role", "poison_budget", "forget_size", "of_training", "seeds"),
    *("test_accuracy", "test_accuracy_sd", "accuracy_low", "accuracy_high", "accuracy_cost"),
    *(
        "usable",
        "spent",
        "verdict",
        "standing",
        "removed_in",
        "trainings",
        "left",
        "left_low",
        "left_high",
        "by",
    ),
]
OF_A_SCORE = ("dependence", "error", "low", "high", "margin", "poisons", "trainings")
OF_TRAININGS = ("trainings_error", "trainings_low", "trainings_high")
BINS = 40
STEP = 26  # pixels a model, in a chart with one line each
# What the page's controls have chosen, as Vega's conditions on a line. Numbers are compared with some
# tolerance, since they went through text.
AT_BUDGET = "(!isValid(datum.of_training) || abs(datum.of_training - budget) < 1e-9)"
AT_POISON = "abs(datum.poison_budget - poison) < 1e-9"
SHOWN = "indexof(shown, datum.model) >= 0"
CHOSEN = f"{SHOWN} && {AT_BUDGET} && {AT_POISON}"
INK = "currentColor"
TO_BEAT: dict[str, Any] = {"color": INK, "strokeDash": [10, 3, 2, 3], "strokeWidth": 2}
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
        "labelFlush": False,
        "labelSeparation": 4,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 150},
    "title": {"color": INK, "fontSize": 12, "fontWeight": "normal"},
}


def models(results: Results) -> pd.DataFrame:
    """One line a model: what charts, table and controls of the page read.

    `of_training` is the compute budget, null of controls, which stay at every setting.
    """
    summary = results.summary
    lines = summary.assign(
        model=[label(x, results.recipe, with_budget=False) for _, x in summary.iterrows()]
    )
    # A number of its own: Vega would sort models by their names, controls among them.
    lines["order"] = lines.groupby("poison_budget", sort=False)["model"].transform(
        lambda names: pd.factorize(names)[0]
    )
    lines["of_training"] = lines["budget"].where(lines["role"] == "updated")
    lines["control"] = lines["role"] != "updated"
    # One seed has no deviation, and its bar no length.
    lines["accuracy_low"] = lines["test_accuracy"] - lines["test_accuracy_sd"].fillna(0)
    lines["accuracy_high"] = lines["test_accuracy"] + lines["test_accuracy_sd"].fillna(0)
    initial = lines[lines["role"] == "initial"].set_index("poison_budget")
    for name in results.scores_shown:
        effect = lines["poison_budget"].map(initial[f"{name}_dependence"])
        lines[f"{name}_margin"] = results.recipe.verdict.margin * effect
    lines = lines.join(shares_left(results, lines))
    parts_of_scores = [*OF_A_SCORE, *OF_TRAININGS]
    columns = [f"{name}_{part}" for name in results.scores_shown for part in parts_of_scores]
    ends = ("", "_sd", "_low", "_high")
    columns += [f"{name}{end}" for name in results.columns_shown for end in ends]
    # What no chart reads stays out: the page holds the table as text.
    return lines[[*SHOWN_OF_A_MODEL, *(column for column in columns if column in lines)]]


def _ranges(results: Results) -> dict[str, tuple[float, float]]:
    """Ends of the histograms of the scores that have one."""
    return {
        name: (score.low, score.high)
        for name, score in results.scores_shown.items()
        if score.low is not None and score.high is not None and name in results.scores
    }


def histograms(results: Results) -> pd.DataFrame:
    """One line a model and score: `density` and left edges `bin` of its histogram; empty without scores."""
    ranges, lines = _ranges(results), []
    models_with_scores = results.summary if ranges else results.summary.head(0)
    for _, line in models_with_scores.iterrows():
        scores = results.scores_of(line["poison_budget"], line)
        for name, ends in ranges.items():
            # Clipped, not cut off: what lies beyond the ends is shown in the outermost bins.
            values = scores[name].dropna().clip(*ends)
            if not len(values):
                continue
            # Binned here, since the page would else hold every score of every model.
            density, edges = np.histogram(values, BINS, ends, density=True)
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
    """The charts of some results, in the page's order."""
    names = list(dict.fromkeys(models(results).sort_values("order")["model"]))
    summary = results.summary
    to_beat = f"line to beat: {rivals(summary)}" if has_tuned(summary) else ""
    return [
        *_by_score(results, names),
        _left_and_cost(names, to_beat),
        *_after_care(results, names),
        *_along_budgets(results, names, to_beat),
        *_of_single_scores(results, names),
    ]


def _by_score(results: Results, names: Sequence[str]) -> Iterator[Chart]:
    for name, score in results.scores_shown.items():
        yield Chart(
            f"What is left, by {score.title}",
            f"Dependence of each model on the poison. {OF_BARS[score.column is not None]} "
            "The shaded band is the margin of REMOVED.",
            left(name, score.title, names, _bars(name, results)),
        )


def _left_and_cost(names: Sequence[str], to_beat: str) -> Chart:
    return Chart(
        "What is left, and what it cost",
        "The best corner is the lower left: nothing left, no accuracy lost against retraining. "
        "Left: the share of the initial effect, by the score that shows most of those that REMOVED "
        f"rests on, {INTERVAL}.",
        left_and_cost(names, to_beat),
    )


def _after_care(results: Results, names: list[str]) -> Iterator[Chart]:
    """What came back in each state, in a recipe that has states."""
    if results.recipe.states:
        text = (
            f"Share of the initial model's effect, as a model is and after each care, {INTERVAL}."
        )
        yield Chart("What came back", text, came_back(results, names))


def _along_budgets(results: Results, names: Sequence[str], to_beat: str) -> Iterator[Chart]:
    """Charts along the compute budget and along the poison budget, of which there must be several."""
    axes = []
    if len(results.budgets) > 1:
        # controls have no budget, and are at every one
        at = f"datum.control ? [0, {max(results.budgets)}] : [datum.of_training]"
        text = "One line a model; level ones are controls, which need no budget."
        axes.append(("compute budget", at, AT_POISON, text))
    if len(results.poison_budgets) > 1:
        title, text = "size of the forget set", "One line a model."
        axes.append((title, "[datum.forget_size]", AT_BUDGET, text))
    for title, at, where, text in axes:
        for y, what in (("left", "share of the effect left"), ("test_accuracy", "test accuracy")):
            spec = lines(title, at, where, y, what, names, to_beat)
            bars = f"Bars: {INTERVAL}." if y == "left" else "Bars: ± s.d. over seeds."
            yield Chart(f"{what.capitalize()}, by {title}", f"{text} {bars}", spec)


def _of_single_scores(results: Results, names: Sequence[str]) -> Iterator[Chart]:
    for place, (name, ends) in enumerate(_ranges(results).items()):
        score = results.scores_shown[name]
        text = f"Histogram over single {score.each} of one model."
        if score.column is None:
            text += " Dashed: the law where a model does not depend on the poison."
        title = f"Scores of single {score.each}, {score.title}"
        # The first one bears the choice of the model, which holds for all of them.
        yield Chart(title, text, histogram(name, score, ends, names), chooses=place == 0)


INTERVAL = "95 % interval of trainings to come (of one seed, given these models)"
OF_BARS = (
    "Thick bars: 95 % interval given these models; thin ones: of trainings to come, from two seeds on.",
    "Bars: 95 % interval of trainings to come.",
)  # where the score's law is known, and where it is not
THICK: dict[str, Any] = {"strokeWidth": 7, "opacity": 0.3}
THIN: dict[str, Any] = {"strokeWidth": 1.5}


def _bars(name: str, results: Results) -> dict[str, Any]:
    """Beginnings of the columns of a score's intervals, and how their bars look."""
    if results.recipe.attack.needs_twin:
        return {name: THIN}
    # Of one training there is no interval of those to come.
    several = results.summary[f"{name}_trainings_low"].notna().any()
    return {name: THICK, **({f"{name}_trainings": THIN} if several else {})}


def left(name: str, title: str, names: Sequence[str], bars: Mapping[str, Any]) -> Spec:
    """Dependence by one score, one line a model.

    Args:
        name: of the score's columns.
        title: of the score.
        names: of the models.
        bars: by beginning of the columns of an interval, how it looks.
    """
    shown = _models().transform_filter(f"{CHOSEN} && isValid(datum.{name}_dependence)")
    y = alt.Y("model:N", sort=alt.EncodingSortField("order", op="min"), title=None)
    x = alt.X(f"{name}_dependence:Q", title=f"dependence, {title}")
    band = (  # stays when the initial model is hidden
        _models()
        .transform_filter(f"{AT_POISON} && datum.role == 'initial'")
        .transform_calculate(low=f"-datum.{name}_margin")
        .mark_rect(color=PALETTE[2], opacity=0.18)
        .encode(x=alt.X("low:Q"), x2=alt.X2(f"{name}_margin:Q"))
    )
    # Data of its own, one empty line: drawn from the models it would be drawn once for each.
    zero = alt.Chart(alt.InlineData([{}])).mark_rule(color=INK, opacity=0.6).encode(x=alt.datum(0))
    drawn = [
        shown.transform_filter(f"isValid(datum.{column}_low)")
        .mark_rule(color=INK, **look)
        .encode(x=alt.X(f"{column}_low:Q"), x2=alt.X2(f"{column}_high:Q"), y=y)
        for column, look in bars.items()
    ]
    point = shown.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, **_verdict(), tooltip=_tooltip(name, bars)
    )
    return _spec(alt.layer(band, zero, *drawn, point), STEP * len(names), names)


def left_and_cost(names: Sequence[str], to_beat: str = "") -> Spec:
    """Share of the effect left against the accuracy lost, one point a model.

    Args:
        to_beat: what the line to beat is called; empty without one.
    """
    shown = _models().transform_filter(f"{CHOSEN} && isValid(datum.left)")
    x = alt.X("accuracy_cost:Q", title="test accuracy lost against retraining")
    y = alt.Y("left:Q", title="share of the effect left").axis(format="~%")
    bar = shown.mark_rule(color=INK, opacity=0.5).encode(
        x=x, y=alt.Y("left_low:Q"), y2=alt.Y2("left_high:Q")
    )
    by = _model(names)
    point = shown.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, color=by["color"], shape=by["shape"], tooltip=_tooltip()
    )
    line, opacity = _line_to_beat(to_beat, f"{AT_BUDGET} && {AT_POISON}")
    rules = [line.mark_rule(**TO_BEAT).encode(of, opacity) for of in (x, y)]
    return _spec(alt.layer(*(rules if to_beat else ()), bar, point), 320, names)


def came_back(results: Results, names: list[str]) -> Spec:
    """What is left of the poison in each model, as it is and in each state, with 95 % intervals."""
    tables = [left_by_state(results, share) for share in results.poison_budgets]
    lines = pd.concat(tables, ignore_index=True)
    lines["model"] = [label(x, results.recipe, with_budget=False) for _, x in lines.iterrows()]
    lines["of_training"] = lines["budget"].where(lines["role"] == "updated")
    columns = ["model", "poison_budget", "of_training", "title", "verdict", "test_accuracy"]
    kept = lines[[*columns, "left", "left_low", "left_high"]].astype(object)
    data: Any = kept.where(kept.notna(), None).to_dict("records")
    titles = lines["title"].unique().tolist()
    base = alt.Chart(alt.InlineData(data)).transform_filter(f"{CHOSEN} && isValid(datum.left)")
    y = {
        "y": alt.Y("model:N", sort=names, title=None),
        "yOffset": alt.YOffset("title:N", sort=titles),
    }
    legend = alt.Legend(orient="bottom", title=None, columns=2)
    colour = alt.Color("title:N", legend=legend).scale(domain=titles, range=list(COLOURS))
    shape = alt.Shape("verdict:N", legend=legend).scale(
        domain=list(VERDICTS), range=[shape for _, shape in VERDICTS.values()]
    )
    x = alt.X("left:Q", title="left of the initial model's effect").axis(format="~%")
    bar = base.mark_rule().encode(
        x=alt.X("left_low:Q"), x2=alt.X2("left_high:Q"), color=colour, **y
    )
    tooltip = [
        *("model:N", "title:N", "verdict:N"),
        *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("left", "test_accuracy")),
    ]
    point = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x, color=colour, shape=shape, tooltip=tooltip, **y
    )
    return _spec(alt.layer(bar, point), 16 * len(titles) * len(names), names)


def lines(
    title: str, at: str, where: str, y: str, what: str, names: Sequence[str], to_beat: str = ""
) -> Spec:
    """A line a model, along the compute budget or the size of the forget set: `at`, an expression."""
    shown = (
        _models()
        .transform_filter(f"{SHOWN} && {where} && isValid(datum.{y})")
        .transform_calculate(at=at)
        .transform_flatten(["at"])
    )
    by = _model(names)
    low, high = ("left_low", "left_high") if y == "left" else ("accuracy_low", "accuracy_high")
    x, of_y = alt.X("at:Q", title=title), alt.Y(f"{y}:Q", title=what)
    if where == AT_POISON:
        x = x.axis(format="~%")
    of_y = of_y.axis(format="~%") if y == "left" else of_y.scale(zero=False)
    bar = shown.mark_rule(opacity=0.4).encode(
        x=x, y=alt.Y(f"{low}:Q"), y2=alt.Y2(f"{high}:Q"), color=by["color"]
    )
    line = shown.mark_line().encode(x=x, y=of_y, color=by["color"], strokeDash=by["strokeDash"])
    point = shown.mark_point(filled=True, size=60, opacity=1).encode(
        x=x, y=of_y, color=by["color"], shape=by["shape"], tooltip=_tooltip()
    )
    retrained, opacity = _line_to_beat(to_beat, f"{where} && isValid(datum.{y})")
    level = retrained.transform_calculate(at=at).transform_flatten(["at"]).mark_line(**TO_BEAT)
    # Over the lines: its own model has one in its colour.
    over = [level.encode(x, of_y, opacity)] if to_beat else []
    return _spec(alt.layer(bar, line, *over, point), 320, names)


def histogram(name: str, score: Score, ends: tuple[float, float], names: Sequence[str]) -> Spec:
    """Scores of one model by one score, between the ends."""
    low, high = ends
    width = (high - low) / BINS
    title = alt.Title(alt.ExprRef("model"))  # said once more where the choice is not in sight
    shown = (
        alt.Chart(alt.NamedData(name="scores"))
        .transform_filter(f"datum.score == '{name}' && datum.model == model && {CHOSEN}")
        .transform_flatten(["density", "bin"])
        .transform_calculate(end=f"datum.bin + {width}")
    )
    bars = shown.mark_bar(color=PALETTE[0], opacity=0.75).encode(
        x=alt.X("bin:Q", title=score.title),
        x2=alt.X2("end:Q"),
        y=alt.Y("density:Q", title="density"),
        y2=alt.Y2(datum=0),
        tooltip=["model:N", "count:Q", "mean:Q", "bin:Q", "density:Q"],
    )
    if score.column is not None:
        return _spec(bars.properties(title=title), 240, names)
    x = np.linspace(low, high, 81)
    law = [{"x": round(at, 3), "y": round(NormalDist().pdf(at), 4)} for at in x.tolist()]
    null = alt.Chart(alt.InlineData(law)).mark_line(color=INK, strokeDash=[5, 3])
    both = alt.layer(bars, null.encode(x="x:Q", y="y:Q"))
    return _spec(both.properties(title=title), 240, names)


@cache
def prepare() -> Future[str]:
    """Begin to make the library; a thread has it ready in a second or two, beside other work."""
    # The same for all pages of a process, hence cached.
    return ThreadPoolExecutor(1).submit(_bundle)


def library() -> str:
    """The JavaScript that draws: Vega, Vega-Lite and Vega-Embed in one piece, fit to stand in a page."""
    return prepare().result()


def _bundle() -> str:
    bundle: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # None: all of it
    # In a string of JavaScript the same, but no longer the end of the page's script.
    return bundle.replace("</script", r"<\/script")


def _models() -> alt.Chart:
    return alt.Chart(alt.NamedData(name="models"))


def _model(names: Sequence[str]) -> dict[str, Any]:
    """A model by colour, by shape and by dashes."""
    legend = alt.Legend(
        orient="bottom",
        columns=2 if max(map(len, names)) <= 20 else 1,  # as there is room on a phone
        title=None,
        symbolLimit=0,
        symbolOpacity=1,
        symbolStrokeWidth=0,
        values=alt.ExprRef("shown"),
    )
    return {
        "color": alt.Color("model:N", legend=legend).scale(domain=names, range=PALETTE),
        "shape": alt.Shape("model:N", legend=legend).scale(domain=names, range=SHAPES),
        "strokeDash": alt.StrokeDash("model:N", legend=legend).scale(domain=names, range=DASHES),
    }


def _line_to_beat(to_beat: str, where: str) -> tuple[alt.Chart, alt.Opacity]:
    """The line to beat, whether it is hidden or not, and its legend.

    The legend is that of opacity, the one channel that says nothing else.
    """
    legend = alt.Legend(
        orient="bottom",
        title=None,
        symbolType="stroke",
        symbolSize=900,
        symbolDash=TO_BEAT["strokeDash"],
        symbolStrokeColor=INK,
        symbolStrokeWidth=TO_BEAT["strokeWidth"],
        labelLimit=400,
    )
    shown = (
        _models()
        .transform_filter(f"datum.standing == '{LINE}' && {where}")
        .transform_calculate(line=repr(to_beat))
    )
    return shown, alt.Opacity("line:N", legend=legend).scale(domain=[to_beat], range=[1])


def _verdict() -> dict[str, Any]:
    """A verdict by colour and by shape."""
    names = list(VERDICTS)
    colours, shapes = ([look[i] for look in VERDICTS.values()] for i in (0, 1))
    legend = alt.Legend(orient="bottom", columns=2, title=None)
    return {
        "color": alt.Color("verdict:N", legend=legend).scale(domain=names, range=colours),
        "shape": alt.Shape("verdict:N", legend=legend).scale(domain=names, range=shapes),
    }


def _tooltip(name: str = "", bars: Collection[str] = ()) -> list[alt.Tooltip]:
    parts = {f"{name}_dependence": "dependence"} if name else {}
    for column, title in zip(bars, ("", ", trainings to come"), strict=False):
        parts |= {f"{column}_low": f"from{title}", f"{column}_high": f"to{title}"}
    of_score = [
        alt.Tooltip(f"{part}:Q", title=title, format=".3f") for part, title in parts.items()
    ]
    return [
        alt.Tooltip("model:N"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("usable:N"),
        alt.Tooltip("removed_in:Q", title="trainings within the margin"),
        *of_score,
        alt.Tooltip("left:Q", title="share of the effect left", format=".1%"),
        alt.Tooltip("test_accuracy:Q", title="test accuracy", format=".3f"),
        alt.Tooltip("accuracy_cost:Q", title="lost against retraining", format="+.3f"),
        alt.Tooltip("of_training:Q", title="compute budget", format=".1%"),
        alt.Tooltip("spent:Q", title="spent", format=".1%"),
        alt.Tooltip("forget_size:Q", title="poisons", format=",.0f"),
        alt.Tooltip("seeds:Q"),
    ]


def _spec(chart: Any, height: int, names: Sequence[str]) -> Spec:
    # Named here and set by the page: without a first value Vega refuses expressions that use them.
    signals = {"shown": names, "budget": 0, "poison": 0, "model": ""}
    params = [alt.param(name=name, value=value) for name, value in signals.items()]
    sized = chart.properties(width="container", height=height).add_params(*params)
    spec: Spec = sized.to_dict()
    spec["config"] = CONFIG
    # resize: a legend that grows or shrinks changes the height
    spec["autosize"] = {"type": "fit-x", "contains": "padding", "resize": True}
    return spec
