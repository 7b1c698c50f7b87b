"""Tables, figures and the page say what the rows say."""

import base64
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import vl_convert
from conftest import SHIPPED_STYLE, TINY
from PIL import Image
from scipy import stats

from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.row_file import write_rows
from marshtest.metrics.dependence import SCORES
from marshtest.metrics.verdict import Rest
from marshtest.reporting import charts, figures
from marshtest.reporting.page import answer, in_words, sentences, write_page
from marshtest.reporting.tables import (
    as_latex,
    as_markdown,
    explained,
    label,
    legend,
    markdown,
    rests_in_words,
    table,
)
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results


@pytest.fixture(scope="module")
def reported(tiny_run: Results) -> Results:
    """The tiny run, with figures and page in its folder."""
    write_report(tiny_run)
    return tiny_run


def test_bars_and_lines_of_figure_2_are_the_summary(tiny_run: Results) -> None:
    figure = figures.figures_of(tiny_run, 0.2)["figure2"]
    summary = tiny_run.summary.set_index("role")
    top, bottom = figure.axes
    heights = [bar.get_height() for bar in top.containers[1]]  # type: ignore[attr-defined]
    assert np.allclose(heights, summary.loc["updated", "test_accuracy"])
    levels = {line.get_label(): line.get_ydata()[0] for line in top.lines}  # type: ignore[index]
    assert np.isclose(levels["retraining"], summary.loc["retrained", "test_accuracy"])
    assert np.isclose(levels["no unlearning"], summary.loc["initial", "test_accuracy"])
    heights = [bar.get_height() for bar in bottom.containers[3]]  # type: ignore[attr-defined]
    assert np.allclose(heights, summary.loc["updated", "tpr_rank"])


def test_histograms_of_figure_6_hold_every_score_and_the_null_density(tiny_run: Results) -> None:
    figure = figures.figures_of(tiny_run, 0.2)["figure6"]
    for panel in figure.axes:
        area = sum(patch.get_height() * patch.get_width() for patch in panel.patches)  # type: ignore[attr-defined]
        assert np.isclose(area, 1)
        x, y = panel.lines[1].get_data()
        assert np.allclose(y, stats.norm.pdf(x))
    assert "mean -" in figure.axes[1].get_title()  # memorised noise has negative scores


def test_figure_7_has_both_tests_with_the_tprs_of_the_tables(tiny_run: Results) -> None:
    figure = figures.figures_of(tiny_run, 0.2)["figure7"]
    of_gd = tiny_run.scores.query("role == 'initial'")
    for panel, statistic, column, law in zip(
        figure.axes,
        (np.abs, np.negative),
        ("tpr", "tpr_one_sided"),
        (lambda tau, mean: stats.ncx2.sf(tau**2, 1, mean**2), stats.norm.sf),
        strict=True,
    ):
        lines = {str(line.get_label()): line for line in panel.lines}
        x, y = (np.asarray(part) for part in lines["no unlearning, empirical"].get_data())
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert (x[-1], y[-1]) == (1, 1)
        tau = 1.0
        fpr, tpr = (float((statistic(of_gd[s]) > tau).mean()) for s in ("gus_fresh", "gus"))
        assert np.isclose(y[x == fpr], tpr).any()  # type: ignore[comparison-overlap]
        x, y = (np.asarray(part) for part in lines["no unlearning, Gaussian"].get_data())
        mean = -of_gd["gus"].mean()
        tau = stats.norm.isf(x / 2) if column == "tpr" else stats.norm.isf(x)
        inside = x < 1
        assert np.allclose(y[inside], law(tau[inside], mean))
        marked = lines["no unlearning, TPR at FPR 0.01"].get_data()
        initial = tiny_run.summary.query("role == 'initial'").iloc[0]
        assert np.allclose(marked, [[0.01], [initial[column]]])


def test_both_intervals_of_the_dependence_figure_are_those_of_the_scores(
    tiny_run: Results,
) -> None:
    """Thick: given these models, by the poisons' spread. Thin: t over the seeds' own means."""
    figure = figures.figures_of(tiny_run, 0.2)["dependence"]
    drawn = bars(figure.axes[1])
    for place, (_, line) in zip(range(4, -1, -1), tiny_run.summary.iterrows()):
        own = tiny_run.scores_of(0.2, line)
        means = -own.groupby("seed")["rank"].mean()
        thick = stats.t.isf(0.025, len(own) - 1) * stats.sem(own["rank"])
        thin = stats.t.isf(0.025, 1) * stats.sem(means)
        assert drawn[place] == pytest.approx({5.0: thick, 1.2: thin})
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[-2:] == ["95 % interval given these models", "95 % interval of trainings to come"]
    assert "Mean over the poisons of 2 seeds." in [text.get_text() for text in figure.texts]


def test_effects_with_a_clean_twin_have_one_interval_over_trainings(matching: Results) -> None:
    figure = figures.figures_of(matching, 0.1)["dependence"]
    lines = matching.summary
    drawn = bars(figure.axes[0])
    cells = table(matching)["adversarial probability"].tolist()
    for place, cell, (_, line) in zip(range(3, -1, -1), cells, lines.iterrows()):
        rows = matching.rows[matching.rows["role"] == line["role"]]
        left = rows["target_probability"] - rows["twin_target_probability"]
        error = stats.sem(left)
        assert drawn[place] == pytest.approx({1.2: stats.t.isf(0.025, 6) * error})
        assert cell == f"{left.mean() + 0:.3f} (±{error:.3f})"
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "95 % interval of trainings to come" in said
    assert "95 % interval given these models" not in said


def bars(panel: Any) -> dict[int, dict[float, float]]:
    """By place of the model and width of the bar, half its length."""
    found: dict[int, dict[float, float]] = {}
    for collection in panel.collections:
        for (x, y), (end, _) in collection.get_segments():
            found.setdefault(round(y), {})[float(collection.get_linewidth()[0])] = (end - x) / 2
    return found


@pytest.mark.slow
def test_bars_of_figures_8_and_9_are_the_summary(ablated: Results, tmp_path: Path) -> None:
    write_report(replace(ablated, folder=tmp_path))
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"figure8.png", "left-by-budget.png", "figure9.pdf", "left-by-size.pdf"} <= names
    gd = ablated.summary[ablated.summary["unlearner"] == "gd"]
    by_budget = figures.figures_of(ablated, 0.2)["figure8"]
    by_size = figures.figures_by_size(ablated)["figure9"]
    for figure, by, lines in (
        (by_budget, "budget", gd[gd["poison_budget"] == 0.2]),
        (by_size, "forget_size", gd[gd["budget"] == 0.5]),
    ):
        accuracy, effect = figure.axes
        assert [text.get_text() for text in accuracy.texts] == ["GD", "SCRUB"]
        lines = lines.sort_values(by)
        assert np.allclose(heights(accuracy, 1)[:2], lines["test_accuracy"])
        assert np.allclose(heights(effect, 1)[:2], lines["tpr"])
        assert np.allclose(heights(effect, 3)[:2], lines["tpr_rank"])
    at = ablated.summary[ablated.summary["poison_budget"] == 0.2].set_index("role")
    references = {line.get_label(): line.get_ydata()[0] for line in by_budget.axes[0].lines}  # type: ignore[index]
    assert references["retraining"] == at.loc["retrained", "test_accuracy"]
    assert references["no unlearning"] == at.loc["initial", "test_accuracy"]


def heights(panel: Any, container: int) -> list[float]:
    return [bar.get_height() for bar in panel.containers[container]]


def test_lines_of_what_is_left_are_the_summary(ablated: Results) -> None:
    gd = ablated.summary[ablated.summary["unlearner"] == "gd"]
    by_budget = figures.ablation(ablated, "budget", "poison_budget", 0.2)
    by_size = figures.ablation(ablated, "forget_size", "budget", 0.5)
    for figure, by, lines in (
        (by_budget, "budget", gd[gd["poison_budget"] == 0.2]),
        (by_size, "forget_size", gd[gd["budget"] == 0.5]),
    ):
        columns = ["test_accuracy", "gus_dependence", "rank_dependence"]
        for panel, column in zip(figure.axes, columns):
            drawn = panel.containers[0].lines[0].get_data()  # type: ignore[attr-defined]
            assert np.allclose(drawn, [lines[by], lines[column]])
            assert len(lines) == 2
    sizes = by_size.axes[1].containers[-1].lines[0].get_data()[0]  # type: ignore[attr-defined]
    assert list(sizes) == [20, 40]  # the initial models', of 200 samples


def test_figures_are_readable_files(reported: Results) -> None:
    for name in ("dependence", "figure2", "figure6", "figure7"):
        image = Image.open(reported.folder / "figures" / f"{name}.png")
        assert len(set(image.convert("L").get_flattened_data())) > 10
        pdf = (reported.folder / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")


def test_fonts_of_figures_are_truetype_as_publishers_ask(tiny_run: Results, tmp_path: Path) -> None:
    with matplotlib.rc_context(SHIPPED_STYLE):
        figure = figures.figures_of(tiny_run, 0.2)["dependence"]
        figures.save(figure, tmp_path / "dependence")
    pdf = (tmp_path / "dependence.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # an embedded TrueType font program
    assert b"/Type3" not in pdf


def test_a_figure_names_what_the_rows_do_not_hold(tiny_run: Results) -> None:
    kept = tiny_run.rows[tiny_run.rows["role"] != "retrained"].reset_index(drop=True)
    drawn = figures.figures_of(replace(tiny_run, rows=kept), 0.2)
    for name in ("figure2", "dependence"):
        texts = [text.get_text() for text in drawn[name].texts]
        assert "Not among the rows: retraining." in texts
    labels = {line.get_label() for line in drawn["figure2"].axes[0].lines}
    assert "retraining" not in labels
    assert "no unlearning" in labels


def test_the_page_asks_for_nothing_and_starts_with_the_verdicts(reported: Results) -> None:
    page = (reported.folder / "report.html").read_text()
    assert "default-src 'none'" in page  # so that a browser refuses what might slip through
    marked = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', marked)
    assert page.index("too small for a verdict") < page.index("<table>")
    assert "What a verdict does not prove" in page
    assert page.count('<img src="data:image/png;base64,') == 3 * 6  # base, dosed, noise of six
    assert len(page) < 3_000_000


def test_the_page_embeds_the_rows_and_the_numbers(reported: Results, tmp_path: Path) -> None:
    page = (reported.folder / "report.html").read_text()
    (encoded,) = re.findall(r'"data:application/vnd.apache.parquet;base64,([^"]*)"', page)
    (tmp_path / "rows.parquet").write_bytes(base64.b64decode(encoded))
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(rows, reported.rows, check_exact=True)
    (models,) = re.findall(r'data-name="models">(.*?)</script>', page)
    shown = pd.DataFrame(json.loads(models))
    expected = reported.summary["rank_dependence"]
    assert np.allclose(shown["rank_dependence"], expected, atol=1e-5)
    initial = shown[shown["role"] == "initial"].iloc[0]
    assert initial["left"] == 1  # of itself
    (scores,) = re.findall(r'data-name="scores">(.*?)</script>', page)
    own = pd.DataFrame(json.loads(scores)).query("model == 'GD' and score == 'gus'").iloc[0]
    values = reported.scores.query("unlearner == 'gd'")["gus"]
    assert own["count"] == len(values) == 80
    assert own["mean"] == pytest.approx(values.mean(), abs=1e-4)
    assert np.allclose(
        own["density"], np.histogram(values, 40, (-5, 5), density=True)[0], atol=1e-4
    )


def test_charts_are_sound_vega_lite(ablated: Results) -> None:
    """Compiled to Vega by the reference implementation, with the data and signals of the page."""
    for chart in charts.charts(ablated):
        compiled = vl_convert.vegalite_to_vega(chart.spec)
        assert {"shown", "budget", "poison", "model"} <= {s["name"] for s in compiled["signals"]}
        assert {"models", "scores"} & {data["name"] for data in compiled["data"]}


def test_names_are_escaped_in_the_page(tiny_run: Results, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>:f"
    rows = tiny_run.rows.replace({"unlearner": {"gd": evil}})
    scores = tiny_run.scores.replace({"unlearner": {"gd": evil}})
    recipe = tiny_run.recipe.model_copy(update={"name": evil, "description": evil})
    results = replace(tiny_run, rows=rows, scores=scores, recipe=recipe)
    write_page(tmp_path / "page.html", evil, [(results, [])])
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    (models,) = re.findall(r'data-name="models">(.*?)</script>', page)
    assert evil in {line["model"] for line in json.loads(models)}


def test_a_latex_table_is_booktabs_and_escaped() -> None:
    frame = pd.DataFrame({"model": ["a_b & c"], "accuracy": ["0.5±0.1"]})
    text = as_latex(frame, "100 % of τ")
    assert r"a\_b \& c & 0.5$\pm$0.1 \\" in text
    assert r"\caption{100 \% of $\tau$}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert text.isascii()


def test_the_table_says_what_the_summary_says(reported: Results) -> None:
    text = table(reported)
    assert text["model"].tolist() == ["no unlearning", "retrain (full)", "GD", "EUk", "SCRUB"]
    for (_, cells), (_, line) in zip(text.iterrows(), reported.summary.iterrows()):
        own = reported.scores_of(0.2, line)
        means = own.groupby("seed")["rank"].mean()
        errors = stats.sem(own["rank"]), stats.sem(means)
        assert cells["rank score"] == "{:.3f}±{:.3f} (±{:.3f})".format(-own["rank"].mean(), *errors)
        hits = own["gus"].abs() > stats.norm.isf(0.005)
        low, high = stats.binomtest(int(hits.sum()), 80).proportion_ci(method="exact")
        assert cells["TPR"] == f"{hits.mean():.3f} [{low:.3f}, {high:.3f}]"
        assert cells["usable"] == line["usable"]
        assert cells["trainings"] == f"{line['removed_in']} of 2"
    shifts = 1 + 1 + 4  # all but the initial model
    said = explained(reported)
    for line in said:
        assert f"- {line}" in markdown(reported).splitlines()
    assert markdown(reported).count("\n| ") == 1 + 1 + 5 + shifts
    saved = pd.read_csv(reported.folder / "summary.csv")
    assert saved["verdict"].tolist() == reported.summary["verdict"].tolist()
    for name in ("GD", "EUk", "SCRUB"):
        assert any(name in sentence for sentence in sentences(reported))


def test_every_model_that_is_not_removed_has_a_sentence_why(tiny_run: Results) -> None:
    summary = tiny_run.summary.copy()
    gd = summary["unlearner"] == "gd"
    summary.loc[gd, "reasons"] = "GUS: why not; and more"
    summary.loc[summary["unlearner"] == "scrub", ["verdict", "reasons"]] = ["REMOVED", ""]
    summary.loc[summary["unlearner"] == "euk", ["verdict", "reasons"]] = ["INCONCLUSIVE", ""]
    told = replace(tiny_run)
    vars(told)["summary"] = summary  # in place of what the rows give
    assert "GD, NOT REMOVED: GUS: why not; and more." in explained(told)
    assert "EUk, INCONCLUSIVE: too few poisons for either answer." in explained(told)
    assert not any(line.startswith(("SCRUB", "no unlearning")) for line in explained(told))
    words = {line["model"]: line["text"] for line in in_words(told)}
    assert words["GD"].endswith("Against REMOVED – GUS: why not; and more.")
    assert "Against" not in words["SCRUB"]
    line = summary[gd].iloc[0]
    assert f"in {line['removed_in']} of 2 trainings" in words["GD"]
    both = f"±{line['gus_error']:.3f} given these models and ±{line['gus_trainings_error']:.3f} of"
    assert both in words["GD"]


def test_the_legend_says_what_removed_rests_on(tiny_run: Results, ablated: Results) -> None:
    rests = [Rest("gus", "mean"), Rest("rank", "mean"), Rest("rank", "tail")]
    said = "GUS (mean) and rank score (mean, share beyond the threshold)"
    assert rests_in_words(rests, SCORES) == said
    assert f"it rests on {rests_in_words(tiny_run.rests(0.2), SCORES)}." in legend(tiny_run)
    told = {share: rests_in_words(ablated.rests(share), SCORES) for share in (0.1, 0.2)}
    for share, words in told.items():
        at = f"at {100 * share:g} % poison, " if len(set(told.values())) > 1 else ""
        assert f"{at}{words}" in legend(ablated)


def test_shares_left_have_the_interval_of_trainings_to_come(
    tiny_run: Results, ablated: Results
) -> None:
    for results, at in ((tiny_run, "_trainings"), (ablated, "")):  # ablated has one seed
        summary, shown = results.summary, charts.models(results)
        for (_, line), (_, of) in zip(summary.iterrows(), shown.iterrows()):
            name = next(key for key, score in SCORES.items() if score.title == of["by"])
            same = summary["poison_budget"] == line["poison_budget"]
            initial = summary[same & (summary["role"] == "initial")].iloc[0]
            effect = initial[f"{name}_dependence"]
            assert of["left_low"] == pytest.approx(line[f"{name}{at}_low"] / effect)
            assert of["left_high"] == pytest.approx(line[f"{name}{at}_high"] / effect)


def test_of_an_effect_that_may_be_none_there_is_no_share(tiny_run: Results) -> None:
    """A share of rounding, of noise, or of exactly nothing would be any number."""
    for column, value in (("low", -0.1), ("dependence", 1e-17), ("dependence", 0.0)):
        told = replace(tiny_run)
        none = tiny_run.summary["role"] == "initial"
        changed = {
            f"{name}_{column}": tiny_run.summary[f"{name}_{column}"].mask(none, value)
            for name in tiny_run.scores_shown
        }
        vars(told)["summary"] = tiny_run.summary.assign(**changed)  # in place of what the rows give
        assert charts.models(told)["left"].isna().all()
        assert all("an unknown share" in line["text"] for line in in_words(told))


def test_a_dollar_in_an_option_is_drawn_as_it_is(tiny_run: Results, tmp_path: Path) -> None:
    """Two would begin a formula, and an odd one end in matplotlib's traceback."""
    (of,) = tiny_run.runs
    odd = "$\\frac{x$, of two\nlines"
    name, values = "mine:fn", {"options": {"layers": odd}}
    told = json.dumps({"source": "", **values}, sort_keys=True)
    rows, gd = tiny_run.rows.copy(), tiny_run.rows["unlearner"] == "gd"
    rows.loc[gd, ["unlearner", "hyperparameters"]] = [name, told]
    about = {**tiny_run.runs[of]["values"]}
    about["unlearners"] = [[{"name": name, "source": "", **values}], *about["unlearners"][1:]]
    write_rows(rows, tmp_path / "rows.parquet", {of: {**tiny_run.runs[of], "values": about}})
    results = Results.read(tmp_path)
    drawn = figures.draw_all(results, tmp_path)
    assert drawn["figure2"].exists()
    shown = figures.figures_of(results, 0.2)["dependence"].axes[0].get_yticklabels()
    assert r"\$\frac{x\$, of two lines" in shown[2].get_text()
    assert len(as_markdown(table(results)).splitlines()) == 2 + len(results.summary)


def test_names_of_many_unlearners_do_not_overlap(tiny_run: Results) -> None:
    """Figure 2 is wider for twenty, and no name lies over the next."""
    summary = tiny_run.summary
    gd = summary[summary["unlearner"] == "gd"]
    many = pd.concat([summary, *([gd] * 20)], ignore_index=True)
    names = [f"an unlearner of some long name, number {at}" for at in range(len(many))]
    effect = tiny_run.recipe.attack.shown.effect
    assert effect is not None
    figure = figures.accuracy_and(many.assign(label=names), effect)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[1].get_xticklabels()]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    assert all(panel.get_position().height > 0.15 for panel in figure.axes)


def test_the_answer_counts_verdicts_and_names_what_removal_cost(tiny_run: Results) -> None:
    assert answer(tiny_run).startswith(
        "With 50% of the training's compute, none of 3 removed the Gaussian"
    )
    summary = tiny_run.summary.copy()
    gd = summary["unlearner"] == "gd"
    summary.loc[gd, ["verdict", "accuracy_cost", "usable"]] = ["REMOVED", 0.123, "no"]
    summary.loc[summary["unlearner"] == "scrub", "verdict"] = "NOT REMOVED"
    told = replace(tiny_run)
    vars(told)["summary"] = summary  # in place of what the rows give
    said = answer(told)
    assert (
        "1 of 3 removed the Gaussian poisons: GD (12.3 points below retraining, not usable)" in said
    )
    assert "did not: " in said
    assert "SCRUB" in said.partition("did not: ")[2]


@pytest.mark.slow
def test_controls_alone_are_reported_too(
    tiny_run: Results, ablated: Results, tmp_path: Path
) -> None:
    for results in (tiny_run, ablated):
        rows = results.rows[results.rows["role"] != "updated"].reset_index(drop=True)
        page = write_report(replace(results, rows=rows, folder=tmp_path))
        assert "No unlearner is among the rows." in page.read_text()


def test_callables_of_one_name_are_told_apart_by_the_values_that_they_were_given() -> None:
    entries = [{"name": "statistics:mean"}, {"name": "statistics:mean", "rate": 2}, "gd"]
    recipe = load_recipe({**TINY, "unlearners": entries})
    lines = [
        {
            "unlearner": trial.name,
            "role": "updated",
            "hyperparameters": json.dumps(trial.hyperparameters),
            "budget": 0.5,
        }
        for (trial,) in recipe.unlearners
    ]
    assert [label(line, recipe) for line in lines] == [
        "statistics:mean",
        "statistics:mean rate=2",
        "GD",
    ]
