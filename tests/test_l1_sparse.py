"""ℓ1-sparse: its steps written out, its falling penalty, what the penalty does to the weights."""

from functools import partial

import pytest
import torch
from stepwise import (
    KINDS,
    SEED,
    SGD,
    Exact,
    Steps,
    accuracy,
    assert_same,
    by_heart,
    cross_entropies,
    flat,
    free,
    problem,
    sgd,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.gradient_descent import GradientDescent
from marshtest.unlearning.l1_sparse import L1Sparse


def objective(batch: Samples, penalty: float, model: nn.Module) -> Tensor:
    """−log p(y) + γ_t ‖θ‖₁."""
    sizes = [torch.linalg.vector_norm(weight, ord=1) for weight in free(model)]
    return cross_entropies(model(batch.x), batch.y).mean() + penalty * sum(sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 10])
def test_a_step_lowers_the_loss_and_a_norm_that_counts_less_and_less(kind: str, count: int) -> None:
    model, retain, forget = problem(kind, frozen=True)
    method = L1Sparse(penalty=0.02, batch_size=16, **SGD)
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=Exact(), budget=Steps(count), seed=SEED)
    batches = Exact().batches(retain, 16, SEED)
    penalties = [0.02 * (count - t) / count for t in range(count)]
    with seeded(2):
        steps = [partial(objective, next(batches), penalty) for penalty in penalties]
        expected = sgd(model, steps)
    assert_same(found, expected, model)


def test_without_a_penalty_it_is_gradient_descent() -> None:
    given = problem("batch norm", frozen=True)
    one, other = (
        method(*given, task=Exact(), budget=Steps(9), seed=SEED).state_dict()
        for method in (
            L1Sparse(penalty=0, batch_size=16, **SGD),
            GradientDescent(batch_size=16, **SGD),
        )
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_the_penalty_empties_the_network_and_costs_no_accuracy() -> None:
    """The paper's finding: a sparse model that still knows the retain set."""
    model, retain, forget = by_heart()
    small = {}
    for penalty in (0, 2e-3):
        method = L1Sparse(lr=0.02, batch_size=16, penalty=penalty, weight_decay=0)
        found = method(model, retain, forget, task=Classification(), budget=Steps(1500), seed=1)
        small[penalty] = float((flat(free(found)).abs() < 1e-3).double().mean())
        assert accuracy(found, retain) == 1
    assert small[0] < 0.05
    assert small[2e-3] > 0.5


def test_the_penalty_costs_nothing() -> None:
    model, retain, forget = problem("plain", frozen=True)
    for steps in (1, 3):
        budget = Budget((steps + 0.5) * 32 * 2 * (2 * 6 * 7 + 3 * 7 * 4), 1.0)
        with budget:
            L1Sparse()(model, retain, forget, task=Exact(), budget=budget, seed=SEED)
        assert budget.flops == steps * 32 * 2 * (2 * 6 * 7 + 3 * 7 * 4)


@pytest.mark.parametrize("value", [-1e-4, float("nan")])
def test_a_penalty_below_zero_is_refused(value: float) -> None:
    with pytest.raises(MarshtestError, match=rf"^unlearners.l1-sparse.penalty: .*Got {value}\.$"):
        parse_trials({"name": "l1-sparse", "penalty": value})


def test_values_are_the_repositorys() -> None:
    (method,) = parse_trials("l1-sparse")
    shared = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256}
    assert method.hyperparameters == shared | {"lr": 0.01, "penalty": 1e-4}
