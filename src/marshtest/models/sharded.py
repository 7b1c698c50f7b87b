"""Ensembles whose members are trained on shards of the data, each apart from the others (SISA)."""

import math
from typing import Any

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.answers import logits_in
from marshtest.models.base import ModelSettings
from marshtest.plumbing.errors import MarshtestError

SPREAD = 0x9E3779B1  # 2³² over the golden ratio: neighbouring ids land far apart, so no class fills a shard

SHARDED = "sharded"  # no recipe's name: it is how a file says what training.shards made


class Sharded(ModelSettings):
    """So many models of one kind, each for one shard; `training.shards` of a recipe asks for it."""

    name: str = SHARDED
    shards: int = Field(ge=2)
    of: SerializeAsAny[ModelSettings]

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Ensemble([self.of.build(input_shape, classes) for _ in range(self.shards)])

    def answer(self, model: nn.Module, input_shape: tuple[int, ...]) -> Any:
        first, *_ = members(model)
        return self.of.answer(first, input_shape)

    def fits(self, logits: tuple[int, ...], input_shape: tuple[int, ...], classes: int) -> bool:
        return self.of.fits(logits, input_shape, classes)


class Ensemble(nn.Module):
    """Members whose label distributions are averaged; the logits are the logarithms of the average."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        # In logarithms from end to end: an average of probabilities would lose what is below 1e-7.
        each = torch.stack([logits_in(member(x)).log_softmax(1) for member in self.members])
        return each.logsumexp(0) - math.log(len(self.members))


def members(model: nn.Module) -> list[nn.Module]:
    """The members of an ensemble.

    Raises:
        MarshtestError: the model is none.
    """
    if not isinstance(model, Ensemble):
        raise MarshtestError(
            "unlearners.sisa: needs a model that was trained in shards, and this one was not. Set "
            "training.shards, for example to 5."
        )
    return list(model.members)


def shards(samples: Samples, count: int) -> list[Samples]:
    """The samples of each of `count` shards; a sample's shard depends on its id alone."""
    which = (samples.ids * SPREAD % 2**32) * count // 2**32
    return [samples[which == shard] for shard in range(count)]
