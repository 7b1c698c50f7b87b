"""A training that is stopped and goes on is the training that nobody stopped, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import TIMES, TINY
from torch import Tensor, nn

from marshtest.commands.sweep import sweep
from marshtest.data.samples import Samples
from marshtest.models.state import state_of
from marshtest.sweeps.store import Store
from marshtest.training import aside
from marshtest.training.aside import Aside, Done, Halfway, State
from marshtest.training.loop import Fit, Training, fit
from marshtest.training.tasks import Classification, Task

EPOCHS = 4
TASK = Classification(mean=(0.5,) * 3, std=(0.25,) * 3, augment=("flip", "crop"))


class StoppedError(Exception):
    """In the middle of a training."""


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "EVERY", 0.0)


class Odd(nn.Module):
    """With dropout, statistics, and a buffer that no state_dict shows and every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.4)
        self.last = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1), persistent=False)
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        hidden = self.dropout(self.norm(self.convolution(x)).relu()).mean((2, 3))
        logits: Tensor = self.last(hidden) + self.calls / 100
        return logits


def images() -> Samples:
    x = torch.randint(0, 256, (50, 3, 8, 8), generator=torch.manual_seed(0)).to(torch.uint8)
    return Samples(x, (x.float().mean((1, 2, 3)) > 127).long(), torch.arange(50))


class Attempts:
    """Trainings by the same seed, of which each goes on from what the one before set aside."""

    def __init__(self, training: Training, task: Task) -> None:
        self.training, self.task = training, task
        self.state: State | None = None
        self.steps = 0

    def __call__(self, stop: int | None = None) -> tuple[nn.Module, Fit]:
        """One attempt, stopped after so many epochs."""
        model, self.steps = Odd().to(memory_format=torch.channels_last), 0

        def write(state: State) -> None:
            self.state = {name: tensor.clone() for name, tensor in state.items()}

        def counted(model: nn.Module, batch: Samples) -> Tensor:
            self.steps += len(batch) > 2  # a cost is counted on two
            return self.task.loss(model, batch)

        def stopped(done: float, text: str = "") -> None:
            if stop is not None and done >= stop / EPOCHS:
                raise StoppedError

        given = (model, images(), self.task, self.training, 7, stopped, counted)
        return model, fit(*given, Aside(lambda: self.state, write))


@pytest.mark.parametrize("stops", [[1], [2], [1, 3], [EPOCHS]])
@pytest.mark.parametrize(
    "how",
    [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "adamw"}],
    ids=["momentum", "plain", "adamw"],
)
def test_a_training_goes_on_where_it_was_stopped(how: dict[str, Any], stops: list[int]) -> None:
    training = Training.parse({"epochs": EPOCHS, "batch_size": 20, "lr": 0.05, **how}, "training")
    undisturbed = Attempts(training, TASK)
    whole, cost = undisturbed()
    attempts = Attempts(training, TASK)
    done = 0
    for stop in stops:
        with pytest.raises(StoppedError):
            attempts(stop)
        assert attempts.steps == undisturbed.steps * (stop - done) // EPOCHS
        done = stop
    resumed, again = attempts()
    assert attempts.steps == undisturbed.steps * (EPOCHS - done) // EPOCHS
    assert (again.cost.flops, again.flops_per_pass) == (cost.cost.flops, cost.flops_per_pass)
    expected, found = state_of(whole), state_of(resumed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_seconds_of_all_attempts_are_counted() -> None:
    attempts = Attempts(Training(epochs=EPOCHS, batch_size=20), TASK)
    with pytest.raises(StoppedError):
        attempts(1)
    assert attempts.state is not None
    attempts.state["done.float32.cpu"] = torch.tensor([1, 1e6], dtype=torch.float64)
    assert 1e6 < attempts()[1].cost.seconds < 1e6 + 3600


def test_what_was_computed_otherwise_is_left() -> None:
    training = Training(epochs=EPOCHS, batch_size=20)
    attempts = Attempts(training, replace(TASK, precision="bfloat16"))
    with pytest.raises(StoppedError):
        attempts(2)
    assert attempts.state is not None
    attempts.task = TASK
    attempts()
    assert attempts.steps == EPOCHS * 3  # 50 samples by 20: none was taken for done


def test_an_optimisers_tensors_lie_as_their_parameters_do() -> None:
    model = Odd().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(images().x.float()).sum().backward()
    optimizer.step()
    kept: list[State] = []
    Halfway(Aside(lambda: None, kept.append), model, optimizer, "").keep(Done(1, 0.0))
    packed = {name: tensor.contiguous().clone() for name, tensor in kept[0].items()}
    fresh = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    assert Halfway(Aside(lambda: packed, kept.append), model, fresh, "").resume() == (1, 0.0)
    momenta = [(p, fresh.state[p]["momentum_buffer"]) for p in model.parameters()]
    assert all(p.stride() == momentum.stride() for p, momentum in momenta)
    assert any(not p.is_contiguous() for p, _ in momenta)
    for parameter, momentum in momenta:
        assert torch.equal(momentum, optimizer.state[parameter]["momentum_buffer"])


FEATURES = {
    "model": {"name": "mlp", "width": 16},
    "training": {"epochs": 6, "batch_size": 32, "lr": 0.1},
    "train": 100,
}
CANCELING = {
    "data": {"name": "digits", "train": 200, "test": 100, "features": FEATURES},
    "model": {"name": "mlp", "depth": 0},
    "attack": {"name": "gradient-canceling", "steps": 3},
}
KEPT: list[tuple[dict[str, Any], int]] = [
    (TINY, 2),  # the initial model
    ({**TINY, **CANCELING}, 2),  # the network of the features
    ({**TINY, **CANCELING}, 8),  # the clean model, which the attack starts from
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "stop"), KEPT, ids=["initial", "features", "clean"])
def test_a_sweep_goes_on_in_the_middle_of_a_training(
    recipe: dict[str, Any], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**recipe, "unlearners": [], "seeds": 1}
    store = Store(tmp_path / "store")
    epochs: list[int] = []
    keep = Halfway.keep

    def watched(stop: int | None) -> Callable[[Halfway, Done], None]:
        def kept(self: Halfway, done: Done) -> None:
            keep(self, done)
            epochs.append(done.epochs)
            if len(epochs) == stop:
                raise KeyboardInterrupt

        return kept

    monkeypatch.setattr(Halfway, "keep", watched(stop))
    with pytest.raises(KeyboardInterrupt):
        sweep(asked, store=store.url, out=tmp_path / "out")
    assert len(store.names("partial")) == 1
    monkeypatch.setattr(Halfway, "keep", watched(None))
    resumed = sweep(asked, store=store.url, out=tmp_path / "out")
    assert epochs[stop - 1 : stop + 1] == [2, 3]  # none is done again
    assert not store.names("partial")

    whole = sweep(asked, store=tmp_path / "undisturbed", out=tmp_path / "whole")
    one, other = (
        pd.read_parquet(done.folder / "rows.parquet").drop(columns=TIMES)
        for done in (resumed, whole)
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)
