"""The summary as tables: for the terminal, Markdown, CSV, LaTeX and HTML."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.files import write
from marshtest.metrics.shift import ALL
from marshtest.recipe import Recipe
from marshtest.results import Results

SCORE_NAMES = {
    "gus": "GUS",
    "rank": "rank score",
    "target": "adversarial probability",
    "error": "test error",
}
REFERENCE = "second retrained"
NAMES = {
    "none": "no unlearning",
    "shuffled": "shuffled poisons",
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


ATTACKS = {
    "gaussian": "Gaussian",
    "gradient-matching": "targeted",
    "gradient-canceling": "indiscriminate",
    "trigger-word": "trigger word",
}
TABLE_2 = {  # by the unit of the budgets
    "epochs": "by epochs of the method's own training set, as the paper counts",
    "compute": "by equal compute, in epochs of the initial training",
}
SHIFTS = (
    "How far each model lies from the initial one, over all parameters: L2 distance, the same as a share "
    "of the retrained model's, the cosine with the way to the retrained model, and the L2 distance left "
    "to it; mean ± s.d. over seeds. What two seeds differ by, the second retrained model tells."
)
MOVED = {"l2": "moved", "travelled": "of the way", "cosine": "cosine", "left_l2": "left"}
_SEEDS = "what full retraining, with another seed, leaves is taken off, mean ± standard error over seeds. "
_BLIND = "Shuffled poisons: the same perturbations, each in random order."
LEFT = {
    "gus": "GUS and rank score: what is left of the poison (dependence), mean ± standard error over the "
    "poisons of all seeds; retraining leaves 0 in expectation. TPR at low FPR: the paper's |I| > τ; "
    "rank TPR: the exact one-sided test.",
    "target": "Adversarial probability: of the attacker's label on the targets; "
    + _SEEDS
    + _BLIND
    + " Success: share of targets that get this label, with Wilson's 95 % interval.",
    "error": "Test error: " + _SEEDS + _BLIND,
    "trigger-word": "Adversarial probability: of the attacker's label on test texts with the trigger; "
    + _SEEDS
    + "Shuffled poisons: as many wrong labels, on other texts. Success: share of test texts with the "
    "trigger that get the attacker's label, of the whole vocabulary as in the paper, and among the label "
    "words alone; mean ± s.d. over seeds.",
}
RATES = {"tpr": "TPR", "tpr_rank": "rank TPR"}
LATEX = {  # what titles and captions hold that a plain LaTeX does not
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "‖": r"$\|$",
    "τ": r"$\tau$",
    "θ": r"$\theta$",
    "λ": r"$\lambda$",
    "β": r"$\beta$",
    "ε": r"$\varepsilon$",
    "§": r"\S",
    "−": "$-$",
    "–": "--",
    "…": r"\dots",
}
TRIGGERED = {
    "target_success": "success",
    "target_success_among_labels": "among labels",
    "rest_accuracy": "accuracy on the rest",
}  # shares of texts, with and without the trigger


def label(line: Any, recipe: Recipe, *, with_budget: bool = True) -> str:
    """Name of a line: the unlearner, and what tells it from others of its name in the recipe."""
    name = str(NAMES.get(line["unlearner"], line["unlearner"]))
    if line["role"] == "reference":
        return REFERENCE
    if line["role"] != "updated":
        return name
    budget = f" {line['budget']:.0%}" if with_budget and len(recipe.budgets) > 1 else ""
    given = json.loads(line["hyperparameters"])
    entries = [trials for trials in recipe.unlearners if trials[0].name == line["unlearner"]]
    # what an entry searches tells its trials apart, and not the entry from others
    asked = [[trial.model_dump() for trial in trials] for trials in entries]
    differing = {
        key: value
        for key, value in given.items()
        if any([r[key] for r in of] != [r[key] for r in asked[0]] for of in asked)
    }
    return name + "".join(f" {key}={value}" for key, value in differing.items()) + budget


def table(results: Results) -> pd.DataFrame:
    """The summary as text, one line a model: accuracy, dependence, TPR, verdict, cost."""
    lines, varied = [], results.summary["seeds"].nunique() > 1
    for _, line in results.summary.iterrows():
        text = {"model": label(line, results.recipe)}
        if len(results.poison_budgets) > 1:
            text["poison"] = f"{100 * line['poison_budget']:g}%"
        if varied:
            text["seeds"] = str(line["seeds"])
        text |= {
            "accuracy": plus_minus(line["test_accuracy"], line["test_accuracy_sd"], 3),
            "cost": number(line["accuracy_cost"], 3, "+"),
            "spent": f"{line['spent']:.1%}",
        }
        for name in results.score_names:
            value, error = line[f"{name}_dependence"], line[f"{name}_error"]
            text[SCORE_NAMES[name]] = plus_minus(value, error, 3)
        for column, title in RATES.items():
            if column in line:
                text[title] = number(line[column], 3)
        if "target_success_low" in line:
            low, high = (number(line[f"target_success_{end}"], 2) for end in ("low", "high"))
            text["success"] = f"{number(line['target_success'], 2)} [{low}, {high}]"
        if "rest_accuracy" in line:
            for column, title in TRIGGERED.items():
                text[title] = plus_minus(line[column], line[f"{column}_sd"], 3)
        text["verdict"] = line["verdict"]
        if not pd.isna(line["needed"]):
            needed = f"{line['needed']:,.0f} {results.unit}"
            text["verdict"] += f" ({needed} would settle it)"
        if line["note"]:
            text["verdict"] += f" [{line['note']}]"
        lines.append(text)
    return pd.DataFrame(lines)


def table2(results: Results) -> pd.DataFrame:
    """The paper's Table 2: test accuracy in %, mean ± s.d. over seeds.

    One line a budget, in epochs; one column an unlearner and poison budget.
    """
    lines = results.summary[results.summary["role"] == "updated"]
    accuracy = [
        plus_minus(100 * mean, 100 * spread, 2)
        for mean, spread in zip(lines["test_accuracy"], lines["test_accuracy_sd"], strict=True)
    ]
    long = pd.DataFrame(
        {
            "epochs": lines["budget"] * results.recipe.training.epochs,
            "column": [
                f"{label(line, results.recipe, with_budget=False)}, {100 * line['poison_budget']:g}%"
                for _, line in lines.iterrows()
            ],
            "accuracy": accuracy,
        }
    )
    if not len(long):
        return pd.DataFrame()
    wide = long.pivot_table("accuracy", "epochs", "column", aggfunc="first", sort=False)
    columns = {str(name): str(name).rpartition(", ")[0] for name in wide}
    by_unlearner = dict.fromkeys(columns.values())  # as the paper has it
    wide = wide[[name for of in by_unlearner for name, own in columns.items() if own == of]]
    wide.index = pd.Index([f"{epochs:.3g}" for epochs in wide.index], name="epochs")
    return wide.reset_index().rename_axis(columns=None)


def table2_caption(results: Results) -> str:
    """What it is by, and the accuracy of the poisoned models, as in the paper's caption."""
    lines = results.summary[results.summary["role"] == "initial"]
    accuracies = [
        f"{plus_minus(100 * mean, 100 * spread, 2)} % with {size:.0f} poisons"
        for mean, spread, size in zip(
            lines["test_accuracy"], lines["test_accuracy_sd"], lines["forget_size"], strict=True
        )
    ]
    poisoned = f" The poisoned models have {', '.join(accuracies)}." if accuracies else ""
    by = TABLE_2[results.recipe.budget_unit]
    return f"The paper's Table 2: test accuracy in %, mean ± s.d. over seeds, {by}.{poisoned}"


def shift_table(results: Results) -> pd.DataFrame:
    """How far each model moved from the initial one as text, all layers together; one line a model."""
    moved = results.moved
    if not len(moved):
        return moved
    lines = []
    for _, line in moved[moved["layer"] == ALL].iterrows():
        text = {"model": label(line, results.recipe)}
        if len(results.poison_budgets) > 1:
            text["poison"] = f"{100 * line['poison_budget']:g}%"
        for column, title in MOVED.items():
            text[title] = plus_minus(line[column], line[f"{column}_sd"], 3)
        lines.append(text)
    return pd.DataFrame(lines)


def ranking_table(board: pd.DataFrame) -> pd.DataFrame:
    """A leaderboard as text."""
    lines = []
    for line in board.to_dict("records"):
        text = {
            "rank": number(line["rank"], 0),
            "unlearner": NAMES.get(line["unlearner"], line["unlearner"]),
            "misses": plus_minus(line["misses"], line["misses_error"], 2),
            "left": plus_minus(line["left"], line["left_error"], 2),
            "lost": plus_minus(line["lost"], line["lost_error"], 2),
            "spent": f"{line['spent']:.1%}",
        }
        attacks = list(line)[list(line).index("spent") + 1 :]
        lines.append(text | {ATTACKS.get(str(attack), attack): line[attack] for attack in attacks})
    return pd.DataFrame(lines)


def comparison_table(compared: pd.DataFrame) -> pd.DataFrame:
    """A comparison of two runs as text."""
    lines = []
    for line in compared.to_dict("records"):
        names = [NAMES.get(line[side], line[side]) for side in ("a", "b")]
        lines.append(
            {
                "unlearner": names[0] if names[0] == names[1] else " → ".join(names),
                "poison": f"{100 * line['poison_budget']:g}%",
                "budget": f"{line['budget']:.0%}",
                "measure": SCORE_NAMES.get(line["measure"], "accuracy"),
                "A": number(line["mean_a"], 3),
                "B": number(line["mean_b"], 3),
                "B − A": number(line["difference"], 3, "+"),
                "95 % interval": "–"
                if math.isnan(line["low"])
                else f"[{line['low']:+.3f}, {line['high']:+.3f}]",
                "p": "–" if math.isnan(line["p"]) else f"{line['p']:.2g}",
                "over": f"{line['n']:,} {line['unit']}",
                "better": line["better"] or "–",
            }
        )
    return pd.DataFrame(lines)


def markdown(results: Results) -> str:
    """The tables in Markdown, with what columns mean; of test errors the paper's Table 2 too."""
    warnings = "".join(f"\n**{warning}**\n" for warning in results.warnings)
    text = (
        f"# {results.recipe.name}\n\n{as_markdown(table(results))}\n{warnings}\n{legend(results)}\n"
    )
    if "error" in results.score_names:
        text += f"\n{table2_caption(results)}\n\n{as_markdown(table2(results))}\n"
    if len(moved := shift_table(results)):
        text += f"\n{SHIFTS}\n\n{as_markdown(moved)}\n"
    return text


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    rows = [frame.columns.tolist(), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |" for row in rows
    )


def as_latex(frame: pd.DataFrame, caption: str) -> str:
    """A table of text in LaTeX, with booktabs."""
    styled = frame.style.hide(axis="index").format(escape="latex")
    styled = styled.format_index(escape="latex", axis="columns")
    text = styled.to_latex(hrules=True, caption=_in_latex(caption), position_float="centering")
    return f"% needs \\usepackage{{booktabs}}\n{_symbols(text)}"


def _in_latex(text: str) -> str:
    return "".join(rf"\{c}" if c in "%&#_$" else c for c in text)


def _symbols(text: str) -> str:
    for symbol, command in LATEX.items():
        text = text.replace(symbol, command)
    return text


def write_table(frame: pd.DataFrame, stem: Path, caption: str) -> None:
    """Write a table of text as CSV, Markdown and LaTeX."""
    write(frame, stem.with_suffix(".csv"))
    write(f"{as_markdown(frame)}\n\n{caption}\n".encode(), stem.with_suffix(".md"))
    write(as_latex(frame, caption).encode(), stem.with_suffix(".tex"))


def legend(results: Results) -> str:
    """What the numbers are."""
    verdict, seeds = results.recipe.verdict, len(results.seeds)
    compared = results.recipe.attack.compared
    scores = " and ".join(SCORE_NAMES[name] for name in results.score_names)
    measure = LEFT.get(results.recipe.attack.name, LEFT[results.score_names[0]])
    return (
        f"Accuracy: on the test set, mean ± s.d. over {seeds} seed{'s' if seeds > 1 else ''}; cost: "
        f"what full retraining has more. Spent: share of the initial training's compute. {measure} "
        f"REMOVED: {scores} within ± {verdict.margin:.0%} of the initial effect (equivalence); "
        f"NOT REMOVED: {'the difference to retraining' if compared else 'independence'} is "
        f"{'not zero' if compared else 'rejected'}; both at "
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
