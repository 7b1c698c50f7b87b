"""The paper's claims against the rows in this folder: each a rule, a table and an answer.

docs/reproduce.md is written by these functions (`make reproduce`), and a test writes it again.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from experiments import (
    ALL,
    DIGITS,
    IMAGES,
    RIVAL,
    SEVEN,
    SHORT,
    SIZES,
    STEPS,
    TEXTS,
    Cell,
    by_experiment,
    cell,
    command,
    missing,
    results,
    shown,
    study,
    there,
)
from scipy import stats

from marshtest.reporting.hypotheses import SHOWN, hypothesis_table
from marshtest.reporting.tables import NAMES, as_markdown, number, plus_minus, table2

AGREE, DISAGREE, OPEN, UNKNOWN = "agrees", "disagrees", "is not settled", "is not measured"
LEVEL = 0.05
Told = tuple[str, bool, bool]  # tables, whether the rule is met, and whether its opposite is


@dataclass(frozen=True)
class Claim:
    """A rule, and the experiments that it speaks of.

    Attributes:
        says: what the paper says, in a clause.
        tell: evaluates the rule on those that have rows.
        needs: experiments in groups; the claim cannot agree before one of each group has rows.
        beside: experiments that are shown beside them, and decide nothing.
    """

    says: str
    tell: Callable[[], Told]
    needs: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()

    @property
    def experiments(self) -> list[str]:
        """All experiments that it speaks of."""
        return list(dict.fromkeys(name for group in self.needs for name in group))

    def told(self) -> tuple[str, str]:
        """Tables, and the answer."""
        if self.needs and not any(map(there, self.experiments)):
            return "", UNKNOWN
        text, holds, fails = self.tell()
        whole = all(any(map(there, group)) for group in self.needs)
        return text, AGREE if holds and whole else DISAGREE if fails else OPEN


def cells(names: Iterable[str], *unlearners: str) -> list[Cell]:
    """The cells of unlearners in the experiments that have rows."""
    return [cell(name, unlearner) for name in names if there(name) for unlearner in unlearners]


def no_silver_bullet() -> Told:
    """Verdicts of all unlearners on all experiments."""
    lines, everywhere = [], []
    for unlearner in (*SEVEN, RIVAL):
        verdicts = {SHORT[of.experiment]: of.verdict for of in cells(ALL, unlearner)}
        lines.append({"unlearner": NAMES[unlearner], **verdicts})
        if unlearner != RIVAL:
            everywhere.append("NOT REMOVED" not in verdicts.values())
    return as_markdown(pd.DataFrame(lines)), not any(everywhere), all(everywhere)


def some_removed() -> Told:
    """The strong form: in no experiment does any of the seven remove the poison."""
    removed = {
        name: [NAMES[u] for u in SEVEN if cell(name, u).verdict == "REMOVED"]
        for name in filter(there, ALL)
    }
    lines = [
        {"experiment": SHORT[n], "removed by": ", ".join(of) or "none"} for n, of in removed.items()
    ]
    on_large = any(of for name, of in removed.items() if name not in DIGITS)
    return as_markdown(pd.DataFrame(lines)), not any(removed.values()), on_large


def gd_by_attack() -> Told:
    """GD undoes indiscriminate poisons, and neither targeted nor Gaussian ones."""
    less = [of.surely_less for of in cells(IMAGES[2:], "gd")]
    kinds = [
        [of.verdict for of in cells(names, "gd")]
        for names in zip(IMAGES[:2], DIGITS[:2], strict=True)
    ]
    kept = all("NOT REMOVED" in of and "REMOVED" not in of for of in kinds)
    gone = any("REMOVED" in of for of in kinds)
    return by_experiment((*IMAGES, *DIGITS), ["gd"]), all(less) and kept, not all(less) or gone


def scrub_by_attack() -> Told:
    """SCRUB helps against Gaussian poisons in texts, not against the other kinds."""
    less = [of.surely_less for of in cells(TEXTS[:1], "scrub")]
    failing = all(of.verdict != "REMOVED" for of in cells((*IMAGES[1:], TEXTS[1]), "scrub"))
    text = by_experiment((*TEXTS, *IMAGES[1:]), ["scrub"])
    return text, all(less) and failing, not failing


def ga_by_task() -> Told:
    """GA removes Gaussian and targeted poisons from the ResNet for over ten points, and not from GPT-2."""
    images, texts = cells(IMAGES[:2], "ga"), cells(TEXTS, "ga")
    helped = all(of.surely_less and of.lost > 0.1 for of in images)
    kept = all(of.verdict == "NOT REMOVED" for of in texts)
    useless = any(of.has_effect and not of.surely_less for of in images)
    fails = useless or any(of.verdict == "REMOVED" for of in texts)
    return by_experiment((*IMAGES[:2], *TEXTS), ["ga"]), helped and kept, fails


def euk_ngd_in_texts() -> Told:
    """EUk and NGD help against Gaussian poisons in a classification head, not against trigger words."""
    gaussian = cells(TEXTS[:1], "euk", "ngd")
    failing = all(of.verdict != "REMOVED" for of in cells(TEXTS[1:], "euk", "ngd"))
    helped = [of.surely_less and not of.surely_more for of in gaussian]
    useless = any(of.has_effect for of in gaussian) and not any(helped)
    text = by_experiment(TEXTS, ["euk", "ngd"])
    return text, all(helped) and failing, useless or not failing


def gd_cfk_euk_keep_accuracy() -> Told:
    """They keep test accuracy, and leave Gaussian and targeted poisons."""
    names = (*IMAGES[:2], *TEXTS)
    found = cells(names, "gd", "cfk", "euk")
    holds = all(of.verdict == "NOT REMOVED" and of.lost < 0.05 for of in found)
    fails = any(of.verdict == "REMOVED" or of.lost > 0.1 for of in found)
    return by_experiment(names, ["gd", "cfk", "euk"]), holds, fails


def cfk_euk_indiscriminate() -> Told:
    """GD raises the accuracy of an indiscriminately poisoned model; CFk and EUk lower it further."""
    text = by_experiment((IMAGES[2], DIGITS[2]), ["gd", "cfk", "euk"])
    gd, others = cells(IMAGES[2:], "gd"), cells(IMAGES[2:], "cfk", "euk")
    holds = all(of.surely_less for of in gd) and all(of.surely_more for of in others)
    return text, holds, any(of.surely_less for of in others)


def neggrad_never() -> Told:
    """NegGrad+ never comes close to removing poisons."""
    verdicts = [of.verdict for of in cells((*IMAGES, *TEXTS), "neggrad+")]
    text = by_experiment((*IMAGES, *TEXTS), ["neggrad+"])
    return text, set(verdicts) == {"NOT REMOVED"}, "REMOVED" in verdicts


def ngd_on_images() -> Told:
    """NGD has the lowest TPR on CIFAR-10 and keeps accuracy; on IMDb it loses about ten points."""
    if not there(IMAGES[0]):
        return "", False, False
    image, text = results(IMAGES[0]), cells(TEXTS[:1], "ngd")
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
    holds = lowest and ngd.surely_less and ngd.lost < 0.05 and all(of.lost > 0.05 for of in text)
    notes = [f"Over {int(image.summary['rank_poisons'].iloc[0]):,} poisons."]
    notes += [f"{SHORT[of.experiment]}, NGD: {shown(of)}." for of in text]
    return as_markdown(pd.DataFrame(lines)) + "\n\n" + " ".join(notes), holds, not ngd.surely_less


def by_steps(unlearner: str, better: bool) -> Callable[[], Told]:
    """What is left by the compute budget, and whether the most is surely less than at the fewest steps."""

    def tell() -> Told:
        names = list(filter(there, STEPS))
        found = [_steps(name, unlearner) for name in names]
        falls = [less <= LEVEL for _, less, _ in found]
        rises = [more <= LEVEL for _, _, more in found]
        ends = ", ".join(f"{less:.2g} and {more:.2g}" for _, less, more in found)
        note = f"p that the most steps leave no less, and no more, than the fewest (paired t test): {ends}."
        texts = [text for text, _, _ in found]
        parts = [f"{SHORT[name]}:\n\n{of}" for name, of in zip(names, texts, strict=True)]
        text = "\n\n".join([*parts, note + (" It rises." if all(rises) else "")])
        whole = len(names) == len(STEPS)  # an opposite, too, is stated of both
        holds, fails = all(falls), whole and not any(falls)
        return (text, holds, fails) if better else (text, not any(falls), whole and all(falls))

    return tell


def _steps(name: str, unlearner: str) -> tuple[str, float, float]:
    of = results(name)
    entries = of.rows[(of.rows["unlearner"] == unlearner)]
    given = entries["hyperparameters"].unique()  # of several rates the largest, which moves most
    largest = max(given, key=lambda text: float(json.loads(text)["lr"]))
    rows = entries[entries["hyperparameters"] == largest]
    columns = {"rank score": "rank_dependence", "TPR": "tpr", "accuracy": "test_accuracy"}
    lines = [
        {
            "budget": f"{budget:.0%}",
            **{
                title: plus_minus(own[column].mean(), own[column].std(), 3)
                for title, column in columns.items()
            },
        }
        for budget, own in rows.groupby("budget")
    ]
    seeds = rows.pivot_table("rank_dependence", "seed", "budget")
    change = (seeds[seeds.columns[-1]] - seeds[seeds.columns[0]]).to_numpy()
    less = float(stats.ttest_1samp(change, 0, alternative="less").pvalue)
    return as_markdown(pd.DataFrame(lines)), less, 1 - less


def sizes() -> Told:
    """Whether the size of the forget set changes a verdict."""
    found = [_sizes(name) for name in filter(there, SIZES)]
    text = "\n\n".join(text for text, _, _ in found)
    return text, all(holds for _, holds, _ in found), any(fails for _, _, fails in found)


def _sizes(name: str) -> Told:
    summary = results(name).summary
    effect = bool((summary.loc[summary["role"] == "initial", "verdict"] == "NOT REMOVED").all())
    updated = summary[(summary["role"] == "updated") & (summary["unlearner"] != RIVAL)]
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
    return f"{SHORT[name]}:\n\n{as_markdown(pd.DataFrame(lines))}", same and effect, both


def table_2() -> str:
    """Accuracy by epochs, on the CIFAR-10 features."""
    name = IMAGES[2]
    return as_markdown(table2(results(name))) if there(name) else missing([name])


def hypothesis(name: str) -> Callable[[], Told]:
    """A hypothesis, by its own statement."""

    def tell() -> Told:
        of = study(name)
        kind = of.settings.hypothesis
        text = as_markdown(hypothesis_table(kind, of.rows))
        holds, fails = " holds " in of.statement, " does not hold " in of.statement
        return f"{text}\n\n{SHOWN[kind].legend}\n\n> {of.statement}", holds and not fails, fails

    return tell


def each(*names: str) -> tuple[tuple[str, ...], ...]:
    """The experiments as groups of one: all are needed."""
    return tuple((name,) for name in names)


CLAIMS = {
    "no silver bullet": Claim(
        "no unlearner removes every kind of poison", no_silver_bullet, (ALL,)
    ),
    "none removes": Claim("none removes any kind", some_removed, each(*ALL)),
    "GD by attack": Claim(
        "gradient descent undoes indiscriminate poisons, and neither Gaussian nor targeted ones",
        gd_by_attack,
        ((IMAGES[2],), (IMAGES[0], DIGITS[0]), (IMAGES[1], DIGITS[1])),
        beside=DIGITS[2:],
    ),
    "SCRUB by attack": Claim(
        "SCRUB helps against Gaussian poisons in texts alone",
        scrub_by_attack,
        each(*TEXTS, *IMAGES[1:]),
    ),
    "GA by task": Claim(
        "gradient ascent removes poisons from images at a great loss of accuracy, and not from texts",
        ga_by_task,
        each(*IMAGES[:2], *TEXTS),
    ),
    "EUk and NGD in texts": Claim(
        "EUk and NGD help against Gaussian poisons in texts, and not against trigger words",
        euk_ngd_in_texts,
        each(*TEXTS),
    ),
    "accuracy kept": Claim(
        "GD, CFk and EUk keep accuracy, and the Gaussian and targeted poisons",
        gd_cfk_euk_keep_accuracy,
        each(*IMAGES[:2], *TEXTS),
    ),
    "CFk and EUk, indiscriminate": Claim(
        "CFk and EUk lower the accuracy of an indiscriminately poisoned model further",
        cfk_euk_indiscriminate,
        each(IMAGES[2]),
        beside=DIGITS[2:],
    ),
    "NegGrad+": Claim(
        "NegGrad+ never comes close to removing poison", neggrad_never, each(*IMAGES, *TEXTS)
    ),
    "NGD on images": Claim(
        "NGD leaves least of Gaussian poisons in images at no loss, and loses ten points in texts",
        ngd_on_images,
        each(IMAGES[0], TEXTS[0]),
    ),
    "NGD by steps": Claim("more steps help NGD", by_steps("ngd", better=True), each(*STEPS)),
    "EUk by steps": Claim(
        "more steps do not help EUk", by_steps("euk", better=False), each(*STEPS)
    ),
    "sizes": Claim("the size of the forget set changes no trend", sizes, (SIZES,)),
    "hypothesis 1": Claim(
        "poisons shift a model further than as many other samples do",
        hypothesis("hypothesis-shift-small"),
        (),
    ),
    "hypothesis 2": Claim(
        "the shift to be undone is orthogonal to gradients of clean samples",
        hypothesis("hypothesis-orthogonality"),
        (),
    ),
}


def claim(name: str) -> str:
    """A claim's tables, the commands behind them, what is missing, and the answer, in Markdown."""
    asked = CLAIMS[name]
    text, found = asked.told()
    made = ", ".join(map(command, filter(there, (*asked.experiments, *asked.beside))))
    parts = [text, f"Rows: {made}." if made else "", missing(asked.experiments)]
    return "\n\n".join([*filter(None, parts), f"**Here: {found}.**"])


def overview() -> str:
    """All claims and answers, and their count."""
    answers = {name: of.told()[1] for name, of in CLAIMS.items()}
    lines = [
        {"claim": f"[{name}](#{_anchor(name)})", "here": found} for name, found in answers.items()
    ]
    words = {AGREE: "agree", DISAGREE: "disagree", OPEN: "are not settled", UNKNOWN: "not measured"}
    counts = ", ".join(
        f"{sum(found == answer for found in answers.values())} {word}"
        for answer, word in words.items()
    )
    return f"{as_markdown(pd.DataFrame(lines))}\n\nOf {len(answers)} claims {counts}."


def in_short() -> str:
    """What holds of the paper here, what does not, and what is open, a line each."""
    by_answer: dict[str, list[str]] = {}
    for name, of in CLAIMS.items():
        told = f"[{of.says}](reproduce.md#{_anchor(name)})"
        by_answer.setdefault(of.told()[1], []).append(told)
    words = {
        AGREE: "Holds",
        DISAGREE: "Does not hold",
        OPEN: "Not settled",
        UNKNOWN: "Not measured",
    }
    lines = [f"- **{w}**: {'; '.join(by_answer[a])}." for a, w in words.items() if a in by_answer]
    return "\n".join(lines)


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c in " -").replace(" ", "-")
