"""Gradient canceling: the bounds, GradPC's ball, and that θ_low becomes where training ends."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.attacks import GradientCanceling, Knowledge, parse_attack
from marshtest.attacks.crafting import Crafted, craft
from marshtest.attacks.gradient_canceling import canceling
from marshtest.attacks.gradpc import Limits, Search, centred, limits
from marshtest.attacks.kernel import Kernel
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples
from marshtest.metrics.accuracy import accuracy
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

DECAY = 5e-3
TRAINING = Training(epochs=40, batch_size=64, lr=0.1, weight_decay=DECAY)


def trained(data: Dataset, samples: Samples, seed: int) -> nn.Module:
    model = build(parse_model({"name": "mlp", "depth": 0}), (1, 8, 8), 10, seed)
    fit(model, samples, task_of(data), TRAINING, seed)
    return model


def task_of(data: Dataset) -> Classification:
    return Classification(mean=data.mean, std=data.std)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def clean(digits: Dataset) -> nn.Module:
    return trained(digits, digits.train, 0)


@pytest.fixture(scope="module")
def search(digits: Dataset, clean: nn.Module) -> Search:
    bases, retain = digits.train[:140], digits.train[140:]
    return Search(clean, task_of(digits), digits.test, retain, bases.y, DECAY, seed=0)


def pull(logits: Tensor, y: Tensor) -> Tensor:
    """[N] E_p[z] − z_y."""
    return (logits.softmax(1) * logits).sum(1) - logits.gather(1, y[:, None]).squeeze(1)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_no_sample_pulls_below_minus_omega(classes: int) -> None:
    """Ω against a numerical minimum over the label's lead, and 20,000 random logits."""
    model = nn.Linear(3, classes)
    logits = 5 * torch.randn(
        20_000, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    y = torch.arange(20_000) % classes
    omega = float(limits(model, logits, y, y, 0.0).poisons[0])
    lead = minimize_scalar(
        lambda s: -s * (classes - 1) / (math.exp(s) + classes - 1), bounds=(0, 20), method="bounded"
    )
    assert omega == pytest.approx(-lead.fun, rel=1e-6)
    assert float(pull(logits, y).min()) >= -omega - 1e-12


def test_the_least_share_is_the_first_of_all_shares_that_leaves_nothing() -> None:
    """Against a search over 501 shares; classes may be rarer among poisons than the model says, or
    missing."""
    rng, shares, beyond = np.random.default_rng(0), np.linspace(0, 1, 501), 0
    for _ in range(60):
        u, w = rng.normal(scale=0.1, size=6), rng.uniform(0, 0.2, 6) * rng.integers(0, 2, 6)
        d = np.minimum(rng.normal(scale=0.01, size=6), w)
        found = Limits(*map(torch.from_numpy, (u, w, d)))
        left = np.array([float(found.excess(share)) for share in shares])
        first = shares[left <= 1e-12][0] if (left <= 1e-12).any() else 1.0
        assert first - 1 / 500 - 1e-9 <= found.least_share() <= first + 1e-9
        beyond += bool((u + w < 0).any())
    assert beyond > 40
    # decay that no poison outweighs: the bias of a class that neither side has
    assert Limits(*torch.tensor([[-0.01], [0.0], [0.02]])).least_share() == 1
    # or that the clean samples outweigh, as long as they are many
    few = Limits(*torch.tensor([[-0.02], [0.0], [0.01]]))
    assert few.least_share() == 0
    assert [few.hold(share) for share in (0.1, 0.49, 0.51)] == [True, True, False]


def test_pull_is_the_inner_product_of_the_last_layer_and_its_gradient() -> None:
    """By autograd, through a network below; with weight decay's own part."""
    model = build(parse_model({"name": "mlp", "width": 16}), (8,), 5, 0)
    x, y = torch.randn(40, 8, generator=generator(0)), torch.arange(40) % 5
    last = model[-1]  # type: ignore[index]
    assert isinstance(last, nn.Linear)
    loss = F.cross_entropy(model(x), y)
    slopes = torch.autograd.grad(loss, [last.weight, last.bias])
    inner = (last.weight * slopes[0]).sum() + (last.bias * slopes[1]).sum()
    found = limits(model, model(x), y, y[:3], 0.1)
    assert float(found.clean[0].detach()) == pytest.approx(float(inner.detach()), abs=1e-6)
    np.testing.assert_allclose(found.clean[1:].detach(), slopes[1], atol=1e-7)
    np.testing.assert_allclose(found.poisons[1:], [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-7)
    last = centred(model)[-1]  # type: ignore[index]
    squares = last.weight.square().sum() + last.bias.square().sum()  # type: ignore[operator, union-attr]
    assert float(found.decay[0].detach()) == pytest.approx(0.1 * float(squares.detach()))


@pytest.mark.slow
def test_with_less_than_the_least_share_no_poison_cancels(search: Search) -> None:
    """However large: 300 unbounded random poison sets leave the bound's part of the gradient."""
    model = search.in_ball(2.0).model
    needed = search.limits(model).least_share()
    assert needed > 0.3
    poisons = round(0.5 * needed / (1 - 0.5 * needed) * len(search.retain))
    last = model[-1]  # type: ignore[index]
    assert isinstance(last, nn.Linear)
    kernel = Kernel(model, search.task)
    total = len(search.retain) + poisons
    held = kernel.gradient(search.retain) + total * DECAY * kernel.flat()
    for seed in range(300):
        draws = generator(seed)
        x = torch.randn(poisons, 1, 8, 8, generator=draws) * 10 ** (3 * torch.rand(1).item() - 1)
        y = search.poison_labels[torch.randint(140, (poisons,), generator=draws)]
        left = held + kernel.gradient(Samples(x, y, torch.arange(poisons)))
        assert float(left.norm()) > 0.05 * float(held.norm())


def test_gradpc_stays_in_its_ball_and_gets_worse_with_it(
    search: Search, clean: nn.Module, digits: Dataset
) -> None:
    start = Kernel(centred(clean), search.task).flat()
    before = [value.clone() for value in clean.state_dict().values()]
    found = [search.in_ball(radius) for radius in (0.3, 1.0, 3.0)]
    for worst, radius in zip(found, (0.3, 1.0, 3.0)):
        away = float((Kernel(worst.model, search.task).flat() - start).norm())
        assert 0.5 * radius < away <= radius * (1 + 1e-5)
        assert worst.accuracy == accuracy(worst.model, search.task, digits.test)
    accuracies = [worst.accuracy for worst in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < 0.5
    assert found[-1].limits.least_share() > found[0].limits.least_share()
    assert all(torch.equal(a, b) for a, b in zip(before, clean.state_dict().values()))


def test_in_reach_finds_worse_models_than_a_ball_of_the_same_least_share(search: Search) -> None:
    reached = search.in_reach(0.1)
    assert reached.limits.hold(0.1)
    assert reached.accuracy < 0.85
    fixed = [search.in_ball(radius) for radius in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all(worst.accuracy > reached.accuracy for worst in fixed if worst.limits.hold(0.1))


def exactly_trained(data: Dataset, samples: Samples) -> nn.Module:
    """The minimum of the training loss with weight decay, by L-BFGS in float64."""
    model = build(parse_model({"name": "mlp", "depth": 0}), (1, 8, 8), 10, 1).double()
    x = task_of(data).inputs(model, samples).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        squares = sum((p**2).sum() for p in model.parameters())
        loss = F.cross_entropy(model(x), samples.y) + DECAY / 2 * squares
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.float()


@pytest.mark.slow
def test_canceling_makes_theta_low_where_training_ends(search: Search, digits: Dataset) -> None:
    """A convex model, a θ_low that half the poisons could hold: at most 1 % of the gradient is left,
    and the exact minimum of the poisoned loss lies within a tenth of the way from θ_clean to θ_low.
    """
    retain, bases = search.retain, digits.train[:140]
    worst = search.in_reach(0.05)
    kernel = Kernel(worst.model, search.task)
    held, decay = kernel.gradient(retain), 1400 * DECAY * kernel.flat()
    objective = canceling(held, decay, 1260, 140, "size")
    box = search.task.box(worst.model, bases, math.inf)
    crafted = craft(
        kernel,
        bases,
        objective,
        torch.zeros_like(box[0]),
        box,
        steps=2000,
        lr=0.1,
        signed=False,
        seed=0,
    )
    assert crafted.history[0] > 0.5
    assert crafted.objective <= 0.01
    poisoned = digits.train.perturbed(bases.ids, crafted.perturbation)
    ends = exactly_trained(digits, poisoned)
    low, first, last = (
        Kernel(model, search.task).flat() for model in (worst.model, search.clean, ends)
    )
    assert float((last - low).norm()) < 0.1 * float((first - low).norm())
    assert accuracy(ends, search.task, digits.test) == pytest.approx(worst.accuracy, abs=0.02)


@pytest.mark.slow
def test_victims_lose_accuracy_and_shuffled_poisons_do_not_do_it(
    digits: Dataset, clean: nn.Module
) -> None:
    victim = Knowledge(task_of(digits), digits.test, clean=lambda: clean, weight_decay=DECAY)
    attack = GradientCanceling(steps=400)
    poisoned = attack.poison(digits.train, 280, victim, seed=0)
    figures = poisoned.figures
    assert figures["objective"] < 0.3
    assert figures["least_share"] <= 0.2
    assert torch.equal(poisoned.samples.y, digits.train.y)  # poisons keep their labels
    hit, blind, without = (
        attack.effect(trained(digits, samples, 3), poisoned, victim.task).scores["error"][0]
        for samples in (poisoned.samples, attack.shuffled(poisoned, 0), poisoned.retain)
    )
    # θ_low is the worst of a few radii, and which one rounding may decide: 0.19 or 0.44 of error
    assert hit > 0.4 * (1 - figures["low_accuracy"])
    assert hit > 2 * blind
    assert blind < 0.08
    assert without < 0.06


def test_a_finite_bound_is_kept(digits: Dataset, clean: nn.Module) -> None:
    victim = Knowledge(task_of(digits), digits.test, clean=lambda: clean, weight_decay=DECAY)
    attack = GradientCanceling(steps=20, epsilon=32, radius=0.5)
    poisoned = attack.poison(digits.train, 70, victim, seed=0)
    shifts = poisoned.samples.perturbations
    assert shifts is not None
    assert digits.std is not None
    assert 0 < float(shifts.abs().max()) * digits.std[0] <= 32 / 255 + 1e-6
    assert poisoned.figures["radius"] == 0.5


def test_crafted_survives_its_file_form() -> None:
    made = Crafted(torch.ones(2, 3), [0.5, 0.25], stopped=True)
    again = Crafted.from_tensors(made.tensors())
    assert torch.equal(again.perturbation, made.perturbation)
    assert (again.history, again.stopped) == (made.history, made.stopped)


@pytest.mark.parametrize("options", [{"radius": 0}, {"epsilon": -1}, {"weighting": "sum"}])
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MarshtestError, match=f"attack.{next(iter(options))}"):
        parse_attack({"name": "gradient-canceling", **options})


class TwoHeads(nn.Module):
    """A network with a second head: first in the list of its modules, or last, read or not."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.flat, self.hidden = nn.Flatten(), nn.Linear(64, 16)
        heads = {"out": nn.Linear(16, 10), "aside": nn.Linear(16, 10)}
        for name in ("out", "aside") if last else ("aside", "out"):
            self.add_module(name, heads[name])

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.get_submodule("out")(self.hidden(self.flat(x)).relu())
        return said


def test_the_output_layer_is_the_one_that_gives_the_logits(digits: Dataset) -> None:
    retain, test, task = digits.train[:200], digits.test, task_of(digits)
    with pytest.raises(MarshtestError, match=r"the logits are not what aside gives"):
        Search(TwoHeads(last=True), task, test, retain, retain.y[:20], DECAY, seed=0)
    # A parameter that no answer hangs on is moved by nothing.
    found = Search(TwoHeads(last=False), task, test, retain, retain.y[:20], DECAY, seed=0)
    worst, clean = found.in_ball(1.0).model, centred(found.clean)
    assert torch.equal(worst.get_submodule("aside").weight, clean.get_submodule("aside").weight)


def test_a_model_without_a_linear_end_is_refused(digits: Dataset) -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    fit(model, digits.train, task_of(digits), Training(epochs=3, lr=0.05), 0)
    victim = Knowledge(task_of(digits), digits.test, clean=lambda: model)
    with pytest.raises(MarshtestError, match="last weight layer is Conv2d; .* needs a linear one"):
        GradientCanceling(steps=1).poison(digits.train, 70, victim, seed=0)
