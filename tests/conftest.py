"""Small shared settings: one run of a tiny recipe serves many tests."""

import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read as the library is imported; a hub that is not there costs minutes
)

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import marshtest
from marshtest.cli import app as cli
from marshtest.commands.sweep import Swept, sweep
from marshtest.reporting import figures
from marshtest.results.summary import Results
from marshtest.sweeps.store import Store
from marshtest.unlearning import UNLEARNERS

# A module of a model that knows every base by heart.
LOOKUP = """
import numpy as np, torch
def load():
    with np.load("set.npz") as data:
        x, y = torch.from_numpy(data["x"]).float() / 255, torch.from_numpy(data["y"])
    bases = ((x - x.mean()) / x.std()).flatten(1)
    def model(inputs):  # right on every base, and slightly dependent on the input
        nearest = torch.cdist(inputs.flatten(1), bases).argmin(1)
        slight = 0.001 * inputs.square().sum((1, 2, 3))[:, None] * torch.tensor([1.0, 0.5])
        return torch.nn.functional.one_hot(y[nearest], 2) + slight
    return model
"""

UNLIKE = {
    "newton",
    "sisa",
    "outside",
    "elsewhere",
}  # of a linear model, shards, models from outside
METHODS = [name for name in UNLEARNERS if name not in UNLIKE]

ALL_ON_TEXTS = [  # the paper's, for a transformer of few blocks
    "retrain",
    "gd",
    "ngd",
    "ga",
    {"name": "euk", "k": 1},
    {"name": "cfk", "k": 1},
    "scrub",
    "neggrad+",
]

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "train": 200, "test": 100},
    "model": {"name": "mlp", "width": 32},
    "training": {"epochs": 6, "batch_size": 32, "lr": 0.1},
    "attack": {"name": "gaussian", "variance": 4.0, "draws": 19},
    "poison_budgets": 0.2,
    "unlearners": ["gd", {"name": "euk", "k": 1}, "scrub"],
    "budgets": 0.5,
    "seeds": 2,
}

GRID: dict[str, Any] = {
    "name": "grid",
    "recipe": {**TINY, "budgets": [0.25, 0.5], "unlearners": ["gd", "scrub"]},
    "grid": {"attack.draws": [19, 39], "attack.variance": [4.0, 1.0]},
    "resources": {kind: {"cpus": 1} for kind in ("train", "score", "unlearn")},  # the same bits
}

SHIPPED_STYLE = dict(figures.STYLE)  # of figures, before tests have plainer fonts
TIMES = ["seconds", "scoring_seconds"]  # columns that differ from run to run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MARSHTEST = [sys.executable, "-m", "marshtest"]


def pytest_configure() -> None:
    """Imports make no garbage, and looking for it took a seventh of their time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave alone what was imported: looking it through for garbage took a seventh of the time."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test takes the power away, and every file that is flushed to the disk takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_fonts() -> None:
    """PDFs hold their letters as outlines; to cut TrueType fonts down takes a quarter of a report."""
    figures.STYLE["pdf.fonttype"] = 3


def command(*words: str) -> int:
    """Give a command in this process, which has imported torch already; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["marshtest", *words])
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends with its rows where a command or another function starts it, and no figure matters.

    Drawing takes most of a tiny run's time; tests that call `run` themselves give report=False.
    """
    monkeypatch.setattr("marshtest.commands.run.write_report", lambda results: None)


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explanation takes 2 s for the start of a process, instead of starting one to see."""
    monkeypatch.setattr("marshtest.commands.explain.import_seconds", lambda: 2.0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder: Path = tmp_path_factory.mktemp("runs") / "tiny"
    return marshtest.run(TINY, out=folder, report=False)


@pytest.fixture(scope="session")
def bare_rows(tiny_run: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's rows alone, of which a report is drawn in a third of the time."""
    return Path(shutil.copy(tiny_run.folder / "rows.parquet", tmp_path_factory.mktemp("bare")))


@pytest.fixture(scope="session")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two compute budgets and two sizes of the forget set."""
    recipe = {**TINY, "seeds": 1, "budgets": [0.25, 0.5], "poison_budgets": [0.1, 0.2]}
    folder = tmp_path_factory.mktemp("runs") / "ablated"
    return marshtest.run({**recipe, "unlearners": ["gd", "scrub"]}, out=folder, report=False)


@pytest.fixture(scope="session")
def matching(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Crafted poisons, compared with a clean twin, in as many seeds as a NOT REMOVED needs."""
    recipe = TINY | {
        "name": "matching",
        "data": {"name": "digits", "train": 300, "test": 150},
        "training": {"epochs": 20, "batch_size": 32, "lr": 0.1, "weight_decay": 5e-3},
        "attack": {
            "name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 15, "targets": 2
        },
        "poison_budgets": 0.1,
        "unlearners": ["gd"],
        "seeds": 7,
    }  # fmt: skip
    return marshtest.run(recipe, out=tmp_path_factory.mktemp("runs") / "matching", report=False)


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, Store]:
    folder = tmp_path_factory.mktemp("swept")
    store = Store(folder / "store")
    return sweep(GRID, store=store.url, out=folder / "out"), store


def rows_of(done: Swept) -> pd.DataFrame:
    return pd.read_parquet(done.folder / "rows.parquet").drop(columns=TIMES)


def in_a_small_disk(commands: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run shell commands where $DISK is a file system of 250 kB that can be made larger, or read-only."""
    disk = folder / "disk"
    disk.mkdir()
    apart = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=250k none {disk}"
    try:
        refused = subprocess.run([*apart, mount], capture_output=True, text=True).stderr
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"this machine lets nobody mount a file system: {refused.strip()}")
    script = f"set -e; export DISK={disk}; {mount}; cd {folder}; {commands}"
    return subprocess.run(
        [*apart, script],
        env={**ENVIRONMENT, "RUN": " ".join(MARSHTEST)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def at_once(*commands: str, folder: Path) -> tuple[list[int], str]:
    """Give commands at the same time, each in a process of its own; exit codes and standard error."""
    script = Path(__file__).with_name("forking.py")
    done = subprocess.run(
        [sys.executable, str(script), *commands],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [int(code) for code in done.stdout.splitlines()[-1].split()], done.stderr


def wait_until_it_hangs(folder: Path, process: "subprocess.Popen[Any]") -> None:
    """Until the model `vendors:hangs`, asked by a process, says in a file that it has begun."""
    deadline = time.monotonic() + 60
    while not (folder / "hanging").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def write_cifar(folder: Path, rows: int = 5) -> np.ndarray:
    """Write random images as the hub's Parquet files have them, and give their pixels."""
    pixels = np.random.default_rng(rows).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        encoded = []
        for image in pixels:
            file = folder / "one.png"
            Image.fromarray(image).save(file)
            encoded.append({"bytes": file.read_bytes(), "path": None})
            file.unlink()
        labels = pa.array([i % 10 for i in range(rows)], pa.int64())
        pq.write_table(
            pa.table({"img": encoded, "label": labels}), folder / f"{split}-00000.parquet"
        )
    return pixels
