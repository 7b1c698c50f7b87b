"""Tables, figures and pages, all drawn from rows."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd

from marshtest.experiment.row_file import write_rows
from marshtest.hypotheses.studied import Study
from marshtest.plumbing.whole_files import write
from marshtest.plumbing.yaml_files import file_stem
from marshtest.reporting import charts
from marshtest.reporting.figures import STYLE, differences, draw_all, save
from marshtest.reporting.further import further, further_markdown
from marshtest.reporting.hypotheses import SHOWN, hypothesis_table
from marshtest.reporting.page import CAPTIONS, Picture, Shown, write_page
from marshtest.reporting.tables import (
    as_markdown,
    comparison_table,
    legend,
    markdown,
    ranking_legend,
    ranking_table,
    shift_legend,
    shift_table,
    table,
    table2,
    table2_caption,
    write_table,
)
from marshtest.results.comparison import LEGEND as COMPARISON
from marshtest.results.merging import Merged, read_all
from marshtest.results.summary import Results

BY_SIZE = ("figure9", "figure10", "left-by-size")
BY_BUDGET = ("figure8", "left-by-budget", "shift")


def write_report(results: Results) -> Path:
    """Write summary.csv, shifts.csv, summary.md, figures/ and report.html into a run's folder; the page."""
    charts.prepare()  # in a thread, beside the figures
    folder = results.folder
    write(results.summary, folder / "summary.csv")
    if len(results.moved):
        write(results.moved, folder / "shifts.csv")
    if results.recipe.attack.shown.table2:
        write(table2(results), folder / "table2.csv")
    for one in further(results):
        write(one.lines, folder / f"{one.name}.csv")
    write((markdown(results) + further_markdown(results)).encode(), folder / "summary.md")
    page = folder / "report.html"
    write_page(page, results.recipe.name, [(results, _pictures(results, folder / "figures"))])
    return page


def write_study(study: Study) -> Path:
    """Write the figure, summary.md and report.html into a hypothesis's folder; the page."""
    shown = _shown(study, study.folder / "figures")
    title = study.settings.name
    parts = [f"# {title}", as_markdown(shown.table), shown.legend, f"**{study.statement}**"]
    write(("\n\n".join(parts) + "\n").encode(), study.folder / "summary.md")
    page = study.folder / "report.html"
    write_page(page, title, [], studies=[shown])
    return page


def report(*sources: str | Path, out: str | Path) -> Merged:
    """Draw every figure and table that rows can fill, and one page of them all.

    Args:
        sources: runs, sweeps, hypotheses, files of rows, or folders of them; rows that can be compared are
            merged.
        out: folder of report.html, figures/, tables/ and the merged rows/.

    Returns:
        What was read; `said` tells what was merged and what was not, `gaps` of each result what is missing.

    Raises:
        MarshtestError: a source holds no rows, or cannot be read.
    """
    merged = read_all(sources)
    write_all(merged, Path(out))
    return merged


def write_all(merged: Merged, folder: Path) -> Path:
    """Write tables/, figures/, the merged rows and report.html of all that rows hold; the page."""
    charts.prepare()
    figures, tables = folder / "figures", folder / "tables"
    sections = []
    names = [results.recipe.name for results in merged.results]
    names += [study.settings.name for study in merged.studies]
    stems = _stems(names)
    for results, stem in zip(merged.results, stems, strict=False):
        sections.append((results, _pictures(results, figures, f"{stem}-")))
        write(results.summary, tables / f"{stem}-summary.csv")
        write_table(table(results), tables / f"{stem}-table", legend(results))
        if results.recipe.attack.shown.table2:
            write_table(table2(results), tables / f"{stem}-table2", table2_caption(results))
        if len(results.moved):
            write_table(shift_table(results), tables / f"{stem}-shifts", shift_legend(results))
        for one in further(results):
            write_table(one.table, tables / f"{stem}-{one.name}", one.legend)
        # So that what the page shows can be given on, and merged with more.
        write_rows(results.rows, folder / "rows" / f"{stem}.parquet", results.runs)
    # Figures 4 and 5 keep the paper's names as long as there is one of each.
    kinds = [study.settings.hypothesis for study in merged.studies]
    studies = [
        _shown(study, figures, f"{stem}-" if kinds.count(study.settings.hypothesis) > 1 else "")
        for study, stem in zip(merged.studies, stems[len(merged.results) :], strict=True)
    ]
    for shown, stem in zip(studies, stems[len(merged.results) :], strict=True):
        write_table(shown.table, tables / f"{stem}-table", shown.legend)
    ranking = None
    # Unlearners are ranked by means over attacks; within one attack the table says all.
    several = len({results.recipe.attack.name for results in merged.results}) > 1
    if several and not (board := ranking_table(merged.results)).empty:
        ranking = (board, ranking_legend(merged.results))
        write_table(board, tables / "leaderboard", ranking[1])
    title = names[0] if len(names) == 1 else f"{len(names)} experiments"
    page = folder / "report.html"
    write_page(page, title, sections, studies=studies, ranking=ranking, said=merged.said)
    return page


def write_comparison(compared: pd.DataFrame, folder: Path) -> None:
    """Write compare.csv, the same as a table of text, and a figure a unit that differences are over."""
    write(compared, folder / "compare.csv")
    shown = comparison_table(compared)
    write_table(shown, folder / "compare-table", COMPARISON)
    labels = [f"{x.unlearner}, poison {x.poison}, compute {x.budget}" for x in shown.itertuples()]
    named = compared.assign(label=labels)
    with matplotlib.rc_context(STYLE):
        for unit, lines in named.groupby("unit", sort=False):
            save(differences(lines), folder / f"compare-{unit}")


def _stems(names: Sequence[str]) -> list[str]:
    """Beginnings of files' names, no two alike, nor where a file system knows no capitals."""
    stems: list[str] = []
    for stem in map(file_stem, names):
        more = ("" if n == 1 else f"-{n}" for n in itertools.count(1))
        taken = {other.casefold() for other in stems}
        stems.append(next(stem + m for m in more if (stem + m).casefold() not in taken))
    return stems


def _pictures(results: Results, folder: Path, before: str = "") -> Sequence[Picture]:
    drawn = draw_all(results, folder, before)
    return [Picture(name, _caption(name, results), file) for name, file in drawn.items()]


def _caption(name: str, results: Results) -> str:
    """The caption of a figure, with its budgets where it shows one of several."""
    at = []
    if len(results.poison_budgets) > 1 and name not in BY_SIZE:
        at.append(f"poison budget {100 * results.poison_budget:g} %")
    if len(results.budgets) > 1 and name not in BY_BUDGET:
        at.append(f"compute budget {100 * results.budget:g} %")
    effect = results.recipe.attack.shown.effect
    caption = effect.caption if effect and name == effect.figure else CAPTIONS[name]
    return f"{caption} At {' and '.join(at)}." if at else caption


def _shown(study: Study, folder: Path, before: str = "") -> Shown:
    kind = study.settings.hypothesis
    look = SHOWN[kind]
    with matplotlib.rc_context(STYLE):
        picture = save(look.figure(study.curves), folder / f"{before}{look.name}")
    frame: pd.DataFrame = hypothesis_table(kind, study.rows)
    return Shown(study, frame, look.legend, Picture(look.name, look.caption, picture))
