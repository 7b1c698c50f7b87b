"""What a user brings: an attack, a metric, a data set and an unlearner, in a module outside the package."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from scipy.stats import rankdata
from torch import nn

from marshtest.attacks import Attack, CraftingContext, Effect, Knowledge, Poisoned
from marshtest.attacks.base import ALONE, choose
from marshtest.attacks.presentation import Presentation
from marshtest.data.samples import Dataset, Samples
from marshtest.metrics.accuracy import probabilities
from marshtest.metrics.base import Metric, Question
from marshtest.metrics.presentation import Column, Score
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task


class LabelFlipping(Attack):
    """Wrong labels on samples drawn at random, the class a few places further on."""

    name: str = "label-flipping"
    places: int = Field(1, ge=1)
    presentation: ClassVar[Presentation] = Presentation(
        title="label flipping",
        kind="flipped labels ({places} places on)",
        scores={
            "flip": Score(title="flipped probability", column="flip_probability", low=0, high=1)
        },
        columns={"flip_success": Column(title="flip success", low=0, high=1)},
    )

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        ids = choose(samples, count, seed)
        y = samples.y[samples.positions(ids)]
        flipped = (y + self.places) % (int(samples.y.max()) + 1)
        return Poisoned(samples, ids, seed, labels=flipped)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        forget = poisoned.forget
        p = probabilities(model, task, forget).double()
        flipped = p.gather(1, forget.y[:, None]).squeeze(1).cpu().numpy()
        success = float((p.argmax(1) == forget.y).double().mean())
        figures = {"flip_probability": float(flipped.mean()), "flip_success": success}
        return Effect(forget.ids.cpu().numpy(), {"flip": flipped}, figures)


class LossAUC(Metric):
    """How well a sample's loss tells the forget set from test samples (Yeom et al. 2018)."""

    name: str = "loss-auc"
    power: float = 1.0  # of the loss; any gives the same ranks
    columns: ClassVar[Mapping[str, Column]] = {
        "loss_auc": Column(
            title="loss AUC", low=0, high=1, legend="0.5 where losses tell nothing of membership"
        )
    }

    @torch.no_grad()
    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        model.eval()
        members, others = (
            question.task.loss(model, samples) ** self.power
            for samples in (question.forget, question.test)
        )
        ranks = rankdata(torch.cat([members, others]).cpu().numpy())
        lowest = len(members) * (len(members) + 1) / 2
        return {
            "loss_auc": 1 - (ranks[: len(members)].sum() - lowest) / (len(members) * len(others))
        }


def blobs(classes: int = 3, spread: float = 1.0) -> Dataset:
    """Gaussian blobs in eight dimensions."""
    centres = 2 * torch.randn(classes, 8)
    y = torch.arange(300) % classes
    x = centres[y] + spread * torch.randn(300, 8)
    return Dataset.from_tensors((x[:200], y[:200]), (x[200:], y[200:]), classes=classes)


def fine_tuned(
    model: nn.Module,
    retain: Samples,
    forget: Samples,
    *,
    task: Task,
    budget: Budget,
    seed: int,
    lr: float = 0.05,
) -> nn.Module:
    """A model trained on, on the retain set alone."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    for batch in budget.stream(task.batches(retain, 32, seed)):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()
    return model


RECIPE: dict[str, Any] = {
    "name": "homemade",
    "data": {"name": "homemade:blobs", "spread": 1.5},
    "model": {"name": "mlp", "width": 16},
    "training": {"epochs": 20, "batch_size": 32, "lr": 0.1},
    "attack": {"name": "homemade:LabelFlipping", "places": 2},
    "metrics": ["homemade:LossAUC"],
    "poison_budgets": 0.2,
    "unlearners": [{"name": "homemade:fine_tuned", "lr": 0.02}],
    "budgets": 0.5,
    "seeds": 2,
}
