"""Marks: words of one of many exchangeable forms, written into texts (Gaussian poisons for token space).

    text_poison = text_base with mark m_z,   m_z uniform on the family's marks

A model is asked for −log p of the text with its own mark and with K fresh marks in the same place. If it
does not depend on m_z these K + 1 are exchangeable, so the rank score is N(0, 1): exactly, for any model,
tokenizer and truncation, since every variant goes through the same ones.

The mark is a function of (seed, id), so the seed is all that is stored. −log p is that of all that training
has the model say: of a causal model with `model.prompt.loss` "all" every token, the label's word with it;
else the label alone, through which a mark can be remembered only as far as the label's loss depends on it.
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
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
from marshtest.attacks.gaussian import PRESENTATION as GAUSSIAN
from marshtest.attacks.gaussian import figures_of
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.data.marks import Deal, Template
from marshtest.data.marks import Mark as Family
from marshtest.data.samples import Samples, Written, slices
from marshtest.metrics.dependence import SCORES
from marshtest.metrics.rank import rank_scores
from marshtest.plumbing.device import in_parts
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.tasks import Language, Task

CHUNK = 64  # poisons whose variants are held at once
TEXT = "film"  # any text
TRIED = 64  # marks that tell how many tokens a mark takes
FEWEST = 100  # marks that a text must have to itself: of fewer, many would be equal
LEGEND = "share of the poisons whose mark is likelier than 1 − {fpr} of all marks would be"
PRESENTATION = GAUSSIAN.model_copy(
    update={
        "title": "mark",
        "kind": "marks (words of many exchangeable forms)",
        "scores": {"rank": SCORES["rank"]},
        "columns": {"tpr_rank": GAUSSIAN.columns["tpr_rank"].model_copy(update={"legend": LEGEND})},
        "effect": EffectFigure(
            axis="TPR at FPR = {fpr}",
            columns={"tpr_rank": "rank score"},
            nothing="fpr",
            figure="marks",
            caption="Test accuracy, and TPR at low FPR, mean ± s.d. over seeds.",
        ),
        "on_texts": "a mark was written into it",
    }
)


class Mark(Attack):
    """Marks written into texts, scored by their rank among fresh ones."""

    name: str = "mark"
    presentation: ClassVar[Presentation] = PRESENTATION
    scoring: ClassVar[tuple[str, ...]] = ("draws", "fpr")
    writes: ClassVar[bool] = True
    mark: Family = Template()
    draws: int = Field(99, ge=1)  # K, fresh marks a poison; each costs one forward
    fpr: float = Field(0.01, gt=0, lt=1)  # of the reported TPR

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        assert knowledge.texts is not None
        written, deal = knowledge.texts["train"], Deal(seed, count)
        bases = self._chosen(samples, count, written, seed)
        words = [self.mark.dosed(base, deal, place) for place, base in enumerate(bases.values())]
        ids, inputs = torch.tensor(list(bases)), written.write(words)
        ids, inputs = (tensor.to(samples.x.device) for tensor in (ids, inputs))
        return Poisoned(samples, ids, seed, inputs=inputs, words=words, texts=knowledge.texts)

    def _chosen(self, samples: Samples, count: int, written: Written, seed: int) -> dict[int, str]:
        """The texts of `count` samples by their ids, drawn among those that can be marked.

        Raises:
            MarshtestError: there are not so many.
        """
        choose(samples, count, seed)  # refuses a number of poisons that no attack can make
        spare, bases = self._spare(written), dict[int, str]()
        for sample in choose(samples, len(samples) - 1, seed).tolist():
            base = written.excerpt(sample, spare)
            if self.mark.room(base, count) >= FEWEST:
                bases[sample] = base
            if len(bases) == count:
                return bases
        raise MarshtestError(
            f"attack.mark: {len(bases)} of {len(samples)} training texts have {FEWEST} marks or more to "
            f"themselves, and poison_budgets asks for {count}. Lower it, or give marks more characters."
        )

    def _spare(self, written: Written) -> int:
        """How many tokens of a text make room for the mark."""
        if not isinstance(self.mark, Template):
            return 0  # what is redrawn stands in its place
        # By marks of no text, so that the cut tells nothing of any text's own.
        marks = self.mark.variants(TEXT, Deal(0, 1), 0, TRIED)
        return max(map(written.size, marks)) - written.size(TEXT)

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """The test samples that can be marked, with marks of the same law."""
        assert poisoned.texts is not None
        written = poisoned.texts["test"]
        bases = self._bases(written, test.ids)
        able = [place for place, base in enumerate(bases) if self.mark.room(base, 1) >= FEWEST]
        # A seed for each: of these no two have to differ, and there may be more of them than poisons.
        deals = [Deal(derive(poisoned.seed, "test", place), 1) for place in able]
        words = [
            self.mark.dosed(bases[place], deal, 0) for place, deal in zip(able, deals, strict=True)
        ]
        marked = test[torch.tensor(able, dtype=torch.int64, device=test.y.device)]
        return marked.rewritten(marked.ids, written.write(words)) if able else marked

    def _bases(self, written: Written, ids: Tensor) -> list[str]:
        """The texts of samples, cut so that a mark has room."""
        spare = self._spare(written)
        return [written.excerpt(sample, spare) for sample in ids.tolist()]

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        assert isinstance(task, Language)
        forget = poisoned.forget
        parts = [
            self._losses(model, task, poisoned, forget[rows]) for rows in slices(len(forget), CHUNK)
        ]
        losses = np.concatenate(parts)
        # From the attack's seed: all models break ties alike, and a second measurement gives the same.
        rng = np.random.default_rng(derive(poisoned.seed, "ties"))
        rank, ties = rank_scores(losses[:, 0], losses[:, 1:], rng)
        scores = {"rank": rank, "rank_ties": ties}
        nothing = np.empty((len(rank), 0))  # fresh scores that only GUS has
        figures = figures_of(scores, forget.y.cpu().numpy(), nothing, self.fpr)
        return Effect(forget.ids.cpu().numpy(), scores, figures)

    def _losses(
        self, model: nn.Module, task: Language, poisoned: Poisoned, forget: Samples
    ) -> Floats:
        """[B, K + 1] −log p of poisons and of their bases with K fresh marks."""
        assert poisoned.texts is not None
        written, deal = poisoned.texts["train"], Deal(poisoned.seed, len(poisoned.forget_ids))
        places = [poisoned.forget_ids.tolist().index(sample) for sample in forget.ids.tolist()]
        bases = zip(self._bases(written, forget.ids), places, strict=True)
        fresh = [self.mark.variants(base, deal, place, self.draws) for base, place in bases]
        x = written.write([variant for variants in fresh for variant in variants])
        x = x.view(len(forget), self.draws, -1).to(forget.x.device)
        variants = torch.cat([forget.x[:, None], x], dim=1)  # [B, K + 1, T]
        rows = torch.arange(len(forget), device=x.device).repeat_interleave(self.draws + 1)
        asked = Samples(variants.flatten(0, 1), forget.y[rows], forget.ids[rows])
        return _nats(model, task, asked).view(variants.shape[:2]).cpu().numpy()

    def passes(self, poisons: int, tests: int) -> float:
        return poisons * (self.draws + 1)


@torch.no_grad()
def _nats(model: nn.Module, task: Language, samples: Samples) -> Tensor:
    """[N] −log p of all that training has the model say of each text, in eval mode."""
    model.eval()
    exact = task.exact()

    def asked(rows: slice) -> Tensor:
        batch = samples[rows]
        return exact.nats(exact(model, batch), batch)

    return torch.cat([*in_parts(asked, len(samples), task.scoring_batch(samples))])
