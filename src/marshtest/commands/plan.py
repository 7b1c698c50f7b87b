"""How many poisons, or trainings, a verdict will need, before anything is spent.

*Poisons.* The expected effect is the initial model's dependence by each score, at the variance ε² that will
be used: from a pilot run, or guessed. A plan answers for each score alone, and for the verdict, which
detects by the better score and rests on it to show removal (marshtest.metrics.verdict). A model that never
saw the poison is blocked by the other tests with probability α, which the plan allows for.

*Trainings.* An attack whose effect has no null law is judged over trainings (seeds); what counts is the
share of them in which the attack works.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from marshtest.metrics.dependence import SCORES
from marshtest.metrics.power import detection, poisons_for, removal
from marshtest.metrics.trainings import MOST, trainings_to_reject, trainings_to_remove
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.figures import save
from marshtest.results.summary import Results

VERDICT = "verdict"
TESTS = 4  # of independence, a score
EFFECTS = (1e-3, 100.0)  # dependences that can be planned for; ranks among 10⁹ draws reach 6.5
FAMILY = 1_000_000  # unlearners


@dataclass(frozen=True)
class Plan:
    """What is expected, and how sure to be.

    Attributes:
        effects: expected dependence of the initial model, by score.
        alpha: error rate over all unlearners.
        power: with which a true answer shall be found.
        margin: share of the effect that REMOVED may leave.
        unlearners: how many will be judged together (Holm at its strictest).
    """

    effects: Mapping[str, float]
    alpha: float = 0.05
    power: float = 0.9
    margin: float = 0.2
    unlearners: int = 1

    def __post_init__(self) -> None:
        for name, effect in self.effects.items():
            if not EFFECTS[0] <= effect <= EFFECTS[1]:
                raise MarshtestError(
                    f"plan: the expected dependence by {name} must be above 0, from {EFFECTS[0]:g} to "
                    f"{EFFECTS[1]:g}. Got {effect:g}. Without an effect no number of poisons will do; "
                    "raise the variance or train longer."
                )
        _check(self.unlearners, alpha=self.alpha, power=self.power, margin=self.margin)
        if self.power >= 1 - self.alpha:
            raise MarshtestError(
                f"plan: power must be below 1 − alpha = {1 - self.alpha:g}, for with probability alpha a "
                f"model that never saw the poison is not acquitted. Got {self.power:g}."
            )
        if not self.effects:
            raise MarshtestError("plan: give an expected effect.")

        needed = self.table()["poisons to show removal"]
        if not np.isfinite(needed).all():
            raise MarshtestError("plan: no number of poisons would do. Raise alpha, or margin.")

    @property
    def tests(self) -> dict[str, tuple[Callable[[float], float], Callable[[float], float]]]:
        """For each score, and the verdict: power of detection and of removal, as functions of n."""
        level, tests = self.alpha / self.unlearners, TESTS * len(self.effects)
        found: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {}
        for name, effect in self.effects.items():
            found[name] = (
                partial(detection, effect=effect, alpha=level),
                partial(removal, margin=self.margin * effect, alpha=level),
            )
        best = max(self.effects.values())
        found[VERDICT] = (
            partial(detection, effect=best, alpha=level / tests),
            partial(self._removed, best),
        )
        return found

    def _removed(self, effect: float, n: float) -> float:
        """A lower bound of the power: the score shows removal, and no other test blocks it."""
        shown = removal(n, self.margin * effect, alpha=self.alpha / self.unlearners)
        return max(0.0, shown - self.alpha)

    def table(self) -> pd.DataFrame:
        """Poisons needed: one line a score, and the verdict."""
        lines = [
            {
                "score": _title(name),
                "expected dependence": self.effects.get(name, float("nan")),
                "poisons to detect": poisons_for(self.power, detect),
                "poisons to show removal": poisons_for(self.power, remove),
            }
            for name, (detect, remove) in self.tests.items()
        ]
        return pd.DataFrame(lines)

    def curve(self, poisons: Sequence[float]) -> pd.DataFrame:
        """Power at each number of poisons: one line a number and score."""
        return pd.DataFrame(
            [
                {"poisons": n, "score": name, "detection": detect(n), "removal": remove(n)}
                for name, (detect, remove) in self.tests.items()
                for n in poisons
            ]
        )

    def figure(self) -> tuple[Figure, pd.DataFrame]:
        """Power against the number of poisons, and its curve; detection dashed, removal solid."""
        most = self.table()["poisons to show removal"].max()
        curve = self.curve(np.geomspace(5, 3 * most, 200).tolist())
        figure = Figure(figsize=(6.4, 3.2))
        panel = figure.subplots()
        colours = ("#0072B2", "#E69F00", "black")
        for (name, lines), colour in zip(curve.groupby("score", sort=False), colours, strict=False):
            label = _title(str(name))
            panel.plot(
                lines["poisons"], lines["detection"], "--", color=colour, label=f"{label}: detect"
            )
            panel.plot(
                lines["poisons"], lines["removal"], color=colour, label=f"{label}: show removal"
            )
        panel.axhline(self.power, color="#555555", lw=0.8, ls=":")
        panel.set(
            xscale="log", xlabel="poisons, all seeds together", ylabel="power", ylim=(0, 1.02)
        )
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=7)
        figure.tight_layout()
        return figure, curve


def _title(name: str) -> str:
    return SCORES[name].title if name in SCORES else name


def effects_of(pilot: Results) -> dict[str, float]:
    """The initial model's dependence in a finished run, by score, at its first poison budget."""
    if pilot.recipe.attack.needs_twin:
        raise MarshtestError(
            f"plan: a {pilot.recipe.attack.name} verdict needs trainings, not poisons. Give the share of "
            "trainings in which the attack works (`--works`), or a pilot with Gaussian poisons."
        )
    initial = pilot.summary[pilot.summary["role"] == "initial"].iloc[0]
    return {name: float(initial[f"{name}_dependence"]) for name in pilot.scores_shown}


def trainings_table(
    works: float,
    *,
    alpha: float = 0.05,
    power: float = 0.9,
    margin: float = 0.2,
    unlearners: int = 1,
) -> pd.DataFrame:
    """Trainings (seeds) that a verdict by an effect without a null law needs: one line.

    Args:
        works: share of the trainings in which the attack works.
        alpha: error rate over all unlearners.
        power: with which an unlearner that never fails shall be REMOVED.
        margin: share of the effect that REMOVED may leave.
        unlearners: how many will be judged together.

    Raises:
        MarshtestError: a share that is none.
    """
    _check(unlearners, alpha=alpha, power=power, margin=margin)
    if not 0 < works <= 1:
        raise MarshtestError(f"plan: works must lie between 0 and 1. Got {works:g}.")
    needed = trainings_to_remove(margin, alpha / unlearners, works, power)
    if needed >= MOST:
        raise MarshtestError(f"plan: {MOST:,} trainings would not do. Raise works, or margin.")
    return pd.DataFrame(
        {
            "attack works in": [works],
            "trainings to detect, at least": [trainings_to_reject(alpha)],
            "trainings to show removal": [needed],
        }
    )


def _check(unlearners: int, **shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise MarshtestError(f"plan: {name} must lie between 0 and 1. Got {value:g}.")
    if not 1 <= unlearners <= FAMILY:
        raise MarshtestError(f"plan: unlearners must be from 1 to {FAMILY:,}. Got {unlearners}.")


def effects_of_audit(file: Path) -> dict[str, float]:
    """The dependence of the model before unlearning in an audit.json, by score."""
    try:
        before = json.loads(file.read_text())["models"][0]
        return {
            name: float(before[f"{name}_dependence"])
            for name in SCORES
            if before.get(f"{name}_dependence") is not None
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise MarshtestError(
            f"{file}: is not the audit.json that `marshtest test --out` wrote."
        ) from None


def poisons_of_one_run(samples: int, fraction: float) -> int:
    """Poisons that one seed's run gives.

    Raises:
        MarshtestError: a fraction outside 0..1, or one that makes no poison.
    """
    if samples < 1:
        raise MarshtestError(f"plan: samples must be at least 1. Got {samples}.")
    if not 0 < fraction < 1 or round(samples * fraction) < 1:
        raise MarshtestError(
            f"plan: a fraction of {fraction:g} of {samples} samples makes no poison; "
            "it must lie between 0 and 1 and give at least one."
        )
    return round(samples * fraction)


def save_plan(plan: Plan, folder: Path) -> None:
    """Write plan.csv, the curve behind the figure, and plan.png and plan.pdf."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, curve = plan.figure()
    curve.to_csv(folder / "plan.csv", index=False)
    save(figure, folder / "plan")
