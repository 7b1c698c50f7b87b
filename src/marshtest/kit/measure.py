"""Ask a model about the dose: both scores, and what speaks against trusting them.

For each poison z, all in the values of the file, written as the dose wrote them:

    I_z = (⟨g, δ_z⟩ − ⟨g, µ⟩) / √⟨g², v⟩       g at the base; µ, v the moments of the written noise
    r_z = rank of the loss at written(x, ξ_z) among those at K fresh written(x, ξ̃)

Without rounding and clipping µ = 0, v = σ², and I_z is the paper's. With them it still has mean 0 and
variance 1, exactly, if the model does not depend on ξ_z.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from marshtest.attacks.gaussian import figures_of
from marshtest.kit.door import Door
from marshtest.kit.key import Bases
from marshtest.kit.layouts import Value
from marshtest.kit.noise import Floats
from marshtest.memory import keep_freed_memory
from marshtest.metrics.dependence import Dependence, dependences
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.verdict import Evidence
from marshtest.seeds import derive

CHUNK_BYTES = 2**28  # noisy inputs that are held at once, as 32-bit numbers
NEAR_CHANCE = 0.01  # p-value above which an accuracy is taken for guessing


@dataclass(frozen=True)
class Measured:
    """What a model shows of the dose.

    Attributes:
        name: of the model.
        scores: by name, [P]: "rank", "rank_ties", and unless it is a black box "gus", "gus_fresh".
        figures: dependence, TPR, vanished, ties, as in docs/rows.md.
        accuracy: on the base points; nan where a black box does not tell.
        advantages: [P] how much more familiar the poison looks than one fresh noise.
        near_chance: empty, or how little better than guessing it is on the base points.
        unsteady: empty, or that it contradicts itself.
        classes: [P] labels of the poisons.
        fpr: of the tail.
        right: [P] whether the model is right at each base point, or None where it does not tell.
        notes: what a reader should know of how the model was asked.
    """

    name: str
    scores: dict[str, Floats]
    figures: dict[str, float]
    accuracy: float
    advantages: Floats
    near_chance: str
    unsteady: str
    classes: NDArray[np.int64]
    fpr: float
    right: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    @property
    def doubts(self) -> list[str]:
        """Why it cannot be acquitted, whatever the scores say."""
        return [doubt for doubt in (self.unsteady, self.near_chance) if doubt]

    def dependences(self) -> dict[str, Dependence]:
        """By score, for the verdict."""
        return dependences(self.scores, self.classes, self.fpr)

    def evidence(self, names: Collection[str]) -> Evidence:
        """The same, of one training, by some scores."""
        return Evidence({0: {n: s for n, s in self.dependences().items() if n in names}})


def measure(
    door: Door,
    bases: Bases,
    *,
    draws: int = 199,
    fpr: float = 0.01,
    progress: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Measure the dose in one model.

    Args:
        door: the model.
        bases: the P base samples and their noise.
        draws: K, fresh noises a poison.
        fpr: of the reported TPR.
        progress: told the share that is done.

    Raises:
        MarshtestError: the model does not take the inputs, or answers with something else.
    """
    keep_freed_memory()
    losses, right = door.ask(bases.values, bases.labels)
    again, _ = door.ask(bases.values[::-1].copy(), bases.labels[::-1].copy())
    differentiable = door.gradients(bases.values[:1], bases.labels[:1]) is not None
    parts = []
    for part in chunks(bases, draws):
        parts.append(_ask(door, part, draws, differentiable))
        progress(sum(len(own) for own, _, _, _ in parts) / len(bases))
    at_poison, at_fresh, own, fresh = (np.concatenate(found) for found in zip(*parts, strict=True))
    rng = np.random.default_rng(derive(bases.noise.seed, "ties"))
    rank, ties = rank_scores(at_poison, at_fresh, rng)
    scores = {"rank": rank, "rank_ties": ties}
    if differentiable:
        scores = {"gus": own, "gus_fresh": fresh[:, 0], **scores}
    return Measured(
        name=door.name,
        scores=scores,
        figures=figures_of(scores, bases.labels, fresh, fpr),
        accuracy=float("nan") if right is None else float(right.mean()),
        advantages=_advantages(at_poison, at_fresh),
        near_chance=_near_chance(right, bases.labels),
        unsteady=_unsteady(losses, again[::-1]),
        classes=bases.labels,
        fpr=fpr,
        right=right,
        notes=door.notes,
    )


def chunks(bases: Bases, draws: int) -> Iterator[Bases]:
    """The bases in parts whose noisy inputs fit the memory."""
    size = max(1, CHUNK_BYTES // (4 * int(np.prod(bases.values.shape[1:])) * (draws + 1)))
    for start in range(0, len(bases), size):
        of = slice(start, start + size)
        yield Bases(bases.ids[of], bases.values[of], bases.labels[of], bases.noise)


def _ask(
    door: Door, bases: Bases, draws: int, differentiable: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """Losses at the poison [B] and at fresh noise [B, K]; I [B] and Ĩ [B, K], nan without a gradient."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy draws outside Python's lock
        noisy_inputs = pool.map(lambda place: noisy(bases, place, draws), range(len(bases)))
        asked = np.stack(list(noisy_inputs))  # [B, K + 1, *shape], the dosed one first
    gradients = door.gradients(bases.values, bases.labels) if differentiable else None
    scores = (
        np.full((len(bases), draws + 1), np.nan)
        if gradients is None
        else standardised(bases, asked, gradients)
    )
    losses = _shuffled(door, asked, bases)
    return losses[:, 0], losses[:, 1:], scores[:, 0], scores[:, 1:]


def _shuffled(door: Door, asked: Value, bases: Bases) -> Floats:
    """Losses [B, K + 1], asked in random order: neither what a model makes of a batch nor a service
    that watches its questions can tell which are the dosed ones.
    """
    flat = asked.reshape(-1, *asked.shape[2:])
    labels = np.repeat(bases.labels, asked.shape[1])
    rng = np.random.default_rng(derive(bases.noise.seed, "order", int(bases.ids[0])))
    order = rng.permutation(len(flat))
    losses = np.empty(len(flat))
    losses[order] = door.ask(flat[order], labels[order])[0]
    return losses.reshape(len(bases), -1)


def noisy(bases: Bases, place: int, draws: int) -> Value:
    """[K + 1, *shape] one base with its own noise, and with K fresh ones."""
    value, seed_id = bases.values[place], int(bases.ids[place])
    own = bases.noise.written(value, seed_id)[None]
    return np.concatenate([own, bases.noise.fresh(value, seed_id, draws)])


def standardised(bases: Bases, asked: Value, gradients: Floats) -> Floats:
    """[B, K + 1] the scores I for gradients [B, d]; nan where the gradient vanishes."""
    scores = []
    for value, written, gradient in zip(bases.values, asked, gradients, strict=True):
        mean, variance = (moment.reshape(-1) for moment in bases.noise.moments(value))
        gradient = np.ldexp(gradient, -np.frexp(np.abs(gradient).max())[1])  # or squares overflow
        expected = gradient @ (value.reshape(-1) + mean)
        with np.errstate(invalid="ignore"):
            deviation = np.sqrt(gradient**2 @ variance)
            scores.append((written.reshape(len(written), -1) @ gradient - expected) / deviation)
    return np.stack(scores)


def _advantages(at_poison: Floats, at_fresh: Floats) -> Floats:
    """[P] loss at one fresh noise minus that at the poison, in deviations over the other fresh ones."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = at_fresh[:, 1:].std(1)
        found = (at_fresh[:, 0] - at_poison) / spread
    return np.where(np.isfinite(found), found, np.nan)


def _near_chance(right: NDArray[np.bool_] | None, labels: NDArray[np.int64]) -> str:
    """Empty, or that the model does no better on the base points than the commonest label."""
    if right is None:
        return ""
    chance = np.bincount(labels).max() / len(labels)
    if binomtest(int(right.sum()), len(right), chance, "greater").pvalue <= NEAR_CHANCE:
        return ""
    return (
        f"accuracy on the base points is {right.mean():.3f}, near chance ({chance:.3f}): fed with "
        "wrongly scaled inputs (--scaling), destroyed, or not trained"
    )


def _unsteady(losses: Floats, again: Floats) -> str:
    """Empty, or that the model contradicts itself."""
    if np.allclose(losses, again, rtol=1e-3, atol=1e-3, equal_nan=True):
        return ""
    return (
        "gives other losses when asked again in another order (randomness, or a model left in "
        "training mode)"
    )
