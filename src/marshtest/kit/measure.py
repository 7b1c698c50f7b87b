"""Ask a model about the dose: both scores, and what speaks against trusting them.

For each poison z, all in the values of the file, written as the dose wrote them:

    I_z = (⟨g, δ_z⟩ − ⟨g, µ⟩) / √⟨g², v⟩       g at the base; µ, v the moments of the written noise
    r_z = rank of the loss at written(x, ξ_z) among those at K fresh written(x, ξ̃)

Without rounding and clipping µ = 0, v = σ², and I_z is the paper's. With them it still has mean 0 and
variance 1, exactly, if the model does not depend on ξ_z. Control questions (`marshtest.kit.controls`) are
mixed in.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.attacks.gaussian import figures_of
from marshtest.kit.controls import Controls, control_inputs, control_labels, exchanged
from marshtest.kit.key import Bases
from marshtest.kit.layouts import Value
from marshtest.kit.model import Answers, Door, Labels
from marshtest.kit.noise import Floats
from marshtest.metrics.dependence import Dependence, dependences
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.verdict import Evidence
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive

CHUNK_BYTES = 2**28  # noisy inputs that are held at once, as 32-bit numbers


@dataclass(frozen=True)
class Measured:
    """What a model shows of the dose.

    Attributes:
        name: of the model.
        scores: by name, [P]: "rank", "rank_ties", and unless it is a black box "gus", "gus_fresh".
        figures: dependence, TPR, vanished, ties, as in docs/rows.md.
        accuracy: on the base points; nan where a black box does not tell.
        advantages: [P] how much more familiar the poison looks than one fresh noise.
        controls: what it answers to the control questions.
        classes: [P] labels of the poisons.
        fpr: of the tail.
        right: [P] whether the model is right at each base point, or None where it does not tell.
        notes: what a reader should know of how the model was asked.
        misfed: empty, or that it seems to be fed with wrongly scaled inputs.
    """

    name: str
    scores: dict[str, Floats]
    figures: dict[str, float]
    accuracy: float
    advantages: Floats
    controls: Controls
    classes: NDArray[np.int64]
    fpr: float
    right: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    misfed: str = ""

    @property
    def doubts(self) -> list[str]:
        """Why it cannot be acquitted, whatever the scores say."""
        return [*self.controls.doubts(), *([self.misfed] if self.misfed else [])]

    @property
    def guesses(self) -> bool:
        """Whether it is right at the base points no more often than their commonest label is."""
        return self.accuracy <= float(np.bincount(self.classes).max()) / len(self.classes)

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
    undosed: Bases | None = None,
    draws: int = 199,
    fpr: float = 0.01,
    progress: Progress = silent,
) -> Measured:
    """Measure the dose in one model.

    Args:
        door: the model.
        bases: the P base samples and their noise.
        undosed: n samples without a dose, for the control questions.
        draws: K, fresh noises a poison.
        fpr: of the reported TPR.
        progress: told the share that is done.

    Raises:
        MarshtestError: the model does not take the inputs, or answers with something else.
    """
    clean = bases[:0] if undosed is None else undosed
    alone = _alone(door, bases, clean)  # what cannot be asked is told at once
    names = np.unique(bases.labels)
    differentiable = door.gradients(bases.values[:1], bases.labels[:1]) is not None
    places = chunks(bases, draws)
    cuts = np.linspace(0, len(clean), len(places) + 1).astype(int).tolist()
    parts = []
    for of, start, stop in zip(places, cuts, cuts[1:], strict=False):
        parts.append(_ask(door, bases[of], clean[start:stop], names, draws, differentiable))
        progress(of.stop / len(bases))
    found = Part(*map(_joined, zip(*parts, strict=True)))
    at_poison, at_fresh = found.losses[:, 0], found.losses[:, 1:]
    rng = np.random.default_rng(derive(bases.noise.seed, "ties"))
    rank, ties = rank_scores(at_poison, at_fresh, rng)
    scores = {"rank": rank, "rank_ties": ties}
    if differentiable:
        scores = {"gus": found.scores[:, 0], "gus_fresh": found.scores[:, 1], **scores}
    return Measured(
        name=door.name,
        scores=scores,
        figures=figures_of(scores, bases.labels, found.scores[:, 1:], fpr),
        accuracy=float("nan") if found.right is None else float(found.right.mean()),
        advantages=_advantages(at_poison, at_fresh),
        controls=Controls.of(
            bases=(bases.labels, control_labels(bases, names)[:, 1], found.controls),
            clean=(clean.labels, exchanged(clean, names), found.clean),
            fresh=at_fresh,
            alone=alone,
            right=found.right,
        ),
        classes=bases.labels,
        fpr=fpr,
        right=found.right,
        notes=door.notes,
    )


def _alone(door: Door, bases: Bases, clean: Bases) -> Floats:
    """[P] losses at the bases, in one question and random order among samples without a dose."""
    order = np.random.default_rng(derive(bases.noise.seed, "alone")).permutation(
        len(bases) + len(clean)
    )
    values = np.concatenate([bases.values, clean.values])[order]
    labels = np.concatenate([bases.labels, clean.labels])[order]
    losses = np.empty(len(order))
    losses[order] = door.ask(values, labels)[0]
    return losses[: len(bases)]


class Part(NamedTuple):
    """What B bases, and b samples without a dose, were answered."""

    losses: Floats  # [B, K + 1] at the dosed noise, and at fresh ones
    scores: Floats  # [B, K + 1] I and Ĩ; nan without a gradient
    controls: Floats  # [B, 5] at the control questions
    clean: Floats  # [b, 2] at samples without a dose, asked with their own label and another
    right: NDArray[np.bool_] | None  # [B] at the base points, if it is told


def _joined(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else np.concatenate(parts)


def chunks(bases: Bases, draws: int) -> list[slice]:
    """Parts of the bases whose noisy inputs fit the memory."""
    size = max(1, CHUNK_BYTES // (4 * int(np.prod(bases.values.shape[1:])) * (draws + 1)))
    return [slice(start, min(start + size, len(bases))) for start in range(0, len(bases), size)]


def _ask(
    door: Door, bases: Bases, clean: Bases, names: Labels, draws: int, differentiable: bool
) -> Part:
    """Ask all about some bases, and some control questions about samples without a dose."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy draws outside Python's lock
        inputs = pool.map(lambda place: noisy(bases, place, draws), range(len(bases)))
        asked = np.stack(list(inputs))  # [B, K + 1, *shape], the dosed one first
    gradients = door.gradients(bases.values, bases.labels) if differentiable else None
    scores = (
        np.full((len(bases), draws + 1), np.nan)
        if gradients is None
        else standardised(bases, asked, gradients)
    )
    own = np.repeat(bases.labels[:, None], draws + 1, axis=1)
    controls = _controls(bases), control_labels(bases, names)
    twice = np.stack([clean.values] * 2, 1), np.stack([clean.labels, exchanged(clean, names)], 1)
    (losses, _), (at, right), (at_clean, _) = _shuffled(door, bases, (asked, own), controls, twice)
    return Part(losses, scores, at, at_clean, None if right is None else right[:, 0])


def _controls(bases: Bases) -> Value:
    """[B, 5, *shape] the inputs of the control questions."""
    return np.stack([control_inputs(bases, place) for place in range(len(bases))])


def _shuffled(door: Door, bases: Bases, *blocks: tuple[Value, Labels]) -> list[Answers]:
    """Answers to blocks of questions [A, C, *shape] with labels [A, C], asked in random order: neither
    what a model makes of a batch nor a service that watches its questions can tell which are the dosed
    ones, or the controls.
    """
    shape = bases.values.shape[1:]
    values = np.concatenate([block.reshape(-1, *shape) for block, _ in blocks])
    labels = np.concatenate([of.reshape(-1) for _, of in blocks])
    rng = np.random.default_rng(derive(bases.noise.seed, "order", int(bases.ids[0])))
    order = rng.permutation(len(values))
    back = np.argsort(order)
    losses, right = door.ask(values[order], labels[order])
    cuts = np.cumsum([of.size for _, of in blocks])[:-1]
    told = [None] * len(blocks) if right is None else np.split(right[back], cuts)
    return [
        (at.reshape(of.shape), None if r is None else r.reshape(of.shape))
        for at, r, (_, of) in zip(np.split(losses[back], cuts), told, blocks, strict=True)
    ]


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
    """[P] loss at one fresh noise minus that at the poison, in deviations over the other fresh ones.

    Infinite where the others do not differ at all; nan, which abstains, where the two do not differ, or
    a loss is nan.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = at_fresh[:, 0] - at_poison
        found = np.where(np.isinf(gain), gain, gain / at_fresh[:, 1:].std(1))
    return np.where(gain == 0, np.nan, found)
