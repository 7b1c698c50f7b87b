"""The poisons that were asked for, the sets that an unlearner gets, and what is left of each part."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from marshtest.attacks import Effect, Poisoned
from marshtest.attacks.presentation import Presentation
from marshtest.data.samples import Samples
from marshtest.experiment.requests import Request
from marshtest.experiment.roles import CLEAN, Role
from marshtest.metrics.dependence import dependence
from marshtest.plumbing.seeds import generator

ASKED, UNASKED = "asked_", "unasked_"  # how the columns of what is left of either part begin


@dataclass(frozen=True)
class Asked:
    """What a request has to do with the poisons of a group, in both arms the same.

    Attributes:
        poisoned: the training set with the poisons in it.
        request: what is asked for.
        seed: fixes which poisons are asked for first.
    """

    poisoned: Poisoned
    request: Request
    seed: int

    @property
    def ids(self) -> Tensor:
        """The ids of the poisons that have been asked for, in the poisons' order."""
        return self._first(self.request)

    @property
    def new_ids(self) -> Tensor:
        """The ids of the poisons that this request is about; earlier ones asked for others."""
        before = self._first(self.request.before)
        return self.ids[~torch.isin(self.ids, before)]

    def retain(self, role: Role) -> Samples:
        """The samples that have not been asked for; the unknown poisons are among them, or their bases.

        Args:
            role: of the model that is asked to unlearn, or is trained.
        """
        if self.request.whole:
            return self.poisoned.retain
        samples = _clean_samples(self.poisoned) if role in CLEAN else self.poisoned.samples
        return samples.without(self.ids)

    def forget(self, role: Role) -> Samples:
        """The samples that this request is about; of the clean twin their bases."""
        poisoned = self.poisoned
        forget = poisoned.forgotten_bases if role in CLEAN else poisoned.forget
        return forget.only(self.new_ids)

    def _first(self, request: Request) -> Tensor:
        ids = self.poisoned.forget_ids
        # Drawn on the CPU, so that all devices ask for the same; a larger share holds a smaller one.
        order = torch.randperm(len(ids), generator=generator(self.seed, "requests"))
        first = order[: request.count(len(ids))].sort().values
        return ids[first.to(ids.device)]

    def columns(self, shown: Presentation, effect: Effect) -> dict[str, float]:
        """The columns of what is left of the poisons asked for and of the others.

        Empty where all have been asked for, and where the effect is no poison's own but on test data.
        """
        poisoned = self.poisoned
        every = poisoned.forget_ids.cpu().numpy()
        own = poisoned.targets is None and np.array_equal(np.sort(effect.ids), np.sort(every))
        if self.request.whole or not own:
            return {}
        asked = np.isin(effect.ids, self.ids.cpu().numpy())
        labels = poisoned.samples.y[poisoned.samples.positions(torch.from_numpy(effect.ids))]
        classes = labels.cpu().numpy()
        columns: dict[str, float] = {}
        for before, part in ((ASKED, asked), (UNASKED, ~asked)):
            columns |= _of_part(shown, effect.scores, classes, part, before)
        return columns


def _of_part(
    shown: Presentation,
    scores: Mapping[str, NDArray[np.float64]],
    classes: NDArray[np.int64],
    part: NDArray[np.bool_],
    before: str,
) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in shown.null_scores:
        if name in scores:
            ties = scores.get(f"{name}_ties")
            of_part = 0.0 if ties is None else ties[part]
            left = dependence(scores[name][part], classes[part], fpr=float(shown.fpr), ties=of_part)
            columns |= left.columns(f"{before}{name}")
    for name, column in shown.reference_columns.items():
        if name in scores:
            defined = scores[name][part & ~np.isnan(scores[name])]
            columns[f"{before}{column}"] = float(defined.mean()) if len(defined) else math.nan
    return columns


def _clean_samples(poisoned: Poisoned) -> Samples:
    """The clean twin's training samples, with perturbations of zero where poisons have any.

    A method then meets samples of one kind in both arms; texts with perturbations are sealed.
    """
    samples, perturbations = poisoned.unpoisoned, poisoned.perturbations
    if perturbations is None:
        return samples
    return samples.perturbed(poisoned.forget_ids, torch.zeros_like(perturbations))
