"""The paper's claims against the rows in this folder: each a rule, a table and an answer.

docs/reproduce.md is written by these functions (`make reproduce`), and a test writes it again.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from marshtest.documents import shipped
from marshtest.grid import read_sweep
from marshtest.hypotheses.studied import Study
from marshtest.merging import differences, read_one
from marshtest.recipe import load_recipe
from marshtest.report.hypotheses import SHOWN, hypothesis_table
from marshtest.report.tables import NAMES, as_markdown, number, plus_minus, table2
from marshtest.results import Results
from marshtest.rows import read_file

HERE = Path(__file__).parent
ROWS = HERE
SEVEN = ("gd", "ngd", "ga", "euk", "cfk", "scrub", "neggrad+")
RIVAL = "retrain"
IMAGES = ("cifar10-small-gaussian", "cifar10-small-targeted", "cifar10-small-indiscriminate")
TEXTS = ("imdb-small-gaussian", "imdb-small-trigger")
DIGITS = ("digits-gaussian", "digits-targeted", "digits-indiscriminate")
ALL = (*IMAGES, *TEXTS, *DIGITS)
SHORT = {
    "cifar10-small-gaussian": "CIFAR-10, Gaussian",
    "cifar10-small-targeted": "CIFAR-10, targeted",
    "cifar10-small-indiscriminate": "CIFAR-10 features, indiscriminate",
    "imdb-small-gaussian": "IMDb, Gaussian",
    "imdb-small-trigger": "IMDb, trigger word",
    "digits-gaussian": "digits, Gaussian",
    "digits-targeted": "digits, targeted",
    "digits-indiscriminate": "digits, indiscriminate",
}
AGREE, DISAGREE, OPEN = "agrees", "disagrees", "is not settled"
LEVEL = 0.05


@cache
def results(name: str) -> Results:
    """An experiment's rows."""
    return read_one(ROWS / name)


@cache
def study(name: str) -> Study:
    """A hypothesis's."""
    return Study.of(read_file(ROWS / name))


@dataclass(frozen=True)
class Cell:
    """One unlearner in one experiment, at its largest poison budget and the budget of its figures."""

    experiment: str
    line: pd.Series
    initial: pd.Series
    names: list[str]

    @property
    def verdict(self) -> str:
        return str(self.line["verdict"])

    @property
    def has_effect(self) -> bool:
        """Whether the initial model shows the poison at all."""
        return str(self.initial["verdict"]) == "NOT REMOVED"

    @property
    def left(self) -> float:
        """Share of the initial effect, by the score that shows most."""
        return max(abs(self._share(name)) for name in self.names)

    def _share(self, name: str) -> float:
        return float(self.line[f"{name}_dependence"] / self.initial[f"{name}_dependence"])

    @property
    def surely_less(self) -> bool:
        """Whether some score shows surely less than before: 95 % intervals apart."""
        return any(self.line[f"{n}_high"] < self.initial[f"{n}_low"] for n in self.names)

    @property
    def surely_more(self) -> bool:
        """Whether some score shows surely more than before."""
        return any(self.line[f"{n}_low"] > self.initial[f"{n}_high"] for n in self.names)

    @property
    def lost(self) -> float:
        """Test accuracy that full retraining has more."""
        return float(self.line["accuracy_cost"])

    @property
    def change(self) -> float:
        """Test accuracy gained against the initial model."""
        return float(self.line["test_accuracy"] - self.initial["test_accuracy"])


def cell(experiment: str, unlearner: str) -> Cell:
    """Of several entries of an unlearner the last, which changes most layers."""
    of = results(experiment)
    table = of.summary[of.summary["poison_budget"] == of.poison_budget]
    found = table[(table["unlearner"] == unlearner) & (table["budget"] == budget_of(of))]
    return Cell(
        experiment, found.iloc[-1], table[table["role"] == "initial"].iloc[0], of.score_names
    )


def budget_of(of: Results) -> float:
    """The compute budget that is shown: the paper's 10 %."""
    return of.budget


def shown(of: Cell) -> str:
    """A cell in words."""
    accuracy = plus_minus(of.line["test_accuracy"], of.line["test_accuracy_sd"], 3)
    left = f"{of.left:.0%} left" if of.has_effect else "no effect shown to begin with"
    return f"{of.verdict}, {left}; accuracy {accuracy} ({-of.lost:+.3f})"


def table(experiments: Iterable[str], unlearners: Iterable[str]) -> str:
    """Unlearners by experiments."""
    chosen = list(unlearners)
    lines = []
    for experiment in experiments:
        texts = {NAMES[name]: shown(cell(experiment, name)) for name in chosen}
        lines.append(
            {"experiment": SHORT[experiment], "seeds": len(results(experiment).seeds), **texts}
        )
    return as_markdown(pd.DataFrame(lines))


def answered(holds: bool, fails: bool) -> str:
    """An answer, from whether the rule is met and whether its opposite is."""
    return AGREE if holds else DISAGREE if fails else OPEN


def no_silver_bullet() -> tuple[str, str]:
    """Verdicts of all unlearners on all experiments."""
    lines = []
    everywhere = []
    for unlearner in (*SEVEN, RIVAL):
        verdicts = {name: cell(name, unlearner).verdict for name in ALL}
        lines.append({"unlearner": NAMES[unlearner], **{SHORT[n]: v for n, v in verdicts.items()}})
        if unlearner != RIVAL:
            everywhere.append("NOT REMOVED" not in verdicts.values())
    return as_markdown(pd.DataFrame(lines)), answered(not any(everywhere), all(everywhere))


def some_removed() -> tuple[str, str]:
    """The strong form: in no experiment does any of the seven remove the poison."""
    removed = {n: [NAMES[u] for u in SEVEN if cell(n, u).verdict == "REMOVED"] for n in ALL}
    lines = [
        {"experiment": SHORT[n], "removed by": ", ".join(of) or "none"} for n, of in removed.items()
    ]
    return as_markdown(pd.DataFrame(lines)), answered(
        not any(removed.values()), any(removed[name] for name in IMAGES + TEXTS)
    )


def gd_by_attack() -> tuple[str, str]:
    """GD undoes indiscriminate poisons, and neither targeted nor Gaussian ones."""
    gaussian, targeted = (
        [cell(name, "gd").verdict for name in names]
        for names in zip(IMAGES[:2], DIGITS[:2], strict=True)
    )
    less = cell(IMAGES[2], "gd").surely_less
    kept = all("NOT REMOVED" in of and "REMOVED" not in of for of in (gaussian, targeted))
    gone = "REMOVED" in (*gaussian, *targeted)
    return table((*IMAGES, *DIGITS), ["gd"]), answered(less and kept, not less or gone)


def scrub_by_attack() -> tuple[str, str]:
    """SCRUB helps against Gaussian poisons in texts, not against the other kinds."""
    gaussian, trigger = (cell(name, "scrub") for name in TEXTS)
    others = [cell(name, "scrub") for name in IMAGES[1:]] + [trigger]
    failing = all(of.verdict != "REMOVED" for of in others)
    holds = gaussian.surely_less and failing
    return table((*TEXTS, *IMAGES[1:]), ["scrub"]), answered(holds, not failing)


def ga_by_task() -> tuple[str, str]:
    """GA removes Gaussian and targeted poisons from the ResNet for over ten points, and not from GPT-2."""
    images = [cell(name, "ga") for name in IMAGES[:2]]
    texts = [cell(name, "ga") for name in TEXTS]
    helped = [of.surely_less and of.lost > 0.1 for of in images]
    kept = [of.verdict == "NOT REMOVED" for of in texts]
    useless = any(of.has_effect and not of.surely_less for of in images)
    fails = useless or any(of.verdict == "REMOVED" for of in texts)
    return table((*IMAGES[:2], *TEXTS), ["ga"]), answered(all(helped) and all(kept), fails)


def euk_ngd_in_texts() -> tuple[str, str]:
    """EUk and NGD help against Gaussian poisons in a classification head, not against trigger words."""
    gaussian = [cell(TEXTS[0], name) for name in ("euk", "ngd")]
    trigger = [cell(TEXTS[1], name) for name in ("euk", "ngd")]
    helped = [of.surely_less and not of.surely_more for of in gaussian]
    failing = [of.verdict != "REMOVED" for of in trigger]
    fails = not any(helped) or not all(failing)
    return table(TEXTS, ["euk", "ngd"]), answered(all(helped) and all(failing), fails)


def gd_cfk_euk_keep_accuracy() -> tuple[str, str]:
    """They keep test accuracy, and leave Gaussian and targeted poisons."""
    cells = [cell(name, u) for name in (*IMAGES[:2], *TEXTS) for u in ("gd", "cfk", "euk")]
    left = [of.verdict == "NOT REMOVED" for of in cells]
    cheap = [of.lost < 0.05 for of in cells]
    fails = any(of.verdict == "REMOVED" for of in cells) or any(of.lost > 0.1 for of in cells)
    return (
        table((*IMAGES[:2], *TEXTS), ["gd", "cfk", "euk"]),
        answered(all(left) and all(cheap), fails),
    )


def cfk_euk_indiscriminate() -> tuple[str, str]:
    """GD raises the accuracy of an indiscriminately poisoned model; CFk and EUk lower it further."""
    name = IMAGES[2]
    gd, cfk, euk = (cell(name, u) for u in ("gd", "cfk", "euk"))
    holds = gd.surely_less and cfk.surely_more and euk.surely_more
    return table((name, DIGITS[2]), ["gd", "cfk", "euk"]), answered(
        holds, cfk.surely_less or euk.surely_less
    )


def neggrad_never() -> tuple[str, str]:
    """NegGrad+ never comes close to removing poisons."""
    cells = [cell(name, "neggrad+") for name in (*IMAGES, *TEXTS)]
    holds = all(of.verdict == "NOT REMOVED" for of in cells)
    return table((*IMAGES, *TEXTS), ["neggrad+"]), answered(
        holds, any(of.verdict == "REMOVED" for of in cells)
    )


def ngd_on_images() -> tuple[str, str]:
    """NGD has the lowest TPR on CIFAR-10 and keeps accuracy; on IMDb it loses about ten points."""
    image, text = results(IMAGES[0]), cell(TEXTS[0], "ngd")
    lines = []
    for unlearner in SEVEN:
        of = cell(IMAGES[0], unlearner).line
        lines.append(
            {
                "unlearner": NAMES[unlearner],
                "accuracy": plus_minus(of["test_accuracy"], of["test_accuracy_sd"], 3),
                "TPR": plus_minus(of["tpr"], of["tpr_sd"], 3),
                "rank TPR": plus_minus(of["tpr_rank"], of["tpr_rank_sd"], 3),
            }
        )
    tprs = {u: float(cell(IMAGES[0], u).line["tpr"]) for u in SEVEN}
    lowest = min(tprs, key=lambda u: tprs[u]) == "ngd"
    ngd = cell(IMAGES[0], "ngd")
    holds = lowest and ngd.surely_less and ngd.lost < 0.05 and text.lost > 0.05
    poisons = int(image.summary["rank_poisons"].iloc[0])
    note = f"\n\nOver {poisons} poisons. On IMDb NGD: {shown(text)}."
    return as_markdown(pd.DataFrame(lines)) + note, answered(holds, not ngd.surely_less)


def by_steps(unlearner: str, better: bool) -> Callable[[], tuple[str, str]]:
    """What is left by the compute budget, and whether the most is surely less than at the fewest steps."""

    def told() -> tuple[str, str]:
        answers, tables = [], []
        for name in ("cifar10-small-gaussian", "digits-budgets"):
            lines, less, more = _steps(name, unlearner)
            tables.append(f"{SHORT.get(name, 'digits, Gaussian (`digits-budgets`)')}:\n\n{lines}")
            answers.append((less, more))
        falls = [less <= LEVEL for less, _ in answers]
        rises = [more <= LEVEL for _, more in answers]
        found = (
            answered(all(falls), not any(falls)) if better else answered(not any(falls), all(falls))
        )
        ends = ", ".join(f"{less:.2g} and {more:.2g}" for less, more in answers)
        note = f"p that the most steps leave no less, and no more, than the fewest (paired t test): {ends}."
        return "\n\n".join([*tables, note + (" It rises." if all(rises) else "")]), found

    return told


def _steps(name: str, unlearner: str) -> tuple[str, float, float]:
    of = results(name)
    entries = of.rows[(of.rows["unlearner"] == unlearner)]
    given = entries["hyperparameters"].unique()  # of several rates the largest, which moves most
    largest = max(given, key=lambda text: float(json.loads(text)["lr"]))
    rows = entries[entries["hyperparameters"] == largest]
    by_budget = rows.groupby("budget")
    lines = [
        {
            "budget": f"{budget:.0%}",
            "rank score": plus_minus(
                own["rank_dependence"].mean(), own["rank_dependence"].std(), 3
            ),
            "TPR": plus_minus(own["tpr"].mean(), own["tpr"].std(), 3),
            "accuracy": plus_minus(own["test_accuracy"].mean(), own["test_accuracy"].std(), 3),
        }
        for budget, own in by_budget
    ]
    seeds = rows.pivot_table("rank_dependence", "seed", "budget")
    change = (seeds[seeds.columns[-1]] - seeds[seeds.columns[0]]).to_numpy()
    less = float(stats.ttest_1samp(change, 0, alternative="less").pvalue)
    return as_markdown(pd.DataFrame(lines)), less, 1 - less


def sizes() -> tuple[str, str]:
    """Whether the size of the forget set changes a verdict."""
    of = results("cifar10-small-sizes")
    updated = of.summary[(of.summary["role"] == "updated") & (of.summary["unlearner"] != RIVAL)]
    lines = []
    for unlearner, own in updated.groupby("unlearner", sort=False):
        line: dict[str, Any] = {"unlearner": NAMES[str(unlearner)]}
        for _, at in own.iterrows():
            left = plus_minus(at["rank_dependence"], at["rank_error"], 2)
            line[f"{at['forget_size']:.0f} poisons"] = (
                f"{at['verdict']}, {left}; accuracy {number(at['test_accuracy'], 3)}"
            )
        lines.append(line)
    verdicts = updated.groupby("unlearner")["verdict"].agg(set)
    same = bool((verdicts.map(len) == 1).all())
    both = bool(verdicts.map(lambda found: {"REMOVED", "NOT REMOVED"} <= found).any())
    return as_markdown(pd.DataFrame(lines)), answered(same, both)


def table_2() -> tuple[str, str]:
    """Accuracy by epochs, on the CIFAR-10 features."""
    return as_markdown(table2(results(IMAGES[2]))), ""


def hypothesis(name: str) -> Callable[[], tuple[str, str]]:
    """A hypothesis, by its own statement."""

    def told() -> tuple[str, str]:
        of = study(name)
        kind = of.settings.hypothesis
        text = as_markdown(hypothesis_table(kind, of.rows))
        legend = SHOWN[kind].legend
        holds, fails = " holds " in of.statement, " does not hold " in of.statement
        return f"{text}\n\n{legend}\n\n> {of.statement}", answered(holds and not fails, fails)

    return told


CLAIMS: dict[str, Callable[[], tuple[str, str]]] = {
    "no silver bullet": no_silver_bullet,
    "none removes": some_removed,
    "GD by attack": gd_by_attack,
    "SCRUB by attack": scrub_by_attack,
    "GA by task": ga_by_task,
    "EUk and NGD in texts": euk_ngd_in_texts,
    "accuracy kept": gd_cfk_euk_keep_accuracy,
    "CFk and EUk, indiscriminate": cfk_euk_indiscriminate,
    "NegGrad+": neggrad_never,
    "NGD on images": ngd_on_images,
    "NGD by steps": by_steps("ngd", better=True),
    "EUk by steps": by_steps("euk", better=False),
    "sizes": sizes,
    "hypothesis 1": hypothesis("hypothesis-shift-small"),
    "hypothesis 2": hypothesis("hypothesis-orthogonality"),
}


def claim(name: str) -> str:
    """A claim's table and answer, in Markdown."""
    text, found = CLAIMS[name]()
    return f"{text}\n\n**Here: {found}.**"


def overview() -> str:
    """All claims and answers, and their count."""
    answers = {name: tell()[1] for name, tell in CLAIMS.items()}
    lines = [
        {"claim": f"[{name}](#{_anchor(name)})", "here": found} for name, found in answers.items()
    ]
    counts = ", ".join(
        f"{sum(found == answer for found in answers.values())} {word}"
        for answer, word in ((AGREE, "agree"), (DISAGREE, "disagree"), (OPEN, "are not settled"))
    )
    return f"{as_markdown(pd.DataFrame(lines))}\n\nOf {len(answers)} claims {counts}."


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c in " -").replace(" ", "-")


def command(name: str) -> str:
    """What gives an experiment's rows: the shipped recipe or sweep, and what was changed."""
    of = results(name)
    if name in shipped("sweeps"):
        verb, base = "sweep", load_recipe(read_sweep(name).variants()[0].values)
    else:
        verb, base = "run", load_recipe(of.recipe.name)
        name = of.recipe.name
    asked, given = (
        recipe.model_dump(mode="json", exclude={"name"}) for recipe in (base, of.recipe)
    )
    changed = differences(asked, given)
    told = "".join(f" '{key}={json.dumps(value)}'" for key, (_, value) in changed.items())
    return f"`marshtest {verb} {name}{told}`"


def origin() -> str:
    """Where the rows come from."""
    lines = []
    for name in (*ALL, "digits-budgets", "cifar10-small-sizes", "imdb-tiny-sizes"):
        of = results(name)
        about = next(iter(of.runs.values()))
        hours = (of.rows["seconds"].sum() + of.rows["scoring_seconds"].sum()) / 3600
        lines.append(
            {
                "rows": f"{len(of.rows)}: {command(name)}",
                "seeds": len(of.seeds),
                "poisons a seed": ", ".join(f"{n:.0f}" for n in np.unique(of.rows["forget_size"])),
                "precision": ", ".join(of.rows["precision"].unique()),
                "hours of work": f"{hours:.2f}",
                "marshtest": f"{about['marshtest']}, torch {about['torch']}, {about['machine']}",
            }
        )
    return as_markdown(pd.DataFrame(lines))
