"""What the hypotheses share."""

from torch import Tensor

Line = dict[str, float | str]


def norms(vector: Tensor) -> dict[str, float]:
    """Two of them."""
    return {"l1": float(vector.norm(1)), "l2": float(vector.norm(2))}
