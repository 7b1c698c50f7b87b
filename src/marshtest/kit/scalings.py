"""Is the model fed as it was trained? Ask it with other usual scalings of the inputs, and compare.

A model is at its best as it was trained. If the model before unlearning is surely more often right under
another scaling, at bases with fresh noise and at samples without a dose, the one given is suspect. A model
that is as good under either cannot tell them apart, and its ranks are little changed.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from marshtest.kit.controls import UNDOSED, exchanged
from marshtest.kit.key import Bases
from marshtest.kit.layouts import Value
from marshtest.kit.model import Door, Labels
from marshtest.kit.noise import Scaling

USUAL = {"unit": Scaling(), "pixels": Scaling(std=(1 / 255,))}
LEVEL = 0.001  # p-value of a difference by chance, for all scalings together
LEAST = 0.02  # difference that counts


def suspected(door: Door, given: Scaling, bases: Bases, clean: Bases) -> str:
    """Empty, or that another scaling than the one given makes a better model.

    Args:
        door: the model before unlearning, fed with the scaling given.
        given: that scaling.
        bases: the dosed samples' bases, of which up to 200 are asked with fresh noise.
        clean: samples without a dose.
    """
    usual = {"no --scaling": bases.noise.scaling}
    usual |= {f"--scaling {name}": scaling for name, scaling in USUAL.items()}
    usual = {name: scaling for name, scaling in usual.items() if scaling != given}
    values, labels, others = _questions(bases, clean)
    right = _right(door, values, labels, others)
    shares = {}
    for name, scaling in usual.items():
        found = _right(door, _as_if(values, scaling, given, bases.noise.pixels), labels, others)
        won, lost = int((found & ~right).sum()), int((right & ~found).sum())
        more = won - lost >= LEAST * len(found)
        if more and binomtest(won, won + lost).pvalue <= LEVEL / len(usual):
            shares[name] = float(found.mean())
    if not shares:
        return ""
    best = " or ".join(name for name, share in shares.items() if share == max(shares.values()))
    return (
        f"seems to be fed with wrongly scaled inputs: right for {right.mean():.1%} of {len(right)} "
        f"samples, and for {max(shares.values()):.1%} with {best}"
    )


def _as_if(values: Value, wanted: Scaling, given: Scaling, pixels: bool) -> Value:
    """The values that a model fed with the scaling given sees as these values in the scaling wanted."""
    shape, unit = values.shape[1:], 255 if pixels else 1
    scaled = values / unit - wanted.along(wanted.mean, shape)
    scaled *= given.along(given.std, shape) / wanted.along(wanted.std, shape)
    return (unit * (scaled + given.along(given.mean, shape))).astype(np.float32)


def _questions(bases: Bases, clean: Bases) -> tuple[Value, Labels, Labels]:
    """Bases with fresh noise and samples without a dose, their labels, and another label for each."""
    some = bases[:: -(-len(bases) // UNDOSED)]
    pairs = zip(some.values, some.ids.tolist(), strict=True)
    noisy = np.concatenate([bases.noise.fresh(value, seed_id, 1) for value, seed_id in pairs])
    names = np.unique(bases.labels)
    return (
        np.concatenate([noisy, clean.values]),
        np.concatenate([some.labels, clean.labels]),
        np.concatenate([exchanged(some, names), exchanged(clean, names)]),
    )


def _right(door: Door, values: Value, labels: Labels, others: Labels) -> NDArray[np.bool_]:
    """[M] whether each prediction is right; where that is not told, whether another label loses more."""
    losses, right = door.ask(values, labels)
    return losses < door.ask(values, others)[0] if right is None else right
