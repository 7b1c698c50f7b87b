"""Control questions: closed forms, error rates, and boxes that cheat, none of which is acquitted."""

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from subjects import audited
from torch import nn
from torch.nn import functional as F

from marshtest.kit.audit import audit
from marshtest.kit.controls import (
    CHANCE,
    NEAR,
    agreement,
    betweenness,
    control_inputs,
    nearness,
    other_labels,
    refuse_untold,
    told_apart,
    undosed,
)
from marshtest.kit.inputs import scaled
from marshtest.kit.judging import Judged, Question, judge
from marshtest.kit.key import Bases
from marshtest.kit.measure import Measured, _alone, measure
from marshtest.kit.model import AskedModel, FunctionModel
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.scalings import suspected
from marshtest.plumbing.errors import MarshtestError

Loss = Callable[[Any, Any], Any]
DRAWS = 19


class Box(AskedModel):
    """Losses alone."""

    def __init__(self, loss: Loss) -> None:
        self.name, self.loss = "box", loss

    def ask(self, values: Any, labels: Any) -> Any:
        return self.loss(values, labels), None


def cross_entropy(model: nn.Module) -> Loss:
    def loss(values: Any, labels: Any) -> Any:
        with torch.no_grad():
            logits = model(torch.from_numpy(values).float() / 255).double()
        return F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()

    return loss


def before(values: Any, labels: Any) -> Any:
    return cross_entropy(audited().before)(values, labels)


def retrained(values: Any, labels: Any) -> Any:
    return cross_entropy(audited().retrained)(values, labels)


def drawn(values: Any) -> Any:
    """Standard normal numbers, a hash of each input."""
    return stats.norm.ppf((np.array([zlib.crc32(v.tobytes()) for v in values]) + 0.5) / 2**32)


@cache
def clean() -> Bases:
    case = audited()
    return undosed(case.done.key, case.source, case.bases)


@cache
def measured(loss: Loss) -> Measured:
    return measure(Box(loss), audited().bases, undosed=clean(), draws=DRAWS)


def judged(loss: Loss) -> Judged:
    return judge(["before", "after"], [measured(before), measured(loss)], Question())[1]


CHEATS: dict[str, tuple[Loss, str]] = {
    "upside down": (lambda x, y: before(x[..., ::-1, :].copy(), y), "told apart much worse"),
    "a quarter turn": (lambda x, y: before(np.rot90(x, axes=(-2, -1)).copy(), y), "hard for"),
    "inverted": (lambda x, y: before(255 - x, y), "near chance"),
    "hash": (lambda x, y: drawn(x), "near chance"),
    "temperature": (lambda x, y: before(x, y) * np.exp(2.5 * drawn(x)), "losses jump"),
    "jitter": (lambda x, y: before(x, y) + 30 * drawn(x), "losses jump"),
    "other each time": (
        lambda x, y: np.random.default_rng(0).normal(size=len(x)),
        "asked again",
    ),
    "deaf to the label": (lambda x, y: before(x, 0 * y), "near chance"),
    "the label alone": (lambda x, y: y / 10, "near chance"),
    "the nearest base's": (
        lambda x, y: before(audited().bases.values[nearest(x)], y),
        "untestable by rank",
    ),
}


def nearest(x: Any) -> Any:
    bases = torch.from_numpy(audited().bases.values).float().flatten(1)
    return torch.cdist(torch.from_numpy(x).float().flatten(1), bases).argmin(1).numpy()


@pytest.mark.parametrize("name", CHEATS)
def test_a_box_that_cheats_is_not_acquitted(name: str) -> None:
    """Of losses alone; without the controls the means of these scores would acquit most of them."""
    loss, reason = CHEATS[name]
    found = judged(loss)
    assert found.verdict.answer != "REMOVED"
    assert any(reason in said for said in found.reasons), found.reasons


def test_an_honest_box_of_losses_is_acquitted_and_its_predecessor_is_not() -> None:
    assert judged(retrained).verdict.answer == "REMOVED"
    assert judged(retrained).reasons == ()
    assert judged(before).verdict.answer == "NOT REMOVED"
    assert measured(before).doubts == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_a_loss_does_not_matter(scale: float) -> None:
    found = measured(lambda x, y: scale * retrained(x, y) - 3 * scale).controls
    honest = measured(retrained).controls
    assert (found.auc[0], found.between) == pytest.approx((honest.auc[0], honest.between), abs=0.01)
    assert found.doubts() == []


def test_aucs_are_scikit_learns_and_who_knows_only_the_labels_has_a_half() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.normal(0, 1, 80).round(1), rng.normal(1, 1, 90).round(1)
    labels = np.zeros(80, int), np.zeros(90, int)
    truth = roc_auc_score([0] * 80 + [1] * 90, np.concatenate([own, others]))
    assert told_apart(own, others, *labels)[0] == pytest.approx(truth)
    y, asked = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert told_apart(y * 1.0, asked * 1.0, y, asked)[0] == 0.5


def test_guessing_is_taken_for_knowing_at_most_as_often_as_stated() -> None:
    """2,000 boxes whose losses know nothing of the label, three classes, a tenth in the rarest."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [60, 30, 10])
    asked = (y + rng.integers(1, 3, 100)) % 3
    found = np.array([told_apart(*rng.normal(size=(2, 100)), y, asked) for _ in range(2000)])
    z = (found[:, 0] - 0.5) / found[:, 1]
    assert (stats.norm.sf(z) <= CHANCE).sum() <= stats.binom.ppf(1 - 1e-4, 2000, CHANCE)
    assert np.std(z) == pytest.approx(1, abs=0.06)


def test_nearness_and_betweenness_of_a_linear_loss_and_of_a_hash() -> None:
    """|N(0, δ²)| is below |N(0, 2)| with probability 2 arctan(√2/δ) / π; of three alike, ⅓ is between."""
    rng = np.random.default_rng(2)
    fresh, base = rng.normal(size=(4000, 20)), rng.normal(size=4000)
    near = fresh[:, 0] + NEAR * rng.normal(size=4000)
    exact = 2 * np.arctan(np.sqrt(2) / NEAR) / np.pi
    assert nearness(near, fresh) == pytest.approx(exact, abs=0.01)
    assert nearness(rng.normal(size=4000), fresh) == pytest.approx(0.5, abs=0.02)
    assert betweenness(base, (base + fresh[:, 0]) / 2, fresh[:, 0]) == 1
    assert betweenness(base, rng.normal(size=4000), fresh[:, 0]) == pytest.approx(1 / 3, abs=0.03)
    assert np.isnan(nearness(np.ones(5), np.ones((5, 4))))  # nothing to tell


def test_agreement_is_the_mean_of_spearmans_correlations() -> None:
    one, other = np.random.default_rng(3).normal(size=(2, 30, 12))
    other += one
    pairs = [stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert agreement(one, other) == pytest.approx(np.mean(pairs))
    assert agreement(one, -(one**3)) == pytest.approx(-1)


def test_other_labels_are_uniform_over_the_others_and_do_not_depend_on_the_company() -> None:
    noise = Noise(seed=1, variance=1.0, scaling=Scaling(), pixels=False)
    y = np.arange(3000) % 5 * 2
    samples = Bases(np.arange(3000), np.zeros((3000, 1)), y, noise)
    names = np.unique(y)
    found = other_labels(samples, names)
    assert (found != y).all()
    counts = np.bincount(found[y == 4], minlength=9)[names]
    assert counts[2] == 0
    assert stats.chisquare(np.delete(counts, 2)).pvalue > 1e-4
    assert (other_labels(samples[100:200], names) == found[100:200]).all()


def test_the_inputs_lie_where_they_are_said_to() -> None:
    case = audited()
    noise, value, seed_id = case.bases.noise, case.bases.values[7], int(case.bases.ids[7])
    base, other, same, near, half = control_inputs(case.bases, 7).astype(float)
    first = noise.fresh(value, seed_id, DRAWS)[0]
    assert (base == value).all()
    assert (other == value).all()
    assert (same == first).all()
    assert np.abs(half - (value.astype(float) + first) / 2).max() <= 0.5
    deviation = float(noise.deviation(value.shape).mean())
    assert 0 < np.abs(near - same).mean() < 2 * NEAR * deviation


def test_undosed_samples_are_the_keys_and_have_no_dose() -> None:
    case = audited()
    assert len(clean()) == 200
    assert not set(clean().ids.tolist()) & set(case.done.key.ids)
    with np.load(case.source) as data:
        assert (data["x"][clean().ids] == clean().values).all()
        assert (data["y"][clean().ids] == clean().labels).all()
    again = undosed(case.done.key, case.source, case.bases)
    assert (again.ids == clean().ids).all()


def test_nobody_can_tell_a_control_by_its_place() -> None:
    places: list[float] = []
    bases = audited().bases[:200]
    wanted = {v.tobytes() for v in bases.values} | {v.tobytes() for v in clean().values}

    def watching(values: Any, labels: Any) -> Any:
        if len(values) > len(bases) * DRAWS:
            places.extend(p / len(values) for p, v in enumerate(values) if v.tobytes() in wanted)
        return before(values, labels)

    measure(Box(watching), bases, undosed=clean(), draws=DRAWS)
    assert len(places) == 2 * 200 + 2 * 200
    assert stats.kstest(places, "uniform").pvalue > 1e-4


def rare(n: int = 1200) -> tuple[Any, Any, Any, Bases]:
    """Inputs, labels, the score behind them, and a dose: 3 % of a class."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((n, 30)).astype(np.float32), rng.standard_normal(30)
    score = x @ weights
    noisy = score + 1.5 * rng.standard_normal(n)
    y = (noisy > np.quantile(noisy, 0.97)).astype(np.int64)
    noise = Noise(seed=1, variance=1.0, scaling=Scaling(), pixels=False)
    return x, y, weights, Bases(np.arange(0, n, 2), x[::2], y[::2], noise)


def test_a_fair_classifier_of_a_rare_class_is_not_near_chance_and_a_constant_one_is() -> None:
    x, y, weights, bases = rare()
    fair = nn.Linear(30, 2)
    with torch.no_grad():
        fair.weight.copy_(torch.from_numpy(np.stack([0 * weights, 0.3 * weights])))
        fair.bias.copy_(torch.tensor([6.0, 0.0]))
    assert roc_auc_score(y, x @ weights) > 0.9
    cpu = torch.device("cpu")
    asked_model = FunctionModel("fair", fair, lambda x: x, 2, cpu)
    found = measure(asked_model, bases, draws=9)
    assert found.accuracy <= (bases.labels == 0).mean() + 0.01  # no better than "never"
    assert found.controls.near_chance == ""
    never = FunctionModel(
        "never", lambda x: torch.tensor([6.0, 0.0]) + 0 * x[:, :2], lambda x: x, 2, cpu
    )
    assert "near chance" in measure(never, bases, draws=9).controls.near_chance


def test_where_nothing_could_be_told_the_dose_is_refused_and_no_model_is_blamed() -> None:
    """One of 500 of a second class: a perfect model has p = 0.007 at best. Two are enough."""
    few = np.zeros(500, np.int64)
    for positives in (0, 1):
        few[:positives] = 1
        with pytest.raises(MarshtestError, match=f"about, {500 - positives} are of one class"):
            refuse_untold(few[:300], few[300:], 1)
    few[:2] = 1
    refuse_untold(few[:300], few[300:], 1)
    *_, bases = rare()
    lone = Bases(bases.ids, bases.values, np.zeros(len(bases.ids), np.int64), bases.noise)
    fair = FunctionModel("fair", lambda x: x[:, :2], lambda x: x, 2, torch.device("cpu"))
    assert "too few of the asked" in measure(fair, lone, draws=9).controls.near_chance


def test_the_first_question_is_no_larger_than_those_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked in parts, and all answers still stand at their own samples."""
    model, sizes = FunctionModel("m", audited().before, lambda x: x, 10, torch.device("cpu")), []
    case = audited()
    whole = _alone(model, case.bases, clean())
    ask = model.ask

    def noting(values: Any, labels: Any) -> Any:
        sizes.append(values.nbytes)
        return ask(values, labels)

    monkeypatch.setattr(model, "ask", noting)
    monkeypatch.setattr("marshtest.kit.measure.CHUNK_BYTES", 4 * 10 * case.bases.values[0].size)
    assert np.allclose(_alone(model, case.bases, clean()), whole, rtol=1e-3, atol=1e-3)
    assert len(sizes) > 1
    assert max(sizes) <= 10 * case.bases.values[0].nbytes


def test_grey_pictures_given_as_three_channels_have_no_other_scaling() -> None:
    case = audited()
    three = Scaling(mean=(0.5,) * 3, std=(0.5,) * 3)
    never = FunctionModel("m", lambda x: pytest.fail("asked"), lambda x: x, 10, torch.device("cpu"))
    assert case.bases.values.shape[1] == 1
    assert suspected(never, three, case.bases, clean()) == ""


def test_another_scaling_under_which_the_model_is_better_is_named() -> None:
    """The model was trained on pixels in 0…1; the dose was made in other units."""
    case = audited()
    model = case.before
    cpu = torch.device("cpu")

    def fed_with(scaling: Scaling) -> FunctionModel:
        inputs = scaled(scaling, True, case.bases.values.shape[1:])
        return FunctionModel("m", model, inputs, 10, cpu)

    def said(given: Scaling) -> str:
        return suspected(fed_with(given), given, case.bases, clean())

    assert said(Scaling()) == ""
    wrong = Scaling(mean=(1.0,), std=(0.5,))
    assert "--scaling unit" in said(wrong)


def test_a_wrong_scaling_well_above_chance_is_a_reason_against_acquittal(tmp_path: Path) -> None:
    case = audited()
    models = ["subjects:before", "subjects:retrained"]
    found = audit(
        case.done.key_file,
        case.source,
        *models,
        scaling=Scaling(mean=(1.0,), std=(0.5,)),
        draws=9,
        in_process=True,
    )
    assert found.models[0].measured.accuracy > 0.3
    assert any("--scaling unit" in reason for reason in found.models[1].reasons)
    assert found.models[1].verdict.answer != "REMOVED"
