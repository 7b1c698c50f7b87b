"""How fast a network is trained on this machine, and by how many processes of how many threads.

    python benchmarks/training.py [--before FOLDER] [--width N] [--images N]

Images a second of ResNet-18, batch 128, flips and crops, all processes together: one process with all
processors against one process a processor, which is how `--engine processes` works; and the bound, a bare
forward and backward of the same batches, one process a processor. With --before (a checkout of an earlier
commit) that one's loop as well. They take turns; medians of three rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROUNDS = 3
# Run by itself: an earlier commit's package is imported by another path, and its modules had other names.
WORKER = """
import sys, time, torch
threads, width, images, bare = map(int, sys.argv[1:])
torch.set_num_threads(threads)
try:
    from marshtest.data.samples import Samples
    from marshtest.models.table import build, parse_model
    from marshtest.plumbing.malloc import keep_freed_memory
    from marshtest.training.loop import Training, chosen_precision, fit
    from marshtest.training.tasks import Classification
except ImportError:
    from marshtest.data import Samples
    from marshtest.memory import keep_freed_memory
    from marshtest.models import build, parse_model
    from marshtest.tasks import Classification
    from marshtest.training import Training, chosen_precision, fit
keep_freed_memory()
model = build(parse_model({"name": "resnet18", "width": width}), (3, 32, 32), 10, 0)
model = model.to(memory_format=torch.channels_last)
training = Training(epochs=1, batch_size=128, augment=("flip", "crop"))
precision = chosen_precision(training, model, torch.device("cpu"))
task = Classification(precision=precision, mean=(0.5,) * 3, std=(0.25,) * 3, augment=training.augment)
x = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
samples = Samples(x, torch.arange(images) % 10, torch.arange(images))

def bound(count):
    x = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y, weights = torch.arange(128) % 10, list(model.parameters())
    for _ in range(count // 128):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        torch.autograd.grad(loss, weights)

def work(count):
    bound(count) if bare else fit(model, samples[:count], task, training, 0)

work(256)
print("ready", precision, flush=True)
sys.stdin.readline()  # all begin at once
started = time.perf_counter()
work(images)
print(images / (time.perf_counter() - started))
"""


def rate(
    source: Path, processes: int, threads: int, options: argparse.Namespace, bare: int
) -> tuple[float, str]:
    """Images a second of all processes together, and in what precision."""
    variables: Mapping[str, str] = os.environ | {"PYTHONPATH": str(source)}
    told = [str(value) for value in (threads, options.width, options.images, bare)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        for _ in range(processes)
    ]
    for one in running:
        assert one.stdout is not None
        precision = one.stdout.readline().removeprefix("ready ").strip()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    return sum(float(one.communicate()[0]) for one in running), precision


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of training.")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=2560, help="of each process and round")
    options = parser.parse_args()
    here, cores = Path(__file__).parents[1] / "src", os.cpu_count() or 1
    ways = {
        f"one process of {cores} threads": (here, 1, cores, 0),
        f"{cores} processes of one thread": (here, cores, 1, 0),
        f"bare forward and backward, {cores} processes": (here, cores, 1, 1),
    }
    if options.before:
        earlier = options.before / "src"
        ways = {f"before, one process of {cores} threads": (earlier, 1, cores, 0)} | ways
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (source, processes, threads, bare) in ways.items():
            found[name].append(rate(source, processes, threads, options, bare))
    first = 0.0
    for name, rounds in found.items():
        rates = [images for images, _ in rounds]
        median, precision = statistics.median(rates), rounds[0][1]
        first = first or median
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(
            f"{name}, {precision}: {median:,.0f} images/s ({spread}), {median / first:.2f} x the first line"
        )


if __name__ == "__main__":
    main()
