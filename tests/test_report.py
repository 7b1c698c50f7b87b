"""Tables, figures and the page say what the rows say."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert
from PIL import Image
from scipy import stats

from marshtest.report import charts, figures, write_report
from marshtest.report.page import answer, sentences, write_page
from marshtest.report.tables import as_latex, markdown, table
from marshtest.results import Results


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


def test_curves_of_figure_7_are_monotone_and_end_at_one(tiny_run: Results) -> None:
    figure = figures.figures_of(tiny_run, 0.2)["figure7"]
    for line in figure.axes[0].lines:
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= -1e-12).all()
        assert np.isclose(y[-1], 1)


def test_bars_of_figures_8_and_9_are_the_summary(ablated: Results) -> None:
    names = {file.name for file in (ablated.folder / "figures").iterdir()}
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


def test_figures_are_readable_files(tiny_run: Results) -> None:
    for name in ("dependence", "figure2", "figure6", "figure7"):
        image = Image.open(tiny_run.folder / "figures" / f"{name}.png")
        assert len(set(image.convert("L").get_flattened_data())) > 10
        pdf = (tiny_run.folder / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")


def test_a_figure_names_what_the_rows_do_not_hold(tiny_run: Results) -> None:
    kept = tiny_run.rows[tiny_run.rows["role"] != "retrained"].reset_index(drop=True)
    drawn = figures.figures_of(replace(tiny_run, rows=kept), 0.2)
    for name in ("figure2", "dependence"):
        texts = [text.get_text() for text in drawn[name].texts]
        assert "Not among the rows: retraining." in texts
    labels = {line.get_label() for line in drawn["figure2"].axes[0].lines}
    assert "retraining" not in labels
    assert "no unlearning" in labels


def test_the_page_asks_for_nothing_and_starts_with_the_verdicts(tiny_run: Results) -> None:
    page = (tiny_run.folder / "report.html").read_text()
    assert "default-src 'none'" in page  # so that a browser refuses what might slip through
    marked = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', marked)
    assert page.index("too small for a verdict") < page.index("<table>")
    assert "What a verdict does not prove" in page
    assert page.count('<img src="data:image/png;base64,') == 3 * 6  # base, dosed, noise of six
    assert len(page) < 3_000_000


def test_the_page_embeds_the_rows_and_the_numbers(tiny_run: Results, tmp_path: Path) -> None:
    page = (tiny_run.folder / "report.html").read_text()
    (encoded,) = re.findall(r'"data:application/vnd.apache.parquet;base64,([^"]*)"', page)
    (tmp_path / "rows.parquet").write_bytes(base64.b64decode(encoded))
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(rows, tiny_run.rows, check_exact=True)
    (models,) = re.findall(r'data-name="models">(.*?)</script>', page)
    shown = pd.DataFrame(json.loads(models))
    expected = tiny_run.summary["rank_dependence"]
    assert np.allclose(shown["rank_dependence"], expected, atol=1e-5)
    initial = shown[shown["role"] == "initial"].iloc[0]
    assert initial["left"] == 1  # of itself
    (scores,) = re.findall(r'data-name="scores">(.*?)</script>', page)
    own = pd.DataFrame(json.loads(scores)).query("model == 'GD' and score == 'gus'").iloc[0]
    values = tiny_run.scores.query("unlearner == 'gd'")["gus"]
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


def test_the_table_says_what_the_summary_says(tiny_run: Results) -> None:
    text = table(tiny_run)
    assert text["model"].tolist() == ["no unlearning", "retrain (full)", "GD", "EUk", "SCRUB"]
    value = tiny_run.summary["rank_dependence"].iloc[0]
    assert text["rank score"].iloc[0].startswith(f"{value:.3f}±")
    shifts = 1 + 1 + 4  # all but the initial model
    assert markdown(tiny_run).count("\n| ") == 1 + 1 + 5 + shifts
    saved = pd.read_csv(tiny_run.folder / "summary.csv")
    assert saved["verdict"].tolist() == tiny_run.summary["verdict"].tolist()
    for name in ("GD", "EUk", "SCRUB"):
        assert any(name in sentence for sentence in sentences(tiny_run))


def test_the_answer_counts_verdicts_and_names_what_removal_cost(tiny_run: Results) -> None:
    assert answer(tiny_run).startswith(
        "With 50% of the training's compute, none of 3 removed the Gaussian"
    )
    summary = tiny_run.summary.copy()
    gd = summary["unlearner"] == "gd"
    summary.loc[gd, ["verdict", "accuracy_cost"]] = ["REMOVED", 0.123]
    summary.loc[summary["unlearner"] == "scrub", "verdict"] = "NOT REMOVED"
    told = replace(tiny_run)
    vars(told)["summary"] = summary  # in place of what the rows give
    said = answer(told)
    assert "1 of 3 removed the Gaussian poisons: GD (12.3 points below retraining)" in said
    assert "did not: " in said
    assert "SCRUB" in said.partition("did not: ")[2]


def test_controls_alone_are_reported_too(
    tiny_run: Results, ablated: Results, tmp_path: Path
) -> None:
    for results in (tiny_run, ablated):
        rows = results.rows[results.rows["role"] != "updated"].reset_index(drop=True)
        page = write_report(replace(results, rows=rows, folder=tmp_path))
        assert "No unlearner is among the rows." in page.read_text()
