"""NPO and SimNPO: their steps against the published formulas, their values, and where they lead."""

import copy
import math
from typing import Any

import pytest
import torch
from stepwise import KINDS, Exact, Objective, Steps, assert_same, cross_entropies, problem, sgd
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, seeded
from marshtest.training.budget import Budget
from marshtest.unlearning import parse_trials
from marshtest.unlearning.check import images, text
from marshtest.unlearning.npo import NPO, SimNPO

SEED, RATE, BETA, GAMMA = 5, 0.1, 0.7, 0.4
OPTIMIZER = {"optimizer": "sgd", "lr": RATE, "weight_decay": 0.01, "batch_size": 16}
WEIGHTS = {"forget_weight": 0.6, "retain_weight": 1.7}


def objectives(
    model: nn.Module, retain: Samples, forget: Samples, count: int, simple: bool
) -> list[Objective]:
    """0.6 · (2/β) log(1 + r^β) on forget, r = π_θ / π_initial, or e^γ π_θ; and 1.7 · loss on retain."""
    reference = copy.deepcopy(model).eval()
    kept = Exact().batches(retain, 16, derive(SEED, "retain"))
    forgotten = Exact().batches(forget, 16, derive(SEED, "forget"))

    def step(keep: Samples, drop: Samples) -> Objective:
        with torch.no_grad():
            initial = cross_entropies(reference(drop.x), drop.y).neg().exp()

        def objective(student: nn.Module) -> torch.Tensor:
            likelihood = cross_entropies(student(drop.x), drop.y).neg().exp()
            ratio = likelihood * math.exp(GAMMA) if simple else likelihood / initial
            penalty = (2 / BETA) * (1 + ratio**BETA).log()
            on_retain = cross_entropies(student(keep.x), keep.y)
            return 0.6 * penalty.sum() / len(drop) + 1.7 * on_retain.sum() / len(keep)

        return objective

    return [step(next(kept), next(forgotten)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("simple", [False, True], ids=["npo", "simnpo"])
def test_a_step_lowers_the_penalty_and_the_retain_loss(kind: str, count: int, simple: bool) -> None:
    model, retain, forget = problem(kind)
    method = (
        SimNPO(beta=BETA, margin=GAMMA, **WEIGHTS, **OPTIMIZER)
        if simple
        else NPO(beta=BETA, **WEIGHTS, **OPTIMIZER)
    )
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=Exact(), budget=Steps(count), seed=SEED)
    with seeded(2):
        steps = objectives(model, retain, forget, count, simple)
        expected = sgd(model, steps, [RATE] * count)
    assert_same(found, expected, model)


@pytest.mark.parametrize("beta", [1e-6, 0.1, 3.0])
def test_the_first_step_is_gradient_ascents_whatever_beta(beta: float) -> None:
    """At θ_initial r = 1, so a sample weighs 2 / (1 + 1) = 1."""
    model, retain, forget = problem("plain")
    shared = {**OPTIMIZER, "batch_size": 8, "weight_decay": 0.0}
    npo = NPO(beta=beta, retain_weight=0, **shared)
    (ascent,) = parse_trials({"name": "ga", **shared})
    one = npo(model, retain, forget, task=Exact(), budget=Steps(1), seed=SEED)
    other = ascent(model, retain, forget, task=Exact(), budget=Steps(1), seed=SEED)
    assert_same(one, other, model)  # eight samples are one batch, in whatever order


def ascended(method: Any, steps: int) -> float:
    """Mean loss on the forget set after so many steps away from it."""
    model, retain, forget = problem("plain")
    updated = method(model, retain, forget, task=Exact(), budget=Steps(steps), seed=SEED)
    return float(Exact().loss(updated, forget).detach().mean())


def test_npo_slows_down_as_it_forgets_where_gradient_ascent_does_not() -> None:
    """The paper's theorem: the loss of gradient ascent grows with the steps, NPO's with their logarithm."""
    shared = {**OPTIMIZER, "batch_size": 8, "weight_decay": 0.0, "momentum": 0.0}
    (ascent,) = parse_trials({"name": "ga", **shared})
    npo = NPO(beta=1.0, retain_weight=0, **shared)
    gains = {
        name: [ascended(method, steps) for steps in (100, 200, 400)]
        for name, method in (("ga", ascent), ("npo", npo))
    }
    first, second, last = gains["ga"]
    assert last - second > 1.5 * (second - first)  # linear growth: twice
    first, second, last = gains["npo"]
    assert 0 < last - second < 1.2 * (second - first)  # logarithmic growth: as much
    assert gains["npo"][-1] < gains["ga"][-1] / 5


@pytest.mark.parametrize("given", [images(), text()], ids=["images", "text"])
@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_the_penalty_raises_the_forget_loss_and_the_retain_loss_stays(
    name: str, given: Any
) -> None:
    """Beside the same method without its penalty, which trains on the retain set alone."""
    losses = {}
    for weight in (0.0, 1.0):
        (method,) = parse_trials({"name": name, "lr": 1e-3, "beta": 0.1, "forget_weight": weight})
        updated = given.run(method, 0.3).model
        assert updated is not None
        losses[weight] = {
            part: float(given.task.loss(updated.eval(), getattr(given, part)).detach().mean())
            for part in ("forget", "retain")
        }
    assert losses[1.0]["forget"] > losses[0.0]["forget"] + 0.05
    assert losses[1.0]["retain"] < losses[0.0]["retain"] + 0.05


def test_simnpo_asks_the_initial_model_nothing() -> None:
    model, retain, forget = problem("plain")
    spent = []
    for method in (NPO(**OPTIMIZER), SimNPO(**OPTIMIZER)):
        budget = Budget(1e9, 1.0)
        budget.stream = lambda batches, *_: iter([next(iter(batches))])  # type: ignore[method-assign, assignment]
        with budget:
            method(model, retain, forget, task=Exact(), budget=budget, seed=0)
        spent.append(budget.flops)
    forward = 2 * 8 * (6 * 7 + 7 * 4)  # of the forget set's eight
    assert spent[0] - spent[1] == forward


def test_the_values_are_the_papers_and_their_authors() -> None:
    (npo,), (simnpo,) = parse_trials("npo"), parse_trials("simnpo")
    shared = {"optimizer": "adamw", "lr": 1e-5, "momentum": 0.9, "weight_decay": 0.01}
    shared |= {"batch_size": 32, "retain_weight": 1.0}
    assert npo.hyperparameters == shared | {"beta": 0.1, "forget_weight": 1.0}
    assert simnpo.hyperparameters == shared | {
        "beta": 2.5,
        "forget_weight": 0.1375,
        "margin": 0.0,
    }


@pytest.mark.parametrize(
    "values", [{"beta": 0}, {"forget_weight": -1}, {"retain_weight": -0.1}, {"margin": 1}]
)
def test_bad_values_are_refused_in_one_line(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(MarshtestError, match=rf"unlearners.npo.*{key}") as refused:
        parse_trials({"name": "npo", **values})
    assert "\n" not in str(refused.value)
