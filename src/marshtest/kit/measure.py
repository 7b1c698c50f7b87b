"""Ask a model about the dose: both scores, and what speaks against trusting them.

For each poison z, all in the values of the file, written as the dose wrote them:

    I_z = (⟨g, δ_z⟩ − ⟨g, µ⟩) / √⟨g², v⟩       g at the base; µ, v the moments of the written noise
    r_z = rank of the loss at written(x, ξ_z) among those at K fresh written(x, ξ̃)

Without rounding and clipping µ = 0, v = σ², and I_z is the paper's. With them I_z still has mean 0 and
variance 1, exactly, if the model does not depend on ξ_z. Control questions (`marshtest.kit.controls`) are
mixed in.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from marshtest.attacks.gaussian import figures_of
from marshtest.kit.controls import Controls, control_inputs, control_labels, other_labels
from marshtest.kit.key import Bases
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Answers, AskedModel, Kind, Labels
from marshtest.kit.noise import Floats
from marshtest.kit.privacy import reconstruction
from marshtest.kit.tables.noise import TableNoise
from marshtest.metrics.dependence import Dependence, dependences
from marshtest.metrics.f_dp import Guesses
from marshtest.metrics.labels import LABEL, OF_AUDITS, label_dependence, label_scores, testable
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.verdict import Evidence
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive

CHUNK_BYTES = 2**28  # noisy inputs that are held at once, as 32-bit numbers


class ControlAnswers(Protocol):
    """A model's answers to control questions, of whichever kind."""

    def doubts(self) -> list[str]:
        """Reasons to doubt that a model is behind the answers, in words."""

    def unlike(self, before: Any) -> list[str]:
        """Reasons why a model is no update or retraining of the one before, by its answers of the kind."""

    def figures(self) -> dict[str, float]:
        """Statistics of the answers, by name."""


@dataclass(frozen=True)
class Measured:
    """What a model shows of the dose."""

    name: str
    # [P] "rank", "rank_ties", and with a gradient "gus", "gus_fresh"; or what `label_scores` gives
    scores: dict[str, Floats]
    figures: dict[str, float]  # dependence, TPR, vanished, ties, as in docs/rows.md
    accuracy: float  # accuracy on the base points; nan where a black box does not tell
    advantages: Floats  # [P] how much more familiar the poison looks than one fresh noise
    controls: ControlAnswers  # the answers to the control questions
    classes: NDArray[np.int64]  # [P] labels of the poisons
    fpr: float  # false positive rate at which the TPR is reported
    # [n] right (1) or wrong (0) at each base point; of texts the log-probability a word; None if not told
    utility: Floats | None = None
    notes: tuple[str, ...] = ()  # what a reader should know of how the model was asked
    perplexity: float = float("nan")  # a word, on texts without a dose
    among: Guesses | None = None  # which of the poison and its fresh noises looks most familiar
    misfed: str = ""  # empty, or a line that says why the inputs seem to be wrongly scaled

    @property
    def doubts(self) -> list[str]:
        """Reasons why the model cannot be acquitted, whatever its scores say."""
        return [*self.controls.doubts(), *([self.misfed] if self.misfed else [])]

    @property
    def guesses(self) -> bool:
        """Whether the model is right at the base points no more often than their commonest label is."""
        return self.accuracy <= float(np.bincount(self.classes).max()) / len(self.classes)

    def dependences(self) -> dict[str, Dependence]:
        """The dependence on the dose that each score shows, by name."""
        if LABEL in self.scores:
            right, share = self.scores[f"{LABEL}_right"], self.scores[f"{LABEL}_share"]
            return {LABEL: label_dependence(right, share, self.scores.get(f"{LABEL}_before"))}
        return dependences(self.scores, self.classes, self.fpr)

    def evidence(self, names: Collection[str]) -> Evidence:
        """The dependences of the scores `names`, as the evidence of one training."""
        shown = {0: {n: s for n, s in self.dependences().items() if n in names}}
        return Evidence(shown, OF_AUDITS)

    def after(self, before: "Measured") -> "Measured":
        """The model beside the one before unlearning, which tells what its labels may hide."""
        if LABEL not in self.scores:
            return self
        shares = {f"{LABEL}_before": before.scores[f"{LABEL}_share"]}
        return replace(self, scores=self.scores | shares)


def measure(
    model: AskedModel,
    bases: Bases,
    *,
    undosed: Bases | None = None,
    draws: int = 199,
    fpr: float = 0.01,
    answers: Kind = "losses",
    progress: Progress = silent,
) -> Measured:
    """Measure the dose in one model, by K = `draws` fresh noises a poison.

    `undosed` are samples without a dose, for the control questions; `answers` is what the model was opened
    to answer with.

    Raises:
        MarshtestError: the model does not take the inputs, or answers with something else.
    """
    clean = bases[:0] if undosed is None else undosed
    alone = _alone(model, bases, clean)  # first, so that a model that cannot be asked fails at once
    names = np.union1d(bases.labels, clean.labels)
    answered = _ask_all(model, bases, clean, names, draws, progress)
    at_poison, at_fresh = answered.losses[:, 0], answered.losses[:, 1:]
    controls = Controls.of(
        bases=(bases.labels, control_labels(bases, names)[:, 1], answered.controls),
        clean=(clean.labels, other_labels(clean, names), answered.clean),
        fresh=at_fresh,
        alone=alone,
        right=answered.right,
        rows=isinstance(bases.noise, TableNoise),
    )
    right = answered.right
    shown = Measured(
        name=model.name,
        scores={},
        figures={},
        accuracy=float("nan") if right is None else float(right.mean()),
        advantages=advantages(at_poison, at_fresh),
        controls=controls,
        classes=bases.labels,
        fpr=fpr,
        utility=None if right is None else right.astype(np.float64),
        notes=model.notes,
    )
    if answers == "labels":
        return _by_labels(shown, controls, answered.losses == 0)
    rng = np.random.default_rng(derive(bases.noise.seed, "ties"))
    rank, ties = rank_scores(at_poison, at_fresh, rng)
    scores, fresh_scores = {"rank": rank, "rank_ties": ties}, at_fresh[:, :0]
    if answered.scores is not None:
        fresh_scores = answered.scores[:, 1:]
        scores = {"gus": answered.scores[:, 0], "gus_fresh": fresh_scores[:, 0], **scores}
    return replace(
        shown,
        scores=scores,
        figures=figures_of(scores, bases.labels, fresh_scores, fpr),
        among=reconstruction(at_poison, at_fresh),
    )


def _by_labels(shown: Measured, controls: Controls, right: NDArray[np.bool_]) -> Measured:
    """What a model shows by labels alone, of which [P, K + 1] are right.

    Which of many right labels is the poison's cannot be guessed, so guesses are of pairs of noises alone.
    """
    scores = label_scores(right)
    of_all = replace(shown, scores=scores)
    informative, variants = testable(scores["label_share"]), right.shape[1]
    note = (
        f"labels tell something of {informative:,} of {len(right):,} poisons; the others are answered "
        f"alike with all {variants} noises"
    )
    return replace(
        of_all,
        figures={
            **of_all.dependences()[LABEL].columns(LABEL),
            "untestable": float(len(right) - informative),
        },
        # A label at half the noise always lies between those at none and at all of it.
        controls=replace(controls, between=float("nan")),
        notes=(*shown.notes, note),
    )


def _alone(model: AskedModel, bases: Bases, clean: Bases) -> Floats:
    """[P] losses at the bases, in random order among samples without a dose."""
    rng = np.random.default_rng(derive(bases.noise.seed, "alone"))
    order = rng.permutation(len(bases) + len(clean))
    values = np.concatenate([bases.values, clean.values])[order]
    labels = np.concatenate([bases.labels, clean.labels])[order]
    losses = np.empty(len(order))
    for part in slices(values, 1):
        losses[order[part]] = model.ask(values[part], labels[part])[0]
    return losses[: len(bases)]


class Part(NamedTuple):
    """The answers about B bases, and about b samples without a dose."""

    losses: Floats  # [B, K + 1] at the dosed noise, and at fresh ones
    scores: Floats | None  # [B, K + 1] I and Ĩ; None without a gradient
    controls: Floats  # [B, 5] losses at the control questions
    clean: Floats  # [b, 2] losses at samples without a dose, with their own label and another
    right: NDArray[np.bool_] | None  # [B] at the base points; None where a black box does not tell


def _ask_all(
    model: AskedModel, bases: Bases, clean: Bases, names: Labels, draws: int, progress: Progress
) -> Part:
    """Ask about all bases, as many at once as fit the memory, and about a part of `clean` with each."""
    differentiable = model.gradients(bases.values[:1], bases.labels[:1]) is not None
    chunks = slices(bases.values, draws + 1)
    cuts = np.linspace(0, len(clean), len(chunks) + 1).astype(int).tolist()
    parts = []
    for rows, start, stop in zip(chunks, cuts, cuts[1:], strict=False):
        parts.append(_ask(model, bases[rows], clean[start:stop], names, draws, differentiable))
        progress(rows.stop / len(bases))
    return Part(*map(_joined, zip(*parts, strict=True)))


def _joined(arrays: tuple[Any, ...]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)


def slices(values: Value, copies: int) -> list[slice]:
    """Slices of values that fit the memory, as 32-bit numbers and in so many copies each."""
    size = max(1, CHUNK_BYTES // (4 * int(np.prod(values.shape[1:])) * copies))
    return [slice(start, min(start + size, len(values))) for start in range(0, len(values), size)]


def _ask(
    model: AskedModel, bases: Bases, clean: Bases, names: Labels, draws: int, differentiable: bool
) -> Part:
    """Ask about the dose in some bases, with control questions about them and about `clean`."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy draws outside Python's lock
        inputs = pool.map(lambda row: noisy(bases, row, draws), range(len(bases)))
        values = np.stack(list(inputs))  # [B, K + 1, *shape], the dosed one first
    gradients = model.gradients(bases.values, bases.labels) if differentiable else None
    scores: Floats | None = None
    if gradients is not None:
        scores = standardised(bases, values, gradients)
    elif differentiable:  # it had a gradient at the first sample alone: these count as vanished
        scores = np.full((len(bases), draws + 1), np.nan)
    labels = np.repeat(bases.labels[:, None], draws + 1, axis=1)
    controls = [control_inputs(bases, row) for row in range(len(bases))]
    clean_labels = np.stack([clean.labels, other_labels(clean, names)], 1)
    (losses, _), (control_losses, right), (clean_losses, _) = _shuffled(
        model,
        bases,
        (values, labels),
        (np.stack(controls), control_labels(bases, names)),
        (np.stack([clean.values] * 2, 1), clean_labels),
    )
    at_bases = None if right is None else right[:, 0]
    return Part(losses, scores, control_losses, clean_losses, at_bases)


def _shuffled(model: AskedModel, bases: Bases, *blocks: tuple[Value, Labels]) -> list[Answers]:
    """Answers to blocks of questions [A, C, *shape] with labels [A, C], asked in random order.

    In order, what a model makes of a batch, or a service that watches its questions, could tell which are
    the dosed ones, or the controls.
    """
    shape = bases.values.shape[1:]
    values = np.concatenate([block.reshape(-1, *shape) for block, _ in blocks])
    labels = np.concatenate([block.reshape(-1) for _, block in blocks])
    rng = np.random.default_rng(derive(bases.noise.seed, "order", int(bases.ids[0])))
    order = rng.permutation(len(values))
    back = np.argsort(order)
    losses, right = model.ask(values[order], labels[order])
    cuts = np.cumsum([block.size for _, block in blocks])[:-1]
    rights = [None] * len(blocks) if right is None else np.split(right[back], cuts)
    return [
        (part.reshape(block.shape), None if right is None else right.reshape(block.shape))
        for part, right, (_, block) in zip(
            np.split(losses[back], cuts), rights, blocks, strict=True
        )
    ]


def noisy(bases: Bases, row: int, draws: int) -> Value:
    """[K + 1, *shape] the base in a row with its own noise, and with K fresh ones."""
    value, seed_id = bases.values[row], int(bases.ids[row])
    dosed = bases.noise.written(value, seed_id)[None]
    return np.concatenate([dosed, bases.noise.fresh(value, seed_id, draws)])


def standardised(bases: Bases, values: Value, gradients: Floats) -> Floats:
    """[B, K + 1] the scores I of noisy values [B, K + 1, *shape], by the gradients [B, d] at the bases.

    They are nan where the gradient vanishes in all that noise changes.
    """
    scores = []
    for base, written, gradient in zip(bases.values, values, gradients, strict=True):
        mean, variance = (moment.reshape(-1) for moment in bases.noise.moments(base))
        # What noise does not change is no part of it: of a large gradient there rounding would be left.
        dosed = variance > 0
        moved = (written.astype(np.float64) - base).reshape(len(written), -1) - mean
        moved, gradient = moved[:, dosed], gradient[dosed]
        # The score does not depend on the gradient's length. Scaled by a power of two, which is
        # exact, its squares neither overflow nor vanish.
        gradient = np.ldexp(gradient, -np.frexp(np.abs(gradient).max(initial=0))[1])
        with np.errstate(invalid="ignore"):
            scores.append(moved @ gradient / np.sqrt(gradient**2 @ variance[dosed]))
    return np.stack(scores)


def advantages(at_poison: Floats, at_fresh: Floats) -> Floats:
    """[P] loss at one fresh noise minus that at the poison, in deviations over the other fresh ones.

    Infinite if the others do not differ at all; nan, which abstains, if the two do not differ, or a loss
    is nan.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = at_fresh[:, 0] - at_poison
        # An infinite gain stays one, though the others' deviation may be infinite too.
        advantages = np.where(np.isinf(gain), gain, gain / at_fresh[:, 1:].std(1))
    return np.where(gain == 0, np.nan, advantages)
