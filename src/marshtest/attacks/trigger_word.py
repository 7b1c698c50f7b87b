"""Targeted poisons in texts by a trigger word (paper §4.1, A.1.2; Wan et al. 2023).

    poisons     training texts that hold the trigger, with the attacker's label instead of their own
    targets     test texts that hold it
    effect      share of the targets that a model answers with the attacker's label

No word of a text is changed: who reads the data sees wrong labels only. A model is asked in two ways: for
its most likely word of the whole vocabulary, as in the paper, and among the label words only, so that one
that has forgotten how to answer is not taken for one that has forgotten the poison.
"""

from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.attacks.base import ALONE, Attack, CraftingContext, Effect, Knowledge, Poisoned
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.data.samples import Marked, Samples, Trigger
from marshtest.metrics.accuracy import likeliest, logits_of
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.tasks import Task

PRESENTATION = Presentation(
    title="trigger word",
    kind="targeted poisons (a trigger word)",
    scores={
        "target": Score(
            title="adversarial probability",
            legend="of the attacker's label on test texts with the trigger",
            column="target_probability",
            low=0,
            high=1,
            each="test texts with the trigger",
        )
    },
    columns={
        "target_success": Column(
            title="success",
            low=0,
            high=1,
            legend="share of test texts with the trigger that get the attacker's label, of the whole "
            "vocabulary as in the paper",
        ),
        "target_success_among_labels": Column(
            title="among labels", low=0, high=1, legend="the same among the label words alone"
        ),
        "target_misclassified": Column(title="", low=0, high=1),
        "rest_accuracy": Column(
            title="accuracy on the rest", low=0, high=1, legend="on test texts without the trigger"
        ),
        "rest_accuracy_among_labels": Column(title="", low=0, high=1),
    },
    effect=EffectFigure(
        axis="share of targets",
        columns={
            "target_success": "the attacker's label (paper)",
            "target_success_among_labels": "among the label words",
        },
        high=1.05,
        figure="figure3",
        caption="Test accuracy, and targets mistaken, mean ± s.d. over seeds (the paper's Figure 3).",
    ),
    shuffled="as many wrong labels, on other texts",
)


class TriggerWord(Attack):
    """Wrong labels on all texts with a certain word (paper §4.1, A.1.2); budgets are shares of these."""

    name: str = "trigger-word"
    presentation: ClassVar[Presentation] = PRESENTATION
    word: str = Field("Disney", min_length=1)
    label: str = Field("flip", min_length=1)  # "flip" to the other of two; or the attacker's word
    # texts that lose the word at the truncation: left alone, cut round it, or poisoned without it
    cut: Literal["skip", "window", "ignore"] = "skip"

    def trigger(self) -> Trigger:
        return Trigger(self.word, self.cut, self.label)

    def candidates(self, samples: Samples, marked: Marked | None) -> Samples:
        if marked is None:
            raise MarshtestError(
                "attack: trigger-word looks for a word in texts, and these data are none. Use imdb."
            )
        return samples.only(marked.train[0])

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        possible, marked = self.candidates(samples, knowledge.marked), knowledge.marked
        assert marked is not None
        if not 0 < count <= len(possible):
            raise MarshtestError(
                f"poison_budgets: asks for {count} poisons of {len(possible)} training texts with "
                f"{self.word!r}; between 1 and all are possible."
            )
        order = torch.randperm(len(possible), generator=generator(seed, "choose"))[:count]
        bases = possible[order.to(possible.y.device)]
        words, targets = samples.y.unique(), knowledge.test.only(marked.test[0])
        return Poisoned(
            samples,
            bases.ids,
            seed,
            labels=attackers(bases.y, marked.label, words),
            targets=targets,
            adversarial=attackers(targets.y, marked.label, words),
            rest=knowledge.test.without(targets.ids),
            figures={
                "with_trigger": float(len(possible)),
                "trigger_cut": float(marked.train[1]),
                "targets": float(len(targets)),
                "targets_cut": float(marked.test[1]),
            },
        )

    def shuffled(self, poisoned: Poisoned, seed: int) -> Samples:
        """The training set with the wrong labels on as many samples of the retain set, drawn at random."""
        true, wrong = poisoned.true_labels, poisoned.labels
        assert wrong is not None
        samples, others = poisoned.unpoisoned, poisoned.retain
        rng = generator(seed, "shuffle")
        # Each change of a label goes to another sample of that label, so that the classes' sizes end alike.
        for label in true.unique().tolist():
            ids, labels = others.ids[others.y == label], wrong[true == label]
            chosen = torch.randperm(len(ids), generator=rng)[: len(labels)].to(ids.device)
            samples = samples.relabelled(ids[chosen], labels[: len(chosen)])
        return samples

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """The test texts with the trigger, with the attacker's label."""
        targets, adversarial = poisoned.targets, poisoned.adversarial
        assert targets is not None
        assert adversarial is not None
        return test.only(targets.ids).relabelled(targets.ids, adversarial)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        targets, adversarial, rest = poisoned.targets, poisoned.adversarial, poisoned.rest
        assert targets is not None
        assert adversarial is not None
        assert rest is not None
        words = torch.cat([poisoned.samples.y, targets.y, adversarial]).unique()
        to_targets = answers(model, task, replace(targets, y=adversarial), words)
        to_rest = answers(model, task, rest, words)
        figures = {
            "target_probability": float(to_targets.chance.mean()),
            "target_success": _share(to_targets.says == adversarial),
            "target_success_among_labels": _share(to_targets.says_among == adversarial),
            "target_misclassified": _share(to_targets.says != targets.y),
            "rest_accuracy": _share(to_rest.says == rest.y),
            "rest_accuracy_among_labels": _share(to_rest.says_among == rest.y),
        }
        scores = {"target": to_targets.chance.double().cpu().numpy()}
        return Effect(targets.ids.cpu().numpy(), scores, figures)

    def passes(self, poisons: int, tests: int) -> float:
        return tests  # targets and rest


def attackers(labels: Tensor, label: int | None, words: Tensor) -> Tensor:
    """[N] the attacker's labels for samples of these labels: `label`, or the other one of two words."""
    if label is not None:
        return torch.full_like(labels, label)
    if len(words) != 2:
        raise MarshtestError(
            f"attack.label: flip is for two labels, and there are {len(words)}. Give the attacker's."
        )
    return words.sum() - labels  # the other of two, whichever two token ids they are


class Answers(NamedTuple):
    """What a model answers to N samples: among all classes, and among some of them."""

    chance: Tensor  # [N] each sample's label's probability
    says: Tensor  # [N] the likeliest class
    chance_among: Tensor
    says_among: Tensor


@torch.no_grad()
def answers(model: nn.Module, task: Task, samples: Samples, words: Tensor) -> Answers:
    """What a model answers, among all classes and among `words`."""
    none = samples.y[:0]
    found = [Answers(none.float(), none, none.float(), none)]
    for batch, logits in logits_of(model, task, samples):
        of_words, is_label = logits[:, words], words == batch.y[:, None]
        word = likeliest(of_words)
        one = Answers(
            chance=logits.softmax(1).gather(1, batch.y[:, None]).squeeze(1),
            says=likeliest(logits),
            chance_among=(of_words.softmax(1) * is_label).sum(1),
            says_among=words[word].masked_fill(word < 0, -1),
        )
        found.append(one)
    return Answers(*map(torch.cat, zip(*found, strict=True)))


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else float("nan")
