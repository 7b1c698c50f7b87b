"""Steps of one kind are counted once, and nothing is told from every step being counted."""

import contextlib
import itertools
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import METHODS
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from marshtest.data.samples import Samples
from marshtest.data.sealed import sealed
from marshtest.training import budget as counting
from marshtest.training.alike import EVERY, kind_of
from marshtest.training.budget import Budget, Meter
from marshtest.unlearning import parse_trials
from marshtest.unlearning.check import Problem, images, text
from marshtest.unlearning.harness import STOPPED, Outcome, unlearn


class LabelsOnly(nn.Module):
    """A causal model that gives the logits of some places only, as those of `transformers` can."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def get_input_embeddings(self) -> Any:
        return self.whole.get_input_embeddings()  # type: ignore[operator]

    def forward(self, inputs_embeds: Tensor, logits_to_keep: Tensor) -> Tensor:
        counts = torch.arange(1, inputs_embeds.shape[1] + 1)
        means = inputs_embeds.cumsum(1) / counts[:, None]
        logits: Tensor = self.whole.layers(means[:, logits_to_keep])  # type: ignore[operator]
        return logits


def labels_only(problem: Problem) -> Problem:
    """The problem with logits at the places only where a text ends: their number varies by batch."""
    task = replace(problem.task, label_only=True, new_model=None, train=None)  # type: ignore[call-arg]
    return replace(problem, model=LabelsOnly(problem.model), task=task)


def poisoned_text() -> Problem:
    """Texts with noise in the embeddings of the forget set, which an unlearner is given sealed."""
    problem = text()
    width = problem.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    forget = problem.forget
    noise = torch.randn(*forget.x.shape, width, generator=torch.Generator().manual_seed(0))
    return replace(problem, forget=forget.perturbed(forget.ids, noise))


OPTIONS: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 3}
}  # of a forget set that is an eighth of all
PROBLEMS = {"images": images(), "poisoned text": poisoned_text()}
LABELS_ONLY = labels_only(text())


def outcome(kind: str, name: str, passes: float = 3000.0, **options: Any) -> Outcome:
    problem = LABELS_ONLY if kind == "labels only" else PROBLEMS[kind]
    (unlearner,) = parse_trials({"name": name, **OPTIONS.get(name, {}), **options})
    return unlearn(
        unlearner,
        problem.model,
        problem.retain,
        problem.forget,
        task=problem.task,
        budgets=[Budget(passes, problem.flops_per_pass, training_passes=12000.0)],
        seed=3,
    )[0]


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("name", METHODS)
def test_models_and_costs_are_those_of_counting_every_step(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 3000.0 if name == "certified" else 600.0  # its ten steps must all fit
    once = outcome(kind, name, passes)
    assert once.note in ("", STOPPED)
    monkeypatch.setattr(counting, "kind_of", lambda batch: None)
    throughout = outcome(kind, name, passes)
    assert (once.cost.flops, once.note) == (throughout.cost.flops, throughout.note)
    assert (once.model is None) == (throughout.model is None)
    if once.model is not None and throughout.model is not None:
        states = (outcome.model.state_dict() for outcome in (once, throughout))
        for one, other in zip(*(state.values() for state in states), strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ga", "gd", "scrub-repository", "random-labels"])
def test_steps_that_cost_by_where_texts_end_are_counted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = outcome("labels only", name, 2000.0, batch_size=4)
    monkeypatch.setattr(counting, "kind_of", lambda batch: None)
    throughout = outcome("labels only", name, 2000.0, batch_size=4)
    assert (once.cost.flops, once.note) == (throughout.cost.flops, throughout.note)
    assert once.model is not None


def seen_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operations pass through Python."""
    seen, dispatch = itertools.count(), counting._Watch.__torch_dispatch__

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        next(seen)
        return dispatch(self, *args, **kwargs)

    monkeypatch.setattr(counting._Watch, "__torch_dispatch__", count)
    outcome("images", name, 2000.0)
    return next(seen)


def test_most_operations_of_our_own_methods_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        once = seen_operations("gd", patch)
    with monkeypatch.context() as patch:
        patch.setattr(counting, "kind_of", lambda batch: None)
        throughout = seen_operations("gd", patch)
    assert once < throughout / 4


def test_a_step_from_outside_is_counted_whatever_came_before() -> None:
    """Cheap steps earn a dear one nothing: a budget that is not told so takes no step as known."""
    batch = Samples(torch.ones(4, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    weight, budget = torch.ones(8, 1), Budget(1e9, 1.0)
    with budget:
        for step, same in enumerate(budget.stream([batch] * 20)):
            for _ in range(50 if step == 19 else 1):
                _ = same.x @ weight
    assert budget.flops == (19 + 50) * 2 * 4 * 8


class Skipping(nn.Module):
    """Whose second layer runs in every third call only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers[1](self.layers[0](x)) if self.calls % 3 == 0 else self.layers[0](x)


def run_steadily(budget: Budget, model: nn.Module, steps: int, size: int = 4) -> None:
    batch = Samples(torch.ones(size, 8), torch.zeros(size).long(), torch.arange(size))
    budget.steady = True
    with budget, torch.no_grad():
        for same in budget.stream([batch] * steps):
            model(same.x)


def test_a_model_whose_steps_differ_is_counted_throughout_once_that_shows() -> None:
    layer, steps = 2 * 4 * 8 * 8, 300
    budget = Budget(1e9, 1.0)
    run_steadily(budget, Skipping(), steps)
    # The first two steps are alike; the next that is counted, step 66, has both layers.
    known = EVERY - 1
    cheap = layer * (2 + known)
    rest = range(known + 3, steps + 1)
    assert budget.flops == cheap + sum(layer * (2 if step % 3 == 0 else 1) for step in rest)


def test_the_limit_is_not_passed_by_a_step_that_is_taken_as_known() -> None:
    layer = 2 * 4 * 8 * 8
    for limit in range(3 * layer, 9 * layer, layer // 3):
        budget = Budget(limit, 1.0)
        run_steadily(budget, nn.Linear(8, 8), 50)
        assert budget.flops == limit // layer * layer


def test_a_step_that_breaks_off_leaves_the_counting_as_it_was() -> None:
    budget = Budget(1e9, 1.0)
    budget.steady = True
    batch = Samples(torch.ones(4, 8), torch.zeros(4).long(), torch.arange(4))
    with contextlib.suppress(KeyboardInterrupt), budget:
        for step, same in enumerate(budget.stream([batch] * 9)):
            _ = same.x @ torch.ones(8, 1)
            if step == 5:
                raise KeyboardInterrupt
    assert not Meter.open
    assert not any(isinstance(mode, counting._Watch) for mode in _get_current_dispatch_mode_stack())
    assert budget.flops == 6 * 2 * 4 * 8  # the broken one as a whole


def test_a_step_that_breaks_off_is_over_though_its_stream_is_held() -> None:
    """A traceback holds the frame, and the frame the stream."""
    budget = Budget(1e9, 1.0)
    budget.steady = True
    batch = Samples(torch.ones(4, 8), torch.zeros(4).long(), torch.arange(4))

    def method() -> None:
        steps = budget.stream([batch] * 9)
        for step, same in enumerate(steps):
            _ = same.x @ torch.ones(8, 1)
            if step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), budget:
        method()
    assert not Meter.open
    assert not any(isinstance(mode, counting._Watch) for mode in _get_current_dispatch_mode_stack())
    assert budget.flops == 6 * 2 * 4 * 8


def test_a_thread_that_a_known_step_starts_is_counted_once() -> None:
    """As of a model that runs on several GPUs at once."""
    budget = Budget(1e9, 1.0)
    budget.steady = True
    batch = Samples(torch.ones(4, 8), torch.zeros(4).long(), torch.arange(4))
    with budget:
        for same in budget.stream([batch] * 9):
            thread = threading.Thread(target=torch.matmul, args=(same.x, torch.ones(8, 1)))
            thread.start()
            thread.join()
    assert budget.flops == 9 * 2 * 4 * 8


def test_another_streams_steps_are_counted_anew() -> None:
    budget = Budget(1e9, 1.0)
    budget.steady = True
    batch = Samples(torch.ones(4, 8), torch.zeros(4).long(), torch.arange(4))
    with budget:
        for products in (1, 2):
            for same in budget.stream([batch] * 9):
                for _ in range(products):
                    _ = same.x @ torch.ones(8, 1)
    assert budget.flops == 9 * (1 + 2) * 2 * 4 * 8


def test_a_part_of_a_budget_counts_for_the_whole_too() -> None:
    whole = Budget(1e9, 1.0, training_passes=1e9)
    whole.steady = True
    with whole:
        part = whole.part(0.5, 0.5)
        run_steadily(part, nn.Linear(8, 8), 10)
    assert whole.flops == part.flops == 10 * 2 * 4 * 8 * 8


def test_a_spent_part_ends_where_counting_every_step_ends_it() -> None:
    whole = Budget(1000.0, 1.0, training_passes=700.0)
    whole.steady = True
    with whole:
        part = whole.part(1.0, 1.0)
        run_steadily(part, nn.Linear(8, 8), 50, size=1)
    assert part.flops == 5 * 2 * 64 == whole.flops


@pytest.mark.parametrize("batch", [3, None, object(), (True, 3)])
def test_steps_of_no_known_kind_are_counted(batch: object) -> None:
    assert kind_of(batch) is None


def test_kinds_differ_by_shape_type_poison_and_what_marks_a_step() -> None:
    x, y, ids = torch.ones(4, 8), torch.zeros(4).long(), torch.arange(4)
    plain = Samples(x, y, ids)
    others = [
        plain[:3],
        Samples(x.double(), y, ids),
        Samples(x, y.float(), ids),
        plain.perturbed(ids[:1], torch.ones(1, 8)),
        sealed(Samples(x[:2], y[:2], ids[:2])),
    ]
    kinds = [kind_of(samples) for samples in (plain, *others)]
    kinds += [kind_of(("retain", plain)), kind_of((True, plain)), kind_of((plain, plain))]
    assert len(set(kinds)) == len(kinds)
    assert kind_of(plain) == kind_of(Samples(x + 1, y + 1, ids + 1))
