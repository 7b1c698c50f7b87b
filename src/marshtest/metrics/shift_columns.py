"""The columns of shifts.parquet, without torch; marshtest.metrics.shift measures them."""

from typing import NamedTuple

ALL = "all"  # the layer that is the whole model


class Shift(NamedTuple):
    """The shift of one layer: its number of parameters, ‖u‖ and ‖u − v‖ in two norms, and cos(u, v)."""

    layer: str
    parameters: int
    l1: float
    l2: float
    left_l1: float
    left_l2: float
    cosine: float
