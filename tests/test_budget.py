"""Counts are compared with closed forms; the limit is never passed."""

import contextlib
import copy
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from marshtest.plumbing.errors import MarshtestError
from marshtest.training.budget import Budget, BudgetSpent, Meter, flops_of


def test_forward_of_a_linear_layer_costs_two_operations_a_weight_and_sample() -> None:
    layer = nn.Linear(7, 5)
    assert flops_of(lambda: layer(torch.ones(3, 7))) == 2 * 3 * 7 * 5


def test_forward_of_a_convolution_costs_two_operations_a_weight_and_output_pixel() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    assert flops_of(lambda: layer(torch.ones(2, 3, 10, 10))) == 2 * 2 * (3 * 8 * 9) * 100


def test_backward_costs_two_forwards_but_for_the_first_layers_input_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False))
    x = torch.ones(5, 6)
    first, second = 2 * 5 * 6 * 10, 2 * 5 * 10 * 4
    assert flops_of(lambda: model(x).sum().backward()) == first + second + first + 2 * second


def test_frozen_early_layers_cost_no_backward() -> None:
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Linear(10, 4, bias=False))
    model[0].requires_grad_(False)
    x = torch.ones(5, 6)
    first, second = 2 * 5 * 6 * 10, 2 * 5 * 10 * 4
    assert flops_of(lambda: model(x).sum().backward()) == first + second + second


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_grad_mode_hides_work_from_the_meter(mode: type) -> None:
    layer = nn.Linear(7, 5)

    def work() -> None:
        with mode():
            layer(torch.ones(3, 7))

    assert flops_of(work) == 2 * 3 * 7 * 5


def test_copies_and_functional_calls_are_counted() -> None:
    layer = nn.Linear(7, 5)
    budget = Budget(10, 2 * 7 * 5)
    with budget:
        copy.deepcopy(layer)(torch.ones(2, 7))
        nn.functional.linear(torch.ones(3, 7), layer.weight)
    assert budget.spent == 5


def test_attention_is_counted_on_the_cpu() -> None:
    q = torch.ones(2, 3, 5, 4)
    attention = nn.functional.scaled_dot_product_attention
    assert flops_of(lambda: attention(q, q, q)) == 2 * (2 * 2 * 3 * 5 * 5 * 4)


def test_the_limit_is_never_passed() -> None:
    budget = Budget(10.5, 2 * 7 * 5)
    layer = nn.Linear(7, 5)
    with pytest.raises(BudgetSpent), budget:
        while True:
            layer(torch.ones(1, 7))
    assert budget.spent == 10


@pytest.mark.parametrize("operation", ["addmm_", "out"])
def test_an_operation_that_writes_into_a_tensor_is_stopped_before_it_writes(operation: str) -> None:
    kept, many = torch.zeros(5, 7), torch.ones(1000, 7)
    budget = Budget(10, 2 * 7 * 5)

    def write() -> None:
        if operation == "out":
            torch.mm(torch.ones(5, 1000), many, out=kept)
        else:
            kept.addmm_(torch.ones(5, 1000), many)

    with pytest.raises(BudgetSpent), budget:
        write()
    assert budget.spent == 0
    assert not kept.any()
    with Budget(1000, 2 * 7 * 5) as enough:
        write()
    assert enough.spent == 1000
    assert kept.eq(1000).all()


def test_a_broad_except_cannot_hide_the_limit() -> None:
    with pytest.raises(BudgetSpent), Meter(limit=10):
        try:
            torch.ones(9, 9) @ torch.ones(9, 9)
        except Exception:
            pytest.fail("BudgetSpent was caught as an Exception")


def test_stream_leaves_less_than_one_step() -> None:
    layer = nn.Linear(7, 5)
    budget = Budget(100, 2 * 7 * 5)
    with budget:
        for size in budget.stream([8] * 50):
            layer(torch.ones(size, 7))
    assert budget.spent == 96
    assert budget.left < 8


def test_a_stream_of_epochs_ends_after_them_and_counts_what_is_done() -> None:
    layer = nn.Linear(7, 5)
    budget = Budget.of_epochs(2.5, 2 * 7 * 5)
    assert budget.progress == 0
    seen = []
    with budget:
        for size in budget.stream([8] * 50, epoch=4):
            seen.append(budget.progress)
            layer(torch.ones(size, 7))
    assert seen == [number / 10 for number in range(10)]
    assert budget.progress == 1
    assert budget.spent == 80  # and binds nothing
    assert (budget.size, Budget(3, 1).size) == (2.5, 3)
    assert list(budget.stream([8] * 50, epoch=4)) == []  # nothing is left


def test_only_counted_batches_make_an_epoch() -> None:
    budget = Budget.of_epochs(2, 1)
    kinds = [True, False, False] * 9
    assert list(budget.stream(kinds, 3, lambda beside: not beside)) == kinds[:9]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda budget: next(budget.stream([1])), "does not say what one is. Give budget.stream"),
        (
            lambda budget: next(budget.stream([1], 0)),
            "does not say what one is. Give budget.stream",
        ),
        (lambda budget: budget.left, "no compute is left of it. Draw batches through budget.stre"),
    ],
)
def test_what_a_budget_of_epochs_cannot_tell_is_one_clear_line(ask: Any, says: str) -> None:
    with pytest.raises(MarshtestError, match=rf"^budget: .*budget_unit: epochs.*{says}") as error:
        ask(Budget.of_epochs(2, 1))
    assert "\n" not in str(error.value)


def test_a_model_without_countable_work_is_refused() -> None:
    with pytest.raises(MarshtestError, match="budget: the model runs no matrix product"):
        flops_of(lambda: torch.ones(3) + 1)


def by_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def by_pool(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


@pytest.mark.parametrize("elsewhere", [by_thread, by_pool])
def test_threads_are_counted_and_stopped(elsewhere: Callable[[Callable[[], None]], None]) -> None:
    layer, reached = nn.Linear(7, 5), []

    def work() -> None:
        while True:
            layer(torch.ones(1, 7))

    def unlearn() -> None:
        elsewhere(work)
        torch.ones(3) + 1  # is free, and stopped all the same
        reached.append("the end")

    budget = Budget(10.5, 2 * 7 * 5)
    with pytest.raises(BudgetSpent), budget:
        unlearn()
    assert budget.spent == 10
    assert not reached


def test_many_threads_lose_no_count() -> None:
    layer, budget = nn.Linear(7, 5), Budget(math.inf, 2 * 7 * 5)
    with budget, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: layer(torch.ones(1, 7)), range(400)))
    assert budget.spent == 400
    assert not Meter.open


def test_a_thread_outlives_its_budget_and_counts_in_the_next() -> None:
    layer = nn.Linear(7, 5)
    with ThreadPoolExecutor(1) as pool:
        for samples in (2, 3):
            budget = Budget(10, 2 * 7 * 5)
            with budget:
                pool.submit(layer, torch.ones(samples, 7)).result()
            assert budget.spent == samples
        pool.submit(layer, torch.ones(99, 7)).result()  # none is open


def test_a_spent_budget_stops_even_what_caught_it() -> None:
    with pytest.raises(BudgetSpent), Meter(limit=10), contextlib.suppress(BaseException):
        torch.ones(9, 9) @ torch.ones(9, 9)


def numpy_work() -> None:
    start, a = time.process_time(), np.ones((200, 200))
    while time.process_time() < start + 1.3:
        a = a @ a / 200


def work_of_a_process() -> None:
    code = "import time\nwhile time.process_time() < 1.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


def uncounted_work() -> None:
    start, a = time.process_time(), torch.ones(200, 200)
    while time.process_time() < start + 1.3:
        with _disable_current_modes():
            a = a @ a / 200


@pytest.mark.parametrize("work", [numpy_work, work_of_a_process, uncounted_work])
def test_work_that_is_not_counted_shows_in_the_time(work: Callable[[], None]) -> None:
    budget = Budget(100, 1, training_seconds=0.2)
    with budget:
        work()
    assert budget.mismatch.endswith(
        "s of CPU time outside counted operations, where the initial training took 0.2 s"
    )


FIRST_OPTIMISER = """
import sys, torch
from marshtest.training.budget import Budget
with Budget(1, 1):
    before = set(sys.modules)
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1).step()
    print("torch._dynamo" in set(sys.modules) - before)
"""


@pytest.mark.slow
def test_what_pytorch_imports_late_is_not_held_against_the_method_that_comes_first() -> None:
    """A sweep that is taken up again may unlearn before it trains anything."""
    said = subprocess.run(
        [sys.executable, "-c", FIRST_OPTIMISER], check=True, capture_output=True, text=True
    )
    assert said.stdout == "False\n"


def test_small_steps_on_a_tiny_model_leave_no_time_unexplained() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters())
    budget = Budget(math.inf, 1, training_seconds=0)
    with budget:
        for _ in range(500):
            optimizer.zero_grad()
            model(torch.ones(1, 7)).sum().backward()
            optimizer.step()
    assert budget.unseen_seconds < 0
    assert budget.mismatch == ""
