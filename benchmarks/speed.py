"""Speed, side by side in one run: training, scoring, and what the harness adds.

    python benchmarks/speed.py [--images FOLDER] [--steps N] [--epochs N]

training   marshtest's loop beside a plain float32 PyTorch loop, ResNet-18 of width 64, batch 128:
           the same batches; seconds a step, the two loops taking turns. With --images (a local
           CIFAR-10) also test accuracy of both after a short training at width 16, three seeds.
scoring    all input gradients beside a bare forward + backward of the same model and inputs; and 750
           Gaussian poisons with 199 fresh noises each, drawn anew and kept from the model before.
harness    fit() and GD within a budget beside the bare steps that they wrap, each step counted (as those
           of a method from outside) and one of a kind (as of marshtest's own); and NGD beside GD.

Ratios above 1 mean marshtest is faster. Medians over alternating repeats.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from marshtest.attacks import Gaussian, gaussian
from marshtest.attacks.base import Poisoned
from marshtest.data.load import load
from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.gus import input_directions
from marshtest.models.table import build, parse_model
from marshtest.plumbing.seeds import generator
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, chosen_precision, descend, fit
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.base import GradientUnlearner

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
REPEATS = 5


def median_times(*works: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Median seconds of each piece of work, taken in turns after one round to warm up."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(1 + repeats):
        for own, work in zip(times, works, strict=True):
            started = time.perf_counter()
            work()
            if repeat:
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


def model_of(width: int, seed: int = 0) -> nn.Module:
    return build(parse_model({"name": "resnet18", "width": width}), (3, 32, 32), 10, seed)


def random_images(count: int) -> Samples:
    draws = generator(0)
    x = torch.randint(0, 256, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
    return Samples(x, torch.arange(count) % 10, torch.arange(count))


def our_task(model: nn.Module) -> Classification:
    precision = chosen_precision(Training(epochs=1), model, torch.device("cpu"))
    return Classification(precision=precision, mean=MEAN, std=STD)


def plain_epochs(model: nn.Module, samples: Samples, training: Training, seed: int) -> None:
    """What a reader would write: float32, one optimiser, the same batches in the same order."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    draws = generator(seed, "fit")
    steps, step = training.epochs * -(-len(samples) // training.batch_size), 0
    model.train()
    for _ in range(training.epochs):
        for index in torch.randperm(len(samples), generator=draws).split(training.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step / steps)
            x = (samples.x[index] / 255 - mean) / std
            optimizer.zero_grad()
            F.cross_entropy(model(x), samples.y[index]).backward()
            optimizer.step()
            step += 1


def training_speed(steps: int) -> None:
    samples = random_images(128 * steps)
    training = Training(epochs=1, batch_size=128)
    plain, ours = model_of(64), model_of(64).to(memory_format=torch.channels_last)
    task = our_task(ours)
    slow, fast = median_times(
        lambda: plain_epochs(plain, samples, training, 0),
        lambda: fit(ours, samples, task, training, 0),
    )
    print(
        f"training   ResNet-18 width 64, batch 128: plain float32 {slow / steps:.3f} s/step, "
        f"marshtest {task.precision} {fast / steps:.3f} s/step: "
        f"{slow / fast:.2f} x"
    )


def training_accuracy(folder: str, epochs: int) -> None:
    data = load("cifar10", folder, train=4000, test=2000)
    training = Training(epochs=epochs, batch_size=128, warmup=0.1)
    found: dict[str, list[float]] = {"plain float32": [], "marshtest": []}
    for seed in range(3):
        plain, ours = model_of(16, seed), model_of(16, seed).to(memory_format=torch.channels_last)
        task = our_task(ours)
        plain_epochs(plain, data.train, training, seed)
        fit(ours, data.train, task, training, seed)
        for name, model in zip(found, (plain, ours), strict=True):
            found[name].append(accuracy(model, task, data.test))
    for name, values in found.items():
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"accuracy   {name}: {mean:.3f} ± {spread:.3f} (s.d., 3 seeds, {epochs} epochs)")


def scoring_speed() -> None:
    samples, model = random_images(256), model_of(64).to(memory_format=torch.channels_last).eval()
    task = our_task(model)
    inputs = task.exact().inputs(model, samples)
    inputs = inputs.contiguous(memory_format=torch.channels_last).requires_grad_()

    def bare() -> None:
        torch.autograd.grad(F.cross_entropy(model(inputs), samples.y, reduction="sum"), inputs)

    floor, ours = median_times(bare, lambda: input_directions(model, task, samples))
    print(
        f"scoring    256 input gradients, width 64: bare forward + backward {floor:.2f} s, "
        f"marshtest {ours:.2f} s: {floor / ours:.2f} of the bare throughput"
    )


def noise_speed(poisons: int = 750) -> None:
    """A model that is scored after another of the same poisons, whose noise is kept."""
    model = build(parse_model({"name": "mlp", "width": 64}), (3, 32, 32), 10, 0).eval()
    samples, task, attack = random_images(poisons), our_task(model), Gaussian(draws=199)
    noise = attack.noise(0, samples.ids, (3, 32, 32))
    poisoned = Poisoned(samples, samples.ids, 0, perturbations=noise)

    def anew() -> None:
        gaussian._kept.cache_clear()
        attack.effect(model, poisoned, task)

    slow, fast = median_times(anew, lambda: attack.effect(model, poisoned, task), repeats=3)
    print(
        f"scoring    {poisons} poisons, K = 199, MLP: noise drawn anew {slow:.1f} s, kept {fast:.1f} s: "
        f"{slow / fast:.2f} x"
    )


def harness_cost(name: str, model: nn.Module, steps: int) -> None:
    """What surrounds the steps; of fit() also its one-off cost count, spread over `steps` only."""
    samples, task = random_images(128 * steps), our_task(model)
    training = Training(epochs=1, batch_size=128, schedule="constant")
    (gd,), (ngd,) = (parse_trials({"name": name}) for name in ("gd", "ngd"))

    def bare() -> None:
        started = copy.deepcopy(model).train()
        optimizer = gd.optimizer_for(started)
        for batch in task.epoch(samples, 128, generator(0)):
            descend(optimizer, task.loss(started, batch).mean())

    def within(unlearner: GradientUnlearner, *, steady: bool) -> Callable[[], None]:
        def work() -> None:
            budget = Budget.of_epochs(1, 1e9)
            budget.steady = steady
            with budget:
                unlearner(model, samples, samples[:2], task=task, budget=budget, seed=0)

        return work

    floor, ours, seen, known, noisy = median_times(
        bare,
        lambda: fit(model, samples, task, training, 0),
        within(gd, steady=False),
        within(gd, steady=True),
        within(ngd, steady=True),
        repeats=7,
    )
    print(
        f"harness    {steps} steps, {name}: bare {floor:.2f} s; fit() {ours / floor:.3f} x; GD with "
        f"each step counted {seen / floor:.3f} x, one of a kind {known / floor:.3f} x; "
        f"NGD {noisy / known:.3f} x GD"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed, side by side with plain PyTorch.")
    parser.add_argument("--images", help="folder of a local CIFAR-10, for the accuracy comparison")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    training_speed(options.steps)
    scoring_speed()
    noise_speed()
    mlp = build(parse_model({"name": "mlp", "width": 128}), (3, 32, 32), 10, 0)
    harness_cost("MLP of width 128", mlp, 200)
    harness_cost("ResNet-18 of width 16", model_of(16).to(memory_format=torch.channels_last), 24)
    if options.images:
        training_accuracy(options.images, options.epochs)


if __name__ == "__main__":
    main()
