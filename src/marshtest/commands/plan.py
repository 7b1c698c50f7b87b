"""How many poisons, or trainings, a verdict will need, before anything is spent.

*Poisons.* The expected effect is the initial model's dependence by each score, at the variance ε² that will
be used: from a pilot run, or guessed. A plan answers for each score alone, and for the verdict, which
detects by the better score and rests on it to show removal (marshtest.metrics.verdict). A model that never
saw the poison is blocked by the other tests with probability α, which the plan allows for.

*Marks.* What a mark in texts will show, a study of a small model tells (marshtest.commands.marks).

*Labels.* A model that answers with labels alone shows less: of a poison that is answered rightly with all
noises nothing (marshtest.metrics.labels).

*Trainings.* An attack whose effect has no null law is judged over trainings (seeds); what counts is the
share of them in which the attack works.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from marshtest.commands.marks import NAMES, USUAL, pooled
from marshtest.metrics.labels import LABEL, OF_AUDITS, expected
from marshtest.metrics.power import detection, poisons_for, removal
from marshtest.metrics.trainings import MOST, trainings_to_reject, trainings_to_remove
from marshtest.plumbing.errors import MarshtestError, refuse_options
from marshtest.plumbing.whole_files import write
from marshtest.reporting.figures import save
from marshtest.reporting.tables import plus_minus
from marshtest.results.summary import Results

VERDICT = "verdict"
TESTS = 4  # of independence, a score; of labels there is one
SPREAD = 1.0  # how far bases differ, in deviations of the losses over the noises of one
EFFECTS = (1e-3, 100.0)  # dependences that can be planned for; ranks among 10⁹ draws reach 6.5
FAMILY = 1_000_000  # unlearners
DRAWS = 199  # K of an audit, unless it is told otherwise
Power = Callable[[float], float]  # of a number of poisons


@dataclass(frozen=True)
class Plan:
    """What is expected, and how sure to be.

    Attributes:
        effects: expected dependence of the initial model, by score.
        alpha: error rate over all unlearners.
        power: with which a true answer shall be found.
        margin: share of the effect that REMOVED may leave.
        unlearners: how many will be judged together (Holm at its strictest).
        poisons_a_run: poisons of one training, if the number of trainings is to be told.
        audited: training samples of an audit, which has one training; None of a recipe's run.
        deviation: of one poison's score, where it is not 1: of labels.
        hidden: share of a model's effect that labels hide by chance.
        shown: share of it that a model after could show the other way round, if less than all of it.
        beside: of labels, what else is to be said.
    """

    effects: Mapping[str, float]
    alpha: float = 0.05
    power: float = 0.9
    margin: float = 0.2
    unlearners: int = 1
    poisons_a_run: int | None = None
    audited: int | None = None
    deviation: float = 1.0
    hidden: float = 0.0
    shown: float = 1.0
    beside: tuple[str, ...] = ()

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
            raise MarshtestError(
                "plan: give an expected effect: --gus and --rank, or --pilot FOLDER, or --works SHARE."
            )
        if not np.isfinite(self.table()["poisons to show removal"]).all():
            raise MarshtestError("plan: no number of poisons would do. Raise alpha, or margin.")

    @property
    def tests(self) -> dict[str, tuple[Power, Power]]:
        """For each score, and the verdict: power of detection and of removal, as functions of n."""
        level, deviation = self.alpha / self.unlearners, self.deviation
        tests = 1 if LABEL in self.effects else TESTS * len(self.effects)
        powers: dict[str, tuple[Power, Power]] = {}
        for name, effect in self.effects.items():
            powers[name] = (
                partial(detection, effect=effect, deviation=deviation, alpha=level),
                partial(removal, margin=self._allowed(effect), deviation=deviation, alpha=level),
            )
        # The verdict takes whichever test rejects, and pays by sharing the level among all of them.
        best = max(self.effects.values())
        powers[VERDICT] = (
            partial(detection, effect=best, deviation=deviation, alpha=level / tests),
            partial(self._removed, best),
        )
        return powers

    def _allowed(self, effect: float) -> float:
        """How much of an effect may be left, on either side."""
        return max(0.0, self.margin - self.hidden) * self.shown * effect

    def _removed(self, effect: float, n: float) -> float:
        """A lower bound of the power: the score shows removal, and no other test blocks it."""
        level = self.alpha / self.unlearners
        by_score = removal(n, self._allowed(effect), deviation=self.deviation, alpha=level)
        if LABEL in self.effects:  # there is no other test
            return by_score
        # At worst the two failures exclude each other, so their probabilities add (Bonferroni).
        return max(0.0, by_score - self.alpha)

    def table(self) -> pd.DataFrame:
        """Poisons needed, and runs if known: one line a score, and one for the verdict."""
        lines = [
            {
                "score": _title(name),
                "expected dependence": self.effects.get(name, float("nan")),
                "poisons to detect": poisons_for(self.power, detect),
                "poisons to show removal": poisons_for(self.power, remove),
            }
            for name, (detect, remove) in self.tests.items()
        ]
        table = pd.DataFrame(lines)
        if self.poisons_a_run is not None:
            # Up: a part of a run gives no part of the poisons.
            runs = np.ceil(table["poisons to show removal"] / self.poisons_a_run)
            table["runs to show removal"] = runs
        return table

    @property
    def poisons(self) -> int:
        """Poisons after which a model that never saw the poison is REMOVED with the wanted power."""
        return int(self.table()["poisons to show removal"].iloc[-1])

    def texts(self) -> pd.DataFrame:
        """The table as it is printed."""
        table = self.table()
        counts = {name: table[name].map("{:,.0f}".format) for name in table.columns[2:]}
        dependence = table["expected dependence"].map("{:.3g}".format).replace("nan", "–")
        return table.assign(**{"expected dependence": dependence, **counts})

    def sentences(self) -> list[str]:
        """What the table says of the verdict."""
        verdict = self.texts().iloc[-1]
        if self.audited is not None or LABEL in self.effects:
            needed = f"{self.poisons:,} poisons in one dose, since an audit has one training"
            if self.audited is not None:
                needed += f": {_fraction(self.poisons, self.audited)}"
        else:
            needed = f"{self.poisons:,} poisons in all, over all seeds together"
        if self.poisons_a_run is not None:
            runs = verdict["runs to show removal"]
            needed += f": {runs} run{'s' * (runs != '1')} of {self.poisons_a_run:,}"
        rate = f"REMOVED, with power {self.power:g} at error rate {self.alpha:g}, needs {needed}."
        return [rate, *self.beside]

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

    def save(self, folder: Path) -> None:
        """Write plan.csv, the curve behind the figure, and plan.png and plan.pdf."""
        figure, curve = self.figure()
        write(curve, folder / "plan.csv")
        save(figure, folder / "plan")


def _fraction(poisons: int, samples: int) -> str:
    """How a dose comes to so many poisons, in words."""
    fraction = math.ceil(100 * poisons / samples) / 100
    if fraction >= 1:  # some must stay clean
        return f"more than can be dosed of its {samples:,} samples. Raise --variance of `marshtest dose`"
    return f"--fraction {fraction:g} of its {samples:,} samples"


def _title(name: str) -> str:
    return OF_AUDITS[name].title if name in OF_AUDITS else name


def effects_of(pilot: Results) -> dict[str, float]:
    """The initial model's dependence in a finished run, by score, at its first poison budget."""
    if pilot.recipe.attack.needs_twin:
        raise MarshtestError(
            f"plan: a {pilot.recipe.attack.name} verdict needs trainings, not poisons. Give the share of "
            "trainings in which the attack works (`--works`), or a pilot with Gaussian poisons."
        )
    lines = pilot.summary[pilot.summary["role"] == "initial"]
    if not len(lines):
        raise MarshtestError(
            "plan: the pilot's rows hold no initial model, of which the effect is taken. Give all its rows."
        )
    initial = lines.iloc[0]
    return {name: float(initial[f"{name}_dependence"]) for name in pilot.scores_shown}


@dataclass(frozen=True)
class Trainings:
    """How often an attack without a null law is expected to work, and how sure to be.

    Attributes:
        works: share of the trainings in which the attack works.
        alpha, power, margin, unlearners: as in Plan.
    """

    works: float
    alpha: float = 0.05
    power: float = 0.9
    margin: float = 0.2
    unlearners: int = 1

    def __post_init__(self) -> None:
        _check(self.unlearners, alpha=self.alpha, power=self.power, margin=self.margin)
        if not 0 < self.works <= 1:
            raise MarshtestError(f"plan: works must lie between 0 and 1. Got {self.works:g}.")
        if self.needed >= MOST:
            raise MarshtestError(f"plan: {MOST:,} trainings would not do. Raise works, or margin.")

    @property
    def needed(self) -> int:
        """Trainings after which an unlearner that never fails is REMOVED with the wanted power."""
        level = self.alpha / self.unlearners
        return trainings_to_remove(self.margin, level, self.works, self.power)

    def table(self) -> pd.DataFrame:
        """Trainings (seeds) needed: one line."""
        line = {
            "attack works in": self.works,
            "trainings to detect, at least": trainings_to_reject(self.alpha),
            "trainings to show removal": self.needed,
        }
        return pd.DataFrame([line])

    def texts(self) -> pd.DataFrame:
        """The table as it is printed."""
        return self.table().astype(str)

    def sentences(self) -> list[str]:
        """What the table says of the verdict."""
        sure = f"with power {self.power:g} at error rate {self.alpha:g}"
        return [f"REMOVED, {sure}, needs {self.needed} trainings: seeds={self.needed}."]

    def save(self, folder: Path) -> None:
        """Write plan.csv."""
        write(self.table(), folder / "plan.csv")


@dataclass(frozen=True)
class Marks:
    """How many records each studied mark needs.

    Attributes:
        alpha, power, margin, unlearners: as in Plan.
    """

    alpha: float = 0.05
    power: float = 0.9
    margin: float = 0.2
    unlearners: int = 1

    def table(self) -> pd.DataFrame:
        """Records needed: a line for each mark and training of the study, fewest first."""
        lines = pooled()
        for name, value in USUAL.items():
            lines = lines[lines[name] == value]
        return pd.DataFrame([self._line(line) for line in lines.itertuples()]).sort_values(
            "records to show removal", kind="stable", ignore_index=True
        )

    def _line(self, line: Any) -> dict[str, object]:
        plan = Plan({"rank": line.dependence}, self.alpha, self.power, self.margin, self.unlearners)
        detect, remove = plan.tests[VERDICT]
        return {
            "mark": NAMES.get(line.family, line.family),
            "training": f"{line.way}, {line.epochs} epochs",
            "rank score": line.dependence,
            "error": line.error,
            "records to detect": poisons_for(self.power, detect),
            "records to show removal": poisons_for(self.power, remove),
        }

    def texts(self) -> pd.DataFrame:
        """The table as it is printed."""
        table = self.table()
        shown = [
            plus_minus(value, error, 2)
            for value, error in zip(table["rank score"], table["error"], strict=True)
        ]
        counts = {name: table[name].map("{:,.0f}".format) for name in table.columns[4:]}
        return table.assign(**{"rank score": shown}, **counts).drop(columns="error")

    def sentences(self) -> list[str]:
        """What the table rests on."""
        return [
            "So a GPT-2 of one layer remembered marks in 120 of 600 film reviews (docs/marks.md): a guide "
            "to which mark to choose. What yours remembers, a first audit tells: plan --pilot audit.json."
        ]

    def save(self, folder: Path) -> None:
        """Write plan.csv."""
        write(self.table(), folder / "plan.csv")


def plan(
    *,
    gus: float | None = None,
    rank: float | None = None,
    pilot: str | Path | None = None,
    works: float | None = None,
    marks: bool = False,
    right: float | None = None,
    samples: int | None = None,
    fraction: float = 0.015,
    alpha: float = 0.05,
    power: float = 0.9,
    margin: float = 0.2,
    unlearners: int = 1,
) -> Plan | Trainings | Marks:
    """Tell how many poisons a verdict needs, or how many trainings if `works` is given.

    Args:
        gus: dependence that the initial model is expected to have, by GUS.
        rank: the same by the rank score.
        pilot: folder of a finished run, or an audit.json, that shows these dependences instead.
        works: share of the trainings in which an attack without a null law works.
        right: share of noisy samples whose label the model tells rightly, if it tells labels alone; `rank`
            is then what its losses would show.
        marks: quote the study of marks: how many records of a text data set each needs.
        samples: training samples of one run, if the number of runs is to be told.
        fraction: share of them that will be poisons.
        alpha: error rate over all unlearners.
        power: with which a true answer shall be found.
        margin: share of the effect that REMOVED may leave.
        unlearners: how many will be judged together.

    Raises:
        MarshtestError: no effect is expected, a value is out of bounds, or the pilot cannot be read.
    """
    poisons = None if samples is None else poisons_of_one_run(samples, fraction)
    if marks:
        reason = "plan: the study of marks says what to expect"
        options = {"gus": gus, "rank": rank, "pilot": pilot, "works": works, "right": right}
        refuse_options(reason, **options, samples=samples)
        return Marks(alpha, power, margin, unlearners)
    levels = (alpha, power, margin, unlearners)
    if right is not None:
        refuse_options("plan: labels alone are planned for", gus=gus, pilot=pilot, works=works)
        return _of_labels(rank, right, samples, levels)
    if works is not None:
        options = {"gus": gus, "rank": rank, "pilot": pilot, "samples": samples}
        refuse_options("plan: trainings are planned for", **options)
        return Trainings(works, *levels)
    effects = {name: value for name, value in (("gus", gus), ("rank", rank)) if value is not None}
    if pilot is not None:
        refuse_options("plan: the pilot says what to expect", gus=gus, rank=rank)
    audited, deviation = None, 1.0
    if pilot is not None and Path(pilot).suffix == ".json":
        effects, audited, deviation = effects_of_audit(Path(pilot))
        audited, poisons = samples or audited, None  # of one training there are no runs
    elif pilot is not None:
        effects = effects_of(Results.read(pilot))
    return Plan(effects, *levels, poisons, audited, deviation)


def _of_labels(
    rank: float | None, right: float, samples: int | None, levels: tuple[float, float, float, int]
) -> Plan:
    """The plan of an audit by labels alone, of a model whose losses would show `rank`.

    Args:
        samples: training samples of the audit, if they are known.
        levels: alpha, power, margin and unlearners, as of Plan.
    """
    if rank is None or not 0 < right < 1:
        raise MarshtestError(
            "plan: labels alone are planned for by --right, a share between 0 and 1, and by --rank, the "
            f"dependence that losses would show. Got right {right:g} and rank {rank}."
        )
    by_losses = Plan({"rank": rank}, *levels)  # which checks the values
    labels = expected(rank, right, DRAWS, SPREAD)
    if labels.hidden >= by_losses.margin:
        raise MarshtestError(
            f"plan: with {right:g} of the noisy samples answered rightly labels hide more than may be "
            "left. Raise --variance of `marshtest dose`, so that the model errs more often."
        )
    # The model before is estimated from as many poisons as that after.
    deviation = labels.deviation * math.hypot(1, by_losses.margin)
    beside = (
        f"Labels tell something of about {labels.testable:.0%} of the poisons: of the others all "
        f"{DRAWS + 1} variants are answered alike, and they are untestable. That is a guess, from bases "
        "that differ as much as noises do; an audit tells (--pilot). By losses "
        f"{by_losses.poisons:,} poisons would do.",
    )
    return Plan(
        {LABEL: labels.effect},
        *levels,
        audited=samples,
        deviation=deviation,
        hidden=labels.hidden,
        shown=min(1.0, -labels.least / labels.effect),
        beside=beside,
    )


def _check(unlearners: int, **shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise MarshtestError(f"plan: {name} must lie between 0 and 1. Got {value:g}.")
    if not 1 <= unlearners <= FAMILY:
        raise MarshtestError(f"plan: unlearners must be from 1 to {FAMILY:,}. Got {unlearners}.")


def effects_of_audit(file: Path) -> tuple[dict[str, float], int, float]:
    """What an audit.json tells of the model before: dependence by score, samples, one score's deviation."""
    try:
        audit = json.loads(file.read_text())
        before = audit["models"][0]
        effects = {
            name: float(before[f"{name}_dependence"])
            for name in OF_AUDITS
            if before.get(f"{name}_dependence") is not None
        }
        samples = int(audit["samples"])
        if samples < 1:
            raise ValueError
        return effects, samples, deviation_shown(before)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ):
        raise MarshtestError(
            f"{file}: is not the audit.json that `marshtest audit --out` wrote."
        ) from None


def effects_shown(figures: Mapping[str, float]) -> dict[str, float]:
    """The dependences of a model, by score, that can be planned for."""
    values = {name: figures.get(f"{name}_dependence", math.nan) for name in OF_AUDITS}
    return {name: value for name, value in values.items() if EFFECTS[0] <= value <= EFFECTS[1]}


def deviation_shown(figures: Mapping[str, Any]) -> float:
    """The deviation of one poison's score in a model: 1, but of labels alone."""
    if figures.get(f"{LABEL}_error") is None:
        return 1.0
    return float(figures[f"{LABEL}_error"]) * math.sqrt(figures[f"{LABEL}_poisons"])


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
