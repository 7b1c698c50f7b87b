"""What each unlearner does: its first step against autograd by hand, what it freezes, its budget."""

import contextlib
import copy
import math
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from conftest import METHODS
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from marshtest.data.samples import Samples
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.roles import Role
from marshtest.models.layers import weight_layers
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.sweeps.keys import Keys
from marshtest.training.budget import Budget, flops_of
from marshtest.unlearning import UNLEARNERS, Custom, Unlearner, parse_trials
from marshtest.unlearning.base import TrainingUnlearner
from marshtest.unlearning.check import Problem, images, text
from marshtest.unlearning.gradient_descent import GradientDescent, NoisyGradientDescent
from marshtest.unlearning.harness import Outcome, unlearn
from marshtest.unlearning.retrain import Retrain

PROBLEMS = {"images": images(), "text": text()}


def vector(parameters: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    free = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, free)])


def free_vector(model: nn.Module) -> Tensor:
    return vector(p for p in model.parameters() if p.requires_grad)


def one_step(problem: Problem, unlearner: Unlearner, samples: int) -> nn.Module:
    """Run with a budget that affords the first step, of `samples` samples, and not the second."""
    batch = problem.retain[:samples]
    step = flops_of(lambda: problem.task.loss(copy.deepcopy(problem.model), batch).sum().backward())
    budget = Budget(1.5 * step / problem.flops_per_pass, problem.flops_per_pass)
    kept = (problem.retain, problem.forget)
    with budget:
        return unlearner(problem.model, *kept, task=problem.task, budget=budget, seed=5)


def batch_of(problem: Problem, samples: Samples, size: int, seed: int = 5) -> Samples:
    return next(problem.task.batches(samples, size, seed))


@pytest.mark.parametrize("name", ["retrain", "retrain-tuned"])
def test_retraining_that_affords_no_step_is_no_model_and_least_of_all_the_poisoned_one(
    name: str,
) -> None:
    """Both arms would give it, so that nothing of the poison would seem to be left."""
    problem = PROBLEMS["images"]
    (outcome,) = unlearn(
        *(parse_trials(name)[0], problem.model, problem.retain, problem.forget),
        task=problem.task,
        budgets=[Budget(10.0, problem.flops_per_pass)],  # less than a mini-batch
        seed=0,
    )
    assert outcome.model is None
    assert outcome.note == "stopped at the budget before its first step"


class Warm(Retrain):
    """Looks back, which its base class says of itself that it does not."""

    name: str = "warm"


class Scheduled(GradientDescent):
    """A descent that knows its budget, which its base class does not."""

    name: str = "scheduled"
    known: ClassVar[list[float]] = []

    def __call__(self, model: nn.Module, *given: Any, budget: Budget, **rest: Any) -> nn.Module:
        self.known.append(budget.passes)
        return copy.deepcopy(model)


def test_what_a_class_claims_of_itself_is_not_believed_of_a_users_subclass() -> None:
    recipe = load_recipe("digits-badnets", "seeds=1", "unlearners=[retrain]")
    keys = Keys(recipe)
    assert keys.arms(Retrain()) == (Role.INITIAL,)
    assert keys.arms(Warm()) == (Role.INITIAL, Role.TWIN)
    problem = PROBLEMS["images"]
    budgets = [Budget(passes, problem.flops_per_pass) for passes in (500.0, 5000.0)]
    given = (problem.model, problem.retain, problem.forget)
    unlearn(Scheduled(), *given, task=problem.task, budgets=budgets, seed=0)
    assert sorted(Scheduled.known) == [500.0, 5000.0]


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize(
    ("name", "part", "size", "sign"), [("gd", "retain", 16, -1), ("ga", "forget", 8, +1)]
)
def test_gd_steps_down_the_retain_gradient_and_ga_up_the_forget_gradient(
    name: str, part: str, size: int, sign: int, kind: str
) -> None:
    problem = PROBLEMS[kind]
    (method,) = parse_trials({"name": name, "lr": 0.1, "weight_decay": 0, "batch_size": size})
    updated = one_step(problem, method, size)
    model = copy.deepcopy(problem.model).train()
    loss = problem.task.loss(model, batch_of(problem, getattr(problem, part), size)).mean()
    expected = free_vector(problem.model) + sign * 0.1 * gradient(model, loss)
    torch.testing.assert_close(free_vector(updated), expected)


def test_adamw_decays_and_steps_by_its_rate_along_each_sign() -> None:
    """Loshchilov and Hutter 2019: both moments' bias corrections leave g / (|g| + ε) of step one."""
    problem = PROBLEMS["text"]
    options = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.2, "batch_size": 16}
    (method,) = parse_trials({"name": "gd", **options})
    updated = one_step(problem, method, 16)
    model = copy.deepcopy(problem.model).train()
    slope = gradient(model, problem.task.loss(model, batch_of(problem, problem.retain, 16)).mean())
    expected = (1 - 0.1 * 0.2) * free_vector(problem.model) - 0.1 * slope / (slope.abs() + 1e-8)
    torch.testing.assert_close(free_vector(updated), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_neggrad_plus_weighs_both_gradients_by_beta(kind: str) -> None:
    problem = PROBLEMS[kind]
    options = {"lr": 0.1, "weight_decay": 0, "batch_size": 8, "beta": 0.7}
    (method,) = parse_trials({"name": "neggrad+", **options})
    updated = one_step(problem, method, 16)
    model = copy.deepcopy(problem.model).train()
    keep = batch_of(problem, problem.retain, 8, derive(5, "retain"))
    drop = batch_of(problem, problem.forget, 8, derive(5, "forget"))
    retain_loss = problem.task.loss(model, keep).mean()
    forget_loss = problem.task.loss(model, drop).mean()
    direction = 0.7 * gradient(model, retain_loss) - 0.3 * gradient(model, forget_loss)
    torch.testing.assert_close(
        free_vector(updated), free_vector(problem.model) - 0.1 * direction, atol=1e-5, rtol=1e-4
    )


def test_ngd_noise_has_the_stated_variance_and_is_fresh_each_step() -> None:
    method = NoisyGradientDescent(noise_variance=4e-4)
    weight = nn.Parameter(torch.zeros(200, 100))
    optimizer = torch.optim.SGD([weight], 1.0)
    draws = generator(0, "noise")
    drawn = []
    for _ in range(2):
        weight.grad = torch.full_like(weight, 3.0)
        method.add_noise(optimizer, draws)
        drawn.append(weight.grad - 3)
    # relative standard error of a variance from 20,000 draws: √(2 / 20,000) = 0.01
    assert float(drawn[0].var()) == pytest.approx(4e-4, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([d.flatten() for d in drawn]))[0, 1])) < 0.05


def test_ngd_is_gd_plus_that_noise() -> None:
    problem = PROBLEMS["images"]
    options = {"lr": 0.1, "weight_decay": 0, "batch_size": 16}
    (gd,) = parse_trials({"name": "gd", **options})
    (ngd,) = parse_trials({"name": "ngd", "noise_variance": 1e-2, **options})
    difference = free_vector(one_step(problem, ngd, 16)) - free_vector(one_step(problem, gd, 16))
    count = len(difference)
    assert float(difference.std()) == pytest.approx(0.1 * 0.1, rel=5 / math.sqrt(2 * count))


@pytest.mark.parametrize("name", ["euk", "cfk"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_all_but_the_last_k_layers_stay_bit_equal(name: str, kind: str) -> None:
    problem = PROBLEMS[kind]
    (method,) = parse_trials({"name": name, "k": 2, "lr": 0.05})
    updated = problem.run(method, 0.5).model
    assert updated is not None
    last = {id(m) for layer in weight_layers(updated)[-2:] for m in layer}
    for (path, after), before in zip(updated.named_modules(), problem.model.modules(), strict=True):
        for key, value in before.state_dict().items():
            if "." not in key:  # the module's own parameters and BatchNorm statistics
                same = torch.equal(value, after.state_dict()[key])
                own = dict(before.named_parameters()).get(key)  # within a layer one may be frozen
                frozen = own is not None and not own.requires_grad
                assert same == (id(after) not in last or frozen), (path, key)
    flags = [p.requires_grad for p in updated.parameters()]
    assert flags == [p.requires_grad for p in problem.model.parameters()]


def test_euk_starts_from_a_fresh_initialisation_and_cfk_does_not() -> None:
    problem = PROBLEMS["images"]
    (euk,) = parse_trials({"name": "euk", "k": 1, "lr": 1e-9})
    (cfk,) = parse_trials({"name": "cfk", "k": 1, "lr": 1e-9})
    trained = problem.model[-1].weight.detach()
    reset, kept = (problem.run(method, 0.1).model[-1].weight.detach() for method in (euk, cfk))  # type: ignore[index]
    torch.testing.assert_close(kept, trained)
    bound = 1 / math.sqrt(72)  # nn.Linear draws from U(−1/√in, 1/√in)
    assert reset.abs().max() <= bound + 1e-6
    assert float(reset.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([reset.flatten(), trained.flatten()]))[0, 1])) < 0.3


def test_k_beyond_the_layers_is_refused() -> None:
    model = build(parse_model("mlp"), (4,), 2, 0)
    with pytest.raises(MarshtestError, match=r"unlearners.euk.k: 3 is more than the model's 2"):
        parse_trials("euk")[0].check(model)


# SSD looks at each sample once and takes no step.
STEPPING = [name for name in METHODS if name not in ("ssd", "assd")]


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_the_budget_is_spent_to_the_last_batch(name: str, kind: str) -> None:
    problem = PROBLEMS[kind]
    (method,) = parse_trials(name)
    budget = Budget(0.5 * problem.passes, problem.flops_per_pass)
    with budget:
        method(
            problem.model, problem.retain, problem.forget, task=problem.task, budget=budget, seed=1
        )
    x, y, ids = (
        torch.cat([getattr(part, field) for part in (problem.retain, problem.forget)])
        for field in ("x", "y", "ids")
    )
    both = Samples(x, y, ids)
    whole = flops_of(lambda: problem.task.loss(problem.model, both).sum().backward())
    step = 4 / 3 * whole / problem.flops_per_pass  # SCRUB's teacher adds a forward
    assert 0 <= budget.left <= step


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", ["ga", "neggrad+"])
def test_ascent_raises_the_forget_loss(name: str, kind: str) -> None:
    problem = PROBLEMS[kind]
    options = {"lr": 1e-2, "beta": 0.1} if name == "neggrad+" else {"lr": 1e-3}
    (method,) = parse_trials({"name": name, **options})
    updated = problem.run(method, 0.3).model
    assert updated is not None
    before, after = (
        problem.task.loss(m.eval(), problem.forget).mean().item() for m in (problem.model, updated)
    )
    assert after > before


def test_retrain_knows_nothing_of_the_initial_model() -> None:
    """Two initial models, one seed: the same retrained bytes."""
    problem = PROBLEMS["images"]
    (retrain,) = parse_trials("retrain")
    other = copy.deepcopy(problem.model)
    with torch.no_grad():
        other[-1].weight.zero_()  # type: ignore[operator]
    results = []
    for model in (problem.model, other):
        budget = Budget(0.3 * problem.passes, problem.flops_per_pass)
        with budget:
            results.append(
                retrain(
                    model, problem.retain, problem.forget, task=problem.task, budget=budget, seed=2
                )
            )
    assert torch.equal(vector(results[0].parameters()), vector(results[1].parameters()))
    assert not torch.equal(vector(results[0].parameters()), vector(problem.model.parameters()))


def test_a_list_of_values_is_a_search() -> None:
    trials = parse_trials({"name": "gd", "lr": [0.1, 0.2], "momentum": [0.0, 0.9]})
    assert [(t.lr, t.momentum) for t in trials] == [(0.1, 0), (0.1, 0.9), (0.2, 0), (0.2, 0.9)]  # type: ignore[attr-defined]


TRAINING = [name for name, cls in UNLEARNERS.items() if issubclass(cls, TrainingUnlearner)]
MIXED = ["random-labels", "salun", "bad-teacher"]
GOING_ON = [name for name, cls in UNLEARNERS.items() if cls.anytime]


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", GOING_ON)
def test_smaller_budgets_on_the_way_are_the_runs_under_them_bit_for_bit(
    name: str, kind: str
) -> None:
    problem = PROBLEMS[kind]
    options = {"k": 1} if name in ("euk", "cfk") else {}
    (method,) = parse_trials({"name": name, "batch_size": 16, "lr": 0.01, **options})
    given = (problem.model, problem.retain, problem.forget)
    runs: list[Budget] = []
    counted = Budget.__enter__

    def budgets() -> list[Budget]:  # the smallest affords no step, and one is asked for twice
        sizes = [500.0, 1.0, 120.0, 250.0, 120.0]
        return [Budget(passes, problem.flops_per_pass) for passes in sizes]

    def entered(budget: Budget) -> Budget:
        runs.append(budget)
        return counted(budget)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "__enter__", entered)
        together = unlearn(method, *given, task=problem.task, budgets=budgets(), seed=5)
    assert [budget.passes for budget in runs] == [500.0, 1.0]  # one stopped in a step runs alone
    alone = [
        unlearn(method, *given, task=problem.task, budgets=[budget], seed=5)[0]
        for budget in budgets()
    ]
    for budget, one, other in zip(budgets(), together, alone, strict=True):
        assert one.note == other.note
        if one.model is None:  # the method has a first part that it cannot do without
            assert (name, budget.passes) == ("salun", 1.0)
            assert other.model is None
            continue
        assert other.model is not None
        assert (one.cost.passes, one.cost.flops) == (other.cost.passes, other.cost.flops)
        expected = other.model.state_dict()
        for key, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, expected[key]), key
    spent = [outcome.cost.passes for outcome in together]
    assert spent[1] == 0 < spent[2] < spent[3] < spent[0]


def test_a_method_that_looks_at_its_budget_does_not_go_on() -> None:
    assert set(METHODS) - set(GOING_ON) == {
        "scrub-repository",
        "ssd",
        "assd",
        "l1-sparse",
        *TRAINING,
    }


EPOCH_OPTIONS: dict[str, dict[str, Any]] = {  # so that an epoch is one of `batch_size`
    "euk": {"k": 1},
    "cfk": {"k": 1},
    "undo": {"unlearn_share": 0},
    "certified": {"steps": 1, "noisy_batch_size": 14},
    "bad-teacher": {"retain_share": 1},
}


def in_epochs(problem: Problem, unlearner: Unlearner, *epochs: float) -> tuple[list[Any], int]:
    """Its outcomes under budgets of epochs, and the optimiser steps that all took together."""
    steps: list[None] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    budgets = [Budget.of_epochs(of, problem.flops_per_pass) for of in epochs]
    given = (problem.model, problem.retain, problem.forget)
    try:
        found = unlearn(unlearner, *given, task=problem.task, budgets=budgets, seed=5)
    finally:
        hook.remove()
    return found, len(steps)


@pytest.mark.parametrize("epochs", [1, 3, 0.5])
@pytest.mark.parametrize("size", [16, 14, 11])  # 56 = 3 · 16 + 8 = 4 · 14 = 5 · 11 + 1
@pytest.mark.parametrize("name", STEPPING)
def test_a_budget_of_epochs_is_of_the_methods_own_training_set(
    name: str, size: int, epochs: float
) -> None:
    """As many steps as a literal loop over the set takes; SCRUB's max steps come beside."""
    problem = PROBLEMS["images"]
    (method,) = parse_trials(
        {"name": name, "batch_size": size, "lr": 1e-4, **EPOCH_OPTIONS.get(name, {})}
    )
    own = problem.forget if name in ("ga", "npo", "simnpo") else problem.retain
    epoch = math.ceil(len(own) / size) - (len(own) % size == 1)
    assert problem.task.batches_per_epoch(own, size) == epoch
    assert len(list(problem.task.epoch(own, size, generator(0)))) == epoch
    if name in MIXED:  # a pass over both sets, the forget set a batch of 8
        epoch += 1
    (outcome,), steps = in_epochs(problem, method, epochs)
    assert outcome.note == ""
    expected = round(epochs * epoch)
    if name == "scrub-repository":  # two of three epochs, an epoch of one batch of 8 each
        expected += {1: 1, 3: 2, 0.5: 1}[epochs]
    if name == "certified":  # whose first step is its own, without an optimiser
        expected -= 1
    assert steps == expected
    assert (outcome.cost.passes > 0) == (steps > 0)  # measured all the same


@pytest.mark.parametrize("name", GOING_ON)
def test_fewer_epochs_are_the_beginning_of_more_bit_for_bit(name: str) -> None:
    problem = PROBLEMS["text"]
    options = {"k": 1} if name in ("euk", "cfk") else {}
    (method,) = parse_trials({"name": name, "batch_size": 16, "lr": 0.01, **options})
    together, steps = in_epochs(problem, method, 1, 3, 0.01, 1.5)
    alone = [in_epochs(problem, method, epochs) for epochs in (1, 3, 0.01, 1.5)]
    assert steps == alone[1][1]  # the one of no step runs alone
    for one, ((other,), _) in zip(together, alone):
        assert (one.note, one.cost.passes) == (other.note, other.cost.passes)
        expected = other.model.state_dict()
        for key, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, expected[key]), key


def ends_by(stop: Callable[[], None]) -> Outcome:
    def unlearner(model: nn.Module, *_: Any, **__: Any) -> nn.Module:
        stop()
        return model

    return PROBLEMS["images"].run(Custom.wrap(unlearner), 0.5)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit, ValueError])
def test_whatever_an_unlearner_raises_is_its_rows_note(kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind("enough")

    outcome = ends_by(stop)
    assert outcome.model is None
    assert outcome.note.startswith(f"raised {kind.__name__}: enough (test_unlearners.py:")


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_ends_an_unlearner_and_the_run(swallowed: bool) -> None:
    def stop() -> None:
        with contextlib.suppress(KeyboardInterrupt if swallowed else ValueError):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            ends_by(stop)
    finally:
        signal.signal(signal.SIGINT, before)
