"""Certified noisy fine-tuning: its certificate against the divergences themselves, and its steps."""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, stats
from stepwise import KINDS, Exact, Steps, cross_entropies, network, problem
from torch import nn

from marshtest.metrics.gaussian_privacy import gaussian_delta, gaussian_distance
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task
from marshtest.unlearning import parse_trials
from marshtest.unlearning.certified import Certified, shrinkage
from marshtest.unlearning.check import images
from marshtest.unlearning.harness import unlearn

Densities = NDArray[np.float64]


def hockey_stick(one: Any, other: Any, epsilon: float) -> float:
    """∫ max(0, p − e^ε q), which δ must not be below."""
    gap = lambda x: max(0.0, one.pdf(x) - math.exp(epsilon) * other.pdf(x))  # noqa: E731
    far = 12 * one.std()
    value: float = integrate.quad(gap, -far, far, limit=400, epsabs=1e-12)[0]
    return value


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
def test_delta_is_the_hockey_stick_divergence_of_two_gaussians(
    distance: float, epsilon: float
) -> None:
    one, other = stats.norm(0, 1), stats.norm(distance, 1)
    expected = hockey_stick(one, other, epsilon)
    assert gaussian_delta(distance, epsilon) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2, 0.9])
def test_the_distance_is_the_one_at_which_delta_is_reached(epsilon: float, delta: float) -> None:
    assert gaussian_delta(gaussian_distance(epsilon, delta), epsilon) == pytest.approx(
        delta, rel=1e-6
    )


def test_the_distance_is_that_of_the_analytic_gaussian_mechanism() -> None:
    """Balle & Wang 2018: at δ = 1e-5 the deviation for ε = 1 is 3.73 sensitivities."""
    assert 1 / gaussian_distance(1.0, 1e-5) == pytest.approx(3.7304, abs=1e-3)


def test_a_renyi_epsilon_of_one_is_six_and_a_half() -> None:
    """α divergences of α μ² / 2 = α make μ = √2, whatever is made of them afterwards."""
    distance = math.sqrt(2)
    assert gaussian_delta(distance, 6.57) > 1e-5 > gaussian_delta(distance, 6.58)
    assert distance / gaussian_distance(1.0, 1e-5) == pytest.approx(5.3, abs=0.1)


HARD = {"epsilon": 1.0, "delta": 1e-3, "model_clip": 0.7, "gradient_clip": 2.0, "step": 0.1}
SETTINGS = [
    HARD | {"decay": 0.0, "steps": 6},
    HARD | {"decay": 3.0, "steps": 6},
    HARD | {"decay": 10.0, "steps": 6},
    HARD | {"decay": 3.0, "steps": 1},
    HARD | {"decay": 9.0, "steps": 8, "epsilon": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_constant_drift_apart_spends_all_of_delta(settings: dict[str, Any]) -> None:
    """Starts at ± C₀, gradients ∓ C₁: the outputs are two Gaussians, and δ is theirs."""
    method = Certified(**settings)
    mean, variance = settings["model_clip"], 0.0
    for _ in range(settings["steps"]):  # of the upper one; the other's mean is −mean
        shrunk = 1 - settings["step"] * settings["decay"]
        mean = shrunk * mean + settings["step"] * settings["gradient_clip"]
        variance = shrunk**2 * variance + method.deviation**2
    upper, lower = (stats.norm(sign * mean, math.sqrt(variance)) for sign in (1, -1))
    spent = hockey_stick(lower, upper, settings["epsilon"])
    assert spent == pytest.approx(settings["delta"], rel=1e-3)


GRADIENTS = {  # of losses that are not convex, clipped to C₁ = 2
    "away from zero": lambda x: -2 * np.sign(x),
    "two wells": lambda x: np.clip(4 * x**3 - 4 * x, -2, 2),
    "waves": lambda x: 2 * np.sin(9 * x),
    "steps": lambda x: np.where(np.floor(3 * x) % 2 == 0, 2.0, -2.0),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_certificate_holds_on_losses_that_are_not_convex(
    name: str, settings: dict[str, Any]
) -> None:
    """The law of one weight, step by step on a grid, from any two starts within C₀."""
    method, bound = Certified(**settings), settings["model_clip"]
    grid = np.linspace(-60, 60, 2401)
    width = grid[1] - grid[0]
    if method.deviation < 4 * width:
        pytest.fail("the grid is too coarse")
    moved = (1 - settings["step"] * settings["decay"]) * grid
    moved -= settings["step"] * GRADIENTS[name](grid)
    kernel = stats.norm.pdf(grid[:, None], moved[None, :], method.deviation) * width

    def law(start: float) -> Densities:
        mass: Densities = np.zeros_like(grid)
        mass[np.abs(grid - start).argmin()] = 1.0
        for _ in range(settings["steps"]):
            mass = kernel @ mass
        assert mass.sum() == pytest.approx(1, abs=1e-6)
        return mass

    laws = [law(start) for start in (-bound, -bound / 3, bound / 2, bound)]
    spent = [
        np.maximum(0, one - math.exp(settings["epsilon"]) * other).sum()
        for one in laws
        for other in laws
    ]
    assert max(spent) <= settings["delta"] * (1 + 1e-3)


def equipped(kind: str) -> Task:
    """A task whose training hands out what it was given to start from."""

    def train(samples: Any, seed: int, budget: Any, **options: Any) -> nn.Module:
        start: nn.Module = options["start"]
        return start

    return replace(Exact(), train=train, new_model=partial(network, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient_clip", [0.05, 100.0], ids=["clipped", "not clipped"])
def test_steps_are_clipped_decayed_and_noised(kind: str, gradient_clip: float) -> None:
    model, retain, forget = problem(kind)
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    settings = {"model_clip": 0.8, "gradient_clip": gradient_clip, "step": 0.1, "decay": 2.0}
    method = Certified(**settings, steps=3, noisy_batch_size=16, epsilon=1e4)
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=equipped(kind), budget=Steps(9), seed=5)

    expected, draws = copy.deepcopy(model).train(), generator(5, "noise")
    free = [p for p in expected.parameters() if p.requires_grad]
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in free))
    assert norm > 0.8
    with torch.no_grad():
        for p in free:
            p.mul_(0.8 / norm)
    batches = Exact().batches(retain, 16, derive(5, "noisy steps"))
    with seeded(2):
        for batch in islice(batches, 3):
            loss = cross_entropies(expected(batch.x), batch.y).mean()
            slopes = torch.autograd.grad(loss, free)
            size = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
            assert (size > gradient_clip) == (gradient_clip == 0.05)
            with torch.no_grad():
                for p, slope in zip(free, slopes, strict=True):
                    noise = torch.randn(p.shape, generator=draws).double()
                    clipped = slope * min(1.0, gradient_clip / size)
                    p.copy_(p - 0.1 * (clipped + 2 * p) + method.deviation * noise)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_buffers_start_anew_since_no_noise_covers_them() -> None:
    model, retain, forget = problem("batch norm")
    task = equipped("batch norm")
    updated = Certified(steps=2)(model, retain, forget, task=task, budget=Steps(9), seed=5)
    fresh = dict(network("batch norm", 5).named_buffers())
    assert same_tensors(dict(updated.named_buffers()), fresh)
    assert not same_tensors(dict(model.named_buffers()), fresh)


class Unreached(nn.Module):
    """A network with a weight that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 4)
        self.spare = nn.Parameter(torch.full((50, 40), 7.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.used(x)


def test_a_weight_that_the_loss_does_not_reach_is_noised_too() -> None:
    """It holds what the initial training put into it, and leaves with the model."""
    model, (_, retain, forget) = Unreached().double(), problem("plain")
    task = replace(equipped("plain"), new_model=lambda seed: Unreached())
    method = Certified(steps=1)
    updated = method(model, retain, forget, task=task, budget=Steps(9), seed=5)
    spare = updated.spare.detach()  # type: ignore[operator, union-attr]
    assert float(spare.std()) == pytest.approx(method.deviation, rel=0.1)  # ± 1 / √4,000
    assert abs(float(spare.mean())) < 4 * method.deviation / math.sqrt(2000)


def test_what_is_within_the_norm_is_not_scaled() -> None:
    tensors = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0], [4.0]])]  # of norm 5 together
    factors = [float(shrinkage(tensors, norm)) for norm in (2.0, 5.0, 9.0)]
    assert factors == pytest.approx([0.4, 1.0, 1.0])
    assert float(shrinkage([torch.zeros(3)], 2.0)) == 1


def test_a_budget_that_ends_within_the_noisy_steps_certifies_nothing() -> None:
    model, retain, forget = problem("plain")
    with pytest.raises(
        MarshtestError, match=r"certified\.steps: .* affords 4 of 10 .* no ε holds\. Lower"
    ):
        Certified()(model, retain, forget, task=equipped("plain"), budget=Steps(4), seed=0)
    given = images()
    outcome = given.run(Certified(), 0.2)
    assert outcome.model is None
    assert "no ε holds" in outcome.note


def test_a_budget_that_ends_within_a_noisy_step_certifies_nothing() -> None:
    """Stopped within the first it would leave the clipped model, without any noise."""
    given, method = images(), Certified(steps=3, noisy_batch_size=16)
    step = 16 * given.passes / (20 * 64)  # the training's cost of 16 samples
    mends = {1.0: "Raise", 0.5 * step: "Raise", 1.4 * step: "Lower", 2.4 * step: "Lower"}
    for passes, mend in (mends | {4.0 * step: None}).items():
        budget = [Budget(passes, given.flops_per_pass)]
        (outcome,) = unlearn(
            method, given.model, given.retain, given.forget, task=given.task, budgets=budget, seed=0
        )
        assert (outcome.model is None) == (mend is not None)
        assert mend is None or f"no ε holds. {mend}" in outcome.note


def test_two_initial_models_end_alike_under_a_small_epsilon() -> None:
    """With ε near 0 the noise is all there is: draws being equal, so are the starts of the tail."""
    _, retain, forget = problem("plain")
    method = Certified(epsilon=1e-3)
    ends = [
        method(
            network("plain", seed), retain, forget, task=equipped("plain"), budget=Steps(99), seed=5
        )
        for seed in (1, 2)
    ]
    one, other = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in ends)
    distance = float((one - other).norm())
    assert distance < 2 * 0.5**10 + 2 * 10 / 500  # D
    assert distance < 1e-3 * float(one.norm())


def test_the_values_are_as_documented() -> None:
    (method,) = parse_trials("certified")
    assert isinstance(method, Certified)
    assert method.hyperparameters == {
        "epsilon": 1.0,
        "delta": 1e-5,
        "model_clip": 1.0,
        "gradient_clip": 10.0,
        "step": 1e-3,
        "decay": 500.0,
        "steps": 10,
        "noisy_batch_size": 128,
    }
    assert method.steps == math.ceil(math.log(2 * 500 * 1 / 10) / (1e-3 * 500))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epsilon": 0}, "unlearners.certified.epsilon: "),
        ({"delta": 1}, "unlearners.certified.delta: "),
        ({"model_clip": 0}, "unlearners.certified.model_clip: "),
        ({"gradient_clip": -1}, "unlearners.certified.gradient_clip: "),
        ({"steps": 0}, "unlearners.certified.steps: "),
        ({"step": 0.01, "decay": 101}, "unlearners.certified: step · decay is 1.01. Lower it to 1"),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MarshtestError, match=complaint) as refused:
        parse_trials({"name": "certified", **values})
    assert "\n" not in str(refused.value)


def test_the_whole_method_is_counted() -> None:
    given = images()
    budget = Budget(0.5 * given.passes, given.flops_per_pass)
    with budget:
        Certified()(given.model, given.retain, given.forget, task=given.task, budget=budget, seed=1)
    assert budget.spent > 0.45 * given.passes
