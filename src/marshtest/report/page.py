"""One self-contained HTML page of a run: the verdicts in words, the table, the figures, the recipe."""

import base64
from collections.abc import Mapping
from pathlib import Path

import jinja2

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
    "figure6": "Scores of fresh noise and of the poisons, before and after unlearning, with the "
    "fitted and the null density (the paper's Figure 6).",
    "figure7": "Trade-off curves of telling poisons from fresh noise (the paper's Figure 7).",
}


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
    """Write the page; pictures are embedded, names are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("marshtest", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    pictures = [
        (CAPTIONS[name], base64.b64encode(file.read_bytes()).decode())
        for name, files in figures.items()
        for file in files
    ]
    text = table(results)
    errors = table2(results) if "error" in results.score_names else text[:0]
    html = environment.get_template("page.html.j2").render(
        recipe=results.recipe,
        sentences=sentences(results),
        columns=text.columns.tolist(),
        lines=text.to_numpy().tolist(),
        legend=legend(results),
        table2=TABLE_2,
        table2_columns=errors.columns.tolist(),
        table2_lines=errors.to_numpy().tolist(),
        pictures=pictures,
        yaml=results.recipe.to_yaml(),
        about=results.about,
    )
    path.write_text(html)
