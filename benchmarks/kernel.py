"""One pass over gradient-matching poisons, and what it reaches, beside ART and the floor.

    python benchmarks/kernel.py [--images FOLDER] [--poisons 64 256 750]

step        seconds of one optimiser step over all poisons, ResNet-18 of width 16, one thread:
            marshtest's kernel (fast and exact), GradientMatchingAttack of the Adversarial Robustness
            Toolbox (batch 128, its default), and the floor: a bare forward + backward, in one batch
            and in micro-batches of 64.
memory      peak above the start, of one step, each measured in a process of its own: of what is held, by
            glibc's own count after every operation, and of what the process has from the system, which
            also has the holes between blocks.
objective   1 − cosine of all poisons' summed gradient to the target's, after equally many passes and
            after equal time, over several targets; no augmentation, since ART has none.

ART is used if installed: pip install '.[bench]'. Without --images the samples are noise and the model
is untrained, which changes no time; the objective needs real images.
"""

import argparse
import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from speed import MEAN, STD, median_times, model_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from marshtest.attacks import crafting
from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.kernel import MICRO_BATCH, Kernel
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples
from marshtest.metrics.accuracy import probabilities
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.plumbing.seeds import generator
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

REPEATS, PASSES, TARGETS, EPSILON = 3, 30, 4, 16

try:
    from art.attacks.poisoning import GradientMatchingAttack
    from art.estimators.classification import PyTorchClassifier
except ImportError:
    GradientMatchingAttack = None


class FromPixels(nn.Module):
    """Takes pixels in 0..1, as ART's bound is on them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)  # type: ignore[no-any-return]


class Problem:
    """A model, poisons of one class, and targets that are to get its label."""

    def __init__(self, data: Dataset | None, poisons: int, width: int = 16) -> None:
        self.task = Classification(mean=MEAN, std=STD)
        self.model = model_of(width).to(memory_format=torch.channels_last)
        if data is None:
            x = torch.randint(0, 256, (poisons + TARGETS, 3, 32, 32), dtype=torch.uint8)
            samples = Samples(x, torch.full((len(x),), 9), torch.arange(len(x)))
            self.poisons, self.targets = samples[:poisons], samples[poisons:]
            return
        training = Training(epochs=5, batch_size=64, lr=0.05, warmup=0.1)
        fit(self.model, data.train[:5000], self.task, training, 0)
        self.poisons = data.train[(data.train.y == 9).nonzero().flatten()[:poisons]]
        right = probabilities(self.model, self.task, data.test).argmax(1) == data.test.y
        self.targets = data.test[(right & (data.test.y != 9)).nonzero().flatten()[:TARGETS]]

    def aim(self, target: int) -> Samples:
        """One target with the attacker's label."""
        sample = self.targets[target : target + 1]
        return Samples(sample.x, torch.tensor([9]), sample.ids)

    def objective(self, target: int) -> Callable[[Tensor], tuple[float, Tensor]]:
        return matching(Kernel(self.model, self.task).gradient(self.aim(target)))

    def value(self, shift: Tensor, target: int) -> float:
        """1 − cosine of all poisons at these shifts."""
        inputs = self.task.inputs(self.model, self.poisons) + shift
        at_shifts = Samples(inputs, self.poisons.y, self.poisons.ids)
        return self.objective(target)(Kernel(self.model, self.task).gradient(at_shifts))[0]


def kernel_step(problem: Problem, fast: bool) -> Callable[[], object]:
    kernel = Kernel(problem.model, problem.task, fast=fast)
    objective, inputs = problem.objective(0), problem.task.inputs(problem.model, problem.poisons)
    kernel(inputs, problem.poisons, objective)  # chooses its way
    return lambda: kernel(inputs, problem.poisons, objective)


def floor(problem: Problem, batch: int) -> Callable[[], object]:
    inputs = problem.task.inputs(problem.model, problem.poisons)
    parameters = list(problem.model.eval().parameters())

    def run() -> None:
        for x, y in zip(inputs.split(batch), problem.poisons.y.split(batch), strict=True):
            x = x.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(problem.model(x), y, reduction="sum")
            torch.autograd.grad(loss, parameters)

    return run


def art_attack(problem: Problem, passes: int, target: int) -> Tensor:
    """ART's poisons as shifts in input space."""
    wrapped = FromPixels(problem.model)
    classifier = PyTorchClassifier(
        wrapped, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = GradientMatchingAttack(
        classifier,
        percent_poison=1.0,
        epsilon=EPSILON / 255,
        max_trials=1,
        max_epochs=passes,
        verbose=0,
    )
    x = problem.poisons.x.numpy().astype(np.float32) / 255
    aim = problem.aim(target)
    attack._initialize_poison(
        aim.x.numpy().astype(np.float32) / 255, aim.y.numpy(), x, problem.poisons.y.numpy()
    )
    poisoned, _ = attack._poison__pytorch(x, problem.poisons.y.numpy())
    change = torch.from_numpy(poisoned - x) / torch.tensor(STD).view(1, 3, 1, 1)
    problem.model.requires_grad_(True)
    return change


def our_attack(problem: Problem, passes: int, target: int) -> Tensor:
    """As many of the first passes of a long run, before its rate falls, as ART's is still constant."""
    crafting.DECAYS = ()
    box = problem.task.box(problem.model, problem.poisons, EPSILON)
    start = box[0] + torch.rand(box[0].shape, generator=generator(0)) * (box[1] - box[0])
    crafted = crafting.craft(
        Kernel(problem.model, problem.task),
        problem.poisons,
        problem.objective(target),
        start,
        box,
        steps=passes,
        lr=0.1,
        signed=True,
        seed=0,
    )
    return crafted.perturbation


def step_times(counts: list[int]) -> None:
    for poisons in counts:
        problem = Problem(None, poisons)
        works = [
            kernel_step(problem, True),
            kernel_step(problem, False),
            floor(problem, poisons),
            floor(problem, MICRO_BATCH),
        ]
        fast, exact, whole, micro = median_times(*works, repeats=REPEATS)
        text = (
            f"step       P = {poisons}: kernel {fast:.2f} s, exact way {exact:.2f} s, floor in one batch "
            f"{whole:.2f} s, in micro-batches {micro:.2f} s: {fast / whole:.2f} and {fast / micro:.2f} "
            "times the floor"
        )
        if GradientMatchingAttack is not None:
            many, few = (partial(art_attack, problem, passes, 0) for passes in (6, 1))
            more, less = median_times(many, few, repeats=REPEATS)
            art = (more - less) / 5  # a pass, without what surrounds all passes
            text += f"; ART {art:.2f} s: {art / fast:.2f} x"
        print(text, flush=True)


class Allocated(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


class Held(TorchDispatchMode):
    """Bytes that are allocated after each operation, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.count = ctypes.CDLL("libc.so.6").mallinfo2
        self.count.restype = Allocated
        self.most = 0
        self.look()
        self.start, self.most = self.most, 0

    def look(self) -> None:
        now = self.count()
        self.most = max(self.most, now.uordblks + now.hblkhd)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.look()
        return result


def _peak(
    poisons: int, fast: bool, width: int, queue: "multiprocessing.Queue[tuple[float, float]]"
) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    problem = Problem(None, poisons, width)
    inputs = problem.task.inputs(problem.model, problem.poisons)
    kernel, objective = Kernel(problem.model, problem.task, fast=fast), problem.objective(0)
    kernel.share = 1e-5 if fast else 0.0  # chosen already: choosing needs the exact way
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Held() as held:
        kernel(inputs, problem.poisons, objective)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put(((held.most - held.start) / 2**20, grown / 2**10))


def memory(counts: list[int], width: int) -> None:
    context = multiprocessing.get_context("spawn")
    for fast in (True, False):
        peaks = []
        for poisons in counts:
            queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
            process = context.Process(target=_peak, args=(poisons, fast, width, queue))
            process.start()
            peaks.append(queue.get())
            process.join()
        text = ", ".join(
            f"{held:.0f} MiB held and {grown:.0f} in all at {n}"
            for n, (held, grown) in zip(counts, peaks, strict=True)
        )
        print(f"memory     width {width}, {'fast' if fast else 'exact'} way: {text}", flush=True)


def objectives(folder: str, poisons: int = 125) -> None:
    problem = Problem(load("cifar10", folder, train=5000, test=500), poisons)
    for target in range(TARGETS):
        started = time.perf_counter()
        ours = problem.value(our_attack(problem, PASSES, target), target)
        spent = time.perf_counter() - started
        text = f"objective  target {target}: marshtest {ours:.3f} in {spent:.0f} s"
        if GradientMatchingAttack is not None:
            started = time.perf_counter()
            theirs = problem.value(art_attack(problem, PASSES, target), target)
            allowed = time.perf_counter() - started
            longer = problem.value(
                our_attack(problem, round(PASSES * allowed / spent), target), target
            )
            text += f"; ART {theirs:.3f} in {allowed:.0f} s; marshtest in that time {longer:.3f}"
        print(text + f" ({PASSES} passes)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The gradient kernel, side by side with ART.")
    parser.add_argument("--images", help="folder of a local CIFAR-10, for the objective")
    parser.add_argument("--poisons", type=int, nargs="+", default=[64, 256, 750])
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(
        f"torch {torch.__version__}, 1 thread; ART {'in' if GradientMatchingAttack else 'not in'}stalled"
    )
    memory([64, 256, 750, 2000], 16)
    step_times(options.poisons)
    if options.images:
        objectives(options.images)


if __name__ == "__main__":
    main()
