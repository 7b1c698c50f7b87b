"""The summary as tables: for the terminal, Markdown, CSV, LaTeX and HTML."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.experiment.recorded import Recorded
from marshtest.metrics.membership_columns import column_of
from marshtest.metrics.presentation import Column, Score
from marshtest.metrics.shift_columns import ALL
from marshtest.metrics.verdict import TRAININGS, Rest
from marshtest.plumbing.whole_files import write
from marshtest.results.leaderboard import LEGEND, leaderboard
from marshtest.results.line_to_beat import LESS, LINE, RIVALS, SAME, has_tuned
from marshtest.results.naming import choice, differing, marks
from marshtest.results.requests import in_words
from marshtest.results.summary import Results

# Columns of tables that a narrow terminal leaves out; summary.md has them.
COLUMNS = (
    Column(title="spent", room=160),
    Column(title="cost", room=100),
    Column(title="trainings", room=100),
    Column(title="line to beat", room=140),
)
LARGE = 1e6  # from here on numbers are written by powers of ten
RANKING = ("rank", "unlearner", "misses", "left", "lost", "spent", "experiments", "line to beat")
REFERENCE = "second retrained"
NAMES = {  # as the papers write them; who is not here is called as the recipe calls it
    "none": "no unlearning",
    "shuffled": "shuffled poisons",
    "retrain (asked)": "exact unlearning",
    "retrain": "retrain in budget",
    "retrain-tuned": "tuned retraining",
    "gd": "GD",
    "ngd": "NGD",
    "ga": "GA",
    "euk": "EUk",
    "cfk": "CFk",
    "scrub": "SCRUB",
    "scrub-repository": "SCRUB (repository)",
    "neggrad+": "NegGrad+",
    "neggrad+-repository": "NegGrad+ (repository)",
    "shrink-perturb": "shrink and perturb",
    "distill": "distillation",
    "undo": "UNDO",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "certified": "certified",
    "newton": "Newton",
    "random-labels": "random labels",
    "salun": "SalUn",
    "ssd": "SSD",
    "assd": "ASSD",
    "l1-sparse": "ℓ1-sparse",
    "bad-teacher": "Bad Teacher",
}
TABLE_2 = {  # by the unit of the budgets
    "epochs": "by epochs of the method's own training set, as the paper counts",
    "compute": "by equal compute, in epochs of the initial training",
}
SHIFTS = (
    "How far each model lies from the initial one, over all parameters: L2 distance, the same as a share "
    "of the retrained model's, the cosine with the way to the retrained model, and the L2 distance to that "
    "model; mean ± s.d. over seeds."
)
BY_CHANCE = (
    " Second retrained: another seed's retraining, to show how far two seeds differ by chance."
)
MOVED = {"l2": "moved", "travelled": "of the way", "cosine": "cosine", "left_l2": "distance left"}
DIFFERENCE = (
    "ifference to the clean twin (the same run with the base samples in the poisons' places): mean, and "
    "(±) its standard error over seeds."
)
LEFT = (
    "what is left of the poison (dependence) over the poisons of all seeds, ± its standard error given "
    "these models and (±) of trainings to come, over seeds; 0 in expectation where a model does not depend "
    "on the poison."
)
POOLED = {
    "exact": "with the exact 95 % interval over all seeds",
    "wilson": "with Wilson's 95 % interval",
    "seeds": "mean ± s.d. over seeds",
}
EFFECTS = {"mean": "mean", "spread": "mean square", "tail": "share beyond the threshold"}
STANDINGS = {"": "–", LINE: "the line"}  # the other words stand as they are
USE = {"yes": "usable", "no": "not usable", "unclear": "perhaps not usable"}
ESCAPED = str.maketrans(
    {character: rf"\{character}" for character in "%&#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
LATEX = {  # what titles and captions hold that a plain LaTeX does not, or shows as another sign
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "‖": r"$\|$",
    "ℓ": r"$\ell$",
    "√": r"$\surd$",
    "→": r"$\to$",
    "∖": r"$\setminus$",
    "×": r"$\times$",
    "²": "$^2$",
    "α": r"$\alpha$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "φ": r"$\varphi$",
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


def label(line: Any, recipe: Recorded, *, with_budget: bool = True) -> str:
    """Name of a line: the unlearner, and what tells it from others of its name in the recipe."""
    name = str(NAMES.get(line["unlearner"], line["unlearner"]))
    if line["role"] == "reference":
        return REFERENCE
    if line["role"] != "updated":
        return name
    budget = f" {line['budget']:.0%}" if with_budget and len(recipe.budgets) > 1 else ""
    keys = differing(recipe.unlearners)
    if (
        ":" in line["unlearner"]
    ):  # of a user's callable every option: other tables may hold other ones
        options = json.loads(line["hyperparameters"]).get("options", {})
        keys.setdefault(line["unlearner"], set()).update(options)
    return name + marks(line, keys) + budget


def drawn_label(line: Any, recipe: Recorded, *, with_budget: bool = True) -> str:
    """The same for a figure."""
    return as_drawn(label(line, recipe, with_budget=with_budget))


def as_drawn(text: str) -> str:
    """A text as matplotlib draws it: "$" would begin a formula."""
    return text.replace("$", r"\$")


def chosen(choice: str) -> str:
    """What a search chose, to stand behind a name."""
    return f" ({choice})" if choice else ""


def table(results: Results) -> pd.DataFrame:
    """The summary as text, one line a model: accuracy, use, dependence, TPR, verdict."""
    lines, varied = [], results.summary["seeds"].nunique() > 1
    for _, line in results.summary.iterrows():
        text = {"model": label(line, results.recipe) + chosen(choice(line, results.recipe))}
        if len(results.poison_budgets) > 1:
            text["poison"] = f"{100 * line['poison_budget']:g}%"
        if varied:  # else the legend says it
            text["seeds"] = str(line["seeds"])
        text |= {
            "accuracy": plus_minus(line["test_accuracy"], line["test_accuracy_sd"], 3),
            "cost": number(line["accuracy_cost"], 3, "+"),
            "usable": line["usable"],
            "spent": f"{line['spent']:.1%}",
        }
        lines.append(text | _of_effect(line, results))
    return pd.DataFrame(lines)


def shown_in(results: Results) -> list[Column | Score]:
    """The columns of `table` that say what room they need on a terminal."""
    return [*COLUMNS, *results.scores_shown.values(), *results.columns_shown.values()]


def _of_effect(line: Any, results: Results) -> dict[str, str]:
    """Cells on what is left of the poison, the further columns, and the verdict."""
    scores = results.scores_shown.items()
    text = {score.title: dependence_text(line, name) for name, score in scores}
    text["trainings"] = f"{line['removed_in']} of {line['trainings']}"
    for name, column in results.columns_shown.items():
        text[column.title] = column_text(line, name, column)
    text |= {title: membership_text(line, form) for form, title in results.membership.items()}
    if has_tuned(results.summary):
        text["line to beat"] = standing(line)
    text["verdict"] = line["verdict"]
    if line.get("decided_by"):
        text["verdict"] += f" in state {line['decided_by']}"
    if not pd.isna(line["needed"]):
        needed = f"{line['needed']:,.0f} {results.unit}"
        text["verdict"] += f" ({needed} would settle it)"
    if line["note"]:
        text["verdict"] += f" [{line['note']}]"
    return text


def membership_text(line: Any, form: str) -> str:
    """Whether a model passes an attack of membership inference, and what is left ± its error."""
    value, error = line[column_of(form, "left")], line[column_of(form, "left_error")]
    if math.isnan(value):
        return "–"
    return f"{line[column_of(form, 'verdict')]} {plus_minus(value, error, 3)}"


def standing(line: Any) -> str:
    """How a line stands to the line to beat; a dash where it is not compared."""
    return STANDINGS.get(line["standing"], str(line["standing"]))


def column_text(line: Any, name: str, column: Column) -> str:
    """A further column's mean, with its interval or its deviation over seeds; a dash where it is nan."""
    if column.interval == "seeds":
        value, spread = (line.get(part, math.nan) for part in (name, f"{name}_sd"))
        return plus_minus(value, spread, column.digits)
    return with_interval(line, name, column.digits)


def dependence_text(line: Any, name: str) -> str:
    """What is left by a score, ± given these models where that is known, (±) of trainings to come."""
    given, coming = errors(line, name)
    text = plus_minus(line[f"{name}_dependence"], given, 3)
    return text if math.isnan(coming) else f"{text} (±{coming:.3f})"


def errors(line: Any, name: str) -> tuple[float, float]:
    """Standard errors of a score: given these models, and of trainings to come; nan where unknown."""
    # Without a null law nothing is known given these models: only trainings tell how far it varies.
    if f"{name}_poisons" in line:
        return line[f"{name}_error"], line.get(f"{name}_trainings_error", math.nan)
    return math.nan, line[f"{name}_error"]


def with_interval(line: Any, column: str, digits: int) -> str:
    """A share with its interval, or a dash."""
    if math.isnan(line.get(column, math.nan)):
        return "–"
    low, high = (number(line[f"{column}_{end}"], digits) for end in ("low", "high"))
    return f"{number(line[column], digits)} [{low}, {high}]"


def why(line: Any, results: Results) -> str:
    """What a verdict other than REMOVED rests on, in words."""
    if pd.isna(line["test_accuracy"]):
        return f"there is no model to be asked ({line['note'] or 'it was not returned'})"
    reasons = str(line["reasons"]) or f"too few {results.unit} for either answer"
    judged_alone = len(results.runs) < 2 or line["role"] != "updated"
    if judged_alone or line["verdict"] != "INCONCLUSIVE":
        return reasons
    lines = results.summary[results.summary["poison_budget"] == line["poison_budget"]]
    family, most = (lines["role"] == "updated").sum(), lines["seeds"].max()
    return (
        f"{reasons}; judged with the {family} unlearners of {len(results.runs)} runs, by what "
        f"{most} seeds of the initial model show, of which this one has {line['seeds']}: its own run may "
        "answer otherwise"
    )


def explained(results: Results) -> list[str]:
    """Why models are not REMOVED, one sentence each; the initial model, which must not be, is left out."""
    said = []
    for _, line in results.summary.iterrows():
        # That the poison is in the model before unlearning is no finding, but what the test rests on.
        due = line["role"] == "initial" and line["verdict"] == "NOT REMOVED"
        if due or line["verdict"] == "REMOVED":
            continue
        several = len(results.poison_budgets) > 1
        at = f" at {100 * line['poison_budget']:g}% poison" if several else ""
        said.append(f"{label(line, results.recipe)}{at}, {line['verdict']}: {why(line, results)}.")
    return said


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
    wide = wide.sort_index().fillna("–")  # merged runs need not have the same budgets
    columns = {str(name): str(name).rpartition(", ")[0] for name in wide}
    # As the paper has it, the poison budgets of an unlearner stand side by side.
    by_unlearner = dict.fromkeys(columns.values())
    wide = wide[[name for title in by_unlearner for name, its in columns.items() if its == title]]
    wide.index = pd.Index([f"{epochs:.3g}" for epochs in wide.index], name="epochs")
    return wide.reset_index().rename_axis(columns=None)


def table2_caption(results: Results) -> str:
    """The caption: by which budgets, and the accuracy of the poisoned models, as in the paper's."""
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


def shift_legend(results: Results) -> str:
    """The meaning of the shift table's columns."""
    return SHIFTS + (BY_CHANCE if "reference" in set(results.moved["role"]) else "")


def ranking_table(experiments: Sequence[Results]) -> pd.DataFrame:
    """The leaderboard as text; empty where nothing can be ranked."""
    attacks = [results.recipe.attack for results in experiments]
    shown = {attack.name: attack.shown.title for attack in attacks}
    # Two attacks of users may bear one title, and would share a column: their names differ.
    titles = [*RANKING, *shown.values()]
    compared, lines = any(has_tuned(results.summary) for results in experiments), []
    for line in leaderboard(experiments).to_dict("records"):
        text = {
            "rank": number(line["rank"], 0),
            "unlearner": _name(line) + chosen(line["chosen"]),
            "misses": plus_minus(line["misses"], line["misses_error"], 2),
            "left": plus_minus(line["left"], line["left_error"], 2),
            "lost": plus_minus(line["lost"], line["lost_error"], 2),
            "spent": f"{line['spent']:.1%}",
            "experiments": str(line["experiments"]),
        }
        if compared:
            text["line to beat"] = _counted(line)
        for name, title in shown.items():
            text[title if titles.count(title) == 1 else name] = line[name]
        lines.append(text)
    return pd.DataFrame(lines)


def _name(line: Mapping[Any, Any]) -> str:
    """The name of a leaderboard's line, as papers write it, and the options that tell it from others."""
    bare = str(line["unlearner"]).removesuffix(line["marks"])
    return f"{NAMES.get(bare, bare)}{line['marks']}"


def _counted(line: Mapping[Any, Any]) -> str:
    """In how many experiments an unlearner is the line to beat, beats it, and loses to it."""
    if line["lines"] == line["experiments"]:
        return STANDINGS[LINE]
    words = {"lines": f"{STANDINGS[LINE]} in", "beats": "beats", "loses": "loses"}
    return ", ".join(f"{word} {line[key]}" for key, word in words.items() if line[key]) or "–"


def ranking_legend(experiments: Sequence[Results]) -> str:
    """The meaning of the leaderboard's columns, and why its verdicts may differ from those of one run."""
    said = [LEGEND]
    if any(has_tuned(results.summary) for results in experiments):
        names = rivals(pd.concat([results.summary for results in experiments]))
        said.append(
            f"Line to beat: {names} in the same experiment; in how many the unlearner surely beats it, and "
            "in how many it loses, as a run's own table tells it."
        )
    pooled = [results for results in experiments if len(results.runs) > 1]
    if pooled:
        names = ", ".join(f"{one.recipe.name} ({len(one.runs)} runs)" for one in pooled)
        said.append(
            f"Rows that can be compared are judged together: {names}. A verdict here may differ from one "
            "run's: Holm's correction counts the unlearners of all of them, and REMOVED rests on what the "
            "pooled seeds of the initial model show, which asks more of an unlearner with fewer seeds."
        )
    return " ".join(said)


def comparison_table(compared: pd.DataFrame) -> pd.DataFrame:
    """A comparison of two runs as text."""
    lines = []
    for line in compared.to_dict("records"):
        names = [_named(line[side]) for side in ("a", "b")]
        lines.append(
            {
                "unlearner": names[0] if names[0] == names[1] else " → ".join(names),
                "poison": f"{100 * line['poison_budget']:g}%",
                "budget": f"{line['budget']:.0%}",
                "measure": line["title"],
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


def _named(unlearner: str) -> str:
    """An unlearner with its options, its own name as tables have it."""
    name, *options = unlearner.split(" ")
    return " ".join([NAMES.get(name, name), *options])


def markdown(results: Results) -> str:
    """The tables in Markdown, with what columns mean; the paper's Table 2 too where it is filled."""
    parts = [f"# {results.recipe.name}", as_markdown(table(results))]
    parts += [f"**{warning}**" for warning in results.warnings]
    parts += ["\n".join(f"- {line}" for line in said)] if (said := explained(results)) else []
    text = "\n\n".join([*parts, legend(results)]) + "\n"
    if results.recipe.attack.shown.table2:
        text += f"\n{table2_caption(results)}\n\n{as_markdown(table2(results))}\n"
    if len(moved := shift_table(results)):
        text += f"\n{shift_legend(results)}\n\n{as_markdown(moved)}\n"
    return text


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    # Bars are escaped: |I| > τ stands in a title, and users' names may hold some.
    rows = [frame.columns.tolist(), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |" for row in rows
    )


def as_latex(frame: pd.DataFrame, caption: str, *below: pd.DataFrame) -> str:
    """A table of text in LaTeX, with booktabs; further parts, for what is too wide, stand below it."""
    small = [r"\medskip\scriptsize", r"\setlength{\tabcolsep}{2.5pt}"] if below else []
    parts = "\\par\\medskip\n".join(_tabular(part) for part in (frame, *below))
    text = rf"\caption{{{_in_latex(caption)}}}"
    lines = [r"\begin{table}", r"\centering", text, *small, f"{parts}\\end{{table}}\n"]
    return _symbols("\n".join([r"% needs \usepackage{booktabs}", *lines]))


def _tabular(frame: pd.DataFrame) -> str:
    styled = frame.style.hide(axis="index").format(escape="latex")
    styled = styled.format_index(escape="latex", axis="columns")
    text: str = styled.to_latex(hrules=True)
    return text


def _in_latex(text: str) -> str:
    """The text with what LaTeX would read as commands escaped, as pandas escapes cells and heads."""
    return text.translate(ESCAPED)


def _symbols(text: str) -> str:
    for symbol, command in LATEX.items():
        text = text.replace(symbol, command)
    return text


def write_table(frame: pd.DataFrame, stem: Path, caption: str) -> None:
    """Write a table of text as CSV, Markdown and LaTeX."""
    texts = {"md": f"{as_markdown(frame)}\n\n{caption}\n", "tex": as_latex(frame, caption)}
    write(frame, Path(f"{stem}.csv"))  # the stem may hold dots
    for ending, text in texts.items():
        write(text.encode(), Path(f"{stem}.{ending}"))


def legend(results: Results) -> str:
    """The meaning of the table's columns."""
    verdict, seeds = results.recipe.verdict, len(results.seeds)
    answers = _of_twins(results) if results.recipe.attack.needs_twin else _of_poisons(results)
    return (
        f"Accuracy: on the test set, mean ± s.d. over {seeds} seed{'s' if seeds > 1 else ''}; cost: "
        f"accuracy lost against full retraining; usable: the cost is surely at most "
        f"{verdict.accuracy:g} (yes), surely more (no), or neither (unclear). "
        "Spent: share of the initial training's compute. "
        f"{' '.join(_measures(results))} Trainings: those in which what is left is within REMOVED's "
        f"margin. {answers}{_of_membership(results)}{_of_line(results)}{_of_searches(results)} "
        f"{in_words(results)}".rstrip()
    )


def rivals(lines: pd.DataFrame) -> str:
    """The retraining in the budget that is the line to beat, in words; of merged rows it may be two."""
    names = set(lines.loc[lines["standing"] == LINE, "unlearner"])
    return " or ".join(NAMES[name] for name in RIVALS if name in names)


def _of_membership(results: Results) -> str:
    """The meaning of the answers by membership inference; nothing where no model was asked."""
    if not results.membership:
        return ""
    verdict = results.recipe.verdict
    plain = "" if _are_dosed(results) else " Non-members are plain test samples, for want of a law."
    return (
        f" {', '.join(results.membership.values())}: what is left of the initial model's lead over the "
        "retrained model in telling the forget set from non-members (AUC, or KLoM's divergence), ± its "
        f"standard error given these models. PASSES: surely within ± {verdict.margin:.0%} of that lead; "
        f"else FAILS: surely not 0; else UNSETTLED. Over poisons, and from {TRAININGS} seeds on over "
        f"trainings, at level {verdict.alpha:g}, Holm-corrected over the unlearners; the retrained model's "
        f"line is a second retrained model's.{plain}"
    )


def _are_dosed(results: Results) -> bool:
    """Whether the non-members follow the poisons' law."""
    return "mia_dosed" not in results.rows or bool((results.rows["mia_dosed"].dropna() == 1).all())


def _of_line(results: Results) -> str:
    """The meaning of the marks against the line to beat; nothing where no retraining was tuned."""
    if not has_tuned(results.summary):
        return ""
    return (
        f" Line to beat: {rivals(results.summary)}, at the same poison and compute budget. Beats: REMOVED, "
        f"for no more compute, and accuracy surely above the line's (for {LESS:.0%} less compute: surely "
        f"not {100 * SAME:g} points below); ties: REMOVED, and surely within {100 * SAME:g} points; "
        "loses: NOT REMOVED, or accuracy surely below; unclear: none of these. Surely: by paired t tests "
        f"over {TRAININGS} seeds or more, at level {results.recipe.verdict.alpha:g}, Holm-corrected over "
        "the unlearners."
    )


def _of_searches(results: Results) -> str:
    """How a search chose, and what it cost; nothing where no entry has several trials."""
    by_share = [results.searched(share) for share in results.poison_budgets]
    searches = pd.concat(by_share, ignore_index=True)
    if not len(searches):
        return ""
    dearest = searches.loc[searches.groupby("entry")["spent"].idxmax()]
    costs = [
        f"{label(line, results.recipe, with_budget=False)} {line['trials']} ({line['spent']:.2g})"
        for _, line in dearest.iterrows()
    ]
    return (
        " Of several trials, of those with the most seeds, the one is shown that answers held-out samples "
        "best, less what it answers the forget set better than those; no score of the poison has a part in "
        "it. Trials, and the share "
        f"of the training's compute that they took together: {', '.join(costs)}."
    )


def _measures(results: Results) -> Iterator[str]:
    """The meaning of scores and further columns, in sentences."""
    shown = results.recipe.attack.shown
    if not shown.needs_twin:
        yield f"{', '.join(score.title for score in shown.scores.values())}: {LEFT}"
        legends = [_clause(score) for score in shown.scores.values() if score.legend]
        yield from (_capital(f"{legend}.") for legend in legends)
    else:
        (score,) = shown.scores.values()
        between = ". D" if score.legend else ": d"
        yield _capital(f"{_clause(score)}{between}{DIFFERENCE}")
        if "shuffled" in set(results.rows["role"]):
            yield f"Shuffled poisons: {shown.shuffled}."
    for interval, words in POOLED.items():
        columns = [
            column for column in results.columns_shown.values() if column.interval == interval
        ]
        if columns:
            yield _capital(f"{'; '.join(map(_clause, columns))}, {words}.")


def _clause(of: Score | Column) -> str:
    """A title, and what it means."""
    return f"{of.title}: {of.legend}" if of.legend else of.title


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_poisons(results: Results) -> str:
    """The verdicts' meaning, by scores with a known null law."""
    verdict = results.recipe.verdict
    rests = {
        share: rests_in_words(results.rests(share), results.scores_shown)
        for share in results.poison_budgets
    }
    if len(set(rests.values())) == 1:
        grounds = next(iter(rests.values()))
    else:
        each = (f"at {100 * share:g} % poison, {words}" for share, words in rests.items())
        grounds = "; ".join(each)
    return (
        f"REMOVED: what is left is surely within ± {verdict.margin:.0%} of the initial model's (with "
        f"{TRAININGS} seeds or more the mean also in trainings to come, by a t test), and no other exact "
        f"test rejects independence; it rests on {grounds}. NOT REMOVED: independence is rejected. Both at "
        f"level {verdict.alpha:g}, Holm-corrected over the unlearners."
    )


def rests_in_words(rests: Sequence[Rest], scores: Mapping[str, Score]) -> str:
    """What REMOVED rests on."""
    effects: dict[str, list[str]] = {}
    for score, effect in rests:
        effects.setdefault(score, []).append(EFFECTS[effect])
    parts = [f"{scores[score].title} ({', '.join(names)})" for score, names in effects.items()]
    return " and ".join(parts) or "nothing, as the initial model shows no poison"


def _of_twins(results: Results) -> str:
    """The verdicts' meaning, by differences to a clean twin."""
    verdict = results.recipe.verdict
    return (
        f"REMOVED: the difference is surely within ± {verdict.margin:.0%} of the initial model's, and half "
        f"of that or more is surely left in under {verdict.margin:.0%} of the trainings where the attack "
        f"works (Holm-corrected over the unlearners). Else NOT REMOVED: the difference is not zero (sign "
        f"flips, step-down over the unlearners). Both at level {verdict.alpha:g}."
    )


def plus_minus(value: float, error: float, digits: int) -> str:
    """A value with its error, or a dash."""
    if math.isnan(value):
        return "–"
    return number(value, digits) + ("" if math.isnan(error) else f"±{number(error, digits)}")


def number(value: float, digits: int, sign: str = "") -> str:
    """A number, or a dash."""
    # + 0.0 makes 0 of −0, which rounding leaves of small negative numbers.
    if math.isnan(value):
        return "–"
    # A model that diverged is told by its order of magnitude: nobody reads eighteen digits.
    large = abs(value) >= LARGE
    return (
        f"{value:{sign}.2e}" if large else f"{round(float(value), digits) + 0.0:{sign}.{digits}f}"
    )
