"""Distillation and UNDO: their students, their divergences, and what soft labels carry."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from stepwise import (
    KINDS,
    Exact,
    Steps,
    assert_same,
    cross_entropies,
    equipped,
    log_softmax,
    network,
    problem,
    sgd,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training
from marshtest.unlearning import parse_trials
from marshtest.unlearning.check import convex, images, nears_retraining, objective, text
from marshtest.unlearning.distill import Distill, Undo, label_entropy, noised

SEED, RATE = 5, 0.1
TRAINING = Training(epochs=1, batch_size=16, lr=RATE, weight_decay=0.01, schedule="constant")


def taught(
    teacher: nn.Module, batch: Samples, only_right: bool, weight: float, student: nn.Module
) -> Tensor:
    """The mean of (1 − w) 3² Σ_c p_c log(p_c / q_c) at T = 3, or −log q_y where it errs, + w (−log q_y)."""
    with torch.no_grad():
        told = teacher(batch.x)
    said = student(batch.x)
    by_labels = cross_entropies(said, batch.y)
    log_p, log_q = log_softmax(told / 3), log_softmax(said / 3)
    by_teacher = 9 * (log_p.exp() * (log_p - log_q)).sum(1)
    if only_right:
        right = told.argmax(1) == batch.y
        assert 0 < int(right.sum()) < len(batch)
        by_teacher = torch.stack(
            [a if is_right else b for a, b, is_right in zip(by_teacher, by_labels, right)]
        )
    return ((1 - weight) * by_teacher + weight * by_labels).sum() / len(batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("only_right", "weight"), [(False, 0.0), (False, 0.4), (True, 0.4)])
def test_a_fresh_student_is_taught_on_the_retain_set(
    kind: str, only_right: bool, weight: float
) -> None:
    model, retain, forget = problem(kind)
    method = Distill(temperature=3, only_right=only_right, label_weight=weight)
    with seeded(2):  # dropout
        found = method(
            model, retain, forget, task=equipped(kind, TRAINING), budget=Steps(5), seed=SEED
        )
    teacher, fresh = copy.deepcopy(model).eval(), network(kind, SEED)
    batches = Exact().batches(retain, 16, SEED)
    steps = [partial(taught, teacher, next(batches), only_right, weight) for _ in range(5)]
    with seeded(2):
        expected = sgd(fresh, steps, [RATE] * 5)
    assert_same(found, expected, fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_undo_unlearns_noises_and_distils(kind: str) -> None:
    model, retain, forget = problem(kind)
    method = Undo(
        alpha=0.3,
        beta=0.2,
        temperature=3,
        label_weight=0.2,
        unlearn_share=0.4,
        unlearn_batch_size=8,
        lr=RATE / 2,
    )
    with seeded(2):  # dropout
        found = method(
            model, retain, forget, task=equipped(kind, TRAINING), budget=Steps(10), seed=SEED
        )
    kept = Exact().batches(retain, 8, derive(derive(SEED, "unlearn"), "retain"))
    forgotten = Exact().batches(forget, 8, derive(derive(SEED, "unlearn"), "forget"))
    batches = Exact().batches(retain, 16, SEED)

    def unlearning(keep: Samples, drop: Samples, student: nn.Module) -> Tensor:
        entropy = -log_softmax(student(drop.x)).sum() / (4 * len(drop))
        return entropy + cross_entropies(student(keep.x), keep.y).mean()

    with seeded(2):
        first = [partial(unlearning, next(kept), next(forgotten)) for _ in range(4)]
        teacher = sgd(model, first, [RATE] * 4)
        start = noised(teacher, 0.3, 0.2, derive(SEED, "noise"))
        teacher.eval()
        second = [partial(taught, teacher, next(batches), False, 0.2) for _ in range(6)]
        expected = sgd(start, second, [RATE / 2] * 6)
    assert_same(found, expected, start)


def test_the_noise_is_xaviers_and_a_vector_gets_none() -> None:
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(4, 30, 5), nn.Linear(300, 200), nn.BatchNorm1d(200))
    model[1].bias.requires_grad_(False)
    student = noised(model, 0.25, 0.5, 3)
    fans = {"0.weight": 25 * (4 + 30), "1.weight": 300 + 200}
    for name, parameter in student.named_parameters():
        own = dict(model.named_parameters())[name]
        if not own.requires_grad:
            assert torch.equal(parameter, own)
            continue
        noise = ((parameter - 0.75 * own) / (0.25 * 0.5)).detach()
        if name not in fans:
            torch.testing.assert_close(parameter, 0.75 * own)
            continue
        bound = math.sqrt(6 / fans[name])  # uniform in ± √(6 / (fan in + fan out))
        assert float(noise.abs().max()) == pytest.approx(bound, rel=0.01)
        # relative standard error of n draws' deviation: 0.45 / √n, n ≥ 3,000
        assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.04)
    again, other = noised(model, 0.25, 0.5, 3), noised(model, 0.25, 0.5, 4)
    assert same_tensors(student.state_dict(), again.state_dict())
    assert not same_tensors(student.state_dict(), other.state_dict())


def test_a_running_mean_over_all_batches_begins_anew() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None))
    model(torch.randn(8, 3) + 9)
    student = noised(model, 0.5, 1.0, 0)
    inputs = torch.randn(50, 3)
    student(inputs)
    expected = student[0](inputs).mean(0)  # type: ignore[index]
    torch.testing.assert_close(student[1].running_mean, expected)  # type: ignore[index, union-attr]


def test_without_noise_the_student_is_the_teacher() -> None:
    model = network("batch norm")
    assert same_tensors(noised(model, 0.0, 0.5, 3).state_dict(), model.state_dict())


def test_a_closed_label_is_no_guess() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 3.0], [0.0, 0.0, 0.0]])
    first = -(math.log(1 / (1 + math.e**2)) + math.log(1 / (1 + math.e**-2))) / 2
    torch.testing.assert_close(label_entropy(logits), torch.tensor([first, math.log(3)]))


@pytest.mark.slow
def test_soft_labels_alone_carry_the_forget_set_into_a_fresh_student() -> None:
    """Where the student can be the teacher, it ends as the teacher; the labels' own loss pulls it off."""
    (soft,) = parse_trials({"name": "distill", "label_weight": 0})
    assert not nears_retraining(soft).holds
    problem_, answer = convex("features", 1.5)

    def excess(model: nn.Module) -> float:
        given = problem_.retain, problem_.task
        gap = objective(model, *given) - objective(answer, *given)
        return float(gap.detach())

    ends = []
    for weight in (0.0, 0.5, 1.0):
        method = Distill(label_weight=weight, lr=0.05)
        model = problem_.run(method, 0.3).model
        assert model is not None
        ends.append(excess(model) / excess(problem_.model))
    assert ends[0] == pytest.approx(1, abs=0.1)
    assert 0.1 < ends[1] < 0.5  # half-way in the weights is a quarter in the loss
    assert ends[2] < 0.05


@pytest.mark.parametrize("given", [images(), text()], ids=["images", "text"])
def test_undos_teacher_guesses_on_the_forget_set_and_knows_the_retain_set(given: Any) -> None:
    forget, retain, task = given.forget, given.retain, given.task
    (method,) = parse_trials({"name": "undo", "unlearn_share": 0.5})
    assert isinstance(method, Undo)
    teacher = method.unlearned(given.model, retain, forget, task, Steps(120), 1).eval()
    before, after = (
        float(label_entropy(task.label_logits(task(m.eval(), forget), forget)).detach().mean())
        for m in (given.model, teacher)
    )
    labels = task.label_logits(task(teacher, forget), forget).shape[1]
    assert after - math.log(labels) < 0.5 * (before - math.log(labels))
    right = task.label_logits(task(teacher, retain), retain).argmax(1) == retain.y
    assert float(right.float().mean()) > 0.7  # of two kinds of texts, four of images


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_undo_unlearns_for_its_share_of_the_epochs(share: float, steps: int) -> None:
    """32 samples are two batches of 16, so four epochs are eight steps; the forget set is one batch."""
    model, retain, forget = problem("plain")
    (method,) = parse_trials({"name": "undo", "unlearn_share": share, "unlearn_batch_size": 16})
    assert isinstance(method, Undo)
    budget, task = Budget.of_epochs(4, 1.0), equipped("plain", TRAINING)
    found = method.unlearned(model, retain, forget, task, budget, SEED)
    expected = method.unlearned(model, retain, forget, task, Fixed(steps), SEED)
    assert same_tensors(found.state_dict(), expected.state_dict())
    assert budget.progress == share


class Fixed(Steps):
    """So many steps, of which no part is the method's first."""

    progress = 0.0  # type: ignore[assignment]


def test_the_values_are_as_documented() -> None:
    (distill,), (undo,) = parse_trials("distill"), parse_trials("undo")
    assert distill.hyperparameters == {
        "temperature": 1.0,
        "label_weight": 0.5,
        "only_right": False,
    }
    assert undo.hyperparameters == {
        "temperature": 1.0,
        "label_weight": 0.5,
        "only_right": False,
        "alpha": 0.6,
        "beta": 0.1,
        "unlearn_share": 0.1,
        "unlearn_batch_size": 128,
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("distill", {"temperature": 0}),
        ("distill", {"label_weight": 1.5}),
        ("undo", {"alpha": 1.1}),
        ("undo", {"beta": -0.1}),
        ("undo", {"unlearn_share": 1}),
    ],
)
def test_bad_values_are_refused_in_one_line(name: str, values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(MarshtestError, match=f"unlearners.{name}.{key}: ") as refused:
        parse_trials({"name": name, **values})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["distill", "undo"])
def test_a_task_without_a_pipeline_is_told_so(name: str) -> None:
    model, retain, forget = problem("plain")
    (method,) = parse_trials(name)
    with pytest.raises(MarshtestError, match=f"{name}: the task .* Run it through a recipe"):
        method(model, retain, forget, task=Exact(), budget=Steps(1), seed=0)
