"""Label flips: random wrong labels on a share of the training samples.

    poisons     samples drawn uniformly, each with a label drawn uniformly from all but its own
    effect      share of the poisons that a model answers with the wrong label; verdicts rest on the mean
                probability of that label, less the clean twin's

A network that fits its training set learns them by heart; one that never saw them answers rightly. The test
error, which they raise, is in every row: 1 − `test_accuracy`, and 1 − `twin_test_accuracy` of the twin.

| known | Zhang et al. 2017 (arXiv 1611.03530) | repository of Goel et al. 2022, `noise` | here |
| --- | --- | --- | --- |
| poisons | each sample with probability p | as many of each class | the budget's number, drawn |
| label | uniform, its own too | as many to each other class | uniform among the other classes |

What is guessed: no paper is followed. The true label is left out, since it would be no poison.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Knowledge,
    Poisoned,
    choose,
    refuse_emptied,
)
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.attacks.trigger_word import answers
from marshtest.data.samples import Samples
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.tasks import Task

PRESENTATION = Presentation(
    title="label flips",
    kind="flipped labels (drawn at random)",
    scores={
        "flip": Score(
            title="wrong label's probability",
            legend="of the wrong label on the poisons",
            column="flip_probability",
            low=0,
            high=1,
        )
    },
    columns={
        "flip_success": Column(
            title="kept",
            low=0,
            high=1,
            legend="share of the poisons that get the wrong label that they were trained on",
        ),
        "flip_restored": Column(
            title="restored",
            low=0,
            high=1,
            legend="share of the poisons that get their true label",
        ),
    },
    effect=EffectFigure(
        axis="share of poisons",
        columns={"flip_success": "the wrong label", "flip_restored": "the true label"},
        high=1.05,
        figure="flips",
        caption="Test accuracy, and what a model answers on the poisons, mean ± s.d. over seeds.",
    ),
)


class LabelFlip(Attack):
    """Random wrong labels on random training samples."""

    name: str = "label-flip"
    presentation: ClassVar[Presentation] = PRESENTATION

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        ids = choose(samples, count, seed)
        refuse_emptied(samples, ids)
        true = samples.y[samples.positions(ids)]
        return Poisoned(samples, ids, seed, labels=flipped(true, samples.y.unique(), seed))

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """The test samples, each with another label drawn at random."""
        labels = poisoned.clean.y.unique()
        return test.relabelled(test.ids, flipped(test.y, labels, derive(poisoned.seed, "fresh")))

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        forget = poisoned.forget
        # Among the labels: a language model that forgot how to answer has not forgotten the flips.
        given = answers(model, task, forget, poisoned.clean.y.unique())
        true = poisoned.clean.y[poisoned.clean.positions(forget.ids)]
        probability, says = given.chance_among.double(), given.says_among
        figures = {
            "flip_probability": float(probability.mean()),
            "flip_success": float((says == forget.y).double().mean()),
            "flip_restored": float((says == true).double().mean()),
        }
        return Effect(forget.ids.cpu().numpy(), {"flip": probability.cpu().numpy()}, figures)


def flipped(y: Tensor, labels: Tensor, seed: int) -> Tensor:
    """[N] for each label of y [N] another one, drawn uniformly from the sorted `labels`."""
    # Drawn on the CPU, so that all devices flip alike.
    rng, strange = generator(seed, "flip"), ~torch.isin(y, labels)
    steps = torch.randint(1, len(labels), y.shape, generator=rng).to(y.device)
    if strange.any():  # a label of test samples alone, from which every other one is as far
        anew = torch.randint(len(labels), (int(strange.sum()),), generator=rng)
        steps[strange] = anew.to(y.device)
    return labels[(torch.searchsorted(labels, y) + steps) % len(labels)]
