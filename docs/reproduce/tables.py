"""The tables of README.md, docs/results.md and docs/unlearners.md, from rows here (`make reproduce`)."""

import json
from collections.abc import Sequence

import pandas as pd
from experiments import (
    CANCELING_RULES,
    DEEP,
    DIGITS,
    FOREIGN,
    HERE,
    HOW,
    RIVAL,
    SEVEN,
    SHORT,
    cell,
    command,
    missing,
    results,
    study,
    there,
)
from pictures import PICTURES
from scipy.stats import ttest_rel

from marshtest.reporting.hypotheses import SHOWN, hypothesis_table
from marshtest.reporting.page import sentences
from marshtest.reporting.states import left_by_state
from marshtest.reporting.tables import (
    NAMES,
    as_markdown,
    explained,
    label,
    legend,
    number,
    plus_minus,
    table,
)
from marshtest.results.merging import read_all
from marshtest.results.summary import Results

EDITION = HERE / "first-edition.csv"
COMPARED = (
    *DIGITS,
    "digits-budgets",
    "cifar10-small-gaussian",
    "cifar10-small-indiscriminate",
    "imdb-small-trigger",
    "imdb-tiny-gaussian",
    "imdb-tiny-trigger",
)


def measured(name: str, without: Sequence[str] = ()) -> str:
    """An experiment's summary without some of its columns, or how to get one."""
    if not there(name):
        return missing([name])
    return as_markdown(table(results(name)).drop(columns=list(without)))


def section(name: str) -> str:
    """An experiment's command, summary, verdicts in words with reasons, and what the columns mean."""
    if not there(name):
        return missing([name])
    of = results(name)
    said = [line for line in explained(of) if ": too few " not in line]  # the table says how many
    why = "\n".join(f"- {line}" for line in said)
    parts = [command(name), measured(name), verdicts(name), why, legend(of)]
    return "\n\n".join(filter(None, parts))


def largest(name: str) -> str:
    """An experiment's section with the table at the largest poison and compute budgets alone."""
    if not there(name):
        return missing([name])
    of = results(name)
    lines = of.summary
    at = (lines["role"] != "updated") | (lines["budget"] == of.budget)
    kept = table(of)[at & (lines["poison_budget"] == of.poison_budget)]
    return "\n\n".join([command(name), as_markdown(kept), verdicts(name), legend(of)])


def states(name: str) -> str:
    """What is left of the poison in each model and state, and the state's verdict."""
    if not there(name):
        return missing([name])
    of = results(name)
    table = left_by_state(of, of.poison_budget)
    cells = [f"{line['verdict']}, {line['left']:.0%} left" for _, line in table.iterrows()]
    wide = table.assign(cell=cells).pivot(index="label", columns="title", values="cell")
    wide = wide.loc[table["label"].unique(), table["title"].unique()]
    return f"{command(name)}\n\n{as_markdown(wide.reset_index(names=''))}"


def verdicts(name: str) -> str:
    """An experiment's verdicts in words, as a run prints them."""
    return "\n".join(f"- {line}" for line in sentences(results(name))) if there(name) else ""


def foreign() -> str:
    """The command that calls unlearners of other packages, and what was left after them."""
    block = f"```sh\ncd examples/foreign\n{HOW[FOREIGN]}\n```"
    return "\n\n".join([block, measured(FOREIGN, ["TPR", "rank TPR"]), verdicts(FOREIGN)])


def statement(name: str) -> str:
    """A hypothesis's table, what its columns mean, and its statement."""
    of = study(name)
    kind = of.settings.hypothesis
    text = as_markdown(hypothesis_table(kind, of.rows))
    return f"`marshtest study {name}`\n\n{text}\n\n{SHOWN[kind].legend}\n\n> {of.statement}"


def canceling_deep() -> str:
    """Test accuracy of deep victims of gradient canceling, beside blind perturbations and none."""
    lines = []
    for name in filter(there, DEEP):
        rows = results(name).rows.set_index(["role", "seed"])
        poisoned, shuffled = rows.loc["initial"], rows.loc["shuffled"]
        clean = poisoned["twin_test_accuracy"]
        lost = {
            "lost by poison": clean - poisoned["test_accuracy"],
            "lost by blind noise": clean - shuffled["test_accuracy"],
        }
        accuracies = {
            "clean": clean,
            "poisoned": poisoned["test_accuracy"],
            "shuffled": shuffled["test_accuracy"],
        }
        lines.append(
            {
                "variant": SHORT[name],
                "seeds": len(clean),
                "gradient left": ", ".join(_crafted(line) for _, line in poisoned.iterrows()),
                **{key: plus_minus(x.mean(), x.std(), 3) for key, x in accuracies.items()},
                **{key: plus_minus(x.mean(), x.sem(), 3) for key, x in lost.items()},
            }
        )
    commands = "\n".join(f"- {SHORT[name]}: {command(name)}" for name in DEEP if there(name))
    return f"{as_markdown(pd.DataFrame(lines))}\n\n{commands}" if lines else missing(DEEP)


def canceling_rules() -> str:
    """What each rule of canceling leaves of the gradient, and its victims' accuracy, by network."""
    if not there(CANCELING_RULES):
        return missing([CANCELING_RULES])
    lines: dict[str, dict[str, str]] = {}
    for of in read_all([HERE / CANCELING_RULES]).results:
        attack, hidden = of.recipe.attack, of.recipe.model.depth
        network = "one hidden layer" if hidden else "linear classifier"
        rows = of.rows[of.rows["role"] == "initial"]
        columns = {
            "gradient left": ("crafting_objective", 2),
            "victim": ("test_accuracy", 3),
            "clean twin": ("twin_test_accuracy", 3),
        }
        cells = {
            f"{network}: {title}": plus_minus(rows[column].mean(), rows[column].std(), digits)
            for title, (column, digits) in columns.items()
        }
        rule = f"`{attack.optimizer}`, `{attack.weighting}`, {attack.lr:g}"
        lines.setdefault(rule, {"rule": rule}).update(cells)
    return f"`{HOW[CANCELING_RULES]}`\n\n{as_markdown(pd.DataFrame(lines.values()))}"


def _crafted(line: pd.Series) -> str:
    """The share of the gradient that a crafting left, and whether it broke off or ended with more."""
    left = line["crafting_objective"]
    diverged = " (diverged)" * bool(line["crafting_stopped"] or left > 1)
    return f"{left:.2f}{diverged}" if left < 100 else f"{left:.0e}{diverged}"


def deep_answer() -> str:
    """Whether poisons in a deep network lower accuracy more than blind noise does, in a sentence."""
    surely = []
    for name in filter(there, DEEP):
        rows = results(name).rows.set_index(["role", "seed"])["test_accuracy"]
        found = ttest_rel(rows.loc["shuffled"], rows.loc["initial"], alternative="greater")
        surely.append(bool(found.pvalue <= 0.05))
    return (
        f"In {sum(surely)} of {len(surely)} variants poisons lower accuracy surely more than blind noise "
        "of the same size (paired one-sided t test over seeds, level 0.05)."
    )


def picture(name: str, caption: str) -> str:
    """A figure, where its experiment has rows."""
    experiment = PICTURES[name][0]
    return f"![{caption}]({name}.png)" if there(experiment) else ""


SHARE = {"digits-indiscriminate": 0.1}  # the poison budget shown; else the only one


def three_answers() -> str:
    """Verdicts of all unlearners on the three poisons of digits, with accuracy where it is surely lost."""
    chosen = list(filter(there, DIGITS))
    lines = [{"": "recipe"} | {_title(name): f"`{name}`" for name in chosen}]
    lines.append({"": "seeds"} | {_title(name): str(len(results(name).seeds)) for name in chosen})
    lines.append({"": NAMES["none"]} | {_title(name): _effect(name) for name in chosen})
    lines += [
        {"": NAMES[unlearner]} | {_title(name): _answer(name, unlearner) for name in chosen}
        for unlearner in (*SEVEN, RIVAL)
    ]
    parts = [as_markdown(pd.DataFrame(lines)) if chosen else "", missing(DIGITS)]
    return "\n\n".join(filter(None, parts))


def _title(name: str) -> str:
    share = SHARE.get(name, results(name).poison_budget)
    return f"{SHORT[name].partition(', ')[2]}, {100 * share:g} %"


def _effect(name: str) -> str:
    """What the poison does, by the numbers."""
    of = cell(name, RIVAL, SHARE.get(name)).initial
    if "target_success" in of:
        return f"{of['target_success']:.0%} of targets get the attacker's label"
    if "rank_dependence" in of:
        return f"rank score {number(of['rank_dependence'], 2)}"
    clean = of["test_accuracy"] + of["accuracy_cost"]
    return f"accuracy {number(of['test_accuracy'], 2)} instead of {number(clean, 2)}"


def _answer(name: str, unlearner: str) -> str:
    of = cell(name, unlearner, SHARE.get(name)).line
    lost = f", accuracy {number(of['test_accuracy'], 2)}" if of["usable"] == "no" else ""
    return f"{of['verdict']}{lost}"


def by_rate(name: str = "digits-budgets") -> str:
    """What is left by the rank score, and accuracy, by compute budget, at each unlearner's largest rate."""
    if not there(name):
        return missing([name])
    rows = results(name).rows
    updated = rows[rows["role"] == "updated"]
    lines = []
    for unlearner in (*SEVEN, RIVAL):
        own = updated[updated["unlearner"] == unlearner]
        rates = own["hyperparameters"].map(lambda text: json.loads(text).get("lr", 0.0))
        means = own[rates == rates.max()].groupby("budget")
        for title, column in (("left", "rank_dependence"), ("accuracy", "test_accuracy")):
            rate = f", lr {rates.max():g}" if unlearner != RIVAL else ""
            line = {"": f"{NAMES[unlearner]}{rate}: {title}"}
            lines.append(line | {f"{b:.0%}": number(v, 3) for b, v in means[column].mean().items()})
    return as_markdown(pd.DataFrame(lines))


def changed() -> str:
    """Verdicts that differ from the first edition's, with the rule that changed and what the rows say."""
    before = pd.read_csv(EDITION)
    told, lines = [], []
    for name in COMPARED:
        old = before[before["experiment"] == name]
        if not there(name):
            told.append(missing([name]))
        elif not len(old):
            told.append(f"{SHORT[name]}: the first edition had no rows.")
        else:
            own, same = _changed(name, old)
            lines += own
            told.append(f"{SHORT[name]}: {len(own)} of {len(own) + same} verdicts differ.")
    parts = [as_markdown(pd.DataFrame(lines)) if lines else "", "\n".join(f"- {t}" for t in told)]
    return "\n\n".join(filter(None, parts))


def _changed(experiment: str, old: pd.DataFrame) -> tuple[list[dict[str, str]], int]:
    """Lines of the verdicts that differ, and how many do not."""
    of = results(experiment)
    table = of.summary[(of.summary["role"] != "updated") | (of.summary["budget"] == of.budget)]
    lines, same = [], 0
    for _, line in table.iterrows():
        name = label(line, of.recipe, with_budget=False)
        of_share = (old["poison_budget"] - line["poison_budget"]).abs() < 1e-9
        found = old[of_share & (old["unlearner"] == name)]
        if not len(found):
            continue
        before = found.iloc[0]
        if before["verdict"] == line["verdict"]:
            same += 1
            continue
        lines.append(
            {
                "experiment": SHORT[experiment],
                "poison": f"{100 * line['poison_budget']:g} %",
                "model": name,
                "first edition": before["verdict"],
                "now": line["verdict"],
                "within the margin": f"in {line['removed_in']} of {line['trainings']} trainings",
                "rule that changed": _rule(of, line, int(before["seeds"])),
                "what the rows say": _why(line),
            }
        )
    return lines, same


RULES = {  # what changed, by hand: for effects with a null law, and for those without
    "REMOVED": ("rests on what has power", "clean twin"),
    "NOT REMOVED": ("four exact tests", "clean twin, sign flips"),
    "INCONCLUSIVE": ("spread, tail and trainings count", "clean twin, failed trainings count"),
}


def _rule(of: Results, line: pd.Series, seeds: int) -> str:
    said = ["SCRUB corrected"] if line["unlearner"] == "scrub" else []
    said.append(RULES[line["verdict"]][of.recipe.attack.needs_twin])
    if line["seeds"] != seeds:
        said.append(f"{line['seeds']} seeds, not {seeds}")
    return "; ".join(said)


def _why(line: pd.Series) -> str:
    if line["reasons"]:
        return str(line["reasons"])
    p_in, p_out = line["p_removed"], line["p_not_removed"]
    if line["verdict"] == "REMOVED":
        return f"surely within the margin (p {p_in:.2g})" if p_in else "both arms are one model"
    if line["verdict"] == "NOT REMOVED":
        return f"surely not 0 (p {p_out:.2g}), not surely within the margin (p {p_in:.2g})"
    return f"not surely within the margin (p {p_in:.2g}), not surely not 0 (p {p_out:.2g})"
