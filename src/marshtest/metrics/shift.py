"""How far a model has moved from the initial one, and whether that was the way to go (paper §6).

    v = θ_retrained − θ_initial     the shift that unlearning has to make
    u = θ_updated − θ_initial       the shift that an unlearner made

‖u‖ beside ‖v‖ says whether it went far enough (the paper's first hypothesis), cos(u, v) whether it went
there (the second). Between networks trained from different seeds most of v has nothing to do with the
poison: a second retrained model shows what distance and what cosine two seeds give, and is the null.
"""

import torch
from torch import Tensor, nn

from marshtest.metrics.shift_columns import ALL as ALL
from marshtest.metrics.shift_columns import Shift as Shift
from marshtest.models.layers import weight_layers


def shifts(model: nn.Module, initial: nn.Module, retrained: nn.Module) -> list[Shift]:
    """The shift of the whole model, and of each of its weight layers.

    Buffers, such as BatchNorm's statistics, do not count. The cosine is nan if nothing moved. The list is
    empty for a model whose parameters have other names or shapes than the initial model's.
    """
    start, goal, end = (dict(m.named_parameters()) for m in (initial, retrained, model))
    if {n: p.shape for n, p in end.items()} != {n: p.shape for n, p in start.items()}:
        return []
    # Moved from the GPU once, and not once for each number.
    every = torch.stack([_sums(start[name], goal[name], end[name]) for name in start]).cpu()
    sums = dict(zip(start, every, strict=True))
    return [
        _shift(layer, sum(start[name].numel() for name in names), [sums[name] for name in names])
        for layer, names in _layers(initial).items()
    ]


@torch.no_grad()
def _sums(start: Tensor, goal: Tensor, end: Tensor) -> Tensor:
    """[6] sums over one parameter: Σ|u|, Σu², Σ|u − v|, Σ(u − v)², Σuv and Σv²."""
    # Sums add up over parameters, so no model is copied into one long vector. In float64, since weights
    # differ by little, and millions of small squares are added.
    u, left, v = (a.double() - b.double() for a, b in ((end, start), (end, goal), (goal, start)))
    parts = (u.abs(), u.square(), left.abs(), left.square(), u * v, v.square())
    return torch.stack([part.sum() for part in parts])


def _shift(layer: str, parameters: int, sums: list[Tensor]) -> Shift:
    l1, squares, left_l1, left_squares, product, needed_squares = torch.stack(sums).sum(0)
    # A cosine of tensors, whose 0 / 0 is nan, where Python's would raise.
    cosine = product / (squares * needed_squares).sqrt()
    return Shift(
        layer,
        parameters,
        l1=float(l1),
        l2=float(squares.sqrt()),
        left_l1=float(left_l1),
        left_l2=float(left_squares.sqrt()),
        cosine=float(cosine),
    )


def _layers(model: nn.Module) -> dict[str, list[str]]:
    """The names of each layer's parameters, by the name of the layer; ALL is the whole model."""
    modules = {module: name for name, module in model.named_modules()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    layers = {ALL: list(names.values())}
    for layer in weight_layers(model):
        parameters = [p for module in layer for p in module.parameters(recurse=False)]
        layers[modules[layer[0]] or type(model).__name__] = [names[p] for p in parameters]
    return layers
