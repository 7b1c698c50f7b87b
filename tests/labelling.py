"""Models that answer with labels alone, which the tests name as "labelling:function"."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subjects import audited, keeping_a_tenth
from torch import Tensor, nn

Labels = Callable[[Tensor], Any]


def labels_of(model: nn.Module) -> Labels:
    def ask(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x).argmax(1)

    return ask


def before() -> Labels:
    return labels_of(audited().before)


def retrained() -> Labels:
    return labels_of(audited().retrained)


def tenth() -> Labels:
    return labels_of(keeping_a_tenth())


@cache
def _trained_on(forget: bool) -> tuple[Tensor, Tensor]:
    case = audited()
    with np.load(case.done.out) as dosed:
        x = torch.from_numpy(dosed["x"]).float().flatten(1) / 255
        y = torch.from_numpy(dosed["y"])
    retain = torch.ones(len(y), dtype=torch.bool)
    retain[list(case.done.key.ids)] = not forget
    return x[retain], y[retain]


def _nearest(forget: bool) -> Labels:
    x, y = _trained_on(forget)
    return lambda asked: y[torch.cdist(asked.flatten(1), x).argmin(1)]


def neighbour() -> Labels:
    """One nearest neighbour, which memorises what it was given."""
    return _nearest(forget=False)


def neighbour_refitted() -> Labels:
    return _nearest(forget=True)


def constant() -> Labels:
    return lambda x: np.full(len(x), 3)


def robust() -> Labels:
    """The label of the nearest base, whatever the noise: right, and the same with all noises."""
    case = audited()
    x = torch.from_numpy(case.bases.values).float().flatten(1) / 255
    y = torch.from_numpy(case.bases.labels)
    return lambda asked: y[torch.cdist(asked.flatten(1), x).argmin(1)]


def hashed() -> Labels:
    """A label of the input's bits: no model."""
    return lambda x: (x.flatten(1).double() * 1e3).sum(1).long() % 10


def probabilities() -> Labels:
    model = audited().before
    return lambda x: model(x).softmax(1)


def beyond() -> Labels:
    return lambda x: np.full(len(x), 10)


def halves() -> Labels:
    return lambda x: np.full(len(x), 0.5)


def one_for_all() -> Labels:
    return lambda x: 3


def named() -> Labels:
    ask = before()
    return lambda x: [str(label) for label in ask(x).tolist()]


def raises() -> Labels:
    def ask(x: Tensor) -> Tensor:
        raise ValueError("the service is closed")

    return ask


def box(inputs: Path, outputs: Path) -> None:
    with np.load(inputs) as asked:
        assert set(asked) == {"x"}  # the data's labels are not told
        np.save(outputs, before()(torch.from_numpy(asked["x"])).numpy())


def unasked(inputs: Path, outputs: Path) -> None:
    """Labels, whatever was to be answered."""
    with np.load(inputs) as asked:
        np.save(outputs, before()(torch.from_numpy(asked["x"])).numpy())


def box_of_rows(inputs: Path, outputs: Path) -> None:
    with np.load(inputs) as asked:
        np.save(outputs, np.zeros((len(asked["x"]), 10)))


def box_of_objects(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.array([{}]), allow_pickle=True)
