"""U-LiRA and KLoM: whether many unlearned models answer the forget set as many retrained models do.

Pair j of a seed's R holds two models of one forget set by draws of its own: one that was trained on it and
then unlearned, and one that was retrained. u and r [R, P] are their logit margins of the forgotten samples.

    U-LiRA   Λ(φ) = log N(φ; mean u, var u) − log N(φ; mean r, var r)       per sample, without pair j
             A_j = mean over samples of [Λ(u_j) > Λ(r_j)], ties half          AUC = mean A_j
                                             (Hayes et al. 2024, arXiv 2403.01218)
    KLoM     KL(histogram of u ‖ histogram of r)                            per sample, then mean and 95 %
                                             (Georgiev et al. 2024, arXiv 2410.23232)

Both models of a pair are left out together: under the null they can be exchanged given all others, so A_j
is symmetric about ½, exactly; leaving out one at a time gives less. A_1 … A_R depend on each other
through the fits, so errors are the jackknife's over the pairs, which are on average too large, if
anything. KLoM has the paper's choices: margins clipped to ± 100, 20 bins over the range of both, 1e-5
added to each bin. From R models it is above 0 by chance: its *null* is its mean with u and r swapped in
randomly chosen pairs, and the rest is `left`. An infinite margin, of a model that is certain, is ± 100 to
U-LiRA too.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from marshtest.metrics.membership_columns import column_of
from marshtest.metrics.repeats_columns import COLUMNS
from marshtest.metrics.roc import variance_of_mean
from marshtest.plumbing.seeds import derive

Floats = NDArray[np.float64]

MOST = 100.0  # margins are clipped to ± this
BINS = 20
SMOOTH = 1e-5  # added to each bin's share
SWAPS = 50  # random swaps of which KLoM's null is the mean
LEAST = 1e-6  # of a deviation: samples that all models answer alike


def ulira(unlearned: Floats, retrained: Floats) -> Floats:
    """[R] A_j of margins [R, P]: how often a pair's unlearned model is told, over the samples."""
    fits = [_without_pair(margins) for margins in (unlearned, retrained)]
    of_u, of_r = (
        _log_density(margins, *fits[0]) - _log_density(margins, *fits[1])
        for margins in (unlearned, retrained)
    )
    told: Floats = ((of_u > of_r) + 0.5 * (of_u == of_r)).mean(axis=1)
    return told


def _without_pair(margins: Floats) -> tuple[Floats, Floats]:
    """[R, P] mean and deviation of margins [R, P] without each in turn."""
    n, centre = len(margins), margins.mean(axis=0)
    away = margins - centre
    mean = -away / (n - 1)  # Σ of the others, as all together are 0
    squares = (away**2).sum(axis=0) - away**2 - (n - 1) * mean**2
    return centre + mean, np.sqrt(np.maximum(squares / (n - 2), LEAST**2))


def _log_density(margins: Floats, mean: Floats, deviation: Floats) -> Floats:
    """The logarithm of N(φ; mean, deviation²), without the constant."""
    density: Floats = -(((margins - mean) / deviation) ** 2) / 2 - np.log(deviation)
    return density


def klom(unlearned: Floats, retrained: Floats) -> Floats:
    """[P] KL divergence of the histograms of margins [R, P] of unlearned and retrained models."""
    u, r = (np.clip(margins, -MOST, MOST) for margins in (unlearned, retrained))
    low = np.minimum(u.min(axis=0), r.min(axis=0))
    width = np.maximum(u.max(axis=0), r.max(axis=0)) - low
    shares = [_histogram(margins, low, width) for margins in (u, r)]
    divergence: Floats = (shares[0] * np.log(shares[0] / shares[1])).sum(axis=1)
    return divergence


def _histogram(margins: Floats, low: Floats, width: Floats) -> Floats:
    """[P, BINS] shares of margins [R, P] in bins from `low` [P] on, `width` [P] in all."""
    places = (margins - low) / np.where(width > 0, width, 1) * BINS
    bins = np.minimum(places.astype(np.int64), BINS - 1)
    samples = margins.shape[1]
    flat = (bins + BINS * np.arange(samples)).ravel()
    counts = np.bincount(flat, minlength=BINS * samples).reshape(samples, BINS)
    smooth = counts / len(margins) + SMOOTH
    shares: Floats = smooth / smooth.sum(axis=1, keepdims=True)
    return shares


def chance_of(unlearned: Floats, retrained: Floats, seed: int) -> float:
    """KLoM's mean over the samples with unlearned and retrained swapped in random pairs."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(SWAPS):
        swapped = rng.random(len(unlearned)) < 0.5
        u = np.where(swapped[:, None], retrained, unlearned)
        r = np.where(swapped[:, None], unlearned, retrained)
        means.append(klom(u, r).mean())
    return float(np.mean(means))


def without_each(measure: Callable[[Floats, Floats], Floats], u: Floats, r: Floats) -> Floats:
    """[R] the jackknife's pseudo-values of a measure's mean: their mean's variance is that of it."""
    n, whole = len(u), measure(u, r).mean()
    rest = [measure(np.delete(u, j, axis=0), np.delete(r, j, axis=0)).mean() for j in range(n)]
    values: Floats = n * whole - (n - 1) * np.array(rest)
    return values


def columns(unlearned: Floats, initial: Floats, retrained: Floats, seed: int) -> dict[str, float]:
    """The columns of a model's row from margins [R, P] of models like it, the initial, and the retrained.

    All nan where a repetition gave no model. A model that is certain has infinite margins.

    Args:
        seed: of KLoM's swaps.
    """
    if any(np.isnan(margins).any() for margins in (unlearned, initial, retrained)):
        return dict.fromkeys(COLUMNS, np.nan)
    unlearned, initial, retrained = _finite(unlearned, initial, retrained)
    told, whole = float(ulira(unlearned, retrained).mean()), klom(unlearned, retrained)
    null = chance_of(unlearned, retrained, derive(seed, "swap"))
    # KLoM's null changes with every pair that is left out, by less than the divergence itself does.
    auc, auc0 = (without_each(ulira, models, retrained) for models in (unlearned, initial))
    away, away0 = (without_each(klom, models, retrained) for models in (unlearned, initial))
    return {
        **_parts("ulira", auc, auc0, told - 0.5),
        column_of("ulira", "auc"): told,
        column_of("ulira", "auc_error"): variance_of_mean(auc) ** 0.5,
        **_parts("klom", away, away0, float(whole.mean()) - null),
        column_of("klom", "mean"): float(whole.mean()),
        column_of("klom", "p95"): float(np.quantile(whole, 0.95)),
        column_of("klom", "null"): null,
    }


def _finite(*parts: Floats) -> list[Floats]:
    """The margins with infinite ones at ± MOST, or at the largest finite one: Gaussians need a mean."""
    sizes = np.abs(np.concatenate([margins.ravel() for margins in parts]))
    most = max(MOST, np.max(sizes, where=np.isfinite(sizes), initial=0.0))
    return [np.clip(margins, -most, most) for margins in parts]


def _parts(form: str, left: Floats, lead: Floats, value: float) -> dict[str, float]:
    """What a verdict takes from a row, from pseudo-values [R] of a model and of the initial one.

    Pairs are drawn anew in each seed, so nothing is shared.
    """
    return {
        column_of(form, "left"): value,
        column_of(form, "variance"): variance_of_mean(left),
        column_of(form, "shared_variance"): 0.0,
        column_of(form, "covariance"): variance_of_mean(left, lead),
        column_of(form, "shared_covariance"): 0.0,
    }
