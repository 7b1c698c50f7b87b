"""What a sweep adds to its stages, what two workers gain, and how fast its state is known.

    python benchmarks/sweeps.py [--repeats N] [--cells N]

overhead   9 unlearners x 3 rates x 2 budgets on digits, in-process, beside the same distinct stages run
           bare: no store, no keys, no locks. Wall times, taken in turns; the ratio must be <= 1.05.
workers    the same sweep in-process beside two processes of one thread each; >= 1.7 times as fast.
commands   a finished sweep of --cells cells: `marshtest sweep` again, and `marshtest status`, as
           commands, the start of Python included; < 2 s and < 1 s.
planning   10,000 cells: seconds, and the process's peak memory; < 5 s and < 500 MB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from marshtest.commands.sweep import sweep
from marshtest.data.load import load
from marshtest.experiment.cells import groups
from marshtest.experiment.protocol import Subject, measure, poison, set_up, train, update
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.roles import Role
from marshtest.sweeps.planned import plan_sweep
from marshtest.sweeps.settings import read_sweep

RATES = [0.01, 0.03, 0.1]
NAMES = ["gd", "ngd", "ga", "scrub", "scrub-repository", "neggrad+", "neggrad+-repository"]
GRID: dict[str, Any] = {
    "name": "bench",
    "recipe": "digits-gaussian",
    "change": {
        "data.validation": 0.1,
        "seeds": 2,
        "budgets": [0.05, 0.1],
        "unlearners": [
            *({"name": name, "lr": RATES} for name in NAMES),
            *({"name": name, "k": 1, "lr": RATES} for name in ("euk", "cfk")),
        ],
    },
    "resources": {kind: {"cpus": 1} for kind in ("train", "score", "unlearn")},
}
TINY = {
    "data": {"name": "digits", "train": 60, "test": 30},
    "model": {"name": "mlp", "width": 8},
    "training": {"epochs": 1, "batch_size": 32},
    "attack": {"name": "gaussian", "draws": 1},
    "poison_budgets": 0.2,
    "budgets": 0.5,
}


def bare() -> None:
    """The distinct stages of GRID, one after the other, and nothing else."""
    (variant,) = read_sweep(GRID).variants()
    recipe = load_recipe(variant.values)
    pipeline = set_up(recipe, load("digits"))
    for group in groups(recipe):
        poisoned = poison(pipeline, group)
        initial, trained = train(pipeline, group, poisoned, Role.INITIAL)
        retrained, refit = train(pipeline, group, poisoned, Role.RETRAINED)
        first = Subject(Role.INITIAL, "none", 0.0, initial, trained.cost)
        measure(pipeline, group, poisoned, first, trained, None)
        second = Subject(Role.RETRAINED, "retrain (full)", 1.0, retrained, refit.cost)
        measure(pipeline, group, poisoned, second, trained, (initial, retrained))
        for trial in (trial for trials in recipe.unlearners for trial in trials):
            made = update(pipeline, group, poisoned, initial, trained, trial, recipe.budgets)
            for budget, outcome in zip(recipe.budgets, made, strict=True):
                subject = Subject(Role.UPDATED, trial.name, budget, outcome.model, outcome.cost)
                measure(pipeline, group, poisoned, subject, trained, (initial, retrained))


def in_a_new_store(asked: dict[str, Any], **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep(asked, store=f"{folder}/store", out=f"{folder}/out", **options)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def command(*arguments: str, cwd: str) -> float:
    call = [sys.executable, "-m", "marshtest", *arguments]
    return seconds(lambda: subprocess.run(call, cwd=cwd, check=True, capture_output=True))


def commands(cells: int) -> None:
    rates = [10 ** (-1 - i / 20) for i in range(18)]
    recipe = {**TINY, "seeds": cells // 20, "unlearners": [{"name": "gd", "lr": rates}]}
    recipe["data"] = {**TINY["data"], "validation": 0.1}  # type: ignore[dict-item]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "many.yaml").write_text(yaml.safe_dump({"name": "many", "recipe": recipe}))
        asked = read_sweep(f"{folder}/many.yaml")
        count = len(plan_sweep(asked).cells)
        sweep(asked, store=f"{folder}/store", out=f"{folder}/runs/{asked.id}")
        store = ("--store", "store")
        again = min(command("sweep", "many.yaml", *store, cwd=folder) for _ in range(3))
        status = min(command("status", *store, cwd=folder) for _ in range(3))
    print(
        f"commands   a finished sweep of {count:,} cells: sweep again {again:.2f} s, status {status:.2f} s"
    )


def planning() -> None:
    """In a process of its own, for its memory."""
    code = "import benchmarks.sweeps as bench; bench.plan_many()"
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def plan_many() -> None:
    rates = [10 ** (-1 - i / 100) for i in range(198)]
    grid = {"attack.variance": [1.0, 2.0, 3.0, 4.0, 5.0]}
    recipe = {**TINY, "seeds": 10, "unlearners": [{"name": "gd", "lr": rates}]}
    recipe["data"] = {**TINY["data"], "validation": 0.1}  # type: ignore[dict-item]
    asked = read_sweep({"name": "many", "recipe": recipe, "grid": grid})
    cells = 0

    def plan() -> None:
        nonlocal cells
        planned = plan_sweep(asked)
        cells = len(planned.ledger().cells)

    took = seconds(plan)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(f"planning   {cells:,} cells: {took:.2f} s, {peak:.0f} MB peak of the whole process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cells", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    ways: dict[str, Callable[[], None]] = {
        "bare": bare,
        "in-process": lambda: in_a_new_store(GRID),
        "two": lambda: in_a_new_store(GRID, engine="processes", workers=2),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, work in ways.items():
            times[name].append(seconds(work))
    stages, swept, two = (statistics.median(times[name]) for name in ways)
    print(f"overhead   bare {stages:.2f} s, sweep {swept:.2f} s: {swept / stages:.3f} of it")
    print(f"workers    one {swept:.2f} s, two {two:.2f} s: {swept / two:.2f} x")
    commands(given.cells)
    planning()


if __name__ == "__main__":
    main()
