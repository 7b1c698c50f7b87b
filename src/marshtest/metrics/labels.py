"""The label score: what a model that answers with nothing but labels still shows of a poison.

    y_z              1 if the label at the poison's own noise is right, else 0
    s_z = j/(K + 1)  share of right labels among its K + 1 variants, own and fresh

If the model does not depend on ξ_z, the K + 1 variants are exchangeable: given j, each is as likely as any
other to be the poison's own, so y_z is 1 with probability s_z, independently over the poisons. Hence

    O = Σ y_z   is Poisson-binomial with chances s_z,   E = Σ s_z,   V = Σ s_z (1 − s_z)
    D = (O − E) / V

exactly, for every K and any model. D is Peto's estimate of a log odds ratio: by how much the own noise is
answered rightly more often than fresh noise. A poison of which all variants are right, or all wrong, adds
nothing to O − E and V, and is *untestable*. D is bounded, by own noises that are all answered wrongly, or
all rightly:

    −(Σ s_z) / V ≤ D ≤ (Σ (1 − s_z)) / V,     −1/(1 − s) and 1/s of one common s

so what may be left after unlearning is a share of the effect before, or of the bound if that is nearer.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from marshtest.metrics.dependence import SCORES, Dependence
from marshtest.metrics.presentation import Score

Floats = NDArray[np.float64]

LABEL = "label"
OF_AUDITS = {  # the scores that an audit may have; of labels alone there is one
    **SCORES,
    LABEL: Score(
        title="label score",
        low=-5,
        high=5,
        hidden="all variants are answered alike, or nearly so where they were not before,",
    ),
}
LEAST = 5.0  # V, from which on O − E is about normal, which equivalence rests on
FAINT = 0.1  # part of a poison's variance in the model before, below which it counts as hidden
NODES = 41  # of the quadrature over bases in `expected`


def label_scores(right: NDArray[np.bool_]) -> dict[str, Floats]:
    """Scores of the poisons, from [P, K + 1] whether each variant's label is right, the own first.

    Returns:
        [P] "label", (y − s) / √(s (1 − s)), nan where untestable; "label_right", y; "label_share", s.
    """
    own, share = right[:, 0].astype(np.float64), right.mean(1)
    variance = share * (1 - share)
    deviation = np.sqrt(np.where(variance > 0, variance, np.nan))
    return {LABEL: (own - share) / deviation, "label_right": own, "label_share": share}


def label_dependence(right: Floats, share: Floats, before: Floats | None = None) -> Dependence:
    """The dependence D by the labels of P poisons.

    Args:
        right: [P] y.
        share: [P] s.
        before: [P] s in the model before unlearning, by which poisons are hidden that tell much less now.
    """
    variance = share * (1 - share)
    total, poisons = float(variance.sum()), len(share)
    reference = variance if before is None else before * (1 - before)
    told = float(reference.sum())
    hidden = float(reference[variance < FAINT * reference].sum()) / told if told else 0.0
    if total == 0:
        return Dependence(math.nan, math.nan, 0, poisons, 1.0)
    value = float((right - share).sum() / total)
    # The null's own deviation, or that of what was seen, if it is larger.
    seen = float(np.square(right - share - value * variance).sum())
    return Dependence(
        value=value,
        error=math.sqrt(max(total, seen)) / total,
        n=poisons,
        undefined=0,
        hidden=1.0 if total < LEAST else hidden,
        exact=poisson_binomial_p(int(right.sum()), share),
        most=float((1 - share).sum()) / total,
        least=-float(share.sum()) / total,
    )


def poisson_binomial_p(hits: int, chances: Floats) -> float:
    """Two-sided p-value of `hits` successes with chances [P]: twice the smaller tail, at most 1."""
    mass = _masses(chances)
    return float(min(1.0, 2 * min(mass[: hits + 1].sum(), mass[hits:].sum())))


def _masses(chances: Floats) -> Floats:
    """[P + 1] the Poisson-binomial probabilities of 0 … P successes.

    Sums of products, none below 0: small probabilities keep their leading digits, as those by a Fourier
    transform would not.
    """
    parts = [np.array([1 - chance, chance]) for chance in chances] or [np.ones(1)]
    while len(parts) > 1:  # in pairs of like length
        pairs = [np.convolve(*pair) for pair in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


def testable(share: Floats) -> int:
    """Number of poisons whose K + 1 variants, of which the share [P] is right, differ."""
    return int(((share > 0) & (share < 1)).sum())


class Foreseen(NamedTuple):
    """What an audit by labels will show.

    Attributes:
        effect: D of the model before unlearning.
        deviation: of one poison's part in D, over √P.
        testable: share of the poisons whose variants are not answered alike.
        hidden: share of V whose poisons a model after answers alike by chance alone.
        least: D of a model after that answers all own noises wrongly.
    """

    effect: float
    deviation: float
    testable: float
    hidden: float
    least: float


def expected(rank: float, right: float, draws: int, spread: float) -> Foreseen:
    """What labels will show, if losses are normal.

    A base's loss is normal over its noises, and `rank` deviations lower at the poison's own. How far the
    bases lie from the model's border, in these deviations, is normal itself.

    Args:
        rank: dependence by the rank score.
        right: share of fresh noises that are answered rightly, over all bases.
        draws: K.
        spread: standard deviation of the bases' places.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    place = ndtri(right) * math.hypot(1, spread) + spread * nodes
    chance = ndtr(place)
    differ = 1 - chance ** (draws + 1) - (1 - chance) ** (draws + 1)
    # E[s (1 − s)] of K + 1 independent variants.
    each = chance * (1 - chance) * draws / (draws + 1)
    variance = float(weights @ each)
    excess = float(weights @ (ndtr(place + rank) - chance)) * draws / (draws + 1)
    return Foreseen(
        effect=excess / variance,
        deviation=1 / math.sqrt(variance),
        testable=float(weights @ differ),
        hidden=float(weights @ (each * (1 - differ))) / variance,
        least=-right / variance,
    )
