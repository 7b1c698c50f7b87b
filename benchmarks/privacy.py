"""Bounds on ε of mechanisms whose ε is known: python benchmarks/privacy.py [--repeats 1000]

A mechanism has m = 1,000 coins of K + 1 = 200 candidates each. *Gaussian*: it releases all candidates as
N(0, 1), the chosen ones moved by μ/√2, so that a replacement moves its output by μ. *Randomised response*:
it releases one candidate of each coin, the chosen one e^ε times as probably as any other. An audit sees the
releases as losses.

Means and counts go to docs/reproduce/privacy/bounds.csv, and from there into docs/mathematics.md.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.kit.measure import advantages
from marshtest.kit.privacy import Bounds, bounds, reconstruction
from marshtest.metrics.f_dp import epsilon_of_gaussian

ROWS = Path(__file__).parents[1] / "docs" / "reproduce" / "privacy" / "bounds.csv"
COINS, CANDIDATES = 1000, 200
DELTA, CONFIDENCE = 1e-5, 0.95
Floats = NDArray[np.float64]
Mechanism = Callable[
    [np.random.Generator], Floats
]  # losses [m, K + 1], the chosen candidate's first


def gaussian(mu: float) -> Mechanism:
    """Noise of deviation 1 on each candidate's place."""

    def release(rng: np.random.Generator) -> Floats:
        losses = rng.standard_normal((COINS, CANDIDATES))
        losses[:, 0] -= mu / math.sqrt(2)
        return losses

    return release


def response(epsilon: float) -> Mechanism:
    """One candidate each, the chosen one more probably."""
    odds = math.exp(epsilon)

    def release(rng: np.random.Generator) -> Floats:
        losses = np.ones((COINS, CANDIDATES))
        true = rng.random(COINS) < odds / (odds + CANDIDATES - 1)
        losses[np.arange(COINS), np.where(true, 0, rng.integers(1, CANDIDATES, COINS))] = 0
        return losses

    return release


MECHANISMS: dict[str, tuple[float, Mechanism]] = {  # with the ε of a replacement
    **{
        f"Gaussian, μ = {mu:g}": (epsilon_of_gaussian(mu, DELTA), gaussian(mu))
        for mu in (0.5, 1.0, 2.0)
    },
    "randomised response": (3.0, response(3.0)),
}


def audited(losses: Floats) -> Bounds:
    """What an audit proves by these losses."""
    own, fresh = losses[:, 0], losses[:, 1:]
    pairs, among = advantages(own, fresh), reconstruction(own, fresh)
    return bounds(pairs, among, delta=DELTA, confidence=CONFIDENCE)


def lines(name: str, repeats: int) -> list[dict[str, object]]:
    """A line for each bound on one mechanism."""
    true, release = MECHANISMS[name]
    seeds = range(repeats)
    found = pd.DataFrame([_numbers(audited(release(np.random.default_rng(s)))) for s in seeds])
    return [
        {
            "mechanism": name,
            "epsilon": true,
            "bound": bound,
            "repeats": repeats,
            "mean": values.mean(),
            "deviation": values.std(),
            "above": int((values > true).sum()),
        }
        for bound, values in found.items()
    ]


def _numbers(found: Bounds) -> dict[str, float]:
    return {**found.replacement, "larger": found.largest, "gaussian": found.gaussian}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    rows = [line for name in MECHANISMS for line in lines(name, options.repeats)]
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(ROWS, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
