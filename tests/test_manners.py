"""A library call leaves the process as it was; a command and a worker choose for their own."""

import ctypes
import importlib
import math
import os
import pkgutil
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY
from subjects import audited
from torch import nn

import marshtest
from marshtest.data.load import load
from marshtest.experiment.protocol import set_up, train
from marshtest.experiment.recipe import load_recipe
from marshtest.kit.hugging_face import open_folder
from marshtest.kit.noise import Scaling
from marshtest.models.table import build, parse_model
from marshtest.plumbing.device import exact_float32, threads
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.summary import Results
from marshtest.unlearning.gradient_descent import GradientDescent

ORTHOGONALITY = {
    "name": "small",
    "hypothesis": "orthogonality",
    "samples": 300,
    "dimension": 10,
    "informative": 5,
    "ridge": 0.01,
    "poisons": 30,
    "canceling": {"radius": 0.4, "steps": 5},
    "descent": {"steps": 5},
    "seeds": 2,
}
KEEPS = """
def keeps_freed_memory():
    # glibc's own adaptation keeps 64 MB at most at the top of the heap; larger blocks go back at once.
    import ctypes
    class Info(ctypes.Structure):  # mallinfo2 of malloc.h
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost")]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
    blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(200)]
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    return libc.mallinfo2().keepcost > 100 << 20
"""
glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc"
)


def fingerprint() -> dict[str, Any]:
    """Everything of the process that a call could leave changed behind its user's back."""
    _, keys, *rest = np.random.get_state()
    cudnn, folder = torch.backends.cudnn, Path("/proc/self/fd")
    return {
        "random": random.getstate(),
        "NumPy's random numbers": (bytes(keys), *rest),
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default type and device": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "determinism": torch.get_deterministic_debug_mode(),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "matplotlib": (dict(matplotlib.rcParams), matplotlib.get_backend()),
        "bars": datasets.are_progress_bars_disabled(),
        "transformers": transformers.utils.logging.get_verbosity(),
        "import path": list(sys.path),
        "working folder": os.getcwd(),
        "hooks": (sys.excepthook, threading.excepthook, threading.Thread.start),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "open files": sorted(os.readlink(fd) for fd in folder.iterdir() if fd.is_symlink()),
    }


def changed(call: Callable[[], object]) -> list[str]:
    before = fingerprint()
    call()
    after = fingerprint()
    return [name for name in before if before[name] != after[name]]


@pytest.fixture(scope="module", autouse=True)
def _imported(tiny_run: Results, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a first run: what other libraries do as they are imported, and fonts, are not ours."""
    marshtest.report(tiny_run.folder, out=tmp_path_factory.mktemp("drawn"))
    for module in pkgutil.walk_packages(marshtest.__path__, "marshtest."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_the_fingerprint_sees_what_a_call_leaves_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def rude() -> None:
        torch.rand(1)
        np.random.random()
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setenv("RUDE", "1")
        monkeypatch.syspath_prepend("rude")
        monkeypatch.setitem(matplotlib.rcParams, "font.size", 3.0)

    names = ["NumPy's random numbers", "torch's random numbers", "cudnn", "environment"]
    assert changed(rude) == [*names, "matplotlib", "import path"]


@pytest.mark.slow
def test_run_and_sweep_leave_the_process_as_it_was(tmp_path: Path) -> None:
    recipe = TINY | {"seeds": 1, "unlearners": ["gd"]}
    assert changed(lambda: marshtest.run(recipe, out=tmp_path / "run")) == []
    grid = {"name": "two", "recipe": recipe, "grid": {"attack.draws": [9, 19]}}
    grid["resources"] = {"train": {"cpus": 2}}
    store, out = str(tmp_path / "store"), tmp_path / "swept"
    assert changed(lambda: marshtest.sweep(grid, store=store, out=out)) == []


def test_a_check_leaves_the_process_as_it_was() -> None:
    assert changed(lambda: marshtest.check_unlearner(GradientDescent(), ["features"])) == []


def test_a_study_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    assert changed(lambda: marshtest.study(ORTHOGONALITY, out=tmp_path / "study")) == []


@pytest.mark.slow
def test_a_report_leaves_the_process_as_it_was(tiny_run: Results, tmp_path: Path) -> None:
    assert changed(lambda: marshtest.report(tiny_run.folder, out=tmp_path / "report")) == []


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [True, False])
def test_dose_and_audit_leave_the_process_as_it_was(in_process: bool, tmp_path: Path) -> None:
    case, scaling = audited(), Scaling(std=(0.3,))
    out, rest = tmp_path / "dosed.npz", {"fraction": 0.6, "variance": 4, "seed": 3}
    assert changed(lambda: marshtest.dose(case.source, out, scaling=scaling, **rest)) == []
    names = ("subjects:before", "subjects:retrained")[: 2 if in_process else 1]  # dear apart
    rest = {"scaling": Scaling(), "draws": 19, "in_process": in_process}
    assert changed(lambda: marshtest.audit(case.done.key_file, case.source, *names, **rest)) == []


def test_hugging_faces_libraries_say_afterwards_what_they_said_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def refused() -> None:
        with pytest.raises(MarshtestError, match="holds neither"):
            load("cifar10", str(tmp_path))
        with pytest.raises(MarshtestError):
            open_folder(tmp_path)

    assert not datasets.are_progress_bars_disabled()
    assert changed(refused) == []


def test_load_model_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    settings = parse_model({"name": "mlp", "width": 8})
    marshtest.save_model(build(settings, (4,), 3, 0), file, settings, (4,), 3)
    assert changed(lambda: marshtest.load_model(file)) == []


def test_float32_is_exact_inside_and_the_users_choice_stands_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def switches() -> tuple[bool, str]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), exact_float32():
            assert switches() == (False, "highest")
            raise KeyError
        assert switches() == (True, "high")
    finally:
        torch.set_float32_matmul_precision("highest")


class Watching(nn.Module):
    """A linear model that notes whether convolutions might use TF32 where it is run."""

    seen: list[bool] = []

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            bool(x.any()) and not self.training
        ):  # zeros are the trial of a model that was just built
            Watching.seen.append(torch.backends.cudnn.allow_tf32)
        out: torch.Tensor = self.layer(x.flatten(1))
        return out


def watching(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return Watching(math.prod(input_shape), classes)


def test_models_are_scored_in_float32_without_tf32(tmp_path: Path) -> None:
    recipe = TINY | {"seeds": 1, "unlearners": [], "model": f"{__name__}:watching"}
    allowed = torch.backends.cudnn.allow_tf32
    marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert Watching.seen
    assert not any(Watching.seen)
    assert torch.backends.cudnn.allow_tf32 is allowed is True


@pytest.mark.slow
@glibc
@pytest.mark.parametrize(
    ("does", "keeps"),
    [
        ("sys.argv[1:] = ['run', 'no-such-recipe']; main()", True),
        ("work('store', None, 1, '.')", True),
        ("marshtest.run(TINY, 'seeds=1', out='run', report=False)", False),
    ],
    ids=["command", "worker", "library call"],
)
def test_a_command_and_a_worker_keep_freed_memory_and_a_library_call_does_not(
    does: str, keeps: bool, tmp_path: Path
) -> None:
    code = f"""
import sys
import marshtest
from marshtest.cli.app import main
from marshtest.sweeps.engines import work
TINY = {TINY}
{KEEPS}
try:
    {does}
except (Exception, SystemExit):
    pass
print(keeps_freed_memory())
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(keeps), done.stderr


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 1), (10**7, None)])
def test_a_small_model_gets_one_thread_and_the_process_its_own_again(
    batch_size: int, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So rows of small models are the same bytes on any machine, and threads do not wait for each other."""
    sized = load_recipe({**TINY, "training": {**TINY["training"], "batch_size": batch_size}})
    assert set_up(sized, load("digits", train=200, test=100)).threads == expected
    if expected is None:
        return
    seen: list[int] = []
    monkeypatch.setattr(
        "marshtest.sweeps.worker.train",
        lambda *given: seen.append(torch.get_num_threads()) or train(*given),  # type: ignore[func-returns-value]
    )
    with threads(3):
        recipe = {**TINY, "seeds": 1, "unlearners": []}
        marshtest.run(recipe, out=tmp_path / "run", report=False)
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}
