"""Bad Teacher: its steps written out, its two teachers, what it forgets, what it refuses."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from stepwise import (
    KINDS,
    RATE,
    SEED,
    SGD,
    Exact,
    Objective,
    Steps,
    accuracy,
    assert_same,
    by_heart,
    flat,
    free,
    problem,
    sgd,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.training.budget import flops_of
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.bad_teacher import BadTeacher

SIZE, TEMPERATURE = 8, 3.0


def fresh(like: nn.Module, seed: int) -> nn.Module:
    """The same network with other weights, its statistics too."""
    with seeded(seed):
        made = copy.deepcopy(like)
        with torch.no_grad():
            for tensor in (*made.parameters(), *made.buffers()):
                if tensor.is_floating_point():
                    tensor.uniform_(0.1, 1.0)
    return made.train()


def kl(teacher: nn.Module, batch: Samples, student: nn.Module) -> Tensor:
    """T² Σ_c p_c (log p_c − log q_c) at temperature T, the mean over the batch."""
    with torch.no_grad():
        p = (teacher(batch.x) / TEMPERATURE).exp()
    q = (student(batch.x) / TEMPERATURE).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return TEMPERATURE * TEMPERATURE * (p * (p.log() - q.log())).sum(1).mean()


def objectives(model: nn.Module, retain: Samples, forget: Samples) -> Iterator[Objective]:
    """KL from the initial model on a retain batch, from a fresh one on a forget batch, as drawn."""
    competent = copy.deepcopy(model).eval()
    incompetent = fresh(model, derive(SEED, "teacher") % 2**31).eval()
    part = retain[torch.randperm(32, generator=generator(SEED, "part"))[:16]]
    order, task = generator(SEED, "order"), Exact()
    kept = task.batches(part, SIZE, derive(SEED, "retain"))
    forgotten = task.batches(forget, SIZE, derive(SEED, "forget"))
    while True:
        for place in torch.randperm(3, generator=order).tolist():  # two batches of 8, and one
            if place < 2:
                yield partial(kl, competent, next(kept))
            else:
                yield partial(kl, incompetent, next(forgotten))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_step_is_towards_the_initial_model_or_on_the_forget_set_towards_a_fresh_one(
    kind: str, count: int
) -> None:
    model, retain, forget = problem(kind, frozen=True)
    task = Exact(new_model=lambda seed: fresh(model, seed % 2**31))
    method = BadTeacher(
        optimizer="sgd", batch_size=SIZE, retain_share=0.5, temperature=TEMPERATURE, **SGD
    )
    with seeded(2):  # dropout
        found = method(model, retain, forget, task=task, budget=Steps(count), seed=SEED)
    with seeded(2):
        endless = objectives(model, retain, forget)
        expected = sgd(model, [next(endless) for _ in range(count)])
    assert_same(found, expected, model)


def test_labels_play_no_part() -> None:
    model, retain, forget = problem("batch norm", frozen=True)
    task = Exact(new_model=lambda seed: fresh(model, seed % 2**31))
    run = partial(BadTeacher(lr=0.01, batch_size=SIZE), model, task=task, seed=SEED)
    other = [replace(part, y=part.y.roll(1)) for part in (retain, forget)]
    one, two = run(retain, forget, budget=Steps(9)), run(*other, budget=Steps(9))
    assert torch.equal(flat(free(one)), flat(free(two)))


def test_the_optimiser_is_adam() -> None:
    """Its first step is η along each sign of the gradient."""
    model, retain, forget = problem("plain", frozen=True)
    task = Exact(new_model=lambda seed: fresh(model, seed % 2**31))
    method = BadTeacher(lr=RATE, batch_size=SIZE, retain_share=0.5)
    found = method(model, forget, retain, task=task, budget=Steps(1), seed=3)
    moved = (flat(free(found)) - flat(free(model))).abs()
    assert bool(((moved - RATE).abs() < 1e-4).all())


def test_the_part_of_the_retain_set_is_drawn_once_and_has_the_share() -> None:
    _, retain, _ = problem("plain", frozen=True)
    parts = [BadTeacher(retain_share=share).part(retain, SEED) for share in (0.3, 0.3, 1, 0.001)]
    assert [len(part) for part in parts] == [9, 9, 32, 1]
    assert torch.equal(parts[0].ids, parts[1].ids)
    assert parts[0].ids.tolist() != retain.ids[:9].tolist()
    assert len(parts[2].ids.unique()) == 32
    assert not torch.equal(BadTeacher().part(retain, 6).ids, parts[0].ids)


def test_outputs_become_those_of_a_random_model_on_what_is_forgotten_alone() -> None:
    """The paper's finding, by its own measure: the divergence from the incompetent teacher."""
    model, retain, forget = by_heart()

    def new_model(seed: int) -> nn.Module:
        with seeded(seed % 2**31):
            return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 4))

    task = Classification(new_model=new_model)
    method = BadTeacher(lr=3e-3, batch_size=16)
    found = method(model, retain, forget, task=task, budget=Steps(400), seed=1)
    teacher = new_model(derive(1, "teacher"))
    before, after = (kl(teacher, forget, m).item() for m in (model, found))
    assert after < 0.1 * before
    assert accuracy(found, forget) < 0.5
    assert accuracy(found, retain) > 0.95


def test_a_step_costs_a_forward_of_one_teacher_beside_the_students() -> None:
    model, retain, forget = problem("plain", frozen=True)
    task = Exact(new_model=lambda seed: fresh(model, seed % 2**31))
    method = BadTeacher(batch_size=SIZE)

    def run(steps: int) -> int:
        return flops_of(
            lambda: method(model, retain, forget, task=task, budget=Steps(steps), seed=SEED)
        )

    layers = 2 * (6 * 7 + 7 * 4)
    assert run(4) - run(3) == SIZE * (layers + 2 * (2 * 6 * 7 + 3 * 7 * 4))


def test_a_factory_that_gives_the_same_weights_each_time_is_refused() -> None:
    (method,) = parse_trials("bad-teacher")
    model, retain, forget = problem("plain", frozen=True)
    said = "^unlearners.bad-teacher: a freshly built model has the same weights"
    with pytest.raises(MarshtestError, match=said):
        method.check(model, lambda seed: copy.deepcopy(model))
    said = "^unlearners.bad-teacher: the task builds no fresh model"
    with pytest.raises(MarshtestError, match=said):
        method.check(model)
    with pytest.raises(MarshtestError, match=said):
        method(model, retain, forget, task=Exact(), budget=Steps(1), seed=0)
    method.check(model, lambda seed: fresh(model, seed))


@pytest.mark.parametrize(
    ("field", "value"), [("retain_share", 0), ("retain_share", 1.5), ("temperature", 0)]
)
def test_a_share_or_a_temperature_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(MarshtestError, match=rf"^unlearners.bad-teacher.{field}: .*Got {value}\.$"):
        parse_trials({"name": "bad-teacher", field: value})


def test_values_are_the_repositorys() -> None:
    (method,) = parse_trials("bad-teacher")
    assert method.hyperparameters == {
        "optimizer": "adamw",
        "lr": 1e-4,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "batch_size": 256,
        "retain_share": 0.3,
        "temperature": 1.0,
    }
