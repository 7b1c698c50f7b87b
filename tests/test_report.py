"""Tables, figures and the page say what the rows say."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import TINY
from PIL import Image
from scipy import stats

import marshtest
from marshtest.report import figures
from marshtest.report.page import sentences, write_page
from marshtest.report.tables import markdown, table
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


def test_lines_of_figures_8_and_9_are_the_summary(tmp_path: Path) -> None:
    recipe = {**TINY, "seeds": 1, "budgets": [0.25, 0.5], "poison_budgets": [0.1, 0.2]}
    results = marshtest.run({**recipe, "unlearners": ["gd", "scrub"]}, out=tmp_path / "run")
    names = {file.name for file in (tmp_path / "run" / "figures").iterdir()}
    expected = {"figure8-0.1", "figure8-0.2", "figure9-0.25", "figure9-0.5"}
    assert {f"{name}.png" for name in expected} <= names
    gd = results.summary[results.summary["unlearner"] == "gd"]
    by_budget = figures.ablation(results, "budget", "poison_budget", 0.2)
    by_size = figures.ablation(results, "forget_size", "budget", 0.5)
    for figure, by, lines in (
        (by_budget, "budget", gd[gd["poison_budget"] == 0.2]),
        (by_size, "forget_size", gd[gd["budget"] == 0.5]),
    ):
        columns = ["test_accuracy", "gus_dependence", "rank_dependence"]
        for panel, column in zip(figure.axes, columns):
            drawn = panel.containers[0].lines[0].get_data()  # type: ignore[attr-defined]
            assert np.allclose(drawn, [lines[by], lines[column]])
            assert len(lines) == 2
    references = {line.get_label(): line.get_ydata()[0] for line in by_budget.axes[0].lines}  # type: ignore[index]
    at = results.summary[results.summary["poison_budget"] == 0.2].set_index("role")
    assert references["retraining"] == at.loc["retrained", "test_accuracy"]
    assert references["no unlearning"] == at.loc["initial", "test_accuracy"]
    sizes = by_size.axes[1].containers[-1].lines[0].get_data()[0]  # type: ignore[attr-defined]
    assert list(sizes) == [20, 40]  # the retrained models', of 200 samples


def test_figures_are_readable_files(tiny_run: Results) -> None:
    for name in ("dependence", "figure2", "figure6", "figure7"):
        image = Image.open(tiny_run.folder / "figures" / f"{name}-0.2.png")
        assert len(set(image.convert("L").get_flattened_data())) > 10
        pdf = (tiny_run.folder / "figures" / f"{name}-0.2.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")


def test_the_page_is_self_contained_and_starts_with_the_verdicts(tiny_run: Results) -> None:
    html = (tiny_run.folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "http" not in html
    assert html.count("data:image/png;base64,") == 5
    assert html.index("too small for a verdict") < html.index("<table>")
    assert "What a verdict does not prove" in html


def test_names_are_escaped_in_the_page(tiny_run: Results, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>:f"
    rows = tiny_run.rows.replace({"unlearner": {"gd": evil}})
    scores = tiny_run.scores.replace({"unlearner": {"gd": evil}})
    results = Results(tiny_run.folder, tiny_run.recipe, rows, scores, tiny_run.about)
    write_page(results, {}, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


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
