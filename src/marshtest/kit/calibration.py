"""How often is the verdict wrong? Count false verdicts on a real model and real data, with known truth.

*Null keys* have the dose's ids and variance and another seed: noise that never touched the model, so
independence holds exactly. Each NOT REMOVED is false, and so is each ε > 0 of the privacy bound.

*Cheats* are made of the true key's scores and a null key's, so that poison is surely left. Each REMOVED is
false.

    margin     a random part of the poisons, as large as the margin, keeps the true scores: the hardest
               case in which all poisons are treated alike
    half       a random half keeps the true scores, the other half has them mirrored: the mean is 0
    pushed     a random part, as large as the margin, keeps the true scores, and the others are pushed the
               other way until the mean is 0
    class      as many classes as make up the margin keep the true scores
    classes    every other class keeps the true scores, the others have them mirrored

Each rate of false answers must be at most what was promised, up to chance. Nothing is promised about
*half*, *pushed* and *classes* if the poisons are too few for the verdict to rest on the scores' spread: a
model that keeps some poisons and pushes others may go unseen then.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest, kstest

from marshtest.kit.judging import Question
from marshtest.kit.key import Bases, NoiseKey
from marshtest.kit.keys import AnyKey, read_key
from marshtest.kit.measure import Measured, measure
from marshtest.kit.noise import Floats, Scaling
from marshtest.kit.records.base import Door, Loss
from marshtest.kit.tables.key import TableKey
from marshtest.kit.tables.opening import open_any
from marshtest.kit.texts.key import TextBases, TextKey
from marshtest.kit.texts.measure import Questions, measure_texts, name_of
from marshtest.kit.texts.opening import Quantize, open_all
from marshtest.metrics.dependence import SCORES
from marshtest.metrics.verdict import Rest, rests_on, verdicts
from marshtest.plumbing.device import functions_device, pick_device
from marshtest.plumbing.errors import MarshtestError, refuse_options
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive
from marshtest.plumbing.whole_files import write
from marshtest.reporting.figures import save


@dataclass(frozen=True)
class Calibration:
    """Verdicts on all null keys and cheats."""

    # a line for each key and case ("null", or a cheat): verdict, ε, and for each score the dependence
    # and its two-sided p-value
    keys: pd.DataFrame
    question: Question  # what was asked, with the error rates that it promises
    rests: tuple[Rest, ...] = ()  # the tests that REMOVED rests on

    def table(self) -> pd.DataFrame:
        """Rate of each false answer, with its 95 % binomial interval and the rate that was promised."""
        by_case = {str(case): keys for case, keys in self.keys.groupby("case", sort=False)}
        null = by_case.pop("null")
        alpha, confidence = self.question.alpha, self.question.confidence
        lines = [
            _rate("null", "NOT REMOVED", null["verdict"] == "NOT REMOVED", alpha),
            *(
                _rate(case, "REMOVED", keys["verdict"] == "REMOVED", self._promised(case))
                for case, keys in by_case.items()
            ),
            _rate("null", "ε > 0", null["epsilon"] > 0, 1 - confidence),
        ]
        for name, p in self.null_p_values().items():
            lines.append(_rate("null", f"{SCORES[name].title}: p ≤ {alpha:g}", p <= alpha, alpha))
        return pd.DataFrame(lines)

    def _promised(self, cheat: str) -> float:
        """The promised rate of false REMOVED; nan if nothing is promised."""
        spread = any(rest.effect == "spread" for rest in self.rests)
        return self.question.alpha if spread or cheat in ("margin", "class") else float("nan")

    def uniformity(self) -> dict[str, float]:
        """p-value of a Kolmogorov–Smirnov test that the null keys' p-values are uniform, by score."""
        p_values = self.null_p_values()
        return {name: float(kstest(p, "uniform").pvalue) for name, p in p_values.items()}

    def null_p_values(self) -> dict[str, Floats]:
        """p-values for independence under the null keys, by score."""
        null = self.keys[self.keys["case"] == "null"]
        columns = [column for column in self.keys if str(column).endswith("_p")]
        return {str(column).removesuffix("_p"): null[column].to_numpy() for column in columns}

    def figure(self) -> Figure:
        """Histogram of the null keys' p-values: flat, if the test is exact."""
        p_values = self.null_p_values()
        figure = Figure(figsize=(3.2 * len(p_values), 2.6))
        panels = figure.subplots(1, len(p_values), sharey=True, squeeze=False)[0]
        for panel, (name, values) in zip(panels, p_values.items(), strict=True):
            panel.hist(values, bins=20, range=(0, 1), color="#0072B2", alpha=0.7)
            panel.axhline(len(values) / 20, color="black", lw=1, ls="--", label="uniform")
            panel.set_xlabel(f"p-value, {SCORES[name].title}")
            panel.legend(frameon=False, fontsize=7)
        panels[0].set_ylabel("null keys")
        figure.tight_layout()
        return figure

    def save(self, folder: Path) -> None:
        """Write keys.csv and the histogram of p-values into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        write(self.keys, folder / "keys.csv")
        save(self.figure(), folder / "p-values")


def _rate(keys: str, answer: str, false: Any, promised: float) -> dict[str, object]:
    # The exact interval (Clopper and Pearson): false answers are few, if all is well none.
    low, high = binomtest(int(false.sum()), len(false)).proportion_ci()
    return {
        "keys": keys,
        "n": len(false),
        "false answer": answer,
        "times": int(false.sum()),
        "share": float(false.mean()),
        "low": low,
        "high": high,
        "promised": promised,
    }


def calibrate(
    key: AnyKey | str | Path,
    data: str | Path,
    model: str | Door,
    *,
    keys: int = 200,
    scaling: Scaling | None = None,
    loss: Loss | None = None,
    quantize: Quantize | None = None,
    rate: float | None = None,
    device: str = "auto",
    in_process: bool = False,
    progress: Progress = silent,
    **question: Any,
) -> Calibration:
    """Count false verdicts on a model that was trained on the dose.

    Args:
        key: the key of the dose, or its file.
        data: the data set as it was before dosing.
        model: the model before unlearning, in one of the forms of `marshtest.kit.open_model`.
        keys: number of null keys; each costs one measurement of the model.
        scaling: how values of the file become model inputs; see `audit`.
        loss: which tokens of a text count; see `audit`.
        quantize: bits of a language model's weights; see `audit`.
        rate: the most requests a second that an endpoint is sent; see `audit`.
        device: auto, cpu or cuda; auto asks a function that is no module on the CPU.
        in_process: let foreign callables and .pt2 programs run in this process.
        progress: told each null key that is measured, and the fraction of them that is done.
        **question: fields of `marshtest.kit.judging.Question`, as for `audit`.

    Raises:
        MarshtestError: key, data and model do not fit together.
    """
    key = read_key(key) if isinstance(key, str | Path) else key
    if keys < 1:
        raise MarshtestError(f"calibrate: needs at least one null key. Got {keys}.")
    parsed = Question.parse(question, "calibrate")
    if parsed.answers == "labels":
        raise MarshtestError(
            "calibrate: counts the errors of the tests on losses. The one on labels is exact by itself."
        )
    torch_device = pick_device(device)
    if isinstance(key, TextKey):
        refuse_options("calibrate: the key is of texts", scaling=scaling)
        bases = key.bases(data)
        (door,) = open_all(
            [model], torch_device, quantize=quantize, rate=rate, in_process=in_process
        )
        ask = _texts_asked(bases, name_of(model), door, loss or "record", parsed)
    else:
        refuse_options("calibrate: the key is of no texts", loss=loss, quantize=quantize, rate=rate)
        if isinstance(key, TableKey):
            refuse_options("calibrate: the key is of a table", scaling=scaling)
        where = torch_device, in_process, functions_device(device)
        ask = _noise_asked(key, data, str(model), scaling, where, parsed)
    true = ask(key.secret)
    # By the true key, once, as an audit has it: chosen for each null key, the rule would be another.
    rests = rests_on(true.evidence(true.dependences()), margin=parsed.margin, alpha=parsed.alpha)
    lines = []
    for number in range(keys):
        progress(number / keys, f"null key {number + 1} of {keys}")
        # By its number, so that the first keys are the same however many are asked for.
        null = ask(derive(key.secret, "null", number))
        lines.append({"case": "null", **_line(true, null, rests, parsed)})
        rng = np.random.default_rng(derive(key.secret, "cheats", number))
        for case, scores in cheats(true, null, parsed.margin, rng):
            cheat = replace(null, scores=scores)
            lines.append({"case": case, **_line(true, cheat, rests, parsed)})
    return Calibration(pd.DataFrame(lines), parsed, rests)


# Both ask without samples that have no dose: what is counted are the errors of the verdict's rule, and the
# controls, which only take acquittals away, are left out.


def _noise_asked(
    key: NoiseKey,
    data: str | Path,
    model: str,
    scaling: Scaling | None,
    where: tuple[torch.device, bool, torch.device],
    question: Question,
) -> Callable[[int], Measured]:
    """What a model shows of the noise of any seed."""
    bases = key.bases(data)
    (asked_model,) = open_any([model], key, data, bases.values, scaling, *where)

    def asked(seed: int) -> Measured:
        noise = key.noise.model_copy(update={"seed": seed})
        null = Bases(bases.ids, bases.values, bases.labels, noise)
        return measure(asked_model, null, draws=question.draws, fpr=question.fpr)

    return asked


def _texts_asked(
    bases: TextBases, name: str, door: Door, loss: Loss, question: Question
) -> Callable[[int], Measured]:
    """What a model shows of the marks of any seed."""

    def asked(seed: int) -> Measured:
        null = replace(bases, deal=replace(bases.deal, seed=seed))
        questions = Questions(null, loss, question.draws, undosed=())
        return measure_texts(name, door, questions, fpr=question.fpr)

    return asked


def _line(
    true: Measured, measured: Measured, rests: Sequence[Rest], question: Question
) -> dict[str, object]:
    """Verdict, ε, dependences and p-values of one key, with the true key as the model before."""
    names = true.dependences()
    initial, evidence = true.evidence(names), measured.evidence(names)
    levels: dict[str, Any] = {"alpha": question.alpha, "margin": question.margin}
    (verdict,) = verdicts(initial, [evidence], rests=rests, **levels)
    line: dict[str, object] = {
        "verdict": verdict.answer,
        "epsilon": question.privacy_of(measured).largest,
    }
    for name, score in evidence.pooled.items():
        line |= {f"{name}_dependence": score.value, f"{name}_p": score.p_value}
    return line


def cheats(
    true: Measured, null: Measured, margin: float, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Floats]]]:
    """(case, scores) of models that keep poison; see the module's text."""
    order = rng.permutation(len(true.classes)) / len(true.classes)
    names, label = np.unique(true.classes, return_inverse=True)
    # Classes in random order, until together they hold as many poisons as the margin.
    ranked = rng.permutation(len(names))
    cumulated = np.bincount(label)[ranked].cumsum() / len(label)
    whole = np.isin(label, ranked[: int(np.searchsorted(cumulated, margin)) + 1])
    every_other = rng.permutation(len(names))[label] % 2 == 0
    yield "margin", _mixed(true, null, order < margin)
    yield "half", _mixed(true, _mirrored(true), order < 0.5)
    yield "pushed", _balanced(_mixed(true, null, order < margin), order < margin)
    yield "class", _mixed(true, null, whole)
    yield "classes", _mixed(true, _mirrored(true), every_other)


def _mixed(true: Measured, others: Measured, kept: NDArray[np.bool_]) -> dict[str, Floats]:
    """The others' scores, with the true scores in the places `kept`."""
    return {
        name: np.where(kept, true.scores[name], values) for name, values in others.scores.items()
    }


def _mirrored(true: Measured) -> Measured:
    """The true key's scores with the opposite sign."""
    # What stands beside the scores, ties and scores of fresh noise, has no side to be mirrored to.
    scores = {name: -true.scores[name] for name in SCORES if name in true.scores}
    return replace(true, scores=true.scores | scores)


def _balanced(scores: dict[str, Floats], kept: NDArray[np.bool_]) -> dict[str, Floats]:
    """The scores with those in other places than `kept` moved until the mean of all is 0."""
    moved = {
        name: np.where(kept, x, x - np.nansum(x) / (~kept).sum())
        for name, x in scores.items()
        if name in SCORES
    }
    return scores | moved
