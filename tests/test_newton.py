"""Newton's step: against an explicit Hessian, its certificate against the exact minimum, its refusals."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

import marshtest
from marshtest.data.samples import Samples
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget, Meter
from marshtest.training.loop import Training
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.harness import unlearn
from marshtest.unlearning.newton import Newton, certificate, read

DECAY = 0.05
TASK = Classification(optimizer_for=Training(epochs=1, weight_decay=DECAY).optimizer_for)


def problem(bias: bool = True) -> tuple[nn.Module, Samples, Samples]:
    """A linear model away from any minimum, 60 samples to retain and 10 to forget."""
    with seeded(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=bias))
        samples = Samples(torch.randn(70, 2, 3), torch.randint(3, (70,)), torch.arange(70))
    return model, samples[:60], samples[60:]


def objective(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """F, written out from the module's docstring."""
    return F.cross_entropy(x @ theta.T, y) + DECAY / 2 * theta.square().sum()


def design(samples: Samples, bias: bool = True) -> Tensor:
    x = samples.x.flatten(1).double()
    return torch.cat([x, torch.ones(len(x), 1).double()], 1) if bias else x


def run(model: nn.Module, retain: Samples, forget: Samples, **options: object) -> nn.Module:
    (method,) = parse_trials({"name": "newton", **options})
    budget = Budget(1e9, 1.0)
    with budget:
        return method(model, retain, forget, task=TASK, budget=budget, seed=7)


def layer(model: nn.Module) -> nn.Linear:
    found = model[1]  # type: ignore[index]
    assert isinstance(found, nn.Linear)
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_one_step_is_the_explicit_hessians(bias: bool) -> None:
    """Another row, sample weight, sign or objective gives another step."""
    model, retain, forget = problem(bias)
    x, start = design(retain, bias), read(layer(model))
    slope = torch.func.grad(objective)(start, x, retain.y)
    hessian = torch.func.hessian(objective)(start, x, retain.y).reshape(start.numel(), -1)
    step = (read(layer(run(model, retain, forget))) - start).flatten()
    # the equations are solved to a thousandth of the gradient, and weights stored in float32
    assert float((hessian @ step + slope.flatten()).norm()) < 1.1e-3 * float(slope.norm())


def exact(retain: Samples) -> Tensor:
    """The minimum of F by SciPy's quasi-Newton method, which shares no code with ours."""
    x, shape = design(retain), (3, 7)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(flat).view(shape).requires_grad_()
        loss = objective(theta, x, retain.y)
        return float(loss.detach()), torch.autograd.grad(loss, theta)[0].flatten().numpy()

    done = minimize(value, np.zeros(21), jac=True, method="BFGS", options={"gtol": 1e-10})
    return torch.from_numpy(done.x).view(shape)


def test_the_certificate_bounds_the_distance_to_the_retrained_minimum_and_steps_shrink_it() -> None:
    model, retain, forget = problem()
    minimum, bounds = exact(retain), []
    for steps in (1, 2, 3):
        updated = run(model, retain, forget, steps=steps)
        solution = certificate(updated, retain, TASK)
        slope = torch.func.grad(objective)(read(layer(updated)), design(retain), retain.y)
        assert solution.gradient_norm == pytest.approx(float(slope.norm()), rel=1e-6)
        distance = float((read(layer(updated)) - minimum).norm())
        assert distance <= solution.distance
        bounds.append(solution.distance)
    assert bounds[0] > 5 * bounds[1]
    assert bounds[1] > 50 * bounds[2]  # convergence is faster than linear


def test_from_the_minimum_over_all_samples_the_step_is_the_influence_of_the_forget_set() -> None:
    """Guo et al. 2020, equation 3: θ* + H⁻¹ Δ, with Δ the forget set's gradient at θ*."""
    model, retain, forget = problem()
    both = Samples(
        torch.cat([retain.x, forget.x]), torch.cat([retain.y, forget.y]), torch.arange(70)
    )
    at = exact(both)
    with torch.no_grad():
        layer(model).weight.copy_(at[:, :-1])
        layer(model).bias.copy_(at[:, -1])

    def summed(theta: Tensor, samples: Samples) -> Tensor:
        loss = F.cross_entropy(design(samples) @ theta.T, samples.y, reduction="sum")
        return loss + DECAY * len(samples) / 2 * theta.square().sum()

    hessian = torch.func.hessian(summed)(at, retain).reshape(21, 21)
    influence = torch.linalg.solve(hessian, torch.func.grad(summed)(at, forget).flatten())
    updated = read(layer(run(model, retain, forget)))
    moved = (updated - at).flatten()
    assert float((moved - influence).norm()) < 5e-3 * float(influence.norm())


def test_noise_has_the_stated_deviation_and_a_seed() -> None:
    with seeded(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(400, 10))
        retain = Samples(torch.randn(50, 400), torch.randint(10, (50,)), torch.arange(50))
    plain = read(layer(run(model, retain, retain[:2])))
    noisy = read(layer(run(model, retain, retain[:2], noise=0.3)))
    # relative standard error of a deviation from 4,010 draws: 1 / √8,020 = 0.011
    assert float((noisy - plain).std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noisy, read(layer(run(model, retain, retain[:2], noise=0.3))))


class Doubled(nn.Module):
    """A linear layer whose output is not the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x.flatten(1))  # type: ignore[no-any-return]


def test_what_is_not_linear_is_refused_before_training() -> None:
    deep = build(parse_model({"name": "mlp", "depth": 1}), (6,), 3, 0)
    with pytest.raises(MarshtestError, match=r"newton: needs a model .* It trains 2 layers"):
        Newton().check(deep)
    Newton().check(build(parse_model({"name": "mlp", "depth": 0}), (6,), 3, 0))
    half = copy.deepcopy(problem()[0])
    layer(half).bias.requires_grad_(False)
    with pytest.raises(MarshtestError, match="part of it is frozen"):
        Newton().check(half)


def test_what_cannot_be_known_before_is_the_rows_note() -> None:
    _, retain, forget = problem()
    plain = Classification(optimizer_for=Training(epochs=1, weight_decay=0).optimizer_for)
    for model, task, note in (
        (Doubled(), TASK, "outputs are not the model's logits"),
        (problem()[0], plain, "nothing bounds the distance"),
    ):
        (outcome,) = unlearn(
            Newton(), model, retain, forget, task=task, budgets=[Budget(1e6, 1.0)], seed=0
        )
        assert outcome.model is None
        assert note in outcome.note


def test_a_small_budget_ends_the_rounds_and_not_the_run() -> None:
    model, retain, forget = problem()
    budget = Budget(20 * 60, 36.0)  # flops of a forward are 2 · 6 · 3
    (outcome,) = unlearn(Newton(), model, retain, forget, task=TASK, budgets=[budget], seed=0)
    assert outcome.note == ""
    assert outcome.model is not None
    before = certificate(model, retain, TASK).distance
    assert certificate(outcome.model, retain, TASK).distance < before / 2


WIDE = 600


def wide() -> tuple[nn.Module, Samples, Samples]:
    """A linear model of 600 features of unequal size, of which a factor costs more than the training."""
    with seeded(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(WIDE, 3))
        x = torch.randn(110, WIDE) * torch.logspace(0, -2, WIDE)
        samples = Samples(x, torch.randint(3, (110,)), torch.arange(110))
    return model, samples[:100], samples[100:]


def test_wide_inputs_whose_factor_is_not_affordable_are_solved_without_it() -> None:
    model, retain, forget = wide()
    forward = 2 * WIDE * 3
    budget = Budget(100 * 60, forward)  # the factor alone is 200 passes of each of the 100 samples
    (outcome,) = unlearn(Newton(), model, retain, forget, task=TASK, budgets=[budget], seed=0)
    assert outcome.note == ""
    assert outcome.model is not None
    before, after = (certificate(m, retain, TASK).distance for m in (model, outcome.model))
    assert after < before / 5
    # and it is the same step: the equations have one solution
    exact_step = read(layer(run(model, retain, forget)))
    gap = (read(layer(outcome.model)) - exact_step).norm()
    assert float(gap) < 0.02 * float((exact_step - read(layer(model))).norm())


@pytest.mark.parametrize("passes", [50, 150, 250, 350])
def test_a_budget_without_a_step_leaves_no_model(passes: float) -> None:
    """The initial model, which was not touched, is nobody's result."""
    model, retain, forget = wide()
    budget = Budget(passes, 2 * WIDE * 3)
    (outcome,) = unlearn(Newton(), model, retain, forget, task=TASK, budgets=[budget], seed=0)
    assert outcome.model is None
    assert outcome.note == (
        "unlearners.newton: the budget does not afford a step over the retain set. Raise budgets."
    )


def test_a_step_that_is_not_affordable_leaves_the_one_before() -> None:
    model, retain, forget = problem()
    with Meter() as meter:
        run(model, retain, forget)
    budget = Budget(1.5 * meter.flops / 36, 36.0)
    method = Newton(steps=5)
    (outcome,) = unlearn(method, model, retain, forget, task=TASK, budgets=[budget], seed=0)
    assert outcome.note == ""
    assert outcome.model is not None
    expected = read(layer(run(model, retain, forget)))
    assert torch.equal(read(layer(outcome.model)), expected)


@pytest.mark.parametrize(
    "training", [{"optimizer": "adamw", "weight_decay": 0.01}, {"weight_decay": 0}]
)
def test_a_training_without_an_objective_of_its_own_is_refused_before_it(
    training: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**TINY, "model": {"name": "mlp", "depth": 0}, "unlearners": ["newton"]}
    recipe["training"] = {**TINY["training"], **training}
    with pytest.raises(MarshtestError, match=r"newton.weight_decay: the training minimises no"):
        marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_several_steps_keep_to_a_budget_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is an epoch of the retain set; the rounds of all steps share the budget."""
    monkeypatch.setattr("marshtest.unlearning.newton.SOLVED", 1e-12)  # so that no round is left out
    model, retain, forget = problem()
    spent = []
    for steps in (1, 4):
        budget = Budget(math.inf, 36.0, epochs=3)
        newton = Newton(steps=steps, noise=0)
        (outcome,) = unlearn(newton, model, retain, forget, task=TASK, budgets=[budget], seed=0)
        assert outcome.note == ""
        spent.append(outcome.cost.passes)
    # Each step has its gradient and factor; three times the rounds would cost more than that.
    assert spent[1] < 2 * spent[0]
