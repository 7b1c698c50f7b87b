"""What the hypotheses share."""

from collections.abc import Callable

from torch import Tensor

Told = Callable[..., None]  # told the stage and, as `done`, the share of the run
Line = dict[str, float | str]
ALPHA = 0.05  # level of the tests behind a statement


def norms(vector: Tensor) -> dict[str, float]:
    """Two of them."""
    return {"l1": float(vector.norm(1)), "l2": float(vector.norm(2))}


def answer(holds: float, fails: float) -> str:
    """In words, from the p values of the tests that it does not hold, and that it does not fail."""
    if holds < ALPHA:
        return "holds"
    return "does not hold" if fails < ALPHA else "is not settled"
