"""How far a model has moved from the initial one, and whether that was the way to go (paper §6).

    v = θ_retrained − θ_initial     the way that unlearning has to go
    u = θ_updated − θ_initial       the way that an unlearner went

‖u‖ beside ‖v‖ says whether it went far enough (the paper's first hypothesis), cos(u, v) whether it went
there (the second). Between networks trained from different seeds most of v has nothing to do with the
poison: a second retrained model tells what distance and what cosine two seeds give, and is the null.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from marshtest.models import weight_layers

ALL = "all"  # the layer that is the whole model


class Shift(NamedTuple):
    """Of one layer: its parameters, ‖u‖ and ‖u − v‖ by two norms, and cos(u, v)."""

    layer: str
    parameters: int
    l1: float
    l2: float
    left_l1: float
    left_l2: float
    cosine: float


def shifts(model: nn.Module, initial: nn.Module, retrained: nn.Module) -> list[Shift]:
    """The whole model's shift, and each weight layer's, norm layers going with the layer before them.

    Buffers, such as BatchNorm's statistics, do not count. The cosine is nan where nothing moved. Empty
    for a model whose parameters have other names or shapes than the initial one's.
    """
    start, goal, end = (dict(m.named_parameters()) for m in (initial, retrained, model))
    if {n: p.shape for n, p in end.items()} != {n: p.shape for n, p in start.items()}:
        return []
    return [
        _shift(layer, *(_flat([of[name] for name in names]) for of in (start, goal, end)))
        for layer, names in _layers(initial).items()
    ]


@torch.no_grad()
def _shift(layer: str, start: Tensor, goal: Tensor, end: Tensor) -> Shift:
    way, left, needed = end - start, end - goal, goal - start
    cosine = float(way @ needed / (way.norm() * needed.norm()))
    return Shift(
        layer,
        len(way),
        l1=float(way.norm(1)),
        l2=float(way.norm()),
        left_l1=float(left.norm(1)),
        left_l2=float(left.norm()),
        cosine=cosine,
    )


def _layers(model: nn.Module) -> dict[str, list[str]]:
    """Parameter names by layer."""
    modules = {module: name for name, module in model.named_modules()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {ALL: list(names.values())}
    for layer in weight_layers(model):
        own = [p for module in layer for p in module.parameters(recurse=False)]
        found[modules[layer[0]] or type(model).__name__] = [names[p] for p in own]
    return found


def _flat(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters]).double()
