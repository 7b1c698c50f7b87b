"""One self-contained HTML page: the verdicts in words, then the evidence, then how it came about.

Nothing is loaded from anywhere: scripts, styles, pictures and downloads are in the file, and its own
content security policy forbids the browser to ask for more.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from marshtest.experiment.states import ITSELF
from marshtest.hypotheses.studied import Study
from marshtest.metrics import membership_verdict
from marshtest.metrics.membership_columns import column_of
from marshtest.metrics.verdict import ANSWERS
from marshtest.plumbing.whole_files import frame_bytes, write
from marshtest.reporting import charts
from marshtest.reporting.further import further
from marshtest.reporting.tables import (
    USE,
    column_text,
    dependence_text,
    errors,
    label,
    legend,
    membership_text,
    number,
    plus_minus,
    rivals,
    shift_legend,
    shift_table,
    standing,
    table2,
    table2_caption,
    why,
)
from marshtest.reporting.templates import template
from marshtest.results.line_to_beat import LINE, RIVALS, has_tuned
from marshtest.results.naming import choice
from marshtest.results.requests import with_costs
from marshtest.results.states import in_state
from marshtest.results.summary import Results

CAPTIONS = {  # of figures that any attack may have; its own figure brings its caption
    "dependence": "What is left of the poison in each model, by each score, with its 95 % intervals "
    "given these models and of trainings to come, as far as either is known. The band is "
    "the margin of REMOVED.",
    "shift": "How far each model moved from the initial one, as a share of the retrained model's "
    "distance, and whether it went that way: over all parameters, mean ± s.d. over seeds, and by layer, "
    "mean (the paper's section 6, on this model).",
    "left-by-known": "What is left by the share of the poisons that the unlearner was told of: of those, "
    "of the others, and of all, ± its standard error (the larger of the one given these models and that "
    "of trainings to come). Exact unlearning is training from scratch without the known ones.",
    "left-by-request": "What is left after each request: of the poisons asked for so far, of those still "
    "to come, and of all, ± its standard error (the larger of the one given these models and that of "
    "trainings to come). Exact unlearning is training from scratch without those asked for so far.",
    "metrics": "Metrics beside the attack's own scores, mean ± s.d. over seeds.",
    "came-back": "What is left of the poison in each model as it is and after each kind of after-care, as "
    "a share of the initial model's effect, with 95 % intervals of trainings to come (of one seed, given "
    "these models). The band is the margin of REMOVED.",
    "figure6": "Scores of fresh noise and of the poisons, before and after unlearning, with the "
    "fitted and the null density (the paper's Figure 6).",
    "figure7": "Trade-off curves of telling poisons from fresh noise, by the paper's two-sided test and by "
    "the one-sided one, each with its TPR at the tables' FPR (the paper's Figure 7).",
    "figure8": "Test accuracy and the attack's effect, mean ± s.d. over seeds, by compute budget (the "
    "paper's Figure 8).",
    "figure9": "The same by the size of the forget set (the paper's Figure 9).",
    "figure10": "The same by the size of the forget set (the paper's Figure 10).",
    "left-by-budget": "Test accuracy, mean ± s.d. over seeds, and what is left of the poison, ± its "
    "standard error (the larger of the one given these models and that of trainings to come), by compute "
    "budget.",
    "left-by-size": "Test accuracy, mean ± s.d. over seeds, and what is left of the poison, ± its "
    "standard error (the larger of the one given these models and that of trainings to come), by the size "
    "of the forget set.",
}
# Beside the colours, which not everybody sees and not every printer has.
SIGNS = {"NOT REMOVED": "✗", "REMOVED": "✓", "INCONCLUSIVE": "?"}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its name, what it shows, and its files."""

    name: str
    caption: str
    png: Path

    @property
    def pdf(self) -> Path:
        """The same for a paper."""
        return self.png.with_suffix(".pdf")


def sentences(results: Results) -> list[str]:
    """The verdicts in words, at the compute budget that figures show."""
    said = list(results.warnings)
    several = len(results.budgets) > 1
    for share, lines in results.summary.groupby("poison_budget", sort=False):
        updated = lines[(lines["role"] == "updated") & (lines["budget"] == results.budget)]
        at = f"Poison budget {share:g}" + (f", compute budget {results.budget:g}" * several)
        for answer in ANSWERS:
            names = [
                label(x, results.recipe, with_budget=False)
                for _, x in updated[updated["verdict"] == answer].iterrows()
            ]
            if names:
                said.append(f"{at} – {answer}: {', '.join(names)}.")
        for form, title in results.membership.items():
            said.append(f"{at} – {title}: {_passed(updated, form, results)}.")
        if has_tuned(updated):
            said.append(f"{at} – {_beaten(updated, results)}.")
    return said


def _passed(lines: pd.DataFrame, form: str, results: Results) -> str:
    """Who passes and who fails an attack of membership inference, in words."""
    parts = []
    for word in membership_verdict.ANSWERS:
        of_word = lines[lines[column_of(form, "verdict")] == word]
        names = [label(line, results.recipe, with_budget=False) for _, line in of_word.iterrows()]
        parts += [f"{word} {', '.join(names)}"] if names else []
    return "; ".join(parts) or "no unlearner"


def _beaten(lines: pd.DataFrame, results: Results) -> str:
    """Who is shown to beat the line to beat, in words; the lines are at one poison and compute budget."""
    beats = lines[lines["standing"] == "beats"]
    names = [label(line, results.recipe, with_budget=False) for _, line in beats.iterrows()]
    return f"shown to beat {rivals(lines)}: {', '.join(names) or 'none'}"


def answer(results: Results) -> str:
    """The whole result in a few sentences: who removed the poison, for what, and who did not.

    At the budgets that figures show.
    """
    shown = results.summary[results.summary["role"] == "updated"]
    shown = shown[shown["budget"] == results.budget]
    shown = shown[shown["poison_budget"] == results.poison_budget]
    if not len(shown):
        return "No unlearner is among the rows."
    judged: dict[str, list[str]] = {verdict: [] for verdict in ANSWERS}
    rivals = []
    for _, line in shown.iterrows():
        name, verdict = label(line, results.recipe, with_budget=False), str(line["verdict"])
        with_cost = f"{name} ({_points(line['accuracy_cost'])}, {USE[line['usable']]})"
        # Retraining in the budget removes by construction: it is the line to beat, and no contender.
        if line["unlearner"] in RIVALS:
            rivals.append(f"{with_cost}: {verdict}")
        else:
            judged[verdict].append(with_cost if verdict == "REMOVED" else name)
    kind = results.recipe.attack.shown.kind
    words = {
        "REMOVED": f"removed the {kind}",
        "NOT REMOVED": "did not",
        "INCONCLUSIVE": "cannot be told",
    }
    total = sum(map(len, judged.values()))
    parts = [
        f"{len(judged[verdict]) or 'none'} of {total} {word}"
        + (f": {', '.join(judged[verdict])}" if judged[verdict] else "")
        for verdict, word in words.items()
        if judged[verdict] or verdict == "REMOVED"
    ]
    several = len(results.poison_budgets) > 1
    at = f", at a poison budget of {100 * results.poison_budget:g} %" if several else ""
    spent = f"{results.budget:.0%} of the training's {results.recipe.budget_unit}"
    parts += [_beaten(shown, results)] if has_tuned(shown) else []
    text = f"With {spent}{at}, {'; '.join(parts)}. "
    return text + "".join(f"For comparison, {rival}. " for rival in rivals)


def _share(share: float, margin: float) -> str:
    """A share of the effect, in words; below 0 it is nothing, missed by chance, or a trace."""
    if math.isnan(share):
        return "an unknown share"
    if round(share, 2) >= 0:
        return f"{abs(share):.0%}"
    return f"nothing ({share:.0%})" if share >= -margin else f"{-share:.0%}, turned round,"


def _points(cost: float) -> str:
    """Test accuracy lost against retraining, in words."""
    if math.isnan(cost):
        return "at an unknown cost in accuracy"
    return f"{100 * abs(cost):.1f} points {'below' if cost >= 0 else 'above'} retraining"


def in_words(results: Results) -> Iterator[dict[str, Any]]:
    """A sentence a model after unlearning: what is left, what it cost, what speaks against REMOVED."""
    shown = charts.models(results)
    summary, compared = results.summary, has_tuned(results.summary)
    # `charts.models` has the summary's lines, in their order.
    for (_, line), (_, model) in zip(summary.iterrows(), shown.iterrows(), strict=True):
        if line["role"] != "updated":
            continue
        share = model["left"]
        left = _share(share, results.recipe.verdict.margin)
        values = [_value(line, name, score.title) for name, score in results.scores_shown.items()]
        text = (
            f"{left} of the effect is left ({'; '.join(values)}), within the margin in "
            f"{line['removed_in']} of {line['trainings']} trainings; test accuracy "
            f"{number(line['test_accuracy'], 3)}, {_points(model['accuracy_cost'])}: "
            f"{USE[line['usable']]}; {line['spent']:.1%} of the training's compute."
        )
        if values_chosen := choice(line, results.recipe):
            text += f" The search chose {values_chosen}."
        if compared and line["standing"] != LINE:
            text += f" Against the line to beat: {line['standing']}."
        if line.get("decided_by"):
            text += f" The verdict is that of its state {line['decided_by']}."
        if line["verdict"] != "REMOVED":
            text += f" Against REMOVED – {why(line, results)}."
        if not pd.isna(line["needed"]):
            text += f" About {line['needed']:,.0f} {results.unit} would settle it."
        for form, title in results.membership.items():
            text += f" {title}: {membership_text(line, form)}."
        if line["note"]:
            text += f" Note: {line['note']}."
        yield {
            "model": model["model"],
            "poison": line["poison_budget"],
            "budget": line["budget"],
            "verdict": line["verdict"],
            "text": text,
        }


def _value(line: pd.Series, name: str, title: str) -> str:
    """What is left by a score, and what each of its errors speaks of."""
    given, coming = errors(line, name)
    kinds = {"given these models": given, "of trainings to come": coming}
    bars = [f"±{error:.3f} {what}" for what, error in kinds.items() if not math.isnan(error)]
    value = f"{title} {number(line[f'{name}_dependence'], 3)}"
    return f"{value} {' and '.join(bars)}".strip()


def examples(results: Results) -> list[dict[str, Any]]:
    """The poisons to look at, pictures as data URIs."""
    poisons = []
    for _, line in results.examples.iterrows():
        shown: dict[str, Any] = {"id": line["id"], "label": line["label"], "given": line["given"]}
        if "base" in line:
            names = [name for name in ("base", "dosed", "noise") if name in line]
            shown |= {name: data_uri(line[name], "image/png") for name in names}
            shown["largest"] = line.get("largest")
        else:
            shown["text"] = line["text"]
        poisons.append(shown)
    return poisons


def about_runs(results: Results) -> list[dict[str, str]]:
    """Recipe, seeds, versions and machine of each run behind the rows."""
    runs = []
    for recipe, about in results.runs.items():
        rows = results.rows[results.rows["recipe"] == recipe]
        seeds = sorted(rows["seed"].unique().tolist())
        places = {f"{p}, {d}" for p, d in zip(rows["precision"], rows["device"], strict=True)}
        runs.append(
            {
                "recipe": f"{about['values']['name']}-{recipe}",
                "seeds": ", ".join(map(str, seeds)),
                "models": f"{len(in_state(rows, ITSELF)):,}",
                "data": f"digest {about['data']}" if about["data"] else "named by the recipe",
                "precision, device": ", ".join(sorted(places)),
                "started": str(about.get("started", "in a sweep")),
                "marshtest": f"{about['marshtest']} (algorithm {about['algorithm']})",
                "commit": str(about.get("commit") or "not recorded"),
                "torch, Python": f"{about['torch']}, {about['python']}",
                "machine": str(about["machine"]),
            }
        )
    return runs


def costs(results: Results) -> str:
    """The cost of all models together, in words."""
    rows = in_state(results.rows, ITSELF)  # a state's row tells the cost of its model again
    scoring = results.rows.get("scoring_seconds", pd.Series(0.0)).sum()
    paid = with_costs(rows)
    seconds = paid["seconds"].sum() + scoring
    work = f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds:,.0f} seconds"
    return (
        f"{len(rows):,} models were trained or updated and measured in {work} of work "
        f"({paid['flops'].sum():.2g} floating-point operations beside measuring)."
    )


def yaml_of(about: Mapping[str, Any]) -> str:
    """A run's recipe."""
    return yaml.safe_dump(dict(about["values"]), sort_keys=False, allow_unicode=True)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as something that a link or a picture can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def embedded(value: Any) -> str:
    """JSON that cannot end the script it stands in; what is undefined is null."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # A recipe's name may hold "</script>": nothing of a user's, or of rows from elsewhere, is trusted.
    return text.replace("<", "\\u003c")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines of a table for JSON."""
    return [
        {str(name): _plain(value) for name, value in line.items()}
        for line in frame.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    """A number short and finite, or null."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def _section(results: Results, pictures: Sequence[Picture], place: int) -> dict[str, Any]:
    """What the template shows of some results."""
    models, drawn = charts.models(results), charts.charts(results)
    tables = [(shift_table(results), "shift")] if len(results.moved) else []
    if results.recipe.attack.shown.table2:
        tables.append((table2(results), table2_caption(results)))
    return {
        "id": f"results-{place}",
        "results": results,
        "kind": results.recipe.attack.shown.kind,
        "shift": shift_legend(results) if len(results.moved) else "",
        "answer": answer(results),
        "words": list(in_words(results)),
        "models": list(dict.fromkeys(models.sort_values("order")["model"])),
        "shown": models,
        "poisons": [
            (share, models.loc[models["poison_budget"] == share, "forget_size"].mean())
            for share in results.poison_budgets
        ],
        "first": results.poison_budget,
        "start": results.budgets.index(results.budget) if results.budgets else 0,
        "compared": has_tuned(results.summary),
        "charts": drawn,
        "data": _read_by_script(results, models, drawn),
        "legend": legend(results),
        "further": further(results),
        "tables": tables,
        "examples": examples(results),
        "pictures": pictures,
        "runs": about_runs(results),
        "yaml": "\n---\n".join(yaml_of(about) for about in results.runs.values()),
        "costs": costs(results),
        "rows": data_uri(frame_bytes(results.rows), "application/vnd.apache.parquet"),
        "summary": data_uri(frame_bytes(results.summary, ".csv"), "text/csv"),
    }


def _read_by_script(
    results: Results, models: pd.DataFrame, drawn: Sequence[charts.Chart]
) -> dict[str, str]:
    """What the page's script reads, as JSON by name: two tables that all charts share, and the charts."""
    return {
        "models": embedded(records(models)),
        "scores": embedded(records(charts.histograms(results))),
        "charts": embedded([chart.spec for chart in drawn]),
        "budgets": embedded(results.budgets),
        "poison": embedded(results.poison_budget),
    }


@dataclass(frozen=True)
class Shown:
    """A hypothesis on the page."""

    study: Study
    table: pd.DataFrame
    legend: str
    picture: Picture


def write_page(
    path: Path,
    title: str,
    results: Sequence[tuple[Results, Sequence[Picture]]],
    *,
    studies: Sequence[Shown] = (),
    ranking: tuple[pd.DataFrame, str] | None = None,
    said: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        title: above it all.
        results: with the figures drawn of each.
        studies: of the hypotheses.
        ranking: the leaderboard, and what its columns mean.
        said: how rows of several runs were put together.
    """
    sections = [_section(one, pictures, place) for place, (one, pictures) in enumerate(results)]
    runs = [run for one, _ in results for run in about_runs(one)]
    text = _template().render(
        title=title,
        sections=sections,
        studies=studies,
        studied=[yaml_of(shown.study.about) for shown in studies],
        ranking=ranking,
        said=said,
        cited="; ".join(f"{run['recipe']}, marshtest {run['marshtest']}" for run in runs),
        library=charts.library() if results else "",  # a study has no interactive chart
    )
    write(text.encode(), path)


def _template() -> jinja2.Template:
    """The page's template, with all that it uses whatever the page is about."""
    files = resources.files("marshtest.reporting")
    in_the_page: dict[str, Any] = {
        "signs": SIGNS,
        "css": (files / "page.css").read_text(),
        "js": (files / "page.js").read_text(),
        "uri": lambda file, kind: data_uri(Path(file).read_bytes(), kind),
        "number": number,
        "plus_minus": plus_minus,
        "dependence_text": dependence_text,
        "column_text": column_text,
        "standing": standing,
    }
    return template("page.html.j2", **in_the_page)
