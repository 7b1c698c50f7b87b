"""Is the model fed as it was trained? Ask it with other usual scalings of the inputs, and compare.

A model is at its best as it was trained. If the model before unlearning is surely more often right under
another scaling, at bases with fresh noise and at samples without a dose, the scaling in use is suspect. A
model that is as good under either cannot tell them apart, and its ranks are little changed.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from marshtest.kit.controls import other_labels
from marshtest.kit.key import Bases
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import AskedModel, Labels
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.places import UNDOSED

USUAL = {"unit": Scaling(), "pixels": Scaling(std=(1 / 255,))}
LEVEL = 0.001  # p-value of a difference by chance, for all scalings together
LEAST = 0.02  # difference of accuracies that counts: a smaller one harms no rank


def suspected(model: AskedModel, used: Scaling, bases: Bases, clean: Bases) -> str:
    """Empty, or a line that says under which other scaling than `used` the model before is better.

    It is asked about up to 200 of the bases with fresh noise, and about samples without a dose, `clean`.
    """
    noise = bases.noise
    assert isinstance(noise, Noise)
    if len(used.mean) not in (1, bases.values.shape[1]):
        return ""  # grey pictures that are given as RGB have no scaling in the usual ones' place
    rivals = {"no --scaling": noise.scaling}
    rivals |= {f"--scaling {name}": scaling for name, scaling in USUAL.items()}
    rivals = {name: scaling for name, scaling in rivals.items() if scaling != used}
    values, labels, others = _questions(bases, clean)
    right = _right(model, values, labels, others)
    accuracies = {}
    for name, scaling in rivals.items():
        rival_values = _as_if(values, scaling, used, noise.pixels)
        rival_right = _right(model, rival_values, labels, others)
        # McNemar's exact test: only samples that the two scalings disagree on tell them apart. The
        # level is shared among the rivals.
        won, lost = int((rival_right & ~right).sum()), int((right & ~rival_right).sum())
        counts = won - lost >= LEAST * len(right)
        if counts and binomtest(won, won + lost).pvalue <= LEVEL / len(rivals):
            accuracies[name] = float(rival_right.mean())
    if not accuracies:
        return ""
    highest = max(accuracies.values())
    best = " or ".join(name for name, accuracy in accuracies.items() if accuracy == highest)
    return (
        f"seems to be fed with wrongly scaled inputs: right for {right.mean():.1%} of {len(right)} "
        f"samples, and for {highest:.1%} with {best}"
    )


def _as_if(values: Value, wanted: Scaling, used: Scaling, pixels: bool) -> Value:
    """Values that become, in the scaling used, the inputs that `values` become in the scaling wanted.

    A model's own scaling cannot be changed once it is opened, so its samples are.
    """
    shape, unit = values.shape[1:], 255 if pixels else 1
    scaled = values / unit - wanted.along(wanted.mean, shape)
    scaled *= used.along(used.std, shape) / wanted.along(wanted.std, shape)
    return (unit * (scaled + used.along(used.mean, shape))).astype(np.float32)


def _questions(bases: Bases, clean: Bases) -> tuple[Value, Labels, Labels]:
    """Bases with fresh noise and samples without a dose, their labels, and another label for each."""
    some = bases[:: -(-len(bases) // UNDOSED)]
    pairs = zip(some.values, some.ids.tolist(), strict=True)
    noisy = np.concatenate([bases.noise.fresh(value, seed_id, 1) for value, seed_id in pairs])
    names = np.union1d(bases.labels, clean.labels)
    return (
        np.concatenate([noisy, clean.values]),
        np.concatenate([some.labels, clean.labels]),
        np.concatenate([other_labels(some, names), other_labels(clean, names)]),
    )


def _right(model: AskedModel, values: Value, labels: Labels, others: Labels) -> NDArray[np.bool_]:
    """[M] whether each prediction is right; if not told, whether another label loses more."""
    losses, right = model.ask(values, labels)
    return losses < model.ask(values, others)[0] if right is None else right
