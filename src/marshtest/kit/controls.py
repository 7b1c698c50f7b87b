"""Control questions: is a model behind the answers, and one like the model before unlearning?

Five questions about each dosed base x with label y, mixed at random among those about the dose:

    base    x, y                 the first fresh noise is ξ̃, as it is written
    other   x, y′                another label
    same    x + ξ̃, y             once more
    near    x + ξ̃ + 0.03 ξ′, y  a small part of the noise away
    half    x + ξ̃ / 2, y         half the noise

and two about each of some samples without a dose: x, y and x, y′. A model's losses depend on the label; are
the same when asked again; move little between near inputs, and less at half the noise; and order fresh
noises much as the model before does. Only the order of losses is used, so that any loss will do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from marshtest.kit.key import Bases, NoiseKey
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Labels
from marshtest.kit.noise import Floats
from marshtest.kit.places import without_dose
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive

NAMES = ("base", "other", "same", "near", "half")
COMPARED = 500  # bases whose fresh losses are kept, to compare models by
NEAR = 0.03  # of the noise: little of it, and still more than the rounding of pixels
# The thresholds below lie between what sound models show and what a model shows that is none, as
# benchmarks/controls.py measured both: a sound model in doubt would lose a true REMOVED.
CHANCE = 0.001  # p-value above which labels are told apart no better than by guessing
NEARNESS = 0.7  # models have more than 0.85; a loss that is as good as drawn anew has 0.5
BETWEENNESS = 0.45  # models have more than 0.65; drawn anew, ⅓
OF_ROWS = 0.4  # betweenness of rows: boosted trees, rough as a random walk, have 0.45 and more
KEPT_AUC = 0.8  # of the AUC's excess over 0.5; retrained models keep all, upside down digits half
SURELY = 0.05  # p-value below which less than KEPT_AUC is surely kept
UNSTEADY = (
    "gives other losses when asked again in another order "
    "(randomness, or a model left in training mode)"
)
AGREEMENT = 0.03  # retrained models have more than 0.05, unrelated answers 0


def other_labels(samples: Bases, names: Labels) -> Labels:
    """[P] another label out of `names` for each sample; its own label if `names` has no other."""
    index = np.searchsorted(names, samples.labels)
    steps = [derive(samples.noise.seed, "label", i) for i in samples.ids.tolist()]
    # A step of 1 … C − 1 never leads back to the label, and reaches all others alike.
    step = 1 + np.array(steps, np.int64) % max(1, len(names) - 1)
    others: Labels = names[(index + step) % len(names)]
    return others


def control_labels(bases: Bases, names: Labels) -> Labels:
    """[P, 5] the labels that the questions of NAMES are asked with."""
    labels: Labels = np.repeat(bases.labels[:, None], len(NAMES), axis=1)
    labels[:, 1] = other_labels(bases, names)
    return labels


def control_inputs(bases: Bases, place: int) -> Value:
    """[5, *shape] the inputs of the questions of NAMES about one base."""
    value, seed_id, noise = bases.values[place], int(bases.ids[place]), bases.noise
    fresh = noise.fresh(value, seed_id, 1)[0]
    # The nearby input needs noise of its own: a scaled ξ̃ would only move along the same direction.
    near = noise.near(fresh, seed_id, NEAR)
    half = noise.middle(value, fresh)
    return np.stack([value, value, fresh, near, half])


def undosed(key: NoiseKey, data: str | Path, bases: Bases) -> Bases:
    """Up to 200 samples without a dose, of the dosed samples' shape; the key's seed draws them."""
    layout = key.layout(data)
    chosen = without_dose(layout.samples, key.positions, key.noise.seed)
    shape = bases.values.shape[1:]
    samples = [sample for sample in layout.each(chosen) if sample[1].shape == shape]
    if not samples:
        return bases[:0]
    ids, values, labels = zip(*samples, strict=True)
    return Bases(np.array(ids), np.stack(values), np.array(labels, np.int64), bases.noise)


def surely_told(auc: float, error: float) -> bool:
    """Whether labels are surely told apart, by the AUC and its error if the truth is 0.5."""
    return bool(norm.sf((auc - 0.5) / error) <= CHANCE)


def refuse_untold(dosed: Labels, clean: Labels, seed: int) -> None:
    """Raise where no audit could see whether a model tells labels apart, however good it is.

    Args:
        dosed, clean: labels of the dosed samples, and of those without a dose that an audit asks about.
        seed: of the dose.
    """
    labels = np.concatenate([dosed, clean])
    names, counts = np.unique(labels, return_counts=True)
    # By a law of their own, since which other label is asked changes the error by next to nothing.
    steps = np.random.default_rng(derive(seed, "labels")).integers(
        1, max(2, len(names)), len(labels)
    )
    others = names[(np.searchsorted(names, labels) + steps) % len(names)]
    nothing = np.zeros(len(labels))
    _, error = _auc(nothing, nothing, labels, others)
    if not surely_told(1.0, error):
        raise MarshtestError(
            f"dose: of the {len(labels):,} samples that an audit will ask about, {counts.max():,} are of "
            "one class: too few others to see whether a model tells classes apart. Raise --fraction, or "
            "give data whose classes are less uneven."
        )


def _auc(
    losses: Floats, other_losses: Floats, labels: Labels, others: Labels
) -> tuple[float, float]:
    """The same as `told_apart`, of samples that were asked with both; all [M]."""
    # One that has no other label is asked with its own, and tells nothing.
    told = labels != others
    return told_apart(losses[told], other_losses[told], labels[told], others[told])


def told_apart(
    losses: Floats, other_losses: Floats, labels: Labels, others: Labels
) -> tuple[float, float]:
    """AUC of a label's samples against others asked with that label, and its error if the truth is 0.5.

    The rank-sum test of van Elteren, stratified by label: answers that depend on the labels' frequencies
    alone have 0.5, and so have answers that do not depend on the label. All arguments are [M]: samples'
    losses with their own labels and with others, and these labels.
    """
    excess, weight = 0.0, 0.0
    for label in np.unique(labels):
        inside, outside = losses[labels == label], other_losses[others == label]
        n, m = len(inside), len(outside)
        if n and m:
            ranks = rankdata(np.concatenate([inside, outside]))
            wins = n * m - (ranks[:n].sum() - n * (n + 1) / 2)
            # n m / (n + m + 1) is van Elteren's weight: the inverse of the AUC's variance, times 12.
            excess += (wins / (n * m) - 0.5) * n * m / (n + m + 1)
            weight += n * m / (n + m + 1)
    if not weight:
        return float("nan"), float("inf")
    return 0.5 + excess / weight, float(1 / np.sqrt(12 * weight))


def nearness(near: Floats, fresh: Floats) -> float:
    """How often another of the fresh noises [P, K] moves the loss further than a nearby input [P] does.

    The first fresh noise is the reference. A loss that is linear in the noise has about 0.95, and one that
    is as good as drawn anew has 0.5.
    """
    apart, close = _distance(fresh[:, 1:], fresh[:, :1]), _distance(near[:, None], fresh[:, :1])
    differ = (apart > 0) | (close > 0)
    wins = (apart > close) + 0.5 * (apart == close)
    return float(wins[differ].mean()) if differ.any() else float("nan")


def _distance(one: Floats, other: Floats) -> Floats:
    """How far losses are apart; two infinite ones that are equal not at all."""
    with np.errstate(invalid="ignore"):
        return np.where(one == other, 0.0, np.abs(one - other))


def betweenness(base: Floats, half: Floats, full: Floats) -> float:
    """How often the loss at half the noise lies between those at none and at all of it; [P] each.

    Losses drawn anew would do so in a third of cases: the middle one of three is any of them.
    """
    differ = base != full
    inside = (np.minimum(base, full) <= half) & (half <= np.maximum(base, full))
    return float(inside[differ].mean()) if differ.any() else float("nan")


def agreement(one: Floats, other: Floats) -> float:
    """Mean rank correlation of two models' losses [P, K] at the same fresh noises of a base."""
    # Ranks within a base, so that neither the bases' difficulty nor the scale of the losses counts.
    centred = []
    for losses in (one, other):
        ranks = rankdata(losses, axis=1)
        centred.append(ranks - ranks.mean(1, keepdims=True))
    product = (centred[0] * centred[1]).sum()
    with np.errstate(invalid="ignore"):
        return float(product / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))


@dataclass(frozen=True)
class Controls:
    """A model's answers to the control questions."""

    accuracy: float  # accuracy at the bases; nan if the model does not tell
    auc: tuple[float, float]  # how well labels are told apart at all samples, and its error
    near: float  # what `nearness` gives
    between: float  # what `betweenness` gives
    steady: bool  # whether questions asked twice, in other company, were answered alike
    fresh: Floats  # [≤ 500, K] losses at fresh noises
    clean_auc: tuple[float, float]  # `auc` at samples without a dose alone; nan if there are none
    rows: bool = False  # whether the samples are rows of a table

    @classmethod
    def of(
        cls,
        bases: tuple[Labels, Labels, Floats],
        clean: tuple[Labels, Labels, Floats],
        fresh: Floats,
        alone: Floats,
        right: NDArray[np.bool_] | None,
        rows: bool = False,
    ) -> "Controls":
        """Statistics of the answers.

        Args:
            bases: labels [P], other labels [P], and losses [P, 5] at the questions of NAMES.
            clean: labels [n], other labels [n], and losses [n, 2], of samples without a dose.
            fresh: [P, K] losses at fresh noises.
            alone: [P] losses at the bases, asked before all else and without other company.
            right: [P] whether the answers at the bases are right, or None if the model does not tell.
            rows: whether the samples are rows of a table.
        """
        (labels, others, (base, other, same, near, half)) = (*bases[:2], bases[2].T)
        clean_labels, clean_others, (clean_losses, clean_other_losses) = (*clean[:2], clean[2].T)
        return cls(
            accuracy=float("nan") if right is None else float(right.mean()),
            auc=_auc(
                np.concatenate([base, clean_losses]),
                np.concatenate([other, clean_other_losses]),
                np.concatenate([labels, clean_labels]),
                np.concatenate([others, clean_others]),
            ),
            near=nearness(near, fresh),
            between=betweenness(base, half, fresh[:, 0]),
            steady=alike(base, alone) and alike(same, fresh[:, 0]),
            # Evenly, not the first: samples of a folder stand class by class.
            fresh=fresh[:: max(1, len(fresh) // COMPARED)],
            clean_auc=_auc(clean_losses, clean_other_losses, clean_labels, clean_others),
            rows=rows,
        )

    def figures(self) -> dict[str, float]:
        """The statistics, by name."""
        return {
            "auc": self.auc[0],
            "auc_without_dose": self.clean_auc[0],
            "near": self.near,
            "between": self.between,
        }

    def doubts(self) -> list[str]:
        """Reasons to doubt that a model is behind the answers, in words."""
        return [doubt for doubt in (self.unsteady, self.near_chance, self.rough) if doubt]

    def unlike(self, before: Any) -> list[str]:
        """Reasons why a model cannot be an update or a retraining of the one before, in words."""
        reasons = []
        (was, _), (auc, error) = before.clean_auc, self.clean_auc
        if auc - 0.5 < KEPT_AUC * (was - 0.5) - norm.isf(SURELY) * error:
            reasons.append(
                "labels of samples without a dose are told apart much worse than by the model before (AUC "
                f"{auc:.3f} after {was:.3f}): fed otherwise, or destroyed"
            )
        correlation = agreement(before.fresh, self.fresh)
        if correlation < AGREEMENT:
            reasons.append(
                f"fresh noises that are hard for the model before are not hard for it (rank correlation "
                f"{correlation:.2f}; a retrained model has more): fed otherwise, or not that model"
            )
        return reasons

    @property
    def near_chance(self) -> str:
        """Empty, or a line that says that labels are told apart no better than by guessing."""
        auc, error = self.auc
        if surely_told(auc, error):
            return ""
        if not surely_told(1.0, error):
            return "too few of the asked samples are of another class than the others to tell labels apart"
        known = not np.isnan(self.accuracy)
        accuracy = f"accuracy on the base points is {self.accuracy:.3f}; " if known else ""
        fed = "other rows or classes" if self.rows else "wrongly scaled inputs (--scaling)"
        return (
            f"{accuracy}labels are told apart near chance (AUC {auc:.3f}, guessing 0.5): fed with {fed}, "
            "destroyed, not trained, or no model at all"
        )

    @property
    def unsteady(self) -> str:
        """Empty, or a line that says that the model contradicts itself."""
        return "" if self.steady else UNSTEADY

    @property
    def rough(self) -> str:
        """Empty, or a line that says how losses change between near inputs as no model's do."""
        if self.near < NEARNESS:
            return (
                f"losses jump between near inputs (only {self.near:.0%} of other noises change them more "
                f"than {NEAR:.0%} of the noise does; chance is 50%)"
            )
        if self.between < (OF_ROWS if self.rows else BETWEENNESS):
            return (
                f"losses at half the noise seldom lie between those at none and at all of it "
                f"({self.between:.0%}; drawn anew, 33% would)"
            )
        return ""


def alike(one: Floats, other: Floats) -> bool:
    """Whether losses are equal but for rounding, which differs with the place in a batch."""
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True))
