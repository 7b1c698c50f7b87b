"""Models and unlearners of others: what they leave behind, hold beside their tensors, and how they fail."""

import copy
import os
import random
import re
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

import marshtest
from marshtest.commands.sweep import sweep
from marshtest.data.load import load
from marshtest.data.samples import Samples
from marshtest.experiment.features import FeatureSettings, network
from marshtest.experiment.protocol import Trainer, set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.gus import input_directions
from marshtest.models.answers import logits_in, misreads, overruns, takes_channels_last
from marshtest.models.state import copied, restore, state_of
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import SWITCHES, seeded
from marshtest.sweeps import ledger
from marshtest.sweeps.store import Store
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, chosen_precision, fit
from marshtest.training.tasks import Classification
from marshtest.unlearning import Custom
from marshtest.unlearning.check import images
from marshtest.unlearning.harness import Outcome, unlearn

pytestmark = pytest.mark.usefixtures("no_report")
SMALL: dict[str, Any] = {
    **TINY,
    "data": {"name": "digits", "train": 100, "test": 50},
    "training": {"epochs": 2, "batch_size": 16, "lr": 0.1},
    "unlearners": [],
    "seeds": 1,
}


def outcome_of(function: Any) -> Outcome:
    problem = images()
    budget = Budget(0.5 * problem.passes, problem.flops_per_pass)
    given = (problem.model, problem.retain, problem.forget)
    return unlearn(Custom.wrap(function), *given, task=problem.task, budgets=[budget], seed=3)[0]


# The process's switches and draws


def spoils() -> None:
    """Change every switch that is to be kept."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    os.chdir("/")
    torch.inference_mode().__enter__()
    register_module_forward_hook(lambda *_: None)


def draws() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def test_switches_hooks_and_draws_are_as_they_were_whatever_foreign_code_does() -> None:
    from torch.nn.modules import module

    before = [get() for get, _ in SWITCHES]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    for raises in (False, True):
        try:
            with warnings.catch_warnings(), seeded(5):
                warnings.simplefilter("ignore")
                spoils()
                assert [get() for get, _ in SWITCHES] != before
                if raises:
                    raise KeyError("lost")
        except KeyError:
            pass
        assert [get() for get, _ in SWITCHES] == before
        assert not module._global_forward_hooks
        assert torch.ones(1).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_the_three_global_draws_follow_the_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        with seeded(seed):
            found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def drawing(model: Any, retain: Any, forget: Any, *, task: Any, **_: Any) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).add_(sum(draws()))
    spoils()
    return model.float()


def test_an_unlearner_that_draws_from_numpy_and_spoils_the_switches_is_repeated_bit_for_bit() -> (
    None
):
    before = [get() for get, _ in SWITCHES]
    first, second = (outcome_of(drawing) for _ in range(2))
    assert first.model is not None
    assert second.model is not None
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [get() for get, _ in SWITCHES] == before


def lost_folder(model: Any, retain: Any, forget: Any, **_: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
    return copy.deepcopy(model)


def test_a_working_folder_that_is_gone_is_left_and_the_model_is_sound() -> None:
    before = Path.cwd()
    found = outcome_of(lost_folder)
    assert Path.cwd() == before
    assert found.model is not None
    assert not found.note


class SilentError(ValueError):
    def __str__(self) -> str:
        raise KeyError("lost")


class OddError(ValueError):
    __str__ = lambda _: 5  # noqa: E731


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("file \udcff.txt"), r"raised ValueError: file \udcff.txt ("),
        (SilentError(), "raised SilentError: no message ("),
        (OddError(), "raised OddError: no message ("),
    ],
)
def test_an_error_that_no_file_can_hold_or_that_does_not_tell_itself_is_a_note(
    error: Exception, told: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    found = outcome_of(fails)
    assert found.model is None
    assert found.note.startswith(told)
    found.note.encode()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_returned_model_that_raises_as_it_answers_is_a_note(kind: type[BaseException]) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise kind("lost")

    found = outcome_of(lambda *_, **__: Raises())
    assert found.model is None
    assert found.note == f"returned a model that raises {kind.__name__}: lost"


class Spoils(nn.Module):
    """Draws by NumPy as it is built and called, and turns cuDNN's benchmark on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.layers[1].weight.data += np.random.rand()

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.layers(x) + np.random.rand()
        torch.backends.cudnn.benchmark = True
        return said


def spoiling(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Spoils()


def test_a_model_that_draws_from_numpy_is_built_and_trained_alike_by_one_seed() -> None:
    settings, data = parse_model(f"{__name__}:spoiling"), load("digits", train=60, test=30)
    models = []
    for _ in range(2):
        np.random.rand()  # what the process drew before does not matter
        model = build(settings, (1, 8, 8), 10, 4)
        task = Classification(mean=data.mean, std=data.std)
        fit(model, data.train, task, Training(epochs=1), 0)
        models.append(state_of(model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.backends.cudnn.benchmark


# What comes back


class Aside(nn.Module):
    """Holds a model where no state_dict shows it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.kept = [model]

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.kept[0].eval()(x)
        return said


def aside(model: Any, *_: Any, **__: Any) -> Any:
    return Aside(copy.deepcopy(model))


class Part(Aside):
    """Shows a part of its state, which is the same in all."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(1))


def partly_aside(model: Any, *_: Any, **__: Any) -> Any:
    return Part(copy.deepcopy(model))


@pytest.mark.slow
def test_models_that_show_no_weights_are_not_taken_for_one(tmp_path: Path) -> None:
    """Both arms' states are equal, and the models are not: what a poison left must not count as 0."""
    recipe = TINY | {
        "attack": {"name": "label-flip"},
        "training": {"epochs": 20, "batch_size": 16, "lr": 0.1},
        "unlearners": ["retrain"],
    }
    found = marshtest.run(
        recipe, unlearners=[aside, partly_aside], out=tmp_path / "run", report=False
    )
    same = found.rows[found.rows["role"] == "updated"].groupby("unlearner")["twin_same"]
    assert same.max().to_dict() == {
        f"{__name__}:aside": 0,
        f"{__name__}:partly_aside": 0,
        "retrain": 1,
    }


def hooked(model: Any, *_: Any, **__: Any) -> Any:
    model[-1].register_forward_hook(lambda module, args, out: out * 2)
    return model


def patched(model: Any, *_: Any, **__: Any) -> Any:
    model[-1].forward = lambda x: x @ model[-1].weight.T
    return model


def restless(model: Any, *_: Any, **__: Any) -> Any:
    return nn.Sequential(copy.deepcopy(model), Noise())


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    ("fake", "says"),
    [
        (hooked, "returned a model with hooks of its own (9)"),
        (patched, "returned a model with hooks of its own (9)"),
        (restless, "returned a model that answers otherwise when it is asked again"),
    ],
)
def test_oddities_of_a_returned_model_are_noted_and_it_is_measured(fake: Any, says: str) -> None:
    outcome = outcome_of(fake)
    assert outcome.model is not None
    assert outcome.note == says


class Lazy(nn.Module):
    """Trains itself when it is asked for the first time."""

    def __init__(self, model: nn.Module, task: Any, retain: Samples) -> None:
        super().__init__()
        self.inner, self.todo = copy.deepcopy(model), [(task, retain)]

    def forward(self, x: Tensor) -> Tensor:
        while self.todo:
            task, retain = self.todo.pop()
            with torch.enable_grad():
                task.loss(self.inner, retain).mean().backward()
        said: Tensor = self.inner(x)
        return said


def test_work_that_is_put_off_until_the_first_answer_is_noted() -> None:
    outcome = outcome_of(lambda model, retain, *_, task, **__: Lazy(model, task, retain))
    assert outcome.model is not None
    assert re.fullmatch(r"returned a model whose answers cost \d+ times as much", outcome.note)
    assert outcome_of(lambda model, *_, **__: copy.deepcopy(model)).note == ""


def huge(model: Any, *_: Any, **__: Any) -> Any:
    """Weights that are numbers, and answers that are none: ∞ − ∞."""
    with torch.no_grad():
        model[-1].weight.fill_(3e38)
        model[-1].weight[:, ::2] *= -1
    return model


def test_a_model_whose_answers_are_no_numbers_is_no_model() -> None:
    outcome = outcome_of(huge)
    assert (outcome.model, outcome.note) == (None, "returned a model whose answers are not numbers")


def test_weight_norms_own_hook_is_none_of_the_unlearners() -> None:
    problem = images()
    normed = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(192, 4)))
    with torch.no_grad():  # as a model is tried when it is built
        normed(problem.retain.x)
    budget = Budget(100.0, problem.flops_per_pass)
    given = (normed, problem.retain, problem.forget)
    same = Custom.wrap(lambda model, *_, **__: copy.deepcopy(model))
    (found,) = unlearn(same, *given, task=problem.task, budgets=[budget], seed=0)
    assert found.note == ""


class Masked(nn.Module):
    """A causal mask of −∞ kept as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.layer(x.flatten(1))
        return said


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda model: None, ""),
        (lambda model: model.mask.neg_(), "NaN or infinite weights"),
        (lambda model: model.layer.weight.data.fill_(torch.nan), "NaN or infinite weights"),
    ],
)
def test_only_what_was_finite_before_must_be_finite_after(change: Any, note: str) -> None:
    def unlearner(model: Any, *_: Any, **__: Any) -> Any:
        change(model)
        return model  # the very model passed in: compared with what it was

    data, model = load("digits", train=40, test=20), Masked()
    task = Classification(mean=data.mean, std=data.std)
    given = (model, data.train[20:], data.train[:20])
    budget = Budget(10.0, 1000.0)
    (found,) = unlearn(Custom.wrap(unlearner), *given, task=task, budgets=[budget], seed=0)
    assert (found.note, found.model is None) == (note, bool(note))


def test_a_head_that_is_changed_in_place_is_noticed() -> None:
    def unlearner(model: Any, *_: Any, **__: Any) -> Any:
        model[-1] = nn.Linear(72, 7)
        return model

    assert outcome_of(unlearner).note == "returned a model of logits (2, 7), not (2, 4)"


def broken(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    if not os.environ.get("MENDED"):
        copy.deepcopy(threading.Lock())  # raised in the standard library, called from here
    return copy.deepcopy(model)


def test_what_raises_has_a_row_with_file_and_line_and_its_traceback_is_kept_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def again() -> Any:
        return marshtest.run(
            {**SMALL, "unlearners": ["gd"]},
            unlearners=[broken],
            out=tmp_path / "run",
            progress=lambda share, text="": said.append(text),
        )

    line = broken.__code__.co_firstlineno + 2
    note = f"raised TypeError: cannot pickle '_thread.lock' object (test_foreign.py:{line})"
    first = again()
    assert first.rows["note"].tolist() == ["", "", "", note]
    log = (tmp_path / "run" / "raised.log").read_text()
    assert note in log
    assert "Traceback (most recent call last)" in log
    assert any(text.startswith("note: ") and "raised.log" in text for text in said)
    monkeypatch.setenv("MENDED", "1")
    said.clear()
    second = again()
    assert second.rows["note"].tolist() == [""] * 4
    assert not [text for text in said if text.startswith(("train", "unlearn gd"))]
    assert not (tmp_path / "run" / "raised.log").exists()
    assert not (tmp_path / "run" / "stages").exists()
    kept = ["unlearner", "test_accuracy", "rank_dependence"]
    pd.testing.assert_frame_equal(first.rows[kept][:3], second.rows[kept][:3], check_exact=True)
    said.clear()
    again()
    assert [text.endswith("is done already; nothing was run.") for text in said] == [True]


@pytest.mark.parametrize("keep_models", [False, True])
def test_in_a_sweep_it_is_a_failure_with_a_row_that_is_tried_again_when_asked(
    keep_models: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "name": "raising",
        "keep_models": keep_models,
        "recipe": {**SMALL, "unlearners": ["gd", f"{__name__}:broken"], "budgets": [0.3, 0.6]},
    }
    where: dict[str, Any] = {"store": tmp_path / "store", "out": tmp_path / "out"}
    done = sweep(asked, **where)
    (fault,) = done.failed.values()
    assert fault.startswith(f"{__name__}:broken raised TypeError")
    store = Store(where["store"])
    written = ledger.failures(store, done.ledger)
    assert len(written) == 2  # one a budget
    assert all("Traceback" in failure["traceback"] for failure in written.values())
    rows, _ = ledger.rows(store, done.ledger)
    assert [row["note"].startswith("raised") for row in rows] == 4 * [False] + 2 * [True]
    assert (tmp_path / "out" / "raised.log").exists()
    monkeypatch.setenv("MENDED", "1")
    assert sweep(asked, **where).failed == done.failed
    mended = sweep(asked, **where, retry_failed=True)
    assert mended.failed == {}
    rows = pd.read_parquet(tmp_path / "out" / "rows.parquet")
    assert len(rows) == 6
    assert not rows["note"].str.startswith("raised").any()
    assert not (tmp_path / "out" / "raised.log").exists()
    assert ledger.rubbish(store) == []


def diverging(model: Any, *_: Any, **__: Any) -> Any:
    next(model.parameters()).data.fill_(torch.nan)
    return model


def test_nan_weights_are_a_result_and_stay(tmp_path: Path) -> None:
    found = marshtest.run(SMALL, unlearners=[diverging], out=tmp_path / "run")
    assert found.rows["note"].tolist() == ["", "", "NaN or infinite weights"]
    assert not (tmp_path / "run" / "raised.log").exists()


# State beside the tensors


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(64, 64), nn.Linear(64, 10)

    def say(self, x: Tensor, mean: Any) -> Tensor:
        said: Tensor = self.fc(F.relu(4 * (self.a(x.flatten(1)) + 3 - mean)))
        return said


class Transient(Base):
    """A running mean that is not in the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            h = self.a(x.flatten(1)).detach().mean(0)
            self.mean.mul_(0.9).add_(h, alpha=0.1)
        return self.say(x, self.mean.clone())


class Late(Base):
    """The same, registered as None and made in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = self.a(x.flatten(1)).detach().mean(0)
        return self.say(x, 0 if self.mean is None else self.mean)


class Attribute(Base):
    """The same as a plain attribute."""

    mean: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = float(self.a(x.flatten(1)).mean()) + 5
        return self.say(x, self.mean)


class Extra(Base):
    calls = 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]

    def forward(self, x: Tensor) -> Tensor:
        return self.say(x, 0)


class Counted(Extra):
    """Extra state that is a tensor."""

    def get_extra_state(self) -> Any:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Any) -> None:
        self.calls = int(state)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.say(x, min(self.calls, 40) / 10)


class Locked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.say(x, 0)


class Untrainable(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.say(x, 0).new_zeros(3, 3) if self.training else self.say(x, 0)


KINDS = {
    kind.__name__: kind
    for kind in (Transient, Late, Attribute, Extra, Counted, Locked, Untrainable)
}


def factory(input_shape: tuple[int, ...], classes: int, kind: str) -> nn.Module:
    return KINDS[kind]()


@pytest.mark.parametrize("kind", ["Transient", "Late", "Counted"])
def test_state_beside_the_state_dict_is_stored_with_the_model(kind: str) -> None:
    data = load("digits", train=300, test=100)
    task = Classification(mean=data.mean, std=data.std)
    model, again = KINDS[kind](), KINDS[kind]()
    fit(model, data.train, task, Training(epochs=3, lr=0.05, batch_size=32), 0)
    restore(again, state_of(model))
    one, two = (task(of.eval(), data.test) for of in (model, again))
    assert torch.equal(one, two)
    assert accuracy(model, task, data.test) == accuracy(again, task, data.test)


@pytest.mark.parametrize("kind", ["Transient", "Late", "Counted"])
def test_the_initial_model_in_the_rows_is_the_one_that_was_trained(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    real = Trainer.fit

    def fitting(trainer: Trainer, samples: Samples, *rest: Any) -> Any:
        made = real(trainer, samples, *rest)
        trained.append(made[0])
        return made

    monkeypatch.setattr(Trainer, "fit", fitting)
    recipe = {**SMALL, "model": {"name": f"{__name__}:factory", "kind": kind}, "unlearners": ["gd"]}
    rows = marshtest.run(recipe, out=tmp_path / "run").rows
    data = load("digits", train=100, test=50)
    task = Classification(mean=data.mean, std=data.std)
    initial = trained[1]  # behind the trial
    assert rows["test_accuracy"][0] == accuracy(initial, task, data.test)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Attribute", r"answers otherwise when it is built again .* Training changed mean"),
        ("Extra", r"extra state that is no tensor \(_extra_state is a dict\)"),
        ("Locked", r"Locked cannot be copied \(TypeError: cannot pickle '_thread.lock'"),
        ("Untrainable", r"cannot be trained \(ValueError: Expected input batch_size \(3\)"),
    ],
)
def test_what_would_be_lost_or_cannot_work_is_refused_before_anything_is_trained(
    kind: str, says: str, tmp_path: Path
) -> None:
    recipe = {**SMALL, "model": {"name": f"{__name__}:factory", "kind": kind}}
    with pytest.raises(MarshtestError, match=says):
        marshtest.run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_models_state_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        restore(nn.Linear(2, 2), state_of(Transient()))


def test_what_holds_a_tensor_with_a_graph_is_refused_in_one_line() -> None:
    model: Any = nn.Linear(2, 2)
    model.kept = model(torch.ones(1, 2))
    with pytest.raises(MarshtestError, match="Linear cannot be copied"):
        copied(model)


# Layout and answers


class View(nn.Module):
    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.conv, self.fc = conv(1, 8, 3, padding=1), nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x if isinstance(self.conv, nn.Conv2d) else x[:, :, None])
        said: Tensor = self.fc(F.relu(h).view(len(x), -1))
        return said


class Strided(View):
    """Goes by memory without a word."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        said: Tensor = self.fc(h.as_strided((len(x), 512), (512, 1)))
        return said


def in_training_only(self: Any, x: Tensor) -> Tensor:
    h = F.relu(self.conv(x))
    said: Tensor = self.fc(h.view(len(x), -1) if self.training else h.flatten(1))
    return said


class Sometimes(View):
    forward = in_training_only


class Flattens(View):
    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.fc(F.relu(self.conv(x)).flatten(1))
        return said


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (View(), False),
        (View(3), False),
        (Strided(), False),
        (Sometimes(), False),
        (Flattens(), True),
    ],
    ids=["view", "conv3d", "strided", "sometimes", "flattens"],
)
def test_channels_last_is_for_models_that_do_the_same_in_it(model: nn.Module, takes: bool) -> None:
    before = copy.deepcopy(model.state_dict())
    assert takes_channels_last(model, (1, 8, 8)) == takes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("width", "takes"), [(7, False), (8, True)])
def test_narrow_shortcuts_keep_the_usual_layout(width: int, takes: bool) -> None:
    """Channels last, oneDNN's kernel for them writes past its memory (uxlfoundation/oneDNN#6035)."""
    model: dict[str, Any] = {"name": "resnet18", "width": width}
    trainer = set_up(
        load_recipe({**SMALL, "model": model}), load("digits", train=100, test=50)
    ).trainer
    assert trainer.task.channels_last == takes
    # Scripted, so that no nn.Conv2d is to be found in it.
    shortcut = torch.jit.script(nn.Conv2d(width, 2 * width, 1, stride=2))
    somebodys = nn.Sequential(
        nn.Conv2d(1, width, 3), shortcut, nn.Flatten(), nn.Linear(18 * width, 2)
    )
    assert takes_channels_last(somebodys, (1, 8, 8)) == takes
    back = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, width, 1, stride=2))
    assert overruns(back, (1, 8, 8)) != takes
    settings = FeatureSettings(model=parse_model(model), training=Training(epochs=1))
    _, task = network(load("digits", train=60, test=20), settings, torch.device("cpu"))
    assert task.channels_last == takes


@pytest.mark.parametrize(
    ("model", "shape", "may"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8), False),
        (nn.Conv2d(3, 8, 8), (3, 8, 8), True),  # answers with one pixel
        (nn.Conv2d(3, 8, 1), (3, 1, 1), False),
        (nn.Conv2d(3, 8, (3, 1), padding=(1, 0)), (3, 8, 1), False),
        (nn.Conv2d(3, 8, (1, 3), padding=(0, 1), stride=2), (3, 8, 1), True),
        (nn.Conv1d(3, 8, 3, padding=2, stride=3), (3, 2), True),
        (nn.Conv3d(1, 8, 3, padding=1), (1, 1, 8, 8), True),
        (nn.ConvTranspose2d(3, 8, 3, stride=2), (3, 8, 1), True),
        (nn.Conv2d(3, 8, 2, padding=6, dilation=6), (3, 5, 5), True),  # which may end the process
        (nn.Conv2d(3, 8, 2, padding=2, dilation=2), (3, 5, 5), False),
    ],
)
def test_filters_longer_than_their_map_are_not_computed_in_bfloat16_with_tiles(
    model: nn.Module, shape: tuple[int, ...], may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert misreads(model, shape) == may
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    auto, coarse = Training(epochs=1), Training(epochs=1, precision="bfloat16")
    cpu = torch.device("cpu")
    assert chosen_precision(auto, model, cpu, shape) == ("float32" if may else "bfloat16")
    if may:
        with pytest.raises(MarshtestError, match=r"training\.precision: .* Say float32 or auto"):
            chosen_precision(coarse, model, cpu, shape)
    else:
        assert chosen_precision(coarse, model, cpu, shape) == "bfloat16"


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(8, 8, 5, stride=2, padding=2), (8, 1)),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), (8, 8, 1)),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8)),
        (nn.Conv3d(1, 8, 3, padding=1), (1, 1, 8, 8)),
        (nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1), (8, 8, 1)),
    ],
)
def test_convolutions_in_the_precision_of_auto_have_the_gradients_of_float32(
    conv: nn.Module, shape: tuple[int, ...]
) -> None:
    precision = chosen_precision(Training(epochs=1), conv, torch.device("cpu"), shape)
    x = torch.randn(16, *shape, requires_grad=True)
    answer = conv(x)
    upstream = torch.randn_like(answer)
    expected = torch.autograd.grad(answer, [x, conv.weight], upstream)
    for _ in range(3):
        dirt = [torch.full((count,), 1e4) for count in (300, 1000, 10_000)]
        del dirt  # what is read unwritten is likely to be this
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            rounded = conv(x)
        found = torch.autograd.grad(rounded, [x, conv.weight], upstream.to(rounded.dtype))
        for a, b in zip((answer, *expected), (rounded, *found), strict=True):
            assert (a - b.float()).norm() <= 0.1 * (a.norm() + 1)


LAYOUTS = {"view": View, "conv3d": lambda: View(3), "flattens": Flattens}


def laid_out(input_shape: tuple[int, ...], classes: int, kind: str) -> nn.Module:
    made: nn.Module = LAYOUTS[kind]()
    return made


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_model_that_goes_by_memory_is_trained_unlearned_and_scored(
    kind: str, tmp_path: Path
) -> None:
    recipe = {**SMALL, "model": {"name": f"{__name__}:laid_out", "kind": kind}}
    trainer = set_up(load_recipe(recipe), load("digits", train=100, test=50)).trainer
    assert trainer.task.channels_last == (kind == "flattens")
    found = marshtest.run({**recipe, "unlearners": ["gd", "retrain"]}, out=tmp_path / "run")
    assert found.rows["note"].eq("").all()
    assert len(found.rows) == 4


WAYS: dict[str, Any] = {
    "tensor": lambda t: t,
    "tuple": lambda t: (t, 1),
    "list": lambda t: [t],
    "dict": lambda t: {"logits": t, "x": 1},
    "dict of one": lambda t: {"out": t},
    "nested": lambda t: ((t, 2), 3),
}


@pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS)
def test_logits_are_found_in_what_models_answer(wrap: Any) -> None:
    logits = torch.randn(2, 3)
    assert logits_in(wrap(logits)) is logits


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"a": 1, "b": 2}, "a dict of a, b"),
        ("text", "answers with str"),
        ((), "answers with tuple"),
        (None, "answers with NoneType"),
    ],
)
def test_an_answer_without_logits_is_refused(answer: Any, says: str) -> None:
    with pytest.raises(MarshtestError, match=says):
        logits_in(answer)


class Wide(Base):
    """Two classes more than the data have, closed with −∞; another kind of answer in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Any:
        said = self.say(x, 3).masked_fill(torch.arange(12) >= 10, -torch.inf)
        return {"logits": said, "hidden": x} if self.training else (said, x)


def wide(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Wide()


def test_a_wider_head_with_closed_classes_is_trained_and_unlearned_by_all_methods(
    tmp_path: Path,
) -> None:
    methods = ["gd", "ngd", {"name": "scrub", "lr": 0.01}, {"name": "cfk", "k": 1}, "neggrad+"]
    recipe = {**SMALL, "model": f"{__name__}:wide", "unlearners": methods}
    recipe["training"] = {"epochs": 15, "batch_size": 16, "lr": 0.05}
    rows = marshtest.run(recipe, out=tmp_path / "run").rows
    assert rows["note"].isin(["", "stopped at the budget"]).all()
    assert rows["test_accuracy"].gt(0.5).all()
    assert rows["gus_dependence"].notna().all()


def test_closed_classes_change_no_score() -> None:
    """GUS directions and margins are those of the model without the closed outputs."""
    torch.manual_seed(0)
    wide_model = Wide().eval()
    narrow = Base()
    narrow.a = wide_model.a
    narrow.fc.weight.data = wide_model.fc.weight.data[:10]
    narrow.fc.bias.data = wide_model.fc.bias.data[:10]
    narrow.forward = lambda x: narrow.say(x, 3)  # type: ignore[method-assign]
    samples = Samples(torch.randn(9, 64), torch.arange(9), torch.arange(9))
    found = [input_directions(model, Classification(), samples) for model in (wide_model, narrow)]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25, 1e37])
def test_directions_do_not_depend_on_the_size_of_the_gradient(scale: float) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 2, bias=False)
    scaled = copy.deepcopy(plain)
    scaled.weight.data *= scale
    # two classes: the margin is the difference of two logits, so its gradient is the weights' difference
    samples = Samples(torch.zeros(4, 64), torch.arange(4) % 2, torch.arange(4))
    weight = plain.weight.detach()
    way = F.normalize(weight[1] - weight[0], dim=0)
    found = input_directions(scaled, Classification(), samples)
    torch.testing.assert_close(found[0], way, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], -way, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [torch.inf, torch.nan, 0.0])
def test_a_gradient_without_a_direction_is_undefined(size: float) -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * size, x[:, 1] * 0], 1)

    samples = Samples(torch.ones(2, 5), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert bool(input_directions(Steep(), Classification(), samples).isnan().all())


def test_scrub_leaves_closed_classes_out_of_its_divergence() -> None:
    from marshtest.unlearning.scrub import divergence_and_loss

    torch.manual_seed(0)
    teacher, student = Wide().eval(), Wide().eval()
    batch = Samples(torch.randn(6, 64), torch.arange(6), torch.arange(6))
    found, _ = divergence_and_loss(teacher, student, batch, Classification(), 2.0)
    p, q = ((of(batch.x)[0][:, :10] / 2).log_softmax(1) for of in (teacher, student))
    expected = 4 * (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(found, expected)
    found.backward()
    assert bool(torch.isfinite(student.fc.weight.grad).all())  # type: ignore[arg-type]
