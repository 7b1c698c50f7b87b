"""Gaussian poisons (paper §4.3, Algorithms 3 and 4).

    x_poison = x_base + ξ_z,   ξ_z ~ N(0, ε² I)     in input space: normalised pixels, embeddings

The noise hides in the model without changing what it predicts, and only who knows it can look for
it. It is a function of (seed, id), so the seed is all that is stored.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import binomtest
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Floats,
    Knowledge,
    Poisoned,
    choose,
)
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.data.samples import Samples, slices
from marshtest.metrics.accuracy import margin_loss
from marshtest.metrics.dependence import SCORES, dependences
from marshtest.metrics.gus import gaussian_scores, input_directions
from marshtest.metrics.presentation import Column
from marshtest.metrics.rank import rank_scores
from marshtest.metrics.tradeoff import tpr_at_fpr, tpr_at_fpr_empirical, tpr_at_fpr_one_sided
from marshtest.plumbing.device import in_parts, memory
from marshtest.plumbing.seeds import derive, normal
from marshtest.training.tasks import Task

CHUNK, CHUNK_BYTES = 16, 40_000_000  # poisons whose fresh noise is scored at once, and its size
# Of the device's memory: noise that takes no more is drawn once for all models of a group.
KEPT = 1 / 8
RATES = {  # with exact intervals over the poisons of all seeds
    "tpr": (
        "TPR",
        "share of the poisons with |I| > τ at FPR {fpr}, as in the paper",
        "gus_poisons",
    ),
    "tpr_empirical": ("", "", "gus_poisons"),  # τ from fresh noise
    "tpr_one_sided": ("", "", "gus_poisons"),
    "tpr_rank": ("rank TPR", "the same by the one-sided test of the rank score", "rank_poisons"),
}
PRESENTATION = Presentation(
    title="Gaussian",
    kind="Gaussian poisons",
    scores=SCORES,
    columns={
        name: Column(
            title=title, low=0, high=1, legend=legend, interval="exact", count=count, room=160
        )
        for name, (title, legend, count) in RATES.items()
    },
    effect=EffectFigure(
        axis="TPR at FPR = {fpr}",
        columns={"tpr": "|I| > τ (paper)", "tpr_rank": "rank score"},
        nothing="fpr",
        figure="figure2",
        caption="Test accuracy, and TPR at low FPR, mean ± s.d. over seeds (the paper's Figure 2).",
    ),
    fpr="fpr",
    draws="draws",
    on_texts="noise was added to its tokens' embeddings",
)


class Gaussian(Attack):
    """Gaussian noise on the inputs (paper §4.3), scored by GUS and by the rank score."""

    name: str = "gaussian"
    presentation: ClassVar[Presentation] = PRESENTATION
    scoring: ClassVar[tuple[str, ...]] = ("draws", "fpr")
    variance: float = Field(0.32, gt=0)  # ε², in squared units of the input space
    draws: int = Field(199, ge=1)  # K, fresh noises a poison; each costs one forward
    fpr: float = Field(0.01, gt=0, lt=1)  # of the reported TPR

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        ids = choose(samples, count, seed)
        shape = knowledge.input_shape or tuple(samples.x.shape[1:])
        return Poisoned(samples, ids, seed, perturbations=self.noise(seed, ids, shape))

    def noise(self, seed: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[P, *shape] the noise ξ_z that (seed, id) determines."""
        return self._draw(seed, ids, "poison", shape)

    def fresh_noise(self, seed: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[P, K, *shape] noise that no model has seen, independent of `noise`."""
        return self._draw(seed, ids, "fresh", (self.draws, *shape))

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """The test samples with noise of the same law."""
        assert poisoned.perturbations is not None
        shape = tuple(poisoned.perturbations.shape[1:])
        # A stream of its own: test samples may have ids of training samples, and would have their noise.
        return test.perturbed(test.ids, self._draw(poisoned.seed, test.ids, "test", shape))

    def _draw(self, seed: int, ids: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
        deviation = np.float32(self.variance**0.5)
        # A stream for each id, so that a poison's noise does not depend on which others are drawn with it.
        # NumPy draws outside Python's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            noise = [*pool.map(partial(normal, seed, stream, shape=shape), ids.tolist())]
        return torch.from_numpy(np.stack(noise) * deviation).to(ids.device)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        forget = poisoned.forget
        base = Samples(forget.x, forget.y, forget.ids)  # without the perturbations
        directions = input_directions(model, task, base)
        noise = self._noise_by_chunk(poisoned.seed, base.ids, directions.shape[1])
        parts = [
            self._score(model, task, base[chunk], directions[chunk], partial(noise, chunk.start))
            for chunk in slices(len(base), self._chunk(directions.shape[1]))
        ]
        gus, fresh, at_poison, at_fresh = (
            torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True)
        )
        # From the attack's seed: all models break ties alike, and a second measurement gives the same.
        rng = np.random.default_rng(derive(poisoned.seed, "ties"))
        rank, ties = rank_scores(at_poison, at_fresh, rng)
        scores = {"gus": gus, "gus_fresh": fresh[:, 0], "rank": rank, "rank_ties": ties}
        figures = figures_of(scores, base.y.cpu().numpy(), fresh, self.fpr)
        return Effect(base.ids.cpu().numpy(), scores, figures)

    def _chunk(self, size: int) -> int:
        """Poisons whose fresh noise, of so many values each, is held at once."""
        return min(CHUNK, max(1, CHUNK_BYTES // (4 * size * (self.draws + 1))))

    def _noise_by_chunk(self, seed: int, ids: Tensor, size: int) -> Callable[..., Tensor]:
        """A function (first row, ids, shape) → noise [B, K + 1, *shape], the poison's own first.

        All models of a group are asked with the same noise, so it is kept from one to the next.
        """
        values = len(ids) * (self.draws + 1) * size
        chunks: dict[int, Tensor] | None = None
        if 4 * values <= KEPT * memory(ids.device):
            # With its class: another's noise may follow another law.
            law = type(self), self.model_dump_json()
            chunks = _kept((law, seed, tuple(ids.tolist()), size, ids.device))

        def noise(first: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
            if chunks is not None and first in chunks:
                return chunks[first].view(len(ids), -1, *shape)
            poison = self.noise(seed, ids, shape)[:, None]
            both = torch.cat([poison, self.fresh_noise(seed, ids, shape)], dim=1)
            if chunks is not None:
                chunks[first] = both
            return both

        return noise

    def _score(
        self,
        model: nn.Module,
        task: Task,
        base: Samples,
        directions: Tensor,
        noise_of: Callable[[Tensor, tuple[int, ...]], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """I [B], Ĩ [B, K], and the margin losses at the poison [B] and at fresh noise [B, K]."""
        inputs = task.exact().inputs(model, base).detach()  # [B, *shape]
        noise = noise_of(base.ids, tuple(inputs.shape[1:]))
        scores = gaussian_scores(directions, noise.flatten(2), self.variance**0.5)
        losses = _losses(model, task, base, inputs[:, None] + noise)
        return scores[:, 0], scores[:, 1:], losses[:, 0], losses[:, 1:]

    def passes(self, poisons: int, tests: int) -> float:
        return poisons * (self.draws + 1 + 3)  # ranks, and one forward and backward


@lru_cache(maxsize=1)
def _kept(group: tuple[Hashable, ...]) -> dict[int, Tensor]:
    """Noise by the first row of its chunk, of the group that was asked for last."""
    return {}


def figures_of(
    scores: Mapping[str, Floats], classes: NDArray[np.int64], fresh: Floats, fpr: float
) -> dict[str, float]:
    """Numbers for a row: dependence by each score, TPR at low FPR, counts of vanished gradients and ties.

    Scores are arrays [P] by name, of which a black box has no "gus"; `classes` are the poisons' labels [P],
    and `fresh` [P, K] the scores Ĩ of fresh noise.
    """
    figures: dict[str, float] = {}
    for name, dependence in dependences(scores, classes, fpr).items():
        figures |= dependence.columns(name)
    rates = {"tpr_rank": tpr_at_fpr_one_sided(scores["rank"], fpr)}
    if "gus" in scores:
        figures["gus"] = -figures["gus_dependence"]  # signed as the paper defines it
        figures["vanished"] = float(np.isnan(scores["gus"]).sum())
        rates["tpr"] = tpr_at_fpr(scores["gus"], fpr)
        rates["tpr_empirical"] = tpr_at_fpr_empirical(scores["gus"], fresh, fpr)
        rates["tpr_one_sided"] = tpr_at_fpr_one_sided(scores["gus"], fpr)
    for name, share in rates.items():
        low, high = _interval(share, figures[RATES[name][2]])
        figures |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return figures | {"ties": float((scores["rank_ties"] > 0).sum())}


def _interval(share: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval for a share of n; nan if n is 0.

    It is that of marshtest.metrics.binomial to 1e-12, found by a search: stored rows have its very bits.
    """
    if not n > 0:
        return math.nan, math.nan
    interval = binomtest(round(share * n), int(n)).proportion_ci()
    return float(interval.low), float(interval.high)


@torch.no_grad()
def _losses(model: nn.Module, task: Task, base: Samples, inputs: Tensor) -> Tensor:
    """[B, K] float64 margin losses of inputs [B, K, *shape], in eval mode."""
    model.eval()
    exact = task.exact()
    rows = torch.arange(len(base), device=inputs.device).repeat_interleave(inputs.shape[1])
    every = inputs.flatten(0, 1)

    def asked(part: slice) -> Tensor:
        batch = base[rows[part]]
        logits = exact.label_logits(exact.outputs(model, every[part], batch), batch)
        return margin_loss(logits, batch.y)

    losses = in_parts(asked, len(every), task.scoring_batch(base))
    return torch.cat([*losses]).view(inputs.shape[:2])
