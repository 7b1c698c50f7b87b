"""Is the model fed as it was trained? Ask it with other usual scalings of the inputs, and compare.

A model is at its best as it was trained, and on what it was trained on. If the model before unlearning
answers the dosed samples, as they were written, and samples without a dose more often rightly under
another scaling, the one given is suspect.
"""

import copy

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from marshtest.kit.controls import UNDOSED, exchanged
from marshtest.kit.door import Door, Labels
from marshtest.kit.doors import scaled
from marshtest.kit.key import Bases
from marshtest.kit.layouts import Value
from marshtest.kit.noise import Scaling

USUAL = {"unit": Scaling(), "pixels": Scaling(std=(1 / 255,))}
LEVEL = 0.001  # p-value of a difference by chance, for all scalings together


def suspected(door: Door, given: Scaling, bases: Bases, clean: Bases) -> str:
    """Empty, or that another scaling than the one given makes a better model.

    Args:
        door: the model before unlearning, fed with the scaling given.
        given: that scaling.
        bases: the dosed samples' bases, of which up to 200 are asked as they were dosed.
        clean: samples without a dose.
    """
    usual = {"the dose's own (no --scaling)": bases.noise.scaling}
    usual |= {f"--scaling {name}": scaling for name, scaling in USUAL.items()}
    usual = {name: scaling for name, scaling in usual.items() if scaling != given}
    values, labels, others = _questions(bases, clean)
    found = _right(door, values, labels, others)
    best, said = found.mean(), ""
    for name, scaling in usual.items():
        other = copy.copy(door)
        other.inputs = scaled(scaling, bases.noise.pixels, values.shape[1:])
        right = _right(other, values, labels, others)
        won, lost = int((right & ~found).sum()), int((found & ~right).sum())
        surely = won > lost and binomtest(won, won + lost).pvalue <= LEVEL / len(usual)
        if surely and right.mean() > best:
            best = right.mean()
            said = (
                f"seems to be fed with wrongly scaled inputs: it is right for {found.mean():.1%} of "
                f"{len(found)} training samples, and for {best:.1%} with {name}"
            )
    return said


def _questions(bases: Bases, clean: Bases) -> tuple[Value, Labels, Labels]:
    """Samples as they were trained on, their labels, and another label for each."""
    step = max(1, len(bases) // UNDOSED)
    some = bases[::step]
    pairs = zip(some.values, some.ids.tolist(), strict=True)
    written = np.stack([bases.noise.written(value, seed_id) for value, seed_id in pairs])
    names = np.unique(bases.labels)
    return (
        np.concatenate([written, clean.values]),
        np.concatenate([some.labels, clean.labels]),
        np.concatenate([exchanged(some, names), exchanged(clean, names)]),
    )


def _right(door: Door, values: Value, labels: Labels, others: Labels) -> NDArray[np.bool_]:
    """[M] whether each prediction is right; where that is not told, whether another label loses more."""
    losses, right = door.ask(values, labels)
    return losses < door.ask(values, others)[0] if right is None else right
