"""Unlearners ranked over attacks, by what is left and what it cost.

    left   = |dependence| / the initial model's, by the score that shows most *      1: as before
    lost   = (accuracy retrained − accuracy) / (accuracy retrained − chance)  **     1: a model that guesses
    misses = the larger of both                                                      0: as retraining

    * of those that REMOVED rests on: a share of a weak score is mostly noise
    ** 0 where retraining is not surely above chance: there is nothing to lose

So neither doing nothing nor ruining the model gets anywhere: both miss by 1. An unlearner's figure is
the mean over attacks (within one, over its experiments and poison budgets), at each experiment's
compute budget. Its rank is one more than the number of those that are surely better: 95 % t intervals
that overlap are ties. Only those that were tried in every experiment have a rank: means over other
data would be compared with each other. Nor has one whose error is not known, that of accuracy in one seed.

Beside the rank stands in how many experiments an unlearner beats the line to beat and loses to it (see
marshtest.results.line_to_beat).

Of an attack the worst verdict is shown. INCONCLUSIVE does not count from an experiment that was too small
to acquit full retraining: nobody could have passed there, though NOT REMOVED can be shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from marshtest.metrics.verdict import ANSWERS
from marshtest.results.line_to_beat import LINE
from marshtest.results.naming import choice, differing, marks
from marshtest.results.summary import GROUP, Results

LEGEND = (
    "Misses: the larger of left (share of the poison's effect that is left, by the score that shows "
    "most of those that REMOVED rests on) and lost (share of retraining's accuracy above chance that is "
    "lost, where retraining is surely above it); 0 is retraining, 1 is as bad as doing nothing or as "
    "guessing. Mean over attacks ± standard error (given these models or of trainings to come: of the "
    "wider interval). Rank: one more than the number of unlearners that are surely better; "
    "overlapping 95 % t intervals are ties. Entries of one unlearner with other options have a line each; "
    "poison budgets without an effect do not count. Who was not tried in every experiment, or has an "
    "error that one seed does not tell, and the controls, have no rank. Verdicts: the worst of an "
    "attack; INCONCLUSIVE does not count where full retraining is not REMOVED either."
)
CONTROLS = {"initial": "none", "retrained": "retrain (full)"}


@dataclass(frozen=True)
class Measure:
    """A value and its standard error, which has its own degrees of freedom: endless if a law tells it."""

    value: float
    error: float
    degrees: float = math.inf

    @classmethod
    def mean(cls, parts: Sequence["Measure"]) -> "Measure":
        """The mean of independent parts, with its error; degrees as Welch and Satterthwaite have them."""
        value = sum(part.value for part in parts) / len(parts)
        error = math.hypot(*(part.error for part in parts)) / len(parts)
        return cls(value, error, _degrees(*((part.error, part.degrees) for part in parts)))

    def interval(self) -> tuple[float, float]:
        """The 95 % t interval."""
        half = _quantile(self.degrees) * self.error
        return self.value - half, self.value + half


def _degrees(*errors: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of independent errors, each with its own (Satterthwaite 1946)."""
    square = sum(error**2 for error, _ in errors)
    spread = sum(error**4 / degrees for error, degrees in errors if error > 0)
    return square**2 / spread if spread > 0 else math.inf


def _quantile(degrees: float) -> float:
    """The t value beyond which 2.5 % lie on either side."""
    return -float(stdtrit(degrees, 0.025))


def _worse(*measures: Measure) -> Measure:
    """The largest; one that is not known, if there is one."""
    return max(measures, key=lambda one: math.inf if math.isnan(one.value) else one.value)


@dataclass(frozen=True)
class Trial:
    """One unlearner in one experiment, at one poison budget."""

    left: Measure
    lost: Measure
    spent: float
    verdict: str
    powered: bool  # full retraining came out REMOVED
    standing: str = ""  # to the line to beat
    marks: str = ""  # options that tell the unlearner from others of its name
    chosen: str = ""  # what a search chose

    @property
    def misses(self) -> Measure:
        """The worse of both."""
        return _worse(self.left, self.lost)


def leaderboard(experiments: Sequence[Results]) -> pd.DataFrame:
    """One line an unlearner, best first, controls last.

    Columns: `rank` (nan without one), `unlearner` with the `marks` that tell it from others of its name,
    what a search has `chosen`, `experiments` (one a poison budget) in which it was tried, `misses`, `left`
    and `lost` with `_error`, `spent`, in how many it is the line to beat (`lines`), `beats` it or `loses`
    to it, and by attack the worst verdict.

    Empty where no experiment has an effect, and an initial and a retrained model to measure it by.
    """
    return leaderboard_of([[results] for results in experiments])


def leaderboard_of(experiments: Sequence[Sequence[Results]]) -> pd.DataFrame:
    """The leaderboard of experiments of which each may have run in several places.

    An unlearner is measured by the initial and the retrained model of its own place, by the scores that
    tell in all places of the experiment. Of what was tried in several, as the controls, the first counts.
    """
    every = [results for places in experiments for results in places]
    attacks = list(dict.fromkeys(results.recipe.attack.name for results in every))
    tried: dict[str, dict[str, list[Trial]]] = {}
    keys = _told_apart(every)
    for places in experiments:
        for name, trials in _trials(places, keys).items():
            tried.setdefault(name, {}).setdefault(places[0].recipe.attack.name, []).extend(trials)
    if not tried:
        return pd.DataFrame()
    means = {name: _means(by_attack) for name, by_attack in tried.items()}
    lines = [_line(name, of, means[name], attacks) for name, of in tried.items()]
    table = pd.DataFrame(lines)
    whole = table["experiments"] == table["experiments"].max()  # the controls are in every one
    control = table["unlearner"].isin(CONTROLS.values())
    ranked = whole & ~control & table["misses_error"].notna()
    intervals = [means[name]["misses"].interval() for name in tried]
    highs = [high for (_, high), of in zip(intervals, ranked, strict=True) if of]
    ranks = [1.0 + sum(high < low for high in highs) for low, _ in intervals]
    table.insert(0, "rank", pd.Series(ranks).where(ranked))
    order = table.assign(control=control).sort_values(
        ["control", "rank", "misses"], na_position="last", kind="stable"
    )
    return order.drop(columns="control").reset_index(drop=True)


def _means(by_attack: Mapping[str, Sequence[Trial]]) -> dict[str, Measure]:
    """An unlearner's figures over attacks, each of which counts the same."""
    return {
        what: Measure.mean(
            [Measure.mean([getattr(t, what) for t in of]) for of in by_attack.values()]
        )
        for what in ("misses", "left", "lost")
    }


def _line(
    name: str,
    by_attack: Mapping[str, Sequence[Trial]],
    means: Mapping[str, Measure],
    attacks: Sequence[str],
) -> Any:
    tried = sum(len(trials) for trials in by_attack.values())
    line: dict[str, Any] = {"unlearner": name, "experiments": tried}
    for what, mean in means.items():
        line |= {what: mean.value, f"{what}_error": mean.error}
    every = [trial for of in by_attack.values() for trial in of]
    chosen = dict.fromkeys(trial.chosen for trial in every)
    line |= {"marks": every[0].marks, "chosen": "; ".join(filter(None, chosen))}
    spent = [trial.spent for trial in every]
    line["spent"] = sum(spent) / len(spent)
    standings = [trial.standing for trial in every]
    words = {"lines": LINE, "beats": "beats", "loses": "loses"}
    line |= {column: standings.count(word) for column, word in words.items()}
    for attack in attacks:
        line[attack] = _worst(by_attack.get(attack, ()))
    return line


def _worst(trials: Sequence[Trial]) -> str:
    """The worst verdict, without what an experiment could not tell of anybody."""
    telling = [t.verdict for t in trials if t.powered or t.verdict == "NOT REMOVED"]
    answers = telling or [trial.verdict for trial in trials]
    return next((answer for answer in ANSWERS if answer in answers), "–")


def _told_apart(experiments: Sequence[Results]) -> dict[str, set[str]]:
    """The options that tell the entries of one unlearner apart, by its name.

    One that ships may have another rate in each experiment and be the same method; a user's callable with
    other options is another one wherever it stands.
    """
    entries = [trials for results in experiments for trials in results.recipe.unlearners]
    keys = differing(trials for trials in entries if ":" in trials[0].name)
    for results in experiments:
        for name, own in differing(results.recipe.unlearners).items():
            keys[name] = keys.get(name, set()) | own
    return keys


def telling(places: Sequence[Results], share: float) -> list[str]:
    """The scores whose mean REMOVED rests on in all places where an experiment ran."""
    first, *others = ([*results.telling(share)] for results in places)
    return [score for score in first if all(score in names for names in others)]


def _trials(places: Sequence[Results], keys: Mapping[str, set[str]]) -> dict[str, list[Trial]]:
    """The trials of each unlearner in an experiment, one a poison budget that has an effect everywhere.

    Args:
        keys: by name of an unlearner, the options that tell its entries apart.
    """
    found: dict[str, list[Trial]] = {}
    for share in places[0].poison_budgets:
        if not all(_has_effect(results, share) for results in places):
            continue
        names = telling(places, share)
        if not names:
            continue
        here: dict[str, list[Trial]] = {}
        for results in places:
            here = _tried(results, share, names, keys) | here
        for name, trials in here.items():
            found.setdefault(name, []).extend(trials)
    return found


def _has_effect(results: Results, share: float) -> bool:
    """Whether there are models to measure by, and an effect to take a share of."""
    if share not in results.poison_budgets:
        return False
    table = results.summary[results.summary["poison_budget"] == share].set_index("role")
    if not {*CONTROLS} <= {*table.index} or table["test_accuracy"][[*CONTROLS]].hasnans:
        return False
    initial = table.loc["initial"]
    # Of trainings that a twin does better in, more than the poison's harm is shown, and no share of it.
    harm = all(initial[f"{name}_dependence"] > 0 for name in results.telling(share))
    return bool(initial["verdict"] == "NOT REMOVED") and harm


def _tried(
    results: Results, share: float, names: Sequence[str], keys: Mapping[str, set[str]]
) -> dict[str, list[Trial]]:
    """The trials at one poison budget, by the scores of these names."""
    found: dict[str, list[Trial]] = {}
    table = results.summary[results.summary["poison_budget"] == share]
    controls = {role: table[table["role"] == role] for role in CONTROLS}
    initial, retrained = (controls[role].iloc[0] for role in ("initial", "retrained"))
    updated = table[(table["role"] == "updated") & (table["budget"] == results.budget)]
    # What gave no model in a training has no rank: it would be ranked by those in which it worked.
    rows = results.chosen(share)
    without = rows.loc[rows["test_accuracy"].isna(), GROUP].itertuples(index=False, name=None)
    lacking = set(without)
    whole = [key not in lacking for key in updated[GROUP].itertuples(index=False, name=None)]
    updated = updated[whole]
    for _, line in pd.concat([updated, *controls.values()]).iterrows():
        trial = _trial(results, names, line, initial, retrained)
        trial = replace(trial, marks=marks(line, keys), chosen=choice(line, results.recipe))
        if not math.isnan(trial.misses.value):
            found.setdefault(f"{line['unlearner']}{trial.marks}", []).append(trial)
    return found


def _trial(
    results: Results,
    names: Sequence[str],
    line: pd.Series,
    initial: pd.Series,
    retrained: pd.Series,
) -> Trial:
    shares = [_share(line, initial, name) for name in names]
    powered = retrained["verdict"] == "REMOVED"
    spent, verdict, standing = float(line["spent"]), str(line["verdict"]), str(line["standing"])
    lost = _lost(line, retrained, results.rows["chance"].mean())
    return Trial(_worse(*shares), lost, spent, verdict, powered, standing)


def _lost(line: pd.Series, retrained: pd.Series, chance: float) -> Measure:
    """The share of retraining's accuracy above chance that is lost, by the delta method."""
    # Above chance: half right is a ruined model of two classes, and a fair one of a hundred.
    room = retrained["test_accuracy"] - chance
    own, of_room = (of["test_accuracy_sd"] / math.sqrt(of["seeds"]) for of in (line, retrained))
    free, of_full = (of["seeds"] - 1 for of in (line, retrained))
    sure = room > (0 if math.isnan(of_room) else _quantile(of_full) * of_room)
    if line["role"] == "retrained" or not sure:
        return Measure(0.0, 0.0)
    share = line["accuracy_cost"] / room
    carried = (1 - share) * of_room
    degrees = _degrees((own, free), (carried, of_full))
    return Measure(share, math.hypot(own, carried) / room, degrees)


def _share(line: pd.Series, initial: pd.Series, name: str) -> Measure:
    """D / D₀, its error by the delta method from those of both; D₀ / D₀ has none."""
    value, left = initial[f"{name}_dependence"], line[f"{name}_dependence"]
    share = abs(left) / value
    if line["role"] == "initial":
        return Measure(share, 0.0)
    (own, free), (of_initial, of_free) = (_error(of, name) for of in (line, initial))
    carried = share * of_initial
    degrees = _degrees((own, free), (carried, of_free))
    return Measure(share, math.hypot(own, carried) / abs(value), degrees)


def _error(line: pd.Series, name: str) -> tuple[float, float]:
    """A score's standard error and its degrees of freedom, of the one that gives the wider interval."""
    by_law, trainings = f"{name}_poisons" in line, line[f"{name}_trainings"]
    coming = line[f"{name}_trainings_error"] if by_law else line[f"{name}_error"]
    known = [(line[f"{name}_error"], math.inf)] if by_law else []
    known += [(coming, trainings - 1)] if trainings > 1 else []
    known = [(error, degrees) for error, degrees in known if not math.isnan(error)]
    if known:
        return max(known, key=lambda one: one[0] * _quantile(one[1]))
    # Trainings that are all alike do not differ.
    return (0.0 if line["seeds"] > 1 else math.nan), math.inf
