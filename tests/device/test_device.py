"""The protocol on a simulated CUDA device: the CPU's rows, and few waits of the host. `make device`."""

import copy
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_guard
import golden
import language
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import METHODS

if cuda_guard.COMPILER is None:
    pytest.skip("the device needs a C++ compiler", allow_module_level=True)

from simulated_cuda import SimulatedCuda
from torch import Tensor, nn

import marshtest
from marshtest.commands.sweep import sweep
from marshtest.data.samples import Samples
from marshtest.kit.dose import dose
from marshtest.kit.open_model import open_model
from marshtest.kit.texts.causal import open_causal
from marshtest.metrics.accuracy import accuracy
from marshtest.models.networks import ResNet18
from marshtest.models.table import build
from marshtest.plumbing.device import pick_device
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.sweeps.store import Store
from marshtest.training import aside
from marshtest.training.aside import Done, Halfway
from marshtest.training.budget import Budget, BudgetSpent
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials

CUDA = torch.device("cuda")
GIVEN = {  # settings of methods whose defaults fit no forget set of a tenth
    "retrain-tuned": {"name": "retrain-tuned", "batch_size": 8, "lr": 0.05},
    "ssd": {"name": "ssd", "alpha": 2},
    "assd": {"name": "assd"},
}
RESNET: dict[str, Any] = {
    "name": "device",
    "data": {"name": "digits", "train": 120, "test": 60, "validation": 0.1},
    "model": {"name": "resnet18", "width": 8},
    "training": {"epochs": 2, "batch_size": 32, "lr": 0.05, "precision": "float32"},
    "attack": {"name": "gaussian", "draws": 5},
    "poison_budgets": 0.1,
    "unlearners": [GIVEN.get(name, name) for name in METHODS],
    "budgets": [0.3, 0.6],
}
MLP = RESNET | {
    "model": {"name": "mlp", "width": 16},
    "training": {"epochs": 20, "batch_size": 32, "lr": 0.1},
    "unlearners": ["gd", {"name": "cfk", "k": 1}],
}
MATCHING = {"name": "gradient-matching", "restarts": 2, "steps": 3}
FEATURES = {
    "model": RESNET["model"],
    "training": {"epochs": 1, "precision": "float32"},
    "train": 90,
}
# Without dropout, which is drawn from the device's own stream.
TRANSFORMER = golden.RECIPES["texts"]["model"] | {"dropout": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "every unlearner": RESNET,
    "augmented": RESNET
    | {"training": RESNET["training"] | {"augment": ["flip", "crop"]}, "unlearners": ["gd"]},
    "matching": MLP | {"attack": MATCHING, "poison_budgets": 0.05},
    "canceling": MLP | {"attack": {"name": "gradient-canceling", "steps": 3}},
    "features": MLP | {"data": RESNET["data"] | {"features": FEATURES}},
    "texts": {"name": "texts", **golden.RECIPES["texts"], "model": TRANSFORMER},
    "after-care": MLP | {"states": ["int8", {"trained_on": 1}], "metrics": ["membership"]}
    | {"data": RESNET["data"] | {"validation": 0.3}, "reference": True},
}  # fmt: skip


@pytest.fixture
def device() -> Iterator[SimulatedCuda]:
    with SimulatedCuda() as device:
        yield device


# The device itself


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.cat([x, torch.ones(2)]),
        lambda x: torch.isin(x, torch.ones(2)),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.rand(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_the_device_refuses_what_cuda_refuses(
    device: SimulatedCuda, work: Callable[[Tensor], object]
) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        work(torch.zeros(3, device="cuda"))


def test_the_device_takes_what_cuda_takes(device: SimulatedCuda) -> None:
    x = torch.arange(3.0).to("cuda")
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]
    assert x[x > 0].sum().item() == 3
    assert (x.is_cuda, x.device.type, str(x.cpu().device)) == (True, "cuda", "cpu")
    layer = copy.deepcopy(nn.Conv2d(1, 2, 3).to("cuda")).to(memory_format=torch.channels_last)
    assert isinstance(layer.weight, nn.Parameter)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(torch.ones(1, 1, 4, 4, device="cuda")).dtype == torch.bfloat16
    before = torch.get_rng_state()
    nn.functional.dropout(x)
    assert torch.equal(before, torch.get_rng_state())  # the device draws from a stream of its own


def test_a_budget_binds_in_the_devices_thread(device: SimulatedCuda) -> None:
    layer, x = nn.Linear(4, 3).to("cuda"), torch.ones(5, 4, device="cuda", requires_grad=True)
    threads = set()
    x.register_hook(lambda grad: threads.add(threading.current_thread()))
    forward = 2 * 5 * 4 * 3
    with Budget(3, forward) as budget:
        layer(x).sum().backward()
    assert budget.spent == 3
    assert threading.main_thread() not in threads
    with pytest.raises(BudgetSpent), Budget(2, forward):  # in the backward
        layer(x).sum().backward()


# The protocol


def assert_same(there: pd.DataFrame, here: pd.DataFrame) -> None:
    assert there["note"].tolist() == here["note"].tolist()
    for name in here.select_dtypes("number").columns.drop(["seconds", "scoring_seconds"]):
        pairs = {"rtol": 1e-3, "atol": 1e-3, "equal_nan": True}
        assert np.allclose(there[name], here[name], **pairs), name


@pytest.mark.parametrize("kind", RECIPES)
def test_rows_are_those_of_the_cpu(kind: str, tmp_path: Path) -> None:
    recipe = RECIPES[kind]
    if kind == "texts":
        path = golden.reviews(tmp_path / "reviews")
        recipe = recipe | {"data": recipe["data"] | {"path": str(path)}}
    here = marshtest.run({**recipe, "device": "cpu"}, out=tmp_path / "cpu", report=False).rows
    with SimulatedCuda() as device:
        there = marshtest.run(
            {**recipe, "device": "cuda"}, out=tmp_path / "cuda", report=False
        ).rows
    assert device.launched > 1000
    assert set(there["device"]) == {"cuda"}
    assert_same(there, here)


def test_a_sweep_goes_on_from_its_store_on_the_device(
    device: SimulatedCuda, tmp_path: Path
) -> None:
    recipe = {**RESNET, "unlearners": ["gd"], "device": "cuda"}
    where = {"store": tmp_path / "store"}
    first = sweep({"name": "s", "recipe": recipe}, out=tmp_path / "a", **where)
    again = sweep({"name": "s", "recipe": recipe}, out=tmp_path / "b", **where)
    assert (first.done, again.done, again.reused) == (5, 0, 5)


def test_a_training_goes_on_from_its_epoch_on_the_device(
    device: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**RESNET, "unlearners": ["gd"], "device": "cuda"}
    asked = {"name": "s", "recipe": recipe}
    keep = Halfway.keep

    def stopped(self: Halfway, done: Done) -> None:
        keep(self, done)
        raise KeyboardInterrupt

    monkeypatch.setattr(aside, "EVERY", 0.0)
    monkeypatch.setattr(Halfway, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(asked, store=tmp_path / "store", out=tmp_path / "a")
    assert Store(tmp_path / "store").names("partial")
    monkeypatch.setattr(Halfway, "keep", keep)
    resumed, whole = (
        sweep(asked, store=tmp_path / store, out=tmp_path / out)
        for store, out in (("store", "a"), ("undisturbed", "b"))
    )
    assert_same(*(pd.read_parquet(done.folder / "rows.parquet") for done in (resumed, whole)))


# What a GPU must not change


def test_a_function_that_is_no_module_is_asked_on_the_cpu(
    device: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_numpy.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    w = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)\n"
        "    return lambda x: x.reshape(len(x), -1).numpy() @ w\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("of_numpy")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "in.npz", x=x, y=y)
    dosed = dose(tmp_path / "in.npz", tmp_path / "out.npz", fraction=0.5, seed=1)
    bases = dosed.key.bases(tmp_path / "in.npz")
    model = open_model(
        "of_numpy:load", dosed.key, bases.values, None, pick_device("auto"), in_process=True
    )
    losses, _ = model.ask(bases.values, bases.labels)
    assert np.isfinite(losses).all()


def test_rows_are_gathered_where_there_is_no_gpu(tmp_path: Path) -> None:
    recipe = {**MLP, "unlearners": ["gd"], "device": "cuda"}
    with SimulatedCuda():
        sweep({"name": "s", "recipe": recipe}, store=tmp_path / "store", out=tmp_path / "a")
    again = sweep({"name": "s", "recipe": recipe}, store=tmp_path / "store", out=tmp_path / "b")
    assert again.done == 0
    files = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "a").iterdir())


def test_rows_tell_where_a_model_was_trained(tmp_path: Path) -> None:
    recipe = {**MLP, "unlearners": ["gd"]}
    with SimulatedCuda():
        sweep({"name": "s", "recipe": recipe}, store=tmp_path / "store", out=tmp_path / "a")
    store = Store(tmp_path / "store")
    for key in store.recorded():
        if key.startswith("score"):
            store.forget(key)
    sweep({"name": "s", "recipe": recipe}, store=tmp_path / "store", out=tmp_path / "b")
    assert set(pd.read_parquet(tmp_path / "b" / "rows.parquet")["device"]) == {"cuda"}


def test_a_compiled_model_is_compiled() -> None:
    """What PyTorch first meets while operations are counted, it never compiles afterwards."""
    graphs: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(nn.Linear(16, 4), backend=backend)
    samples = Samples(torch.randn(32, 16), torch.arange(32) % 4, torch.arange(32))
    fit(model, samples, Classification(), Training(epochs=1, batch_size=8, lr=0.1), 0)
    assert graphs


def test_one_index_out_of_range_loses_the_device(device: SimulatedCuda, tmp_path: Path) -> None:
    recipe = {**MLP, "unlearners": [], "device": "cuda"}
    with pytest.raises(MarshtestError, match="the GPU failed .CUDA error: device-side assert"):
        marshtest.run(recipe, unlearners=[beyond], out=tmp_path / "run", report=False)
    assert device.lost
    assert not (tmp_path / "run" / "rows.parquet").exists()


def beyond(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return task(model, forget[:4]).gather(1, forget.y[:4, None] + 1000)


def test_texts_are_as_surprising_to_a_causal_model_as_on_the_cpu(
    device: SimulatedCuda, tmp_path: Path
) -> None:
    folder, asked = language.save(tmp_path / "tiny"), language.variants()
    there = open_causal(folder, torch.device("cuda"))(asked)
    np.testing.assert_allclose(there, language.one_by_one(folder, asked), rtol=0, atol=1e-4)


# Waits of the host


@pytest.fixture
def at_work() -> tuple[nn.Module, Samples, Classification]:
    x = torch.randint(0, 256, (128, 3, 8, 8), dtype=torch.uint8)
    samples = Samples(x, torch.arange(128) % 4, torch.arange(128))
    model = build(ResNet18(width=8), (3, 8, 8), 4, 0)
    return (
        model,
        samples,
        Classification(mean=(0.5,) * 3, std=(0.25,) * 3, augment=("flip", "crop")),
    )


def waits_a_step(device: SimulatedCuda, steps: int) -> tuple[float, dict[Any, float]]:
    each = {place: number / steps for place, number in device.waits.items()}
    return sum(each.values()), each


def test_a_training_step_hardly_waits(device: SimulatedCuda, at_work: Any) -> None:
    model, samples, task = at_work[0].to("cuda"), at_work[1].to("cuda"), at_work[2]
    device.reset()
    fit(model, samples, task, Training(epochs=2, batch_size=8, lr=0.01), 0)  # 32 steps
    waits, places = waits_a_step(device, 32)
    assert waits <= 1, places


@pytest.mark.parametrize("name", ["gd", "ngd"])
def test_a_metered_step_hardly_waits(device: SimulatedCuda, at_work: Any, name: str) -> None:
    model, samples, task = at_work[0].to("cuda"), at_work[1].to("cuda"), at_work[2]
    (unlearner,) = parse_trials({"name": name, "batch_size": 8})
    budget = Budget.of_epochs(2, 1.0)
    device.reset()
    with seeded(0), budget:
        unlearner(model, samples, samples[:8], task=task, budget=budget, seed=0)
    waits, places = waits_a_step(device, 32)
    assert waits <= 2, places


def test_scoring_hardly_waits(device: SimulatedCuda, at_work: Any) -> None:
    model, samples, task = at_work[0].to("cuda"), at_work[1].to("cuda"), at_work[2]
    device.reset()
    accuracy(model, task, samples)
    waits, places = waits_a_step(device, 1)
    assert waits <= 1, places
