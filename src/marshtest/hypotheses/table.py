"""The hypotheses, by the name that a YAML file gives them."""

from collections.abc import Mapping
from typing import Any

from marshtest.hypotheses.orthogonality import Orthogonality
from marshtest.hypotheses.shift import Shift
from marshtest.plumbing.errors import MarshtestError, unknown

HYPOTHESES: dict[str, type[Shift] | type[Orthogonality]] = {
    "shift": Shift,
    "orthogonality": Orthogonality,
}


def parse_hypothesis(values: Mapping[str, Any], where: str = "") -> Shift | Orthogonality:
    """The settings of the hypothesis that `values` name.

    Raises:
        MarshtestError: anything wrong with them, in one line.
    """
    kind = values.get("hypothesis")
    if kind not in HYPOTHESES:
        raise MarshtestError(f"hypothesis: {unknown('hypothesis', str(kind), HYPOTHESES)}")
    return HYPOTHESES[kind].parse(values, where)
