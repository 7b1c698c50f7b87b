"""The paper's claims against the rows in this folder: each a rule, a table and an answer.

docs/reproduce.md is written by these functions (`make reproduce`), and a test writes it again.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
from evidence import (
    LEVEL,
    MARGIN,
    UNSHOWN,
    Series,
    Statement,
    all_of,
    any_of,
    beats,
    beats_noise,
    comes_close,
    costs_less,
    costs_more,
    does_not_help,
    enlarges,
    helps,
    is_retraining,
    lessens,
    not_removed,
    of_seeds,
    over_seeds,
    removed,
    stays_far,
    within,
)
from experiments import (
    ALL,
    CANCELED,
    DIGITS,
    HIDDEN,
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
    missing,
    results,
    shown,
    study,
    there,
    titled,
    with_others,
)

from marshtest.reporting.hypotheses import SHOWN, hypothesis_table
from marshtest.reporting.tables import (
    NAMES,
    as_markdown,
    number,
    plus_minus,
    table2,
    table2_caption,
)

FEW = 3  # experiments that are named
POINT = 0.01  # of accuracy, that more steps may gain without being said to help
AGREE, DISAGREE, OPEN, UNKNOWN = "agrees", "disagrees", "is not settled", "is not measured"
Told = tuple[str, Statement, Statement]  # tables; that the rule is met, and that its opposite is


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
        """Tables and p-values, and the answer."""
        text, answer, _ = self._found()
        return text, answer

    @property
    def decided(self) -> Statement | None:
        """What the answer rests on; None where there is none."""
        return self._found()[2]

    def _found(self) -> tuple[str, str, Statement | None]:
        if self.needs and not any(map(there, self.experiments)):
            return "", UNKNOWN, None
        text, holds, fails = self.tell()
        whole = all(any(map(there, group)) for group in self.needs)
        ways = {AGREE: holds if whole else UNSHOWN, DISAGREE: fails}
        shown = [answer for answer, way in ways.items() if way.p <= LEVEL]
        # Of two answers that are both shown neither can be believed.
        answer = shown[0] if len(shown) == 1 else OPEN
        # A hypothesis tells its own p-values.
        tests = f"p-values: {holds.p:.2g} for *agrees*, {fails.p:.2g} for *disagrees*."
        seeds = "" if shown else _settling(ways.values(), whole)
        told = " ".join(filter(None, [tests, seeds])) if self.needs else ""
        return "\n\n".join(filter(None, [text, told])), answer, ways.get(answer)


def _settling(ways: Iterable[Statement], whole: bool) -> str:
    """How many seeds would settle an open claim, in a sentence; or nothing, where rows are missing."""
    needed = min((way.seeds(LEVEL) for way in ways), key=lambda seeds: max(seeds.values()))
    if all(map(math.isfinite, needed.values())):
        told = ", ".join(f"{number:,.0f} of `{name}`" for name, number in needed.items())
        return f"By these numbers about so many seeds would settle it: {told}."
    return "By these numbers more seeds would not settle it." if whole else ""


def cells(names: Iterable[str], *unlearners: str) -> list[Cell]:
    """The cells of unlearners in the experiments that have rows."""
    return [cell(name, unlearner) for name in names if there(name) for unlearner in unlearners]


def no_silver_bullet() -> Told:
    """Verdicts of all unlearners on all experiments."""
    lines, failing, everywhere = [], [], []
    for unlearner in (*SEVEN, RIVAL):
        own = cells(ALL, unlearner)
        told = cells(with_others(ALL), unlearner)
        verdicts = {titled(of.experiment): of.verdict for of in told}
        lines.append({"unlearner": NAMES[unlearner], **verdicts})
        if unlearner != RIVAL:
            failing.append(any_of(map(not_removed, own)))
            everywhere.append(all_of(map(removed, own)))
    # That one removes every kind can be said of all kinds alone.
    some = any_of(everywhere) if all(map(there, ALL)) else UNSHOWN
    return as_markdown(pd.DataFrame(lines)), all_of(failing), some


def some_removed() -> Told:
    """The strong form: in no experiment does any of the seven remove the poison."""
    lines = []
    for name in with_others(ALL):
        own = {NAMES[unlearner]: cell(name, unlearner) for unlearner in SEVEN}
        by = [
            title + " (retraining)" * is_retraining(of)
            for title, of in own.items()
            if of.verdict == "REMOVED"
        ]
        lines.append({"experiment": titled(name), "removed by": ", ".join(by) or "none"})
    none = all_of(not_removed(of) for of in cells(ALL, *SEVEN))
    asked = (of for of in cells((*IMAGES, *TEXTS), *SEVEN) if not is_retraining(of))
    some = any_of(map(removed, asked))
    return as_markdown(pd.DataFrame(lines)), none, some


def gd_by_attack() -> Told:
    """GD alleviates indiscriminate poisons, and neither targeted nor Gaussian ones, at high accuracy."""
    undone = cells(CANCELED, "gd")
    kinds = [cells(names, "gd") for names in zip(IMAGES[:2], DIGITS[:2], strict=True)]
    # On either data set: CIFAR-10 and digits are two chances to see each kind fail.
    failing = [
        any_of(all_of([not_removed(of), costs_less(of, 0.05)]) for of in kind) for kind in kinds
    ]
    gone = [all_of(map(removed, kind)) for kind in kinds]
    holds = all_of([*map(helps, undone), *failing])
    fails = any_of([*map(does_not_help, undone), *gone])
    return by_experiment((*IMAGES, *DIGITS), ["gd"]), holds, fails


def scrub_by_attack() -> Told:
    """SCRUB helps against Gaussian poisons in texts, not against the other kinds."""
    mitigated, others = cells(TEXTS[:1], "scrub"), cells((TEXTS[1], *IMAGES[1:]), "scrub")
    holds = all_of([*map(helps, mitigated), *map(not_removed, others)])
    fails = any_of([*map(does_not_help, mitigated), *map(removed, others)])
    return by_experiment((*TEXTS, *IMAGES[1:]), ["scrub"]), holds, fails


def ga_by_task() -> Told:
    """GA helps against Gaussian and targeted poisons in the ResNet for over ten points, not in GPT-2."""
    images, texts = cells(IMAGES[:2], "ga"), cells(TEXTS, "ga")
    helped = [s for of in images for s in (helps(of), costs_more(of, 0.1))]
    holds = all_of([*helped, *map(does_not_help, texts)])
    fails = any_of([*map(does_not_help, images), *map(helps, texts)])
    return by_experiment((*IMAGES[:2], *TEXTS), ["ga"]), holds, fails


def euk_ngd_in_texts() -> Told:
    """EUk and NGD help against Gaussian poisons in a classification head, not against trigger words."""
    gaussian, trigger = (cells([name], "euk", "ngd") for name in TEXTS)
    holds = all_of([*map(helps, gaussian), *map(not_removed, trigger)])
    useless = all_of(map(does_not_help, gaussian))
    fails = any_of([useless, *map(removed, trigger)])
    return by_experiment(TEXTS, ["euk", "ngd"]), holds, fails


def gd_cfk_euk_keep_accuracy() -> Told:
    """They keep test accuracy, and leave Gaussian and targeted poisons."""
    names = (*IMAGES[:2], *TEXTS)
    own = cells(names, "gd", "cfk", "euk")
    holds = all_of(s for of in own for s in (not_removed(of), costs_less(of, 0.05)))
    fails = any_of(s for of in own for s in (removed(of), costs_more(of, 0.1)))
    return by_experiment(names, ["gd", "cfk", "euk"]), holds, fails


def cfk_euk_indiscriminate() -> Told:
    """GD raises the accuracy of an indiscriminately poisoned model; CFk and EUk lower it further."""
    text = by_experiment((HIDDEN, *CANCELED, DIGITS[2]), ["gd", "cfk", "euk"])
    gd, others = cells([HIDDEN], "gd"), cells([HIDDEN], "cfk", "euk")
    # Of a poison that harms no more than noise nothing can be said about poisons.
    works = [beats_noise(of) for of in gd]
    holds = all_of([*works, *map(helps, gd), *(enlarges(of) for of in others)])
    fails = all_of([*works, any_of(map(lessens, others))])
    less = ", ".join(f"{NAMES[str(of.line['unlearner'])]} {lessens(of).p:.2g}" for of in others)
    noise = ", ".join(f"{of.p:.2g}" for of in works)
    told = (
        f"{text}\n\n{SHORT[HIDDEN]}, p-values that an unlearner makes the effect no smaller: {less}; that "
        f"the poison costs no more than noise: {noise}."
    )
    return told, holds, fails


def weaker_than_retraining() -> Told:
    """GD and SCRUB raise the accuracy, but less than retraining does with the same compute."""
    parts, lines = [], []
    for name in filter(there, CANCELED):
        rival = cell(name, RIVAL)
        line = {"experiment": titled(name), "seeds": len(results(name).seeds)}
        for unlearner in (RIVAL, "gd", "scrub"):
            of = cell(name, unlearner)
            line[NAMES[unlearner]] = plus_minus(
                of.line["test_accuracy"], of.line["test_accuracy_sd"], 4
            )
            if unlearner != RIVAL:
                parts.append((beats(rival, of), beats(of, rival)))
        lines.append(line)
    holds, fails = all_of(less for less, _ in parts), any_of(more for _, more in parts)
    return as_markdown(pd.DataFrame(lines)), holds, fails


def neggrad_never() -> Told:
    """NegGrad+ never comes close to removing poisons."""
    own = cells((*IMAGES, *TEXTS), "neggrad+")
    text = by_experiment((*IMAGES, *TEXTS), ["neggrad+"])
    return text, all_of(map(stays_far, own)), any_of(map(comes_close, own))


def ngd_on_images() -> Told:
    """NGD has the lowest TPR on CIFAR-10 and keeps accuracy; on IMDb it loses about ten points."""
    name = IMAGES[0]
    if not there(name):
        return "", UNSHOWN, UNSHOWN
    own = {unlearner: cell(name, unlearner) for unlearner in SEVEN}
    tables = "\n\n".join(map(_rates, with_others([name])))
    tpr = {unlearner: of_seeds(of)["tpr"] for unlearner, of in own.items()}
    ngd, text = own["ngd"], cells(TEXTS[:1], "ngd")
    lowest = [over_seeds(tpr[other] - tpr["ngd"], name) for other in SEVEN if other != "ngd"]
    costly = (costs_more(of, 0.05) for of in text)
    holds = all_of([*lowest, helps(ngd), costs_less(ngd, 0.05), *costly])
    notes = [f"{SHORT[of.experiment]}, NGD: {shown(of)}." for of in text]
    return "\n\n".join([tables, *notes]), holds, does_not_help(ngd)


def _rates(name: str) -> str:
    """Accuracy and TPRs of the seven, and of no unlearning, in one experiment with Gaussian poisons."""
    columns = {"accuracy": "test_accuracy", "TPR": "tpr", "rank TPR": "tpr_rank"}
    own = [cell(name, unlearner) for unlearner in SEVEN]
    initial = own[0].initial
    sides = {"no unlearning": initial, **{NAMES[str(of.line["unlearner"])]: of.line for of in own}}
    lines = [
        {
            "unlearner": title,
            **{t: plus_minus(line[c], line[f"{c}_sd"], 3) for t, c in columns.items()},
        }
        for title, line in sides.items()
    ]
    poisons = int(initial["rank_poisons"])
    return f"{titled(name)}, {poisons:,} poisons:\n\n{as_markdown(pd.DataFrame(lines))}"


@dataclass(frozen=True)
class Steps:
    """What the most steps of an unlearner do beside the fewest, in one experiment."""

    text: str
    falls: Statement  # surely more than MARGIN of what is left goes
    stays: Statement
    rises: Statement  # surely more than a point of accuracy is gained
    flat: Statement


def ngd_by_steps() -> Told:
    """The most steps leave less than the fewest."""
    parts = _by_steps("ngd")
    return _tables(parts), all_of(of.falls for of in parts), any_of(of.stays for of in parts)


def euk_by_steps() -> Told:
    """The most steps leave no less than the fewest."""
    parts = _by_steps("euk")
    return _tables(parts), all_of(of.stays for of in parts), any_of(of.falls for of in parts)


def euk_accuracy_by_steps() -> Told:
    """The most steps end with no higher accuracy than the fewest; the tables are the last claim's."""
    parts = _by_steps("euk")
    return "", all_of(of.flat for of in parts), any_of(of.rises for of in parts)


def _by_steps(unlearner: str) -> list[Steps]:
    return [_steps(name, unlearner) for name in STEPS if there(name)]


def _tables(parts: Iterable[Steps]) -> str:
    return "\n\n".join(of.text for of in parts)


def _steps(name: str, unlearner: str) -> Steps:
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
    fewest, most = _ends(rows, "rank_dependence")
    less, more = _ends(rows, "test_accuracy")
    leaves = over_seeds(fewest, name)  # or there would be nothing to take away
    return Steps(
        f"{SHORT[name]}:\n\n{as_markdown(pd.DataFrame(lines))}",
        falls=all_of([leaves, within(name, (1 - MARGIN) * fewest, most)]),
        stays=all_of([leaves, over_seeds(most - (1 - MARGIN) * fewest, name)]),
        rises=over_seeds(more - less - POINT, name),
        flat=over_seeds(POINT - (more - less), name),
    )


def _ends(rows: pd.DataFrame, column: str) -> tuple[Series, Series]:
    """A column at the smallest compute budget and at the largest, by seed."""
    by_budget = rows.pivot_table(column, "seed", "budget")
    return by_budget[by_budget.columns[0]], by_budget[by_budget.columns[-1]]


def sizes() -> Told:
    """Whether the size of the forget set changes a verdict."""
    parts = [_sizes(name) for name in filter(there, SIZES)]
    text = "\n\n".join(text for text, _, _ in parts)
    return text, all_of(same for _, same, _ in parts), any_of(changed for _, _, changed in parts)


def _sizes(name: str) -> Told:
    of = results(name)
    lines, same, changed = [], [], []
    for unlearner in SEVEN:
        own = [cell(name, unlearner, share) for share in of.poison_budgets]
        line = {"unlearner": NAMES[unlearner]}
        for at in own:
            left = plus_minus(at.line["rank_dependence"], at.line["rank_error"], 2)
            line[f"{at.line['forget_size']:.0f} poisons"] = (
                f"{at.verdict}, {left}; accuracy {number(at.line['test_accuracy'], 3)}"
            )
        lines.append(line)
        kept, gone = list(map(not_removed, own)), list(map(removed, own))
        same.append(any_of([all_of(kept), all_of(gone)]))
        changed.append(all_of([any_of(kept), any_of(gone)]))
    return f"{SHORT[name]}:\n\n{as_markdown(pd.DataFrame(lines))}", all_of(same), any_of(changed)


def table_2() -> str:
    """Accuracy by epochs, on the CIFAR-10 features of either recipe; the paper's unlearners alone."""
    shown, parts = ["epochs", *(NAMES[name] for name in ("retrain", *SEVEN))], []
    for name in filter(there, CANCELED):
        of = results(name)
        wide = table2(of)
        columns = [column for column in wide if column.split(", ")[0] in shown]
        parts.append(f"{SHORT[name]}. {table2_caption(of)}\n\n{as_markdown(wide[columns])}")
    return "\n\n".join([*parts, missing(CANCELED)]).strip()


def hypothesis(name: str) -> Callable[[], Told]:
    """A hypothesis, by its own statement."""

    def tell() -> Told:
        of = study(name)
        kind = of.settings.hypothesis
        text = as_markdown(hypothesis_table(kind, of.rows))
        # A sentence for each set that is taken out.
        sentences = of.statement.split("Hypothesis ")[1:]
        fails = any(" does not hold " in one for one in sentences)
        holds = all(" holds " in one for one in sentences)
        told = f"{text}\n\n{SHOWN[kind].legend}\n\n> {of.statement}"
        # The statement has its own tests, and tells their p-values.
        return told, *(
            Statement(0.0, lambda level: {}, (name,)) if so else UNSHOWN for so in (holds, fails)
        )

    return tell


def each(*names: str) -> tuple[tuple[str, ...], ...]:
    """The experiments as groups of one: all are needed."""
    return tuple((name,) for name in names)


CLAIMS = {
    "no silver bullet": Claim(
        "no unlearner removes every kind of poison", no_silver_bullet, (ALL,)
    ),
    "none removes": Claim(
        "no unlearner removes any poison, the strong reading", some_removed, each(*ALL)
    ),
    "GD by attack": Claim(
        "gradient descent alleviates indiscriminate poisons, and fails against Gaussian and targeted ones",
        gd_by_attack,
        (CANCELED, (IMAGES[0], DIGITS[0]), (IMAGES[1], DIGITS[1])),
        beside=DIGITS[2:],
    ),
    "SCRUB by attack": Claim(
        "SCRUB helps against Gaussian poisons in texts alone",
        scrub_by_attack,
        each(*TEXTS, *IMAGES[1:]),
    ),
    "GA by task": Claim(
        "gradient ascent takes poisons from images at a great loss of accuracy, and not from texts",
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
        each(HIDDEN),
        beside=(*CANCELED, DIGITS[2]),
    ),
    "weaker than retraining": Claim(
        "GD and SCRUB restore less accuracy after an indiscriminate poison than as much retraining does",
        weaker_than_retraining,
        (CANCELED,),
    ),
    "NegGrad+": Claim(
        "NegGrad+ never comes close to removing poison", neggrad_never, each(*IMAGES, *TEXTS)
    ),
    "NGD on images": Claim(
        "NGD leaves least of Gaussian poisons in images at high accuracy, and loses ten points in texts",
        ngd_on_images,
        each(IMAGES[0], TEXTS[0]),
    ),
    "NGD by steps": Claim(
        "more steps help NGD, tried at the paper's rate, too", ngd_by_steps, each(*STEPS)
    ),
    "EUk by steps": Claim("more steps do not help EUk to remove", euk_by_steps, each(*STEPS)),
    "EUk's accuracy by steps": Claim(
        "more steps do not raise EUk's accuracy", euk_accuracy_by_steps, each(*STEPS)
    ),
    "sizes": Claim("the share of Gaussian poisons changes no trend", sizes, each(*SIZES)),
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
    """A claim's tables, the experiments behind them, what is missing, and the answer, in Markdown."""
    asked = CLAIMS[name]
    text, found = asked.told()
    made = ", ".join(f"`{of}`" for of in with_others((*asked.experiments, *asked.beside)))
    rows = f"Rows: {made} ([their commands](#where-the-rows-come-from))." if made else ""
    parts = [text, rows, missing(asked.experiments)]
    return "\n\n".join([*filter(None, parts), f"**Here: {found}.**"])


def overview() -> str:
    """All claims and answers, and their count."""
    answers = {name: of.told()[1] for name, of in CLAIMS.items()}
    lines = []
    for name, found in answers.items():
        by, own = (
            CLAIMS[name].decided,
            not CLAIMS[name].needs,
        )  # hypotheses tell p-values of their own
        p = "–" if by is None or own else f"{by.p:.2g}"
        line = {"claim": f"[{name}](#{_anchor(name)})", "here": found, "p": p}
        lines.append(line | {"decided by": _decided(by) or "–"})
    words = {AGREE: "agree", DISAGREE: "disagree", OPEN: "are not settled", UNKNOWN: "not measured"}
    counts = ", ".join(
        f"{sum(found == answer for found in answers.values())} {word}"
        for answer, word in words.items()
    )
    return f"{as_markdown(pd.DataFrame(lines))}\n\nOf {len(answers)} claims {counts}."


def _decided(by: Statement | None) -> str:
    """The experiments that an answer rests on."""
    names = [] if by is None else [SHORT.get(name, f"`{name}`") for name in by.by]
    return "; ".join(names) if len(names) <= FEW else f"{len(names)} experiments"


def in_short() -> str:
    """What holds of the paper here, what does not, and what is open, a line each."""
    by_answer: dict[str, list[str]] = {}
    for name, of in CLAIMS.items():
        told, answer = f"[{of.says}](reproduce.md#{_anchor(name)})", of.told()[1]
        # What does not hold rests on one experiment, mostly: which, a reader has to know.
        by = f" (by {_decided(of.decided)})" if answer == DISAGREE else ""
        by_answer.setdefault(answer, []).append(told + by)
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
