"""The rank score: exposure (Carlini et al. 2019) applied to noise.

    u_z = (below + V · (ties + 1)) / (K + 1)     V uniform on (0, 1)
    z   = Φ⁻¹(u_z)

"below" and "ties" count the losses ℓ(x_base + ξ̃_1), …, ℓ(x_base + ξ̃_K) that are smaller than the poison's,
ℓ(x_base + ξ_z), or equal to it.

If the model does not depend on ξ_z, the K + 1 losses are exchangeable, so u_z is uniform and z is N(0, 1):
exactly, for every K, model, loss and precision. V spreads each rank over its share of the unit interval and
breaks ties; for K = 199 it moves a score by some hundredths, but for the outermost ranks.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]


def rank_scores(
    at_poison: Floats, at_fresh: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Normal scores [P] of the poisons' losses [P] among losses [P, K] at fresh noise.

    A memorised poison has a negative score.

    A poison's score is nan if any of its K + 1 losses is. That treats all K + 1 alike, so the null stays
    exact.

    Returns:
        The scores [P], and the fraction [P] of the K fresh losses that equal each poison's.
    """
    below = (at_fresh < at_poison[:, None]).sum(1)
    ties = (at_fresh == at_poison[:, None]).sum(1)
    draws = at_fresh.shape[1]
    within = rng.random(len(at_poison)) + 2.0**-54  # never 0, never 1
    scores = ndtri((below + within * (ties + 1)) / (draws + 1))
    undefined = np.isnan(at_poison) | np.isnan(at_fresh).any(1)
    return np.where(undefined, np.nan, scores), ties / draws
