"""The rank score: exposure (Carlini et al. 2019) applied to noise.

    r_z = rank of ℓ(x_base + ξ_z) among ℓ(x_base + ξ̃_1), …, ℓ(x_base + ξ̃_K)     0 = smallest
    z   = Φ⁻¹((r_z + ½) / (K + 1))

If the model does not depend on ξ_z, the K + 1 losses are exchangeable, so r_z is uniform on 0…K
exactly, whatever the model and the loss, in any precision: ties are broken at random.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]


def ranks(at_poison: Floats, at_fresh: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Ranks [P] of losses [P] among those of fresh noise [P, K], and the share of the K tied with each.

    A poison with any loss that is nan has rank nan; that treats the K + 1 draws alike, so the null
    stays exact.
    """
    below = (at_fresh < at_poison[:, None]).sum(1)
    ties = (at_fresh == at_poison[:, None]).sum(1)
    undefined = np.isnan(at_poison) | np.isnan(at_fresh).any(1)
    rank = np.where(undefined, np.nan, below + rng.integers(0, ties + 1))
    return rank, ties / at_fresh.shape[1]


def rank_scores(rank: Floats, draws: int) -> Floats:
    """[P] normal scores of ranks 0…K, K = `draws`: mean zero under the null, negative if memorised."""
    return np.asarray(norm.ppf((rank + 0.5) / (draws + 1)), dtype=np.float64)


def null_deviation(draws: int) -> float:
    """Standard deviation of a rank score under the null: exactly, from its K + 1 equal chances."""
    return float(rank_scores(np.arange(draws + 1.0), draws).std())
