"""The summary as a table: for the terminal, Markdown, CSV and HTML."""

import json
import math
from typing import Any

import pandas as pd

from marshtest.recipe import Recipe
from marshtest.results import Results

SCORE_NAMES = {"gus": "GUS", "rank": "rank score"}
NAMES = {
    "none": "no unlearning",
    "retrain": "retrain in budget",
    "gd": "GD",
    "ngd": "NGD",
    "ga": "GA",
    "euk": "EUk",
    "cfk": "CFk",
    "scrub": "SCRUB",
    "scrub-repository": "SCRUB (repository)",
    "neggrad+": "NegGrad+",
    "neggrad+-repository": "NegGrad+ (repository)",
}


def label(line: Any, recipe: Recipe) -> str:
    """Name of a line: the unlearner, and what tells it from others of its name in the recipe."""
    name = str(NAMES.get(line["unlearner"], line["unlearner"]))
    if line["role"] != "updated":
        return name
    budget = f" {line['budget']:.0%}" if len(recipe.budgets) > 1 else ""
    given = json.loads(line["hyperparameters"])
    entries = [trials for trials in recipe.unlearners if trials[0].name == line["unlearner"]]
    rivals = (
        [trial.model_dump() for trials in entries for trial in trials] if len(entries) > 1 else []
    )
    differing = {key: value for key, value in given.items() if any(r[key] != value for r in rivals)}
    return name + "".join(f" {key}={value}" for key, value in differing.items()) + budget


def table(results: Results) -> pd.DataFrame:
    """The summary as text, one line a model: accuracy, dependence, TPR, verdict, cost."""
    lines = []
    for _, line in results.summary.iterrows():
        text = {"model": label(line, results.recipe)}
        if len(results.recipe.poison_budgets) > 1:
            text["poison"] = f"{line['poison_budget']:.1%}"
        text |= {
            "accuracy": plus_minus(line["test_accuracy"], line["test_accuracy_sd"], 3),
            "cost": number(line["accuracy_cost"], 3, "+"),
            "spent": f"{line['spent']:.1%}",
        }
        for name in results.null_deviations:
            value, error = line[f"{name}_dependence"], line[f"{name}_error"]
            text[SCORE_NAMES[name]] = plus_minus(value, error, 3)
        text["TPR"] = number(line.get("tpr", math.nan), 3)
        text["rank TPR"] = number(line.get("tpr_rank", math.nan), 3)
        text["verdict"] = line["verdict"]
        if not pd.isna(line["poisons_needed"]):
            text["verdict"] += f" ({line['poisons_needed']:,.0f} poisons would settle it)"
        if line["note"]:
            text["verdict"] += f" [{line['note']}]"
        lines.append(text)
    return pd.DataFrame(lines)


def markdown(results: Results) -> str:
    """The table in Markdown, with what its columns mean."""
    text = table(results)
    rows = [text.columns.tolist(), ["---"] * text.shape[1], *text.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
    warnings = "".join(f"\n**{warning}**\n" for warning in results.warnings)
    return f"# {results.recipe.name}\n\n{body}\n{warnings}\n{legend(results)}\n"


def legend(results: Results) -> str:
    """What the numbers are."""
    verdict, seeds = results.recipe.verdict, results.recipe.seeds
    return (
        f"Accuracy: on the test set, mean ± s.d. over {seeds} seed{'s' if seeds > 1 else ''}; cost: "
        "what full retraining has more. Spent: share of the initial training's compute. GUS and rank "
        "score: what is left of the poison (dependence), mean ± standard error over the poisons of "
        "all seeds; retraining leaves 0 in expectation. TPR at low FPR: the paper's |I| > τ; rank "
        "TPR: the exact one-sided test. "
        f"REMOVED: both scores within ± {verdict.margin:.0%} of the initial effect (equivalence); "
        "NOT REMOVED: independence rejected; both at "
        f"level {verdict.alpha:g}, Holm-corrected over the unlearners."
    )


def plus_minus(value: float, error: float, digits: int) -> str:
    """A value with its error, or a dash."""
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f"±{error:.{digits}f}")


def number(value: float, digits: int, sign: str = "") -> str:
    """A number, or a dash."""
    return "–" if math.isnan(value) else f"{value:{sign}.{digits}f}"
