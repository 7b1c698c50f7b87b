"""The first hour on a GPU: what docs/gpu.md tells, measured on yours; findings in gpu-check.json.

    python benchmarks/gpu.py [--device cuda] [--images 10000] [--steps 64] [--out gpu-check.json]

steps     milliseconds of a training step, and of a step of unlearners within a budget, of a ResNet-18 of
          width 64 at batch 128: as marshtest does them, with each operation counted (as of a method from
          outside), and how long the GPU itself is busy; how often PyTorch says that the host waits.
graphs    a training with its steps recorded as a graph and without: seconds, and whether a weight differs.
scoring   seconds in which one model is scored by 980 poisons and 199 fresh noises, by layout and TF32; how
          far TF32 moves a score; the peak of the GPU's memory.
rows      digits-gaussian on the CPU and on the GPU: the largest difference in each column of scores.

Each part is written as soon as it is there. It runs on a CPU too (--device cpu), to see that it runs.
"""

import argparse
import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import marshtest
from marshtest.attacks import Gaussian
from marshtest.attacks.base import Poisoned
from marshtest.data.samples import Samples
from marshtest.models.networks import ResNet18
from marshtest.models.table import build
from marshtest.plumbing.device import clock, exact_float32, pick_device
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.captured import recordable
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials

KINDS = ("fit", "gd", "ngd", "euk", "cfk", "scrub", "neggrad+")
BATCH = 128


class Problem:
    """CIFAR's shape, random pixels, and a ResNet-18."""

    def __init__(self, device: torch.device, images: int) -> None:
        rng = torch.Generator().manual_seed(0)
        x = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=rng)
        self.samples = Samples(x, torch.arange(images) % 10, torch.arange(images)).to(device)
        self.task = Classification(
            precision="bfloat16", mean=(0.5,) * 3, std=(0.25,) * 3, augment=("flip", "crop")
        )
        width = 64 if device.type == "cuda" else 8
        self.model = build(ResNet18(width=width), (3, 32, 32), 10, 0).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def work(self, kind: str, steps: int, *, steady: bool = True) -> Callable[[], object]:
        """So many steps of training, or of an unlearner within a budget.

        Unless `steady`, every step is counted operation by operation, as a method from outside is.
        """
        epochs = steps * BATCH / len(self.samples)
        if kind == "fit":
            some = self.samples[torch.arange(steps * BATCH) % len(self.samples)]
            training = Training(epochs=1, batch_size=BATCH, lr=0.01)
            return lambda: fit(self.model, some, self.task, training, 0)
        (unlearner,) = parse_trials({"name": kind, "batch_size": BATCH})

        def unlearn() -> nn.Module:
            budget = Budget.of_epochs(epochs, 1.0)
            budget.steady = steady
            with seeded(0), budget:
                given = (self.model, self.samples, self.samples[:BATCH])
                return unlearner(*given, task=self.task, budget=budget, seed=0)

        return unlearn


def seconds(work: Callable[[], object]) -> float:
    """Wall time, after one run to warm up."""
    work()
    started = clock()
    work()
    return clock() - started


def waits(work: Callable[[], object]) -> int:
    """How often PyTorch warns that the host waits; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def busy(work: Callable[[], object]) -> tuple[float, int]:
    """Milliseconds that the GPU computes, and how many kernels it is asked for; zeros on a CPU."""
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds) as profiled:
        work()
        clock()
    kernels = [e for e in profiled.events() or [] if e.device_type == DeviceType.CUDA]
    return sum(e.time_range.elapsed_us() for e in kernels) / 1000, len(kernels)


def of_steps(problem: Problem, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in KINDS:
        ms = 1000 * seconds(problem.work(kind, steps)) / steps
        few = max(1, steps // 4)
        throughout = 1000 * seconds(problem.work(kind, few, steady=False)) / few
        spent, kernels = busy(problem.work(kind, few))
        found[kind] = {
            "ms": ms,
            "counted throughout, ms": throughout,
            "the GPU busy, ms": spent / few,
            "kernels": kernels / few,
            "waits": waits(problem.work(kind, few)) / few,
        }
        print(kind, found[kind], flush=True)
    return found


def of_scoring(problem: Problem, device: torch.device, poisons: int, draws: int) -> dict[str, Any]:
    attack, ids = Gaussian(draws=draws), problem.samples.ids[:poisons]
    noise = attack.noise(0, ids, (3, 32, 32))
    poisoned = Poisoned(problem.samples, ids, 0, perturbations=noise)
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    found: dict[str, Any] = {"poisons": poisons, "draws": draws}
    scores = {}
    for layout, memory_format in layouts.items():
        model = problem.model.to(memory_format=memory_format)  # type: ignore[call-overload]
        task = replace(problem.task, channels_last=layout == "channels last")
        for tf32 in (False, True):
            name = f"{layout}, {'TF32' if tf32 else 'float32'}"
            with exact_float32(tf32=tf32):
                found[f"{name}, s"] = seconds(partial(attack.effect, model, poisoned, task))
                scores[name] = attack.effect(model, poisoned, task).scores
            print(name, found[f"{name}, s"], flush=True)
    exact, rounded = scores["channels last, float32"], scores["channels last, TF32"]
    for score in ("gus", "rank"):
        found[f"{score}, moved by TF32"] = float(np.nanmax(np.abs(rounded[score] - exact[score])))
    if device.type == "cuda":
        found["peak, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def of_graphs(problem: Problem, steps: int) -> dict[str, Any]:
    """The same training by a graph's replays and step by step."""
    some = problem.samples[torch.arange(steps * BATCH) % len(problem.samples)]
    training, trained, found = Training(epochs=1, batch_size=BATCH, lr=0.01), [], {"steps": steps}
    for name in ("recorded", "plain"):
        with patch("marshtest.training.loop.recordable", recordable if name == "recorded" else no):
            model = copy.deepcopy(problem.model)
            found[f"{name}, s"] = seconds(
                lambda model=model: fit(model, some, problem.task, training, 0)
            )  # type: ignore[misc]
        trained.append(model.state_dict().values())
    differences = [
        float((a.float() - b.float()).abs().max()) for a, b in zip(*trained, strict=True)
    ]
    return found | {
        "compared after, steps": steps,
        "largest difference of a weight": max(differences),
    }


def no(model: nn.Module, device: torch.device) -> bool:
    """Stands in for `recordable`."""
    return False


def of_rows(device: torch.device, seeds: int) -> dict[str, float]:
    """The largest difference between the devices, by column."""
    with tempfile.TemporaryDirectory() as folder:
        here, there = (
            marshtest.run(
                "digits-gaussian", f"seeds={seeds}", f"device={kind}", "training.precision=float32",
                out=Path(folder) / place, report=False,
            ).rows
            for place, kind in (("here", "cpu"), ("there", device.type))
        )  # fmt: skip
    columns = ["test_accuracy", "forget_accuracy", "gus_dependence", "rank_dependence", "passes"]
    return {name: float(np.nanmax(np.abs(there[name] - here[name]))) for name in columns}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--poisons", type=int, default=980)
    parser.add_argument("--draws", type=int, default=199)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    given = parser.parse_args()
    try:
        device = pick_device(given.device)
    except MarshtestError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        sys.exit(2)
    problem = Problem(device, given.images)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"
    found: dict[str, Any] = {"device": name, "torch": str(torch.__version__)}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": lambda: of_steps(problem, given.steps),
        "graphs": lambda: of_graphs(problem, given.steps),
        "scoring": lambda: of_scoring(problem, device, given.poisons, given.draws),
        "rows": lambda: of_rows(device, given.seeds),
    }
    for part, measured in parts.items():
        with exact_float32():
            found[part] = measured()
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
