"""What a GPU can do to a run: fakes of its faults, its number and its memory, on a machine without one."""

import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, command
from torch import Tensor, nn
from torch.nn import functional as F

import marshtest
from marshtest.attacks import Gaussian
from marshtest.attacks.base import Effect, Poisoned
from marshtest.commands.footprint import Footprint, _activations, footprint, foretold
from marshtest.commands.sweep import sweep
from marshtest.data.samples import Samples, slices
from marshtest.experiment.cells import cells, groups
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import samples_of
from marshtest.experiment.roles import Role
from marshtest.kit.model import FunctionModel
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.gus import input_directions
from marshtest.models.table import build, parse_model
from marshtest.plumbing.device import (
    CPU,
    CUDA,
    exact_float32,
    failure,
    functions_device,
    in_parts,
    memory,
    repeatable,
    threads,
)
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.sweeps.engines import Ended, Processes, Ray
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.planned import plan_sweep
from marshtest.sweeps.settings import Resources, read_sweep
from marshtest.sweeps.store import Store
from marshtest.training.budget import Budget, flops_of
from marshtest.training.captured import Captured, ours, recordable
from marshtest.training.loop import Training, descend
from marshtest.training.tasks import Classification, Task, scoring_batch

FULL = "CUDA out of memory. Tried to allocate 512.00 MiB."
ASSERTED = "CUDA error: device-side assert triggered"
ONE = {**TINY, "seeds": 1, "unlearners": []}


def full(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise torch.OutOfMemoryError(FULL)


def lost(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise RuntimeError(ASSERTED)


def hidden(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    try:
        raise RuntimeError(ASSERTED)
    except RuntimeError:
        raise ValueError("my own words") from None


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def has(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return has


# Its memory


def test_workers_that_share_the_processors_share_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr("marshtest.plumbing.device.physical_memory", lambda: 64e9)
    with threads(1):
        assert 16 * memory(CPU) == 64e9


@pytest.mark.parametrize("holds", [1, 2, 3, 7, 100])
def test_parts_are_halved_until_they_fit_and_cover_all_rows_in_order(holds: int) -> None:
    def work(rows: slice) -> list[int]:
        if rows.stop - rows.start > holds:
            raise torch.OutOfMemoryError(FULL)
        return list(range(rows.start, rows.stop))

    parts = [*in_parts(work, 10, 8)]
    assert sum(parts, []) == list(range(10))
    assert max(map(len, parts)) <= holds


def test_a_single_row_that_does_not_fit_is_the_devices_error() -> None:
    def work(rows: slice) -> int:
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parts(work, 10, 8))


class Small(nn.Linear):
    """A layer for which there is memory for three inputs."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 3:
            raise torch.OutOfMemoryError(FULL)
        return super().forward(input)


def test_scores_of_halved_batches_are_those_of_whole_ones() -> None:
    samples = Samples(torch.randn(20, 6), torch.arange(20) % 4, torch.arange(20))
    plain, task = nn.Linear(6, 4), Classification()
    small = Small(6, 4)
    small.load_state_dict(plain.state_dict())
    assert accuracy(small, task, samples) == accuracy(plain, task, samples)
    directions = [input_directions(model, task, samples) for model in (plain, small)]
    torch.testing.assert_close(*directions)
    values, labels = samples.x.numpy(), samples.y.numpy()
    asked = [FunctionModel("m", model, lambda x: x, 4, CPU) for model in (plain, small)]
    torch.testing.assert_close(*(torch.from_numpy(m.ask(values, labels)[0]) for m in asked))
    torch.testing.assert_close(*(torch.from_numpy(m.gradients(values, labels)) for m in asked))


def test_a_model_that_fits_no_gpu_is_not_one_without_gradients() -> None:
    def function(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(torch.OutOfMemoryError):
        FunctionModel("m", function, lambda x: x, 4, CPU).gradients(
            torch.ones(3, 6).numpy(), torch.zeros(3, dtype=torch.int64).numpy()
        )


def test_a_forward_on_a_gpu_is_as_wide_as_its_inputs_allow() -> None:
    assert [scoring_batch(CPU, size) for size in (1, 10**9)] == [128, 128]
    assert [scoring_batch(CUDA, 3 * side**2) for side in (8, 32, 224, 10**5)] == [2048, 2048, 41, 1]


# Its faults


@pytest.mark.parametrize(("unlearner", "says"), [(full, "memory is full"), (lost, "GPU failed")])
def test_a_failing_gpu_is_no_result_of_an_unlearner(
    unlearner: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(MarshtestError, match=says):
        marshtest.run(ONE, unlearners=[unlearner], out=tmp_path / "run", report=False)
    assert not (tmp_path / "run" / "rows.parquet").exists()


def test_a_failure_is_seen_behind_other_words() -> None:
    with pytest.raises(ValueError, match="my own words") as error:
        hidden(None, None, None, task=None, budget=None, seed=0)
    assert str(failure(error.value)) == ASSERTED
    assert failure(ValueError("my own words")) is None


@pytest.mark.parametrize("device", ["full", "lost"])
def test_a_job_that_a_gpu_failed_is_tried_three_times(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def submit(engine: Processes, job: Job, resources: Resources) -> "Future[Ended]":
        tries.append(job.label)
        future: Future[Ended] = Future()
        future.set_result(Ended("the GPU failed", "a traceback", device=device))
        return future

    monkeypatch.setattr(Processes, "submit", submit)
    done = sweep(ONE, store=tmp_path / "s", out=tmp_path / "o", engine="processes", workers=1)
    assert {label: tries.count(label) for label in tries} == dict.fromkeys(done.failed, 3)
    assert set(done.failed.values()) == {"the GPU failed"}
    assert done.done == 0


@pytest.mark.slow
def test_a_lost_gpu_fails_its_own_job_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt has a new process, and every other job is done."""
    (tmp_path / "broken.py").write_text(
        "import os\n"
        "lost = False\n"
        "def assert_on_the_device(model, retain, forget, *, task, budget, seed):\n"
        "    global lost\n"
        f"    os.close(os.open({str(tmp_path / 'process')!r} + str(os.getpid()), os.O_CREAT))\n"
        "    lost = True\n"
        f"    raise RuntimeError({ASSERTED!r})\n"
        "def then(model, retain, forget, *, task, budget, seed):\n"
        f"    if lost: raise RuntimeError({ASSERTED!r})\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    recipe = {**ONE, "unlearners": ["broken:assert_on_the_device", "broken:then"]}
    done = sweep(recipe, store=tmp_path / "s", out=tmp_path / "o", engine="processes", workers=1)
    (line,) = done.failed.values()
    assert "the GPU failed (CUDA error: device-side assert triggered)" in line
    assert len([*tmp_path.glob("process*")]) == 3
    assert (done.done, done.blocked) == (len(done.ledger.jobs) - 1, 0)


# How many there are


@pytest.mark.parametrize(
    ("count", "resources", "visible", "expected"),
    [
        (2, {}, None, ["0", "1", "0", "1", "0", "1"]),
        (2, {"train": Resources(gpus=1)}, None, ["0", "1"]),
        (1, {"train": Resources(gpus=0.25)}, None, ["0"] * 4),
        (2, {"train": Resources(gpus=0.5)}, "4,7", ["4", "7", "4", "7"]),
        (0, {}, None, [None] * 16),
    ],
)
def test_workers_share_the_gpus(
    count: int, resources: Any, visible: str | None, expected: list[Any], gpus: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gpus(count)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    engine = Processes("", None, resources, {"auto"})
    assert engine.slots == len(expected)
    assert [worker._gpu for worker in engine._workers] == expected
    assert Processes("", None, {}, {"cpu"}).slots == 16


@pytest.mark.slow
def test_a_worker_sees_its_own_gpu_alone(gpus: Any) -> None:
    gpus(2)
    engine = Processes("", 2, {}, {"auto"})
    try:
        seen = [
            worker._start().submit(os.getenv, "CUDA_VISIBLE_DEVICES") for worker in engine._workers
        ]
        assert [future.result() for future in seen] == ["0", "1"]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("change", "engine", "says"),
    [
        ({"recipe": {**ONE, "device": "cuda"}}, "processes", "finds no GPU here. Use cpu or auto."),
        (
            {"recipe": {**ONE, "device": "cuda"}},
            "in-process",
            "finds no GPU here. Use cpu or auto.",
        ),
        ({"resources": {"train": {"gpus": 2}}}, "in-process", "asks for 2 GPUs, and 0 are here"),
        ({"resources": {"train": {"gpus": 2}}}, "processes", "2 GPUs, and no node has them"),
    ],
)
def test_gpus_that_are_not_there_are_refused_at_the_start(
    change: dict[str, Any], engine: str, says: str, tmp_path: Path, gpus: Any
) -> None:
    gpus(0)
    asked = {"name": "s", "recipe": ONE, **change}
    with pytest.raises(MarshtestError) as error:
        sweep(asked, store=tmp_path / "store", out=tmp_path / "out", engine=engine)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_command_for_a_gpu_that_is_not_there_is_one_line_and_exit_code_2(
    tmp_path: Path, gpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus(0)
    assert command("run", "digits-gaussian", "device=cuda", "--out", str(tmp_path / "run")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("marshtest: device: cuda was asked")


class FakeRay(SimpleNamespace):
    """Ray with nodes of these resources; it notes what each job asks for."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        alive = [{"Alive": True, "Resources": node} for node in nodes]
        super().__init__(
            asked=[], nodes=lambda: alive, init=lambda **_: None, shutdown=lambda: None
        )

    def remote(self, function: Any = None, **handle: Any) -> Any:
        if function is None:
            return lambda function: self.remote(function, **handle)

        def options(**given: Any) -> Any:
            self.asked.append(handle | given)
            reference = SimpleNamespace(future=Future)
            return SimpleNamespace(remote=lambda *args: reference)

        return SimpleNamespace(options=options)


@pytest.mark.parametrize(
    ("node", "device", "resources", "gpu_share", "calls"),
    [
        ({"CPU": 4, "GPU": 1}, "auto", Resources(), 1 / 3, 1),
        ({"CPU": 4, "GPU": 1}, "auto", Resources(gpus=0.5), 0.5, 1),
        ({"CPU": 4, "GPU": 1}, "cpu", Resources(gpus=0.5), 0, None),
        ({"CPU": 4}, "auto", Resources(), 0, None),
    ],
)
def test_a_job_asks_ray_for_its_share_of_a_gpu_and_ends_its_process(
    node: Any, device: str, resources: Resources, gpu_share: float, calls: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A process that Ray used again for another GPU would go on using its first."""
    ray = FakeRay(node)
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = Ray("", None, {"train": resources}, {device})
    job: Any = SimpleNamespace(recipe=SimpleNamespace(device=device))
    engine.submit(job, resources)
    (asked,) = ray.asked
    assert asked["num_gpus"] == pytest.approx(gpu_share)
    assert asked.get("max_calls") == calls


def test_a_cluster_without_gpus_refuses_a_recipe_that_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"CPU": 4}))
    with pytest.raises(MarshtestError, match="no node of the cluster has a GPU. Use cpu or auto"):
        Ray("", None, {}, {"cuda"})


# How it computes


def test_a_run_on_the_cpu_opens_no_context_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("a context was opened"))
    with seeded(0):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_float32_is_exact_where_pytorchs_newer_switches_were_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")

    places = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [place.fp32_precision for place in places]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", refused)
        with exact_float32():
            assert {place.fp32_precision for place in places} == {"ieee"}
        with seeded(0):  # which keeps the switches that can be read
            pass
    assert [place.fp32_precision for place in places] == before


def test_a_graphs_replay_within_a_budget_is_refused() -> None:
    replay = torch.cuda.CUDAGraph.replay
    with Budget(10, 1.0), pytest.raises(MarshtestError, match="replay of a CUDA graph cannot be"):
        torch.cuda.CUDAGraph.replay(object())  # type: ignore[arg-type]
    assert torch.cuda.CUDAGraph.replay is replay


def test_a_function_that_may_not_be_pytorchs_is_asked_on_the_cpu(gpus: Any) -> None:
    gpus(1)
    assert [functions_device(name).type for name in ("auto", "cpu", "cuda")] == [
        "cpu", "cpu", "cuda"
    ]  # fmt: skip


def test_deterministic_is_a_gpus_and_changes_no_hash_by_default() -> None:
    plain, exact = load_recipe(TINY), load_recipe({**TINY, "deterministic": True})
    assert load_recipe({**TINY, "deterministic": False}).hash == plain.hash != exact.hash
    assert "deterministic" not in plain.to_yaml()
    mode = torch.get_deterministic_debug_mode
    with repeatable(CUDA, asked=True):
        assert (mode(), os.environ["CUBLAS_WORKSPACE_CONFIG"]) == (2, ":4096:8")
    for device, asked in ((CPU, True), (CUDA, False)):
        with repeatable(device, asked=asked):
            assert mode() == 0
    assert (mode(), "CUBLAS_WORKSPACE_CONFIG" in os.environ) == (0, False)


def test_what_has_no_deterministic_form_is_told_in_one_line() -> None:
    says = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"
    with (
        pytest.raises(
            MarshtestError, match="deterministic: adaptive_avg_pool2d_backward_cuda does"
        ),
        repeatable(CUDA, asked=True),
    ):
        raise RuntimeError(
            says + " 'torch.use_deterministic_algorithms(True)'. You can turn it off"
        )


def test_a_store_says_on_which_device_its_models_were_made(tmp_path: Path) -> None:
    """Begun on one machine and gone on with on another, it has models of both."""
    recipe = {**ONE, "device": "cpu", "unlearners": ["gd"]}
    sweep(recipe, store=tmp_path / "store", out=tmp_path / "a")
    store = Store(tmp_path / "store")
    for key in store.recorded():
        kind = key.partition("-")[0]
        if kind == "initial":
            stage = store.load(key)
            assert stage["made"] == {"precision": "float32", "device": "cpu"}


# Its speed


def test_a_recorded_optimiser_steps_as_the_plain_one_does_at_every_rate() -> None:
    """The same numbers where the rate is a tensor that a graph can read, and the step one kernel."""
    for settings in ({}, {"optimizer": "adamw"}):
        training = Training(epochs=1, lr=0.1, weight_decay=0.1, **settings)  # type: ignore[arg-type]
        models = [nn.Linear(3, 2), nn.Linear(3, 2)]
        models[1].load_state_dict(models[0].state_dict())
        optimizers = [
            training.optimizer_for(m, recorded=flag) for m, flag in zip(models, (False, True))
        ]
        for progress in (0.0, 0.4, 0.9):
            for model, optimizer in zip(models, optimizers):
                training.set_rate(optimizer, progress)
                descend(optimizer, model(torch.ones(4, 3)).square().mean())
        torch.testing.assert_close(*(model.state_dict() for model in models))


@pytest.mark.parametrize("dropout", ["ours", "theirs"])
def test_only_networks_of_our_own_are_recorded(dropout: str) -> None:
    class Theirs(nn.Dropout):
        pass

    inner = nn.Dropout() if dropout == "ours" else Theirs()
    assert ours(nn.Sequential(nn.Linear(2, 2), inner)) == (dropout == "ours")
    assert ours(build(parse_model({"name": "resnet18", "width": 2}), (3, 8, 8), 2, 0))
    assert not recordable(nn.Linear(2, 2), CPU)
    hooked, averaged = nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)  # type: ignore[arg-type]
    hooked.register_forward_hook(lambda *_: None)
    assert not ours(hooked)
    assert not ours(averaged)


class FakeGraph:
    """A graph whose replay does the recorded step again, as CUDA's does the recorded kernels."""

    def __init__(self) -> None:
        self.step: Callable[[], Tensor] = lambda: torch.zeros(())

    def replay(self) -> None:
        self.step()


def test_steps_from_a_recording_are_the_steps_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five whole batches and a short one, twice: three warm, one recorded, others replayed."""
    samples = Samples(torch.randn(43, 3), torch.randint(2, (43,)), torch.arange(43))
    batches = [samples[part] for part in slices(43, 8)] * 2

    def train(take: Callable[[Callable[[Samples], Tensor]], Any]) -> tuple[nn.Module, list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

        def step(batch: Samples) -> Tensor:
            loss = F.cross_entropy(model(batch.x), batch.y)
            descend(optimizer, loss)
            return loss.detach()

        taken = take(step)
        return model, [float(taken(batch)) for batch in batches]

    class Recorded(Captured):
        def _record(self, batch: Samples) -> Any:
            held, loss = Samples(batch.x * 0, batch.y * 0, batch.ids), torch.zeros(())
            graph = FakeGraph()
            graph.step = lambda: loss.copy_(self._step(held))
            return SimpleNamespace(graph=graph, batch=held, loss=loss)

    monkeypatch.setattr(
        torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None)
    )
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    current = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    (plain, losses), (replayed, its_losses) = train(lambda step: step), train(Recorded)
    torch.testing.assert_close(plain.state_dict(), replayed.state_dict(), rtol=0, atol=0)
    assert losses == its_losses


def test_tf32_is_for_the_effect_alone_and_has_a_key_of_its_own() -> None:
    plain, rounded = load_recipe(TINY), load_recipe({**TINY, "tf32": True})
    assert "tf32" not in plain.to_yaml()
    assert load_recipe({**TINY, "tf32": False}).hash == plain.hash != rounded.hash
    keys, others = Keys(plain), Keys(rounded)
    group = groups(plain)[0]
    assert keys.model(Role.INITIAL, group) == others.model(Role.INITIAL, group)
    assert keys.dose(group) == others.dose(group)
    (cell, *_), (other, *_) = cells(plain, group), cells(rounded, groups(rounded)[0])
    assert keys.row(cell) != others.row(other)


def test_tf32_is_on_while_the_effect_is_measured_and_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    effect = Gaussian.effect

    def watching(self: Gaussian, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        seen.append(torch.backends.cudnn.allow_tf32)
        return effect(self, model, poisoned, task)

    monkeypatch.setattr(Gaussian, "effect", watching)
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    for tf32 in (False, True):
        seen.clear()
        marshtest.run({**ONE, "tf32": tf32}, out=tmp_path / str(tf32), report=False)
        assert set(seen) == {tf32}
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_rounding_to_tf32_moves_a_score_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rounding done by hand: a tenth of a null deviation for one poison, hundredths for all."""
    linear = F.linear

    def rounded(x: Tensor) -> Tensor:
        """Ten bits of the mantissa, to nearest; the gradient as if nothing were rounded."""
        bits = (x.detach().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)
        return x + (bits.view(torch.float32) - x.detach())

    def on_a_gpu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high":
            return linear(rounded(x), rounded(weight), bias)
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", on_a_gpu)
    exact, tf32 = (
        marshtest.run(
            {**ONE, "tf32": flag, "attack": {"name": "gaussian", "draws": 99}},
            out=tmp_path / str(flag),
            report=False,
        )
        for flag in (False, True)
    )
    for score in ("gus", "rank"):
        moved = (tf32.scores[score] - exact.scores[score]).abs()
        assert 0 < moved.max() < 0.1
        column = f"{score}_dependence"
        assert (tf32.rows[column] - exact.rows[column]).abs().max() < 0.02


# What it is asked for


def test_the_store_holds_as_many_models_as_are_foreseen(tmp_path: Path) -> None:
    settings = read_sweep(
        {**TINY, "unlearners": ["gd", {"name": "euk", "k": 1}], "budgets": [0.1, 0.2]}
    )
    planned = plan_sweep(settings)
    sweep(settings, store=tmp_path / "store", out=tmp_path / "out")
    files = [*(tmp_path / "store").rglob("model.safetensors")]
    recipe = planned.keys[0].recipe
    pipeline = set_up(recipe, samples_of(recipe.data, recipe.model, None)[0])
    takes = footprint(pipeline, planned.jobs)
    assert takes.models == len(files) == 2 * (2 + 2 * 2)
    assert takes.model == pytest.approx(files[0].stat().st_size, rel=0.1)


def test_a_store_that_will_not_fit_its_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    takes = Footprint(worker=1, gpu=1, model=10**8, models=11)
    assert takes.shortage(tmp_path / "not" / "there").endswith(
        "the store comes to 1.1 GB, and 1.0 GB are free there."
    )
    assert takes.shortage("s3://bucket/store") == ""
    assert Footprint(1, 1, 10**8, 9).shortage(tmp_path) == ""


def test_what_a_forward_keeps_is_what_a_linear_layer_keeps() -> None:
    """Its input, for the gradient of its weight, and the softmax's output: floats of four bytes."""
    samples = Samples(torch.randn(6, 100), torch.arange(6) % 4, torch.arange(6))
    kept = _activations(nn.Linear(100, 4), Classification(), samples)
    assert 4 * 104 <= kept <= 4 * 104 + 100


def test_a_gpu_is_asked_for_a_step_as_often_whatever_its_batch() -> None:
    from marshtest.commands.launches import Launches

    recipe = load_recipe(TINY)
    pipeline = set_up(recipe, samples_of(recipe.data, recipe.model, None)[0])
    asked = Launches(pipeline)
    jobs = [job for job in plan_sweep(read_sweep(TINY)).jobs if job.kind == "unlearn"]
    in_a_pass = {
        job.unlearner.name: asked.in_a_pass(job, "unlearn") for job in jobs if job.unlearner
    }
    few = pipeline.data.train[:4]
    model = pipeline.trainer.new_model(0)
    forward = flops_of(lambda: pipeline.task.loss(model, few))
    step = flops_of(lambda: pipeline.task.loss(model, few).mean().backward())
    passes = 128 * step / forward
    # Of a step of GD, and a few operations for its batch; EUk's passes are fewer.
    assert 1 <= in_a_pass["gd"] * passes / asked._step < 1.2
    assert in_a_pass["euk"] > 1.3 * in_a_pass["gd"]


def test_what_a_gpu_is_asked_for_is_counted_over_whole_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget ends where the next operation would pass it, and what is cheap comes at a step's end."""
    from marshtest.commands.launches import Launches

    step = [(300, 12.0), (300, 12.0), (500, 0.25)]  # operations, passes

    def run(self: Launches, unlearner: object, passes: float) -> tuple[int, float]:
        asked, spent = 0, 0.0
        for operations, cost in itertools.cycle(step):
            if spent + cost > passes:
                return asked, spent
            asked, spent = asked + operations, spent + cost
        raise AssertionError

    monkeypatch.setattr(Launches, "_run", run)
    recipe = load_recipe(TINY)
    pipeline = set_up(recipe, samples_of(recipe.data, recipe.model, None)[0])
    asked = Launches(pipeline)._counted(pipeline.recipe.unlearners[0][0])
    assert asked == pytest.approx(1100 / 24.25, rel=0.2)


@pytest.mark.slow
def test_explaining_hands_no_model_out(tmp_path: Path) -> None:
    outside = {"name": "outside", "folder": str(tmp_path / "out")}
    marshtest.explain({**TINY, "unlearners": [outside]})
    assert not (tmp_path / "out").exists()


def test_a_sweep_starts_on_a_machine_without_its_data(tmp_path: Path) -> None:
    recipe = {**TINY, "data": {"name": "cifar10", "path": str(tmp_path / "not" / "there")}}
    assert [*foretold(plan_sweep(read_sweep(recipe)), tmp_path / "store")] == []
