"""Tables, figures and the page of a finished run, all drawn from its rows and scores."""

from pathlib import Path

from marshtest.files import write
from marshtest.report.figures import draw_all
from marshtest.report.page import write_page
from marshtest.report.tables import markdown, table2
from marshtest.results import Results


def write_report(results: Results) -> Path:
    """Write summary.csv, shifts.csv, summary.md, figures/ and report.html into the run's folder."""
    folder = results.folder
    write(results.summary, folder / "summary.csv")
    if len(results.moved):
        write(results.moved, folder / "shifts.csv")
    if "error" in results.score_names:
        write(table2(results), folder / "table2.csv")
    (folder / "summary.md").write_text(markdown(results))
    page = folder / "report.html"
    write_page(results, draw_all(results, folder / "figures"), page)
    return page
