"""The line to beat: which retraining it is, and who beats it, by numbers worked out by hand.

Of three differences with mean m and deviation s, t is m / (s / √3), and its one-sided p-value, at two
degrees of freedom, is (1 − t / √(t² + 2)) / 2.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from conftest import TINY

import marshtest
from marshtest.reporting import charts, figures
from marshtest.reporting.page import answer, in_words, sentences, write_page
from marshtest.reporting.tables import (
    as_latex,
    legend,
    markdown,
    ranking_legend,
    ranking_table,
    table,
)
from marshtest.results.leaderboard import leaderboard
from marshtest.results.line_to_beat import has_tuned, line_to_beat, standings
from marshtest.results.summary import Results

NGD = [{"name": "ngd", "lr": 0.1}, {"name": "ngd", "lr": 0.01}]
TUNED, TITLE = "retrain-tuned", "tuned retraining"
LINE = [0.5, 0.7, 0.9]  # accuracy of the line, by seed: differences are within seeds
SURE = [0.03, 0.03, 0.04]  # t = 10, p = 0.00493
DOUBTFUL = [0.01, 0.03, 0.05]  # t = 2.60, p = 0.061
NEAR = [0.001, -0.001, 0.0]  # ± 0.005 about it: t = 8.66, p = 0.0065


def models(*contenders: tuple[Any, ...]) -> tuple[pd.DataFrame, list[pd.Series]]:
    """A summary of tuned retraining and others, each (differences, verdict, share of the line's spent)."""
    lines = [("initial", "none", "NOT REMOVED", 0.0), ("updated", TUNED, "REMOVED", 0.1)]
    lines += [("updated", "gd", verdict, 0.1 * share) for _, verdict, share in contenders]
    summary = pd.DataFrame(lines, columns=["role", "unlearner", "verdict", "spent"])
    accuracies = [pd.Series(LINE), pd.Series(LINE)]
    accuracies += [pd.Series(LINE[: len(d)]) + d for d, *_ in contenders]
    return summary.assign(budget=0.1), accuracies


def words(*contenders: tuple[Any, ...]) -> list[str]:
    control, line, *told = standings(*models(*contenders), alpha=0.05)
    assert (control, line) == ("", "line")
    return told


@pytest.mark.parametrize(
    ("differences", "verdict", "spent", "word"),
    [
        (SURE, "REMOVED", 1.0, "beats"),
        (SURE, "INCONCLUSIVE", 1.0, "unclear"),
        (SURE, "NOT REMOVED", 1.0, "loses"),  # whatever its accuracy
        (SURE, "REMOVED", 1.2, "unclear"),  # more accurate, for more compute
        (SURE[:2], "REMOVED", 1.0, "unclear"),  # too few trainings
        ([*SURE[:2], np.nan], "REMOVED", 1.0, "unclear"),  # it gave no model in one of them
        (DOUBTFUL, "REMOVED", 1.0, "unclear"),  # 3 points better on average
        (NEAR, "REMOVED", 1.0, "ties"),
        (NEAR, "INCONCLUSIVE", 1.0, "unclear"),
        (NEAR, "REMOVED", 0.91, "ties"),
        (NEAR, "REMOVED", 0.89, "beats"),  # the same for a tenth less compute
        ([-d for d in SURE], "REMOVED", 1.0, "loses"),
        ([-d for d in SURE], "REMOVED", 0.1, "loses"),
        ([-d for d in DOUBTFUL], "REMOVED", 1.0, "unclear"),
    ],
)
def test_a_word_needs_a_tested_difference(
    differences: list[float], verdict: str, spent: float, word: str
) -> None:
    assert words((differences, verdict, spent)) == [word]


def test_unlearners_are_tested_together_by_holm() -> None:
    """0.00493 is below 0.05 / 10, and not below 0.05 / 11."""
    one = (SURE, "REMOVED", 1.0)
    assert words(*[one] * 10) == ["beats"] * 10
    assert words(*[one] * 11) == ["unclear"] * 11


def test_differences_are_within_seeds_that_both_have() -> None:
    summary, accuracies = models((SURE, "REMOVED", 1.0))
    other_order = accuracies[2].iloc[::-1]
    another_seed = pd.concat([accuracies[2], pd.Series([0.01], index=[7])])
    for own in (other_order, another_seed):
        assert standings(summary, [*accuracies[:2], own], alpha=0.05)[2] == "beats"


def test_tuned_retraining_is_the_line_else_the_pipelines() -> None:
    lines = pd.DataFrame(
        {
            "role": ["retrained", "updated", "updated", "updated", "updated"],
            "unlearner": ["retrain (full)", "gd", "retrain", TUNED, TUNED],
            "entry": [-1, 0, 1, 2, 3],
        }
    )
    for kept, entry in ((lines, 2), (lines.drop(3), 3), (lines[:3], 1)):
        line = line_to_beat(kept)
        assert line is not None
        assert line["entry"] == entry
    assert line_to_beat(lines[:2]) is None  # full retraining has another budget


def test_each_compute_budget_has_its_own_line() -> None:
    summary, accuracies = models((SURE, "REMOVED", 1.0), (SURE, "REMOVED", 1.0))
    summary.loc[3, "budget"] = 0.2
    assert standings(summary, accuracies, 0.05) == ["", "line", "beats", ""]
    summary.loc[3, "unlearner"] = "retrain"
    assert standings(summary, accuracies, 0.05) == ["", "line", "beats", "line"]


def renamed(results: Results, name: str = TUNED) -> Results:
    """The same rows, with retraining in the place of GD."""
    tables = {
        part: getattr(results, part).replace({"unlearner": {"gd": name}})
        for part in ("rows", "scores", "shifts")
    }
    return replace(results, **tables)


@pytest.fixture(scope="module")
def told(tiny_run: Results) -> Results:
    """Tuned retraining among the rows; SCRUB beats it and EUk loses to it."""
    results = renamed(tiny_run)
    summary = results.summary.copy()
    for name, verdict, standing in (
        (TUNED, "REMOVED", "line"), ("scrub", "REMOVED", "beats"), ("euk", "NOT REMOVED", "loses")
    ):  # fmt: skip
        summary.loc[summary["unlearner"] == name, ["verdict", "standing"]] = [verdict, standing]
    vars(results)["summary"] = summary  # in place of what the rows give
    return results


def test_of_a_search_the_chosen_trial_is_the_line(tiny_run: Results) -> None:
    results = renamed(tiny_run)
    rows = results.rows.assign(validation_accuracy=0.8)
    worse = rows[rows["unlearner"] == TUNED].assign(
        hyperparameters='{"lr": 9.0}', validation_accuracy=0.3, test_accuracy=1.0
    )
    both = replace(results, rows=pd.concat([worse, rows], ignore_index=True))
    summary = both.summary
    (line,) = summary[summary["standing"] == "line"].to_dict("records")
    assert line["unlearner"] == TUNED
    assert line["hyperparameters"] != '{"lr": 9.0}'


def test_the_summary_compares_its_own_seeds(tiny_run: Results) -> None:
    """Two seeds and a third, with accuracies given by hand: an unlearner that lost 3, 3 and 4 points."""
    rows = renamed(tiny_run).rows
    rows = pd.concat([rows, rows[rows["seed"] == 1].assign(seed=2)], ignore_index=True)
    for name, of in ((TUNED, [0.0] * 3), ("scrub", SURE), ("euk", NEAR)):
        own = rows["unlearner"] == name
        rows.loc[own, "test_accuracy"] = [LINE[seed] - of[seed] for seed in rows.loc[own, "seed"]]
        rows.loc[own, "spent"] = 0.5
    summary = replace(tiny_run, rows=rows).summary.set_index("unlearner")
    assert summary["standing"].drop("euk").to_dict() == {
        "none": "", "retrain (full)": "", TUNED: "line", "scrub": "loses"
    }  # fmt: skip
    expected = {"REMOVED": "ties", "NOT REMOVED": "loses", "INCONCLUSIVE": "unclear"}
    assert summary.loc["euk", "standing"] == expected[summary.loc["euk", "verdict"]]


def test_tables_mark_who_beats_the_line_and_say_what_that_means(told: Results) -> None:
    shown = table(told).set_index("model")["line to beat"].to_dict()
    assert shown == {
        "no unlearning": "–", "retrain (full)": "–", TITLE: "the line", "SCRUB": "beats",
        "EUk": "loses",
    }  # fmt: skip
    assert f"Line to beat: {TITLE}, at the same poison and compute budget. Beats: " in legend(told)
    assert "surely not 0.5 points below" in legend(told)
    assert "| the line |" in markdown(told)
    assert r"\caption" in as_latex(table(told), legend(told))


@pytest.mark.slow
def test_without_tuned_retraining_reports_are_as_before(tiny_run: Results) -> None:
    """Against retraining that nobody tuned nothing is said, though the summary has it."""
    for results in (tiny_run, renamed(tiny_run, "retrain")):
        assert not has_tuned(results.summary)
        said = [legend(results), answer(results), *sentences(results), markdown(results)]
        said += [line["text"] for line in in_words(results)]
        said += [chart.text + json.dumps(chart.spec) for chart in charts.charts(results)]
        assert "line to beat" not in " ".join(said).lower()
        assert "to beat" not in " ".join(said)
        assert "line to beat" not in table(results)
        labels = figures.figures_of(results, 0.2)["figure2"].axes[0].get_legend_handles_labels()[1]
        assert len(labels) == 3
    assert (renamed(tiny_run, "retrain").summary["standing"] == "line").sum() == 1


def test_the_answer_says_whether_anybody_beats_tuned_retraining(told: Results) -> None:
    first, *_ = answer(told).split(". ")
    assert "1 of 2 removed the Gaussian poisons: SCRUB (" in first
    assert first.endswith(f"shown to beat {TITLE}: SCRUB")
    assert sentences(told)[-1] == f"Poison budget 0.2 – shown to beat {TITLE}: SCRUB."
    none = replace(told)
    beaten = {"standing": {"beats": "unclear"}}
    vars(none)["summary"] = told.summary.replace(beaten)
    assert f"shown to beat {TITLE}: none. For comparison, {TITLE} (" in answer(none)
    by_model = {line["model"]: line["text"] for line in in_words(told)}
    assert "Against the line to beat: beats." in by_model["SCRUB"]
    assert "line to beat" not in by_model[TITLE]


def test_figure_2_has_the_line_at_the_accuracy_and_the_effect_of_tuned_retraining(
    told: Results,
) -> None:
    top, bottom = figures.figures_of(told, 0.2)["figure2"].axes
    summary = told.summary.set_index("unlearner")
    levels = {line.get_label(): line for line in top.lines}
    line = levels[f"line to beat: {TITLE}"]
    assert line.get_ydata()[0] == summary.loc[TUNED, "test_accuracy"]  # type: ignore[index]
    styles = {other.get_linestyle() for other in levels.values() if other is not line}
    assert line.get_linestyle() not in styles
    drawn = {x.get_ydata()[0] for x in bottom.lines if x.get_linestyle() == "-."}  # type: ignore[index]
    assert drawn == {summary.loc[TUNED, column] for column in ("tpr", "tpr_rank")}


def test_figures_over_budgets_have_the_line_of_each_budget(ablated: Results) -> None:
    results = renamed(ablated)
    tuned = results.summary[results.summary["unlearner"] == TUNED]
    at = tuned[tuned["poison_budget"] == 0.2].sort_values("budget")
    drawn = figures.figures_of(results, 0.2)
    title = f"line to beat: {TITLE}"
    (levels,) = [c for c in drawn["figure8"].axes[0].collections if c.get_label() == title]
    heights = [segment[0][1] for segment in levels.get_segments()]  # type: ignore[attr-defined]
    assert np.allclose(heights, [*at["test_accuracy"]] * 2)  # over the bars of both unlearners
    for panel, column in zip(
        drawn["left-by-budget"].axes, ["test_accuracy", "gus_dependence", "rank_dependence"]
    ):
        handles, labels = panel.get_legend_handles_labels()
        assert labels.count(title) == 1
        assert not any(label.startswith("tuned") for label in labels)
        curve = handles[labels.index(title)].lines[0].get_data()  # type: ignore[attr-defined]
        assert np.allclose(curve, [at["budget"], at[column]])


def test_charts_draw_the_line_in_a_legend_of_its_own(ablated: Results, told: Results) -> None:
    for results in (renamed(ablated), told):
        drawn = charts.charts(results)
        marked = [chart for chart in drawn if f"line to beat: {TITLE}" in json.dumps(chart.spec)]
        # What is left against accuracy, and both measures along each kind of budget.
        along = [len(results.budgets) > 1, len(results.poison_budgets) > 1]
        assert len(marked) == 1 + 2 * sum(along)
        for chart in marked:
            assert vl_convert.vegalite_to_vega(chart.spec)["legends"]


def test_the_page_has_the_marks(told: Results, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "page", [(told, [])])
    page = (tmp_path / "page.html").read_text()
    assert '<th scope="col">line to beat</th>' in page
    assert "<td>the line</td>" in page


def test_the_leaderboard_counts_who_beats_the_line(told: Results) -> None:
    attack = told.recipe.attack.model_copy(update={"name": "another"})
    other = replace(told, recipe=told.recipe.model_copy(update={"attack": attack}))
    vars(other)["summary"] = told.summary.replace({"standing": {"beats": "unclear"}})
    board = leaderboard([told, other]).set_index("unlearner")
    assert board[["lines", "beats", "loses"]].to_dict("index") == {
        TUNED: {"lines": 2, "beats": 0, "loses": 0},
        "scrub": {"lines": 0, "beats": 1, "loses": 0},
        "euk": {"lines": 0, "beats": 0, "loses": 2},
        "none": {"lines": 0, "beats": 0, "loses": 0},
        "retrain (full)": {"lines": 0, "beats": 0, "loses": 0},
    }
    shown = ranking_table([told, other]).set_index("unlearner")["line to beat"].to_dict()
    assert shown == {
        TITLE: "the line", "SCRUB": "beats 1", "EUk": "loses 2", "no unlearning": "–",
        "retrain (full)": "–",
    }  # fmt: skip
    assert f"Line to beat: {TITLE} in the same experiment" in ranking_legend([told, other])


def test_the_leaderboard_says_why_its_verdicts_differ_from_a_runs(tiny_run: Results) -> None:
    pooled = replace(tiny_run, runs={**tiny_run.runs, "another": {}})
    assert "A verdict here may differ from one run's" not in ranking_legend([tiny_run, tiny_run])
    said = ranking_legend([tiny_run, pooled])
    assert f"{tiny_run.recipe.name} (2 runs). A verdict here may differ from one run's" in said
    assert "line to beat" not in ranking_table([tiny_run])


def test_options_that_differ_have_a_line_each_and_a_search_says_what_it_chose(
    tmp_path: Path,
) -> None:
    """Two rates are two lines of a leaderboard; a searched rate stands behind the name."""
    recipe = {
        **TINY,
        "seeds": 1,
        "data": {**TINY["data"], "validation": 0.2},
        "unlearners": [{"name": "gd", "lr": [0.1, 0.01]}, *NGD],
    }
    results = marshtest.run(recipe, out=tmp_path / "run", report=False)
    line = results.summary[results.summary["unlearner"] == "gd"].iloc[0]
    rate = json.loads(line["hyperparameters"])["lr"]
    names = ranking_table([results])["unlearner"].tolist()
    assert {f"GD (lr {rate} of 2)", "NGD lr=0.1", "NGD lr=0.01"} <= set(names)
    assert f"GD (lr {rate} of 2)" in set(table(results)["model"])
    (said,) = [one["text"] for one in in_words(results) if one["model"] == "GD"]
    assert f"The search chose lr {rate} of 2." in said
