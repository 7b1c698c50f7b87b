"""SSD and ASSD: importances from each sample's gradient, the dampening, its cost, what is refused."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from stepwise import (
    KINDS,
    SEED,
    Exact,
    accuracy,
    by_heart,
    cross_entropies,
    flat,
    free,
    problem,
)
from torch import Tensor, nn

import marshtest
from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification
from marshtest.unlearning import Unlearner, parse_trials
from marshtest.unlearning.check import images, text
from marshtest.unlearning.passes import whole_pass
from marshtest.unlearning.per_sample import _one_by_one, _together, batch_size, squared_gradients
from marshtest.unlearning.ssd import ASSD, SSD

SHARE = 8 / 40  # of the data in `problem`, to be forgotten


def importance(model: nn.Module, samples: Samples) -> Tensor:
    """The mean of (∂ℓ/∂θ)² over samples, each by itself, of the model in eval mode."""
    model = copy.deepcopy(model).eval()
    total = torch.zeros(0)
    for x, y in zip(samples.x, samples.y, strict=True):
        slopes = torch.autograd.grad(cross_entropies(model(x[None]), y[None]).mean(), free(model))
        square = flat(slopes) ** 2
        total = square if len(total) == 0 else total + square
    return total / len(samples)


def run(method: Unlearner, *given: Any, task: Any = None, passes: float = math.inf) -> nn.Module:
    with Budget(passes, 1.0) as budget:
        return method(*given, task=task or Exact(), budget=budget, seed=SEED)


def dampened(
    before: Tensor, alpha: float, factor: float, ours: Tensor, everyones: Tensor
) -> Tensor:
    """θ min(λ []_D / []_Df, 1) where []_Df > α []_D, else θ: weight by weight."""
    after = before.clone()
    for i in range(len(before)):
        if ours[i] > alpha * everyones[i]:
            after[i] = before[i] * min(factor * everyones[i] / ours[i], torch.tensor(1.0))
    return after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "factor"), [(1.0, 1.0), (1.4, 0.3), (0.5, 1.0)])
def test_a_weight_is_dampened_by_how_much_more_it_matters_to_the_forget_set(
    kind: str, alpha: float, factor: float
) -> None:
    model, retain, forget = problem(kind, frozen=True)
    found = run(SSD(alpha=alpha, dampening=factor), model, retain, forget)
    ours, theirs = importance(model, forget), importance(model, retain)
    everyones = SHARE * ours + (1 - SHARE) * theirs  # the mean over all 40
    before = flat(free(model))
    expected = dampened(before, alpha, factor, ours, everyones)
    torch.testing.assert_close(flat(free(found)), expected, rtol=0, atol=1e-12)
    chosen = ours > alpha * everyones
    assert 0 < int(chosen.sum()) < len(chosen)
    assert torch.equal(flat(free(found))[~chosen], before[~chosen])
    assert bool((flat(free(found)).abs() <= before.abs()).all())
    frozen = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
    kept = [p for p in found.parameters() if not p.requires_grad] + list(found.buffers())
    assert all(torch.equal(one, other) for one, other in zip(frozen, kept, strict=True))


def test_the_importance_of_softmax_regression_is_its_closed_form() -> None:
    """∂ℓ/∂W = (p − e_y) xᵀ, so the square's mean is that of (p − e_y)² (x²)ᵀ."""
    draws = np.random.default_rng(0)
    x, y, w = draws.normal(size=(30, 5)), draws.integers(3, size=30), draws.normal(size=(3, 5))
    model = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w))
    samples = Samples(torch.from_numpy(x), torch.from_numpy(y), torch.arange(30))
    with Budget(math.inf, 1.0) as budget:
        found = SSD().importances(model, samples[10:], samples[:10], Exact(), budget, 0)
    p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(1, keepdims=True)
    squares = (p - np.eye(3)[y])[:, :, None] ** 2 * x[:, None, :] ** 2  # [30, 3, 5]
    for part, rows in zip(found, (slice(10), slice(10, None)), strict=True):
        expected = squares[rows].mean(0).flatten()
        np.testing.assert_allclose(part.numpy(), expected, rtol=1e-12)


def test_samples_whose_gradients_cancel_do_not_make_a_weight_unimportant() -> None:
    """Two equal inputs of both labels: a batch's gradient is zero, each sample's is not."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    twins = Samples(torch.ones(2, 2), torch.tensor([0, 1]), torch.arange(2))
    batch = torch.autograd.grad(Classification().loss(model, twins).sum(), model.weight)[0]
    squares = squared_gradients(model, Classification(), twins[:1])(twins)
    assert float(batch.abs().max()) == 0
    torch.testing.assert_close(squares, torch.full((4,), 0.5))  # 2 · (½ · 1)²


@pytest.mark.parametrize("alpha", [0.5, 1.2, 2.0, 4.0])
def test_what_is_not_that_important_stays_bit_for_bit_in_networks_of_all_kinds(
    alpha: float,
) -> None:
    for given in (images(), text()):
        method = SSD(alpha=alpha)
        found = run(method, given.model, given.retain, given.forget, task=given.task)
        with Budget(math.inf, 1.0) as budget:
            of_forget, of_retain = method.importances(
                copy.deepcopy(given.model).eval(),
                given.retain,
                given.forget,
                given.task,
                budget,
                SEED,
            )
        chosen = of_forget > alpha * (of_forget / 8 + 7 / 8 * of_retain)
        stays = flat(free(found)) == flat(free(given.model))
        assert bool(stays[~chosen].all())
        assert 0 < int(chosen.sum()) < len(chosen)
        assert not bool(stays[chosen & (flat(free(given.model)) != 0)].any()) or alpha < 1


class Branching(nn.Module):
    """A model that looks at its values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if bool((x == x).all()) else x  # type: ignore[no-any-return]


def test_samples_go_through_together_or_one_by_one_with_the_same_result() -> None:
    given = images()
    model, task, batch = given.model.eval(), given.task, given.retain[:9]
    plain = squared_gradients(model, task, batch[:1])
    branching = squared_gradients(Branching(model), task, batch[:1])
    assert (plain.func, branching.func) == (_together, _one_by_one)  # type: ignore[attr-defined]
    torch.testing.assert_close(plain(batch), branching(batch), rtol=1e-4, atol=1e-7)


def test_gradients_of_a_large_model_are_held_for_fewer_samples() -> None:
    assert batch_size(nn.Linear(10, 10)) == 64
    with torch.device("meta"):
        assert batch_size(nn.Linear(4096, 4096)) == 3
        assert batch_size(nn.Linear(2**14, 2**14)) == 1


def test_assd_dampens_the_weights_above_the_percentile_of_its_formula() -> None:
    model, retain, forget = problem("plain", frozen=True)
    ours, theirs = importance(model, forget), importance(model, retain)
    everyones = SHARE * ours + (1 - SHARE) * theirs
    ratios = sorted((ours / everyones).tolist())
    place = (100 - math.log(1 + 100 * 8 / 40)) / 100 * (len(ratios) - 1)  # ln 21 = 3.04 %
    low = ratios[int(place)]
    alpha = low + (place - int(place)) * (ratios[int(place) + 1] - low)
    found = run(ASSD(dampening=0.7), model, retain, forget)
    expected = dampened(flat(free(model)), alpha, 0.7, ours, everyones)
    torch.testing.assert_close(flat(free(found)), expected, rtol=0, atol=1e-12)
    changed = int((flat(free(found)) != flat(free(model))).sum())
    assert changed == math.ceil(0.0304 * (len(ratios) - 1))


def test_a_weight_that_no_sample_needs_has_no_say_in_assds_percentile() -> None:
    of_forget, of_all = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    alpha = ASSD().threshold(of_forget, of_all, 0.01)
    assert alpha == pytest.approx(3 - 2 * math.log(2) / 100, rel=1e-6)


def test_what_was_learnt_by_heart_is_gone_and_the_rest_is_known() -> None:
    """The paper's finding: without any training, at some α."""
    model, retain, forget = by_heart()
    found = run(SSD(alpha=8), model, retain, forget, task=Classification())
    assert accuracy(found, forget) < 0.3
    assert accuracy(found, retain) > 0.97


PASS = 2 * (6 * 7 + 7 * 4)  # operations of a forward of `problem`'s network
BACKWARD = 2 * (6 * 7 + 2 * 7 * 4)  # for weights, and for the input of the last layer


def test_it_spends_a_forward_and_a_backward_of_each_sample_and_no_more() -> None:
    given = problem("plain", frozen=True)
    with Budget(1e9, 1.0) as budget:
        SSD(alpha=1)(*given, task=Exact(), budget=budget, seed=SEED)
    assert budget.flops == 41 * (PASS + BACKWARD)  # one sample tells how they go through


@pytest.mark.parametrize("unit", ["compute", "epochs"])
def test_a_small_budget_sees_some_of_the_retain_set(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marshtest.unlearning.per_sample.BATCH", 4)
    model, retain, forget = problem("plain", frozen=True)
    budget = Budget(29 * (PASS + BACKWARD), 1.0) if unit == "compute" else Budget.of_epochs(0.6, 1)
    with budget:
        of_forget, of_retain = SSD().importances(model, retain, forget, Exact(), budget, SEED)
    batches = list(whole_pass(retain, Exact(), 4, derive(SEED, "retain")))[:5]  # 1 + 8 + 20
    seen = Samples(
        *(torch.cat([getattr(b, field) for b in batches]) for field in ("x", "y", "ids"))
    )
    torch.testing.assert_close(of_forget, importance(model, forget), rtol=0, atol=1e-12)
    torch.testing.assert_close(of_retain, importance(model, seen), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("samples", "seen"), [(6, "4 of 8"), (10, "8 of 8")])
def test_a_budget_without_a_sample_to_keep_is_refused(
    samples: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marshtest.unlearning.per_sample.BATCH", 4)
    said = rf"^unlearners.assd: the budget affords .* {seen} samples to forget and of 0 to keep"
    with pytest.raises(MarshtestError, match=said):
        run(ASSD(), *problem("plain"), passes=samples * (PASS + BACKWARD))


@pytest.mark.parametrize("alpha", [5, 10])
def test_an_alpha_that_no_weight_can_reach_is_refused(alpha: float) -> None:
    said = rf"^unlearners.ssd.alpha: no weight is {alpha} times .* 20.0% of all data.* than 5\."
    with pytest.raises(MarshtestError, match=said):
        run(SSD(alpha=alpha), *problem("plain"))


@pytest.mark.parametrize("name", ["ssd", "assd"])
def test_an_importance_that_is_no_number_is_refused(name: str) -> None:
    model, retain, forget = problem("plain", frozen=True)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan  # type: ignore[index]
    (method,) = parse_trials(name)
    with pytest.raises(MarshtestError, match=rf"^unlearners.{name}: .* forget set is not finite"):
        run(method, model, retain, forget)


@pytest.mark.parametrize("field", ["alpha", "dampening"])
@pytest.mark.parametrize("value", [0, -1.0])
def test_values_that_are_not_above_zero_are_refused(field: str, value: float) -> None:
    with pytest.raises(MarshtestError, match=rf"^unlearners.ssd.{field}: .*Got {value}\.$"):
        parse_trials({"name": "ssd", field: value})


def test_values_are_the_papers() -> None:
    (ssd,), (assd,) = parse_trials("ssd"), parse_trials("assd")
    assert ssd.hyperparameters == {"alpha": 10.0, "dampening": 1.0}
    assert assd.hyperparameters == {"dampening": 1.0}


def test_an_alpha_that_no_weight_can_reach_is_refused_before_any_training(tmp_path: Path) -> None:
    recipe = {**TINY, "unlearners": [{"name": "ssd", "alpha": [2, 5]}]}
    recipe["data"] = {"name": "digits", "train": 200, "test": 100, "validation": 0.1}
    with pytest.raises(MarshtestError, match=r"ssd.alpha: no weight is 5 times .* less than 5"):
        marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert not list(tmp_path.rglob("*.safetensors"))
