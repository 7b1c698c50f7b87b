"""How shifts descend: each rule against a literal loop with a double backward, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.attacks import GradientCanceling, GradientMatching, Knowledge, parse_attack
from marshtest.attacks.base import ALONE
from marshtest.attacks.crafting import DECAYS, Crafted, craft
from marshtest.attacks.gradient_canceling import cancel
from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.gradpc import Search, ascend, centred
from marshtest.attacks.kernel import Kernel
from marshtest.data.samples import Samples
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.tasks import Classification, Task

DECAY = 0.05


class InDouble(Classification):
    """The task in float64."""

    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        return model(inputs)  # type: ignore[no-any-return]


@dataclass
class Small:
    """A network of 84 parameters, 30 samples to keep, 9 to poison, and a target."""

    model: nn.Module
    kept: Samples
    bases: Samples
    aim: Samples
    task: Task


@pytest.fixture
def small() -> Small:
    draws = generator(0)

    def samples(count: int, first: int) -> Samples:
        x = torch.randn(count, 5, generator=draws, dtype=torch.float64)
        y = torch.randint(4, (count,), generator=draws)
        return Samples(x, y, torch.arange(first, first + count))

    model = build(parse_model({"name": "mlp", "width": 8}), (5,), 4, 3).double()
    return Small(
        nn.Sequential(model[0], model[1], nn.Tanh(), model[3]),  # type: ignore[index]
        *(samples(count, first) for count, first in ((30, 100), (9, 0), (1, 200))),
        InDouble(),
    )


def sums(small: Small, x: Tensor, y: Tensor, *, first: bool = False) -> Tensor:
    """Σ ∇_θ ℓ by autograd, of all parameters or of the first tensor, to be differentiated again."""
    wanted = list(small.model.parameters())[: 1 if first else None]
    loss = F.cross_entropy(small.model(x), y, reduction="sum")
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted, create_graph=True)])


def descended(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    step: Callable[[Tensor, Tensor, int], Tensor],
    n: int,
) -> Tensor:
    """∆ after n steps, each from ∆, ∂L/∂∆ and the number of the step."""
    shift = start.clone()
    for number in range(n):
        at = shift.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at), at)
        shift = step(at.detach(), slope, number)
    return shift


def off(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def canceled(small: Small, steps: int, **options: Any) -> Crafted:
    kernel = Kernel(small.model, small.task, fast=False, first=options.pop("first", False))
    given: dict[str, Any] = {"weighting": "mean", "optimizer": "sgd", "lr": 0.1, **options}
    return cancel(
        kernel,
        small.bases,
        small.kept,
        DECAY,
        steps=steps,
        seed=0,
        **given,
    )


@pytest.mark.parametrize(("lr", "steps"), [(0.1, 1), (0.1, 40), (20.0, 40)])
def test_sgd_on_the_mean_objective_is_algorithm_2(small: Small, lr: float, steps: int) -> None:
    """L = ½‖g_c + g_p‖² without weight decay; ∆ ← ∆ − η ∂L/∂∆."""
    clean = sums(small, small.kept.x, small.kept.y).detach() / 30

    def loss(shift: Tensor) -> Tensor:
        poisoned = sums(small, small.bases.x + shift, small.bases.y) / 9
        return (clean + poisoned).square().sum() / 2

    start = torch.zeros_like(small.bases.x)
    expected = descended(loss, start, lambda at, slope, _: at - lr * slope, steps)
    found = canceled(small, steps, lr=lr)
    assert off(found.perturbation, expected) <= 1e-6
    before, after = (math.sqrt(2 * float(loss(at).detach())) for at in (start, expected))
    assert found.history[0] == pytest.approx(before / float(clean.norm()))
    assert found.objective == pytest.approx(after / float(clean.norm()))
    assert after < before


def test_sgd_by_size_descends_the_training_gradient_with_weight_decay(small: Small) -> None:
    theta = torch.cat([p.flatten() for p in small.model.parameters()]).detach()
    clean = sums(small, small.kept.x, small.kept.y).detach()

    def loss(shift: Tensor) -> Tensor:
        poisoned = sums(small, small.bases.x + shift, small.bases.y)
        return ((clean + poisoned) / 39 + DECAY * theta).square().sum() / 2

    expected = descended(
        loss, torch.zeros_like(small.bases.x), lambda at, slope, _: at - 2.0 * slope, 20
    )
    assert off(canceled(small, 20, lr=2.0, weighting="size").perturbation, expected) <= 1e-6


def test_sgd_keeps_to_a_bound(small: Small) -> None:
    free, bound = canceled(small, 30, lr=20.0), canceled(small, 30, lr=20.0, epsilon=0.05)
    assert float(free.perturbation.abs().max()) > 0.05
    assert float(bound.perturbation.abs().max()) == pytest.approx(0.05)


@pytest.mark.parametrize("fast", [False, True])
def test_the_gradient_of_the_first_tensor_alone_is_canceled(small: Small, fast: bool) -> None:
    """J and ∂J/∂x against autograd with regard to that tensor only."""
    kernel = Kernel(small.model, small.task, fast=fast, first=True)
    clean = sums(small, small.kept.x, small.kept.y, first=True).detach()
    assert off(kernel.gradient(small.kept), clean) <= 1e-9
    assert torch.equal(kernel.flat(), next(small.model.parameters()).detach().flatten())

    def loss(shift: Tensor) -> Tensor:
        poisoned = sums(small, small.bases.x + shift, small.bases.y, first=True) / 9
        return (clean / 30 + poisoned).square().sum() / 2

    expected = descended(
        loss, torch.zeros_like(small.bases.x), lambda at, slope, _: at - 20.0 * slope, 5
    )
    found = cancel(
        kernel,
        small.bases,
        small.kept,
        DECAY,
        "mean",
        steps=5,
        lr=20.0,
        seed=0,
        optimizer="sgd",
    )
    assert off(found.perturbation, expected) <= (1e-3 if fast else 1e-6)
    assert off(canceled(small, 5, lr=20.0).perturbation, expected) > 0.1  # of all tensors: another


def test_the_mean_objective_is_taken_at_the_clean_model_as_it_stands(small: Small) -> None:
    """`size` looks round the centred model, `mean` round the model itself; both are the same softmax."""

    def found(centre: bool) -> nn.Module:
        search = Search(
            small.model,
            small.task,
            small.kept,
            small.kept,
            small.bases.y,
            0.0,
            seed=5,
            centre=centre,
        )
        return search.in_ball(0.5).model

    def gain(model: nn.Module, draws: torch.Generator) -> Tensor:
        rows = torch.randperm(30, generator=draws)
        return F.cross_entropy(model(small.kept.x[rows]), small.kept.y[rows])

    for centre, start in ((False, small.model), (True, centred(small.model))):
        expected = ascend(start, gain, 0.5, generator(5, "ascent"))
        for one, other in zip(found(centre).parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    x = small.kept.x
    torch.testing.assert_close(centred(small.model)(x).softmax(1), small.model(x).softmax(1))


def matched(small: Small, start: Tensor, steps: int, **options: Any) -> Crafted:
    kernel = Kernel(small.model, small.task, fast=False)
    box = (torch.full_like(start, -0.4), torch.full_like(start, 0.4))
    return craft(
        kernel,
        small.bases,
        matching(kernel.gradient(small.aim)),
        start,
        box,
        steps=steps,
        lr=0.1,
        seed=0,
        **options,
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("per_batch", [None, 4])
def test_matching_is_torchs_adam_on_phi_written_out(
    small: Small, signed: bool, decay: bool, per_batch: int | None
) -> None:
    target = sums(small, small.aim.x, small.aim.y).detach()
    parts = [range(9)] if per_batch is None else [range(4), range(4, 8), range(8, 9)]

    def phi(shift: Tensor) -> Tensor:
        terms = []
        for part in parts:
            rows = torch.tensor(list(part))
            own = sums(small, small.bases.x[rows] + shift[rows], small.bases.y[rows])
            terms.append(1 - target @ own / (target.norm() * own.norm()))
        return torch.stack(terms).mean()

    start = 0.8 * torch.rand(9, 5, generator=generator(1), dtype=torch.float64) - 0.4
    shift, steps = start.clone().requires_grad_(), 16
    adam = torch.optim.Adam([shift], lr=0.1, eps=1e-16)
    values = []
    for step in range(steps):
        adam.zero_grad()
        value = phi(shift)
        value.backward()
        values.append(float(value.detach()))
        assert shift.grad is not None
        if signed:
            shift.grad = shift.grad.sign()
        if decay:  # a tenth after 6, 10 and 14 of 16 steps
            adam.param_groups[0]["lr"] = 0.1 * 0.1 ** ((step >= 6) + (step >= 10) + (step >= 14))
        adam.step()
        with torch.no_grad():
            shift.clamp_(-0.4, 0.4)
    values.append(float(phi(shift).detach()))
    found = matched(
        small, start, steps, signed=signed, decays=DECAYS if decay else (), per_batch=per_batch
    )
    torch.testing.assert_close(found.perturbation, shift.detach(), rtol=0, atol=1e-7)
    assert found.history == pytest.approx(values, abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"sign": False, "decay": False, "per_batch": 4}])
def test_the_attacks_options_reach_the_descent(small: Small, options: dict[str, Any]) -> None:
    asked = {"adversarial_label": int(small.bases.y[0]), "restarts": 1, "steps": 5, **options}
    attack = GradientMatching(**asked)
    y = torch.full((9,), int(small.bases.y[0]))
    aim = Samples(small.aim.x, y[:1], small.aim.ids)
    kernel, bases = Kernel(small.model, small.task), Samples(small.bases.x, y, small.bases.ids)
    found = attack._restarts(kernel, bases, aim, 0, 0, ALONE)[0]
    box = small.task.box(small.model, bases, 16)
    where = torch.rand(box[0].shape, generator=generator(0, "start", 0, 0))
    expected = craft(
        Kernel(small.model, small.task),
        bases,
        matching(kernel.gradient(aim)),
        box[0] + where * (box[1] - box[0]),
        box,
        steps=5,
        lr=0.1,
        seed=derive(0, "views", 0),
        signed=not options,
        decays=() if options else DECAYS,
        per_batch=options.get("per_batch"),
    )
    assert torch.equal(found.perturbation, expected.perturbation)
    assert found.history == expected.history


def test_canceling_asks_for_what_its_options_say(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = GradientCanceling(
        radius=0.1, weighting="mean", optimizer="sgd", parameters="first", steps=3, lr=0.5
    )
    monkeypatch.setattr("marshtest.attacks.gradient_canceling.learned", lambda of, _: of.clean())
    whole = Samples(
        torch.cat([small.kept.x, small.bases.x]),
        torch.cat([small.kept.y, small.bases.y]),
        torch.arange(39),
    )
    victim = Knowledge(small.task, small.kept, clean=lambda: small.model, weight_decay=DECAY)
    poisoned = attack.poison(whole, 9, victim, seed=2)
    bases, kept = whole.only(poisoned.forget_ids), whole.without(poisoned.forget_ids)
    search = Search(
        small.model, small.task, small.kept, kept, bases.y, DECAY, derive(2, "worst"), centre=False
    )
    expected = cancel(
        Kernel(search.in_ball(0.1).model, small.task, first=True),
        bases,
        kept,
        DECAY,
        "mean",
        steps=3,
        lr=0.5,
        seed=0,
        optimizer="sgd",
    )
    assert torch.equal(poisoned.forget.perturbation(), expected.perturbation)  # type: ignore[arg-type]
    assert [line["objective"] for line in poisoned.history] == expected.history


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gradient-canceling", {"optimizer": "adamw"}, "'adam' or 'sgd'. Got 'adamw'"),
        ("gradient-canceling", {"parameters": "last"}, "'all' or 'first'. Got 'last'"),
        ("gradient-canceling", {"place": "beside"}, "'replace' or 'add'. Got 'beside'"),
        ("gradient-matching", {"sign": "much"}, "valid boolean.* Got 'much'"),
        ("gradient-matching", {"decay": 3}, "valid boolean.* Got 3"),
        ("gradient-matching", {"per_batch": 0}, "greater than or equal to 1. Got 0"),
        ("trigger-word", {"cut": "hide"}, "'skip', 'window' or 'ignore'. Got 'hide'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(
    name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(MarshtestError, match=rf"^attack\.{next(iter(options))}: .*{says}") as error:
        parse_attack({"name": name, **options})
    assert "\n" not in str(error.value)
