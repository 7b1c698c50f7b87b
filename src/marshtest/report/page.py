"""One self-contained HTML page of a run: the verdicts in words, the table, the figures, the recipe."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from marshtest.recipe import Named
from marshtest.report.tables import TABLE_2, label, legend, table, table2
from marshtest.results import Results

CAPTIONS = {
    "dependence": "What is left of the poison in each model, by each score, with 95 % intervals. "
    "The band is the margin of REMOVED.",
    "shift": "How far each model moved from the initial one, as a share of the retrained model's "
    "distance, and whether it went that way: over all parameters, and by layer (the paper's section 6, "
    "on this model). The second retrained model is what chance gives.",
    "figure3": "Test accuracy, and targets mistaken, mean ± s.d. over seeds (the paper's Figure 3).",
    "figure2": "Test accuracy, and TPR at low FPR, mean ± s.d. over seeds (the paper's Figure 2).",
    "figure8": "Test accuracy, mean ± s.d. over seeds, and what is left of the poison, ± its error, by "
    "compute budget (the paper's Figure 8).",
    "figure9": "The same by the size of the forget set (the paper's Figures 9 and 10).",
    "figure6": "Scores of fresh noise and of the poisons, before and after unlearning, with the "
    "fitted and the null density (the paper's Figure 6).",
    "figure7": "Trade-off curves of telling poisons from fresh noise (the paper's Figure 7).",
}
LIMITS = (
    "REMOVED says that the dose no longer shows in the model by the scores above, within the stated "
    "margin. It does not say that every trace of the forget set is gone, that another attack would find "
    "nothing, or that the method removes other data."
)


def sentences(results: Results) -> list[str]:
    """The verdicts in words."""
    said = list(results.warnings)
    for share, lines in results.summary.groupby("poison_budget", sort=False):
        updated = lines[lines["role"] == "updated"]
        for answer in ("NOT REMOVED", "REMOVED", "INCONCLUSIVE"):
            names = [
                label(x, results.recipe)
                for _, x in updated[updated["verdict"] == answer].iterrows()
            ]
            if names:
                said.append(f"Poison budget {share:g} – {answer}: {', '.join(names)}.")
    return said


def write_page(results: Results, figures: Mapping[str, list[Path]], path: Path) -> None:
    """Write the page of a run."""
    tables = [(table(results), legend(results))]
    if "error" in results.score_names:
        tables.append((table2(results), TABLE_2))
    render(
        path,
        results.recipe,
        heading="Verdicts",
        sentences=sentences(results),
        tables=tables,
        pictures=[(CAPTIONS[name], file) for name, files in figures.items() for file in files],
        about=results.about,
        limits=LIMITS,
    )


def render(
    path: Path,
    recipe: Named,
    *,
    heading: str,
    sentences: Sequence[str],
    tables: Sequence[tuple[pd.DataFrame, str]],
    pictures: Sequence[tuple[str, Path]],
    about: Mapping[str, Any],
    limits: str = "",
) -> None:
    """Write a page; pictures are embedded, names are escaped.

    Args:
        heading: above the sentences.
        tables: each with what its columns mean.
        pictures: captions and PNG files.
        about: of the run that it shows.
        limits: what the sentences do not prove.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("marshtest", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    embedded = [(text, base64.b64encode(file.read_bytes()).decode()) for text, file in pictures]
    html = environment.get_template("page.html.j2").render(
        recipe=recipe,
        heading=heading,
        sentences=sentences,
        tables=[
            (frame.columns.tolist(), frame.to_numpy().tolist(), text) for frame, text in tables
        ],
        pictures=embedded,
        limits=limits,
        yaml=recipe.to_yaml(),
        about=about,
    )
    path.write_text(html)
