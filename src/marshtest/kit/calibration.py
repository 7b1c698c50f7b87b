"""How often is the verdict wrong? Ask it where the truth is known, on a real model and real data.

*Null keys* have the dose's ids and variance and another seed: noise that never touched the model, so
independence holds exactly. A false NOT REMOVED is counted, and a false ε > 0 of the privacy bound.

*Cheats* are made of the true key's scores and a null key's, so that poison is surely left. A false REMOVED
is counted.

    margin     a random share, as large as the margin, keeps the true scores: the hardest homogeneous case
    half       a random half keeps the true scores, the other half has them mirrored: the mean is 0
    pushed     a random share, as large as the margin, keeps the true scores, and the others are pushed the
               other way until the mean is 0
    class      as many classes as make up the margin keep the true scores
    classes    every other class keeps the true scores, the others have them mirrored

All shares must be at most what was promised, up to chance. Nothing is promised of *half*, *pushed* and
*classes* where the poisons are too few for the verdict to rest on the scores' spread: who keeps some and
pushes others may go unseen then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest, kstest

from marshtest.kit.judging import Question
from marshtest.kit.key import Bases, Key
from marshtest.kit.measure import Measured, measure
from marshtest.kit.noise import Floats, Scaling
from marshtest.kit.open_model import open_model
from marshtest.metrics.dependence import SCORES
from marshtest.metrics.privacy import epsilon_bound
from marshtest.metrics.verdict import Rest, rests_on, verdicts
from marshtest.plumbing.device import pick_device
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive
from marshtest.plumbing.whole_files import write
from marshtest.reporting.figures import save


@dataclass(frozen=True)
class Calibration:
    """The answers for all keys.

    Attributes:
        keys: one line a key and case ("null", or a cheat): its verdict, and by score the dependence
            and its two-sided p-value.
        question: what was asked, with the error rates that it promises.
        rests: what REMOVED rests on.
    """

    keys: pd.DataFrame
    question: Question
    rests: tuple[Rest, ...] = ()

    def table(self) -> pd.DataFrame:
        """The share of each false answer, with its 95 % binomial interval and what was promised."""
        by_case = dict(list(self.keys.groupby("case", sort=False)))
        null = by_case.pop("null")
        alpha, confidence = self.question.alpha, self.question.confidence
        lines = [
            _share("null", "NOT REMOVED", null["verdict"] == "NOT REMOVED", alpha),
            *(
                _share(str(case), "REMOVED", of["verdict"] == "REMOVED", self._promised(str(case)))
                for case, of in by_case.items()
            ),
            _share("null", "ε > 0", null["epsilon"] > 0, 1 - confidence),
        ]
        for name, p in self.null_p_values().items():
            lines.append(_share("null", f"{SCORES[name].title}: p ≤ {alpha:g}", p <= alpha, alpha))
        return pd.DataFrame(lines)

    def _promised(self, cheat: str) -> float:
        """The rate of false REMOVED; nan of what nothing is promised of."""
        seen = any(rest.effect == "spread" for rest in self.rests)
        return self.question.alpha if seen or cheat in ("margin", "class") else float("nan")

    def uniformity(self) -> dict[str, float]:
        """By score, p-value of a Kolmogorov–Smirnov test that the null keys' p-values are uniform."""
        return {
            name: float(kstest(p, "uniform").pvalue) for name, p in self.null_p_values().items()
        }

    def null_p_values(self) -> dict[str, Floats]:
        """By score, the p-values for independence under the null keys."""
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
        """Write keys.csv and the histogram of p-values."""
        folder.mkdir(parents=True, exist_ok=True)
        write(self.keys, folder / "keys.csv")
        save(self.figure(), folder / "p-values")


def _share(keys: str, answer: str, false: Any, promised: float) -> dict[str, object]:
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
    key: Key | str | Path,
    data: str | Path,
    model: str,
    *,
    keys: int = 200,
    scaling: Scaling | None = None,
    device: str = "auto",
    in_process: bool = False,
    progress: Progress = silent,
    **question: Any,
) -> Calibration:
    """Test the test on a model that was trained on the dose.

    Args:
        key: as in `audit`.
        data: as in `audit`.
        model: the one before unlearning.
        keys: null keys; each costs one measurement of the model.
        scaling: as in `audit`.
        device: as in `audit`.
        in_process: as in `audit`.
        progress: told each measurement that starts and the share that is done.
        question: as in `audit`.

    Raises:
        MarshtestError: a key, data or model that do not go together.
    """
    key = key if isinstance(key, Key) else Key.read(key)
    if keys < 1:
        raise MarshtestError(f"calibrate: needs at least one null key. Got {keys}.")
    asked = Question.parse(question, "calibrate")
    bases = key.bases(data)
    door = open_model(model, key, bases.values, scaling, pick_device(device), in_process)
    true = measure(door, bases, draws=asked.draws, fpr=asked.fpr)
    rests = rests_on(true.evidence(true.dependences()), margin=asked.margin, alpha=asked.alpha)
    lines = []
    for number in range(keys):
        progress(number / keys, f"null key {number + 1} of {keys}")
        other = key.noise.model_copy(update={"seed": derive(key.noise.seed, "null", number)})
        null = measure(
            door,
            Bases(bases.ids, bases.values, bases.labels, other),
            draws=asked.draws,
            fpr=asked.fpr,
        )
        lines.append({"case": "null", **_line(true, null, rests, asked)})
        rng = np.random.default_rng(derive(key.noise.seed, "cheats", number))
        for case, scores in cheats(true, null, asked.margin, rng):
            lines.append({"case": case, **_line(true, replace(null, scores=scores), rests, asked)})
    return Calibration(pd.DataFrame(lines), asked, rests)


def _line(
    true: Measured, other: Measured, rests: Sequence[Rest], asked: Question
) -> dict[str, object]:
    names = true.dependences()
    initial, one = true.evidence(names), other.evidence(names)
    (verdict,) = verdicts(initial, [one], rests=rests, alpha=asked.alpha, margin=asked.margin)
    line: dict[str, object] = {
        "verdict": verdict.answer,
        "epsilon": epsilon_bound(other.advantages, delta=asked.delta, confidence=asked.confidence),
    }
    for name, score in one.pooled.items():
        line |= {f"{name}_dependence": score.value, f"{name}_p": score.p_value}
    return line


def cheats(
    true: Measured, null: Measured, margin: float, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Scores of models that keep poison, by case; see the module's text."""
    order = rng.permutation(len(true.classes)) / len(true.classes)
    names, cell = np.unique(true.classes, return_inverse=True)
    shares = np.bincount(cell)[ranked := rng.permutation(len(names))].cumsum() / len(cell)
    whole = np.isin(cell, ranked[: int(np.searchsorted(shares, margin)) + 1])
    every_other = rng.permutation(len(names))[cell] % 2 == 0
    yield "margin", _mixed(true, null, order < margin)
    yield "half", _mixed(true, _mirrored(true), order < 0.5)
    yield "pushed", _balanced(_mixed(true, null, order < margin), order < margin)
    yield "class", _mixed(true, null, whole)
    yield "classes", _mixed(true, _mirrored(true), every_other)


def _mixed(true: Measured, others: Measured, kept: NDArray[np.bool_]) -> dict[str, Floats]:
    """The others' scores, with the true key's for the poisons that are kept."""
    return {
        name: np.where(kept, true.scores[name], values) for name, values in others.scores.items()
    }


def _mirrored(true: Measured) -> Measured:
    scores = {name: -true.scores[name] for name in SCORES if name in true.scores}
    return replace(true, scores=true.scores | scores)


def _balanced(scores: dict[str, Floats], kept: NDArray[np.bool_]) -> dict[str, Floats]:
    """The same with the scores of those that are not kept moved until the mean of all is 0."""
    moved = {
        name: np.where(kept, x, x - np.nansum(x) / (~kept).sum())
        for name, x in scores.items()
        if name in SCORES
    }
    return scores | moved
