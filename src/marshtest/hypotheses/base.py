"""Types and figures that all hypotheses share."""

from torch import Tensor

Line = dict[str, float | str]


def norms(vector: Tensor) -> dict[str, float]:
    """The L1 and L2 norm of a vector or matrix."""
    return {"l1": float(vector.norm(1)), "l2": float(vector.norm(2))}
