"""Speed and memory of the forensic kit, beside the bare work in one run.

    python benchmarks/kit.py [--images N] [--poisons N]

dosing     dose() of N 32 × 32 images in Parquet, 1.5 % of them dosed and all of them, beside decoding and
           encoding all of them with Pillow alone (noisy ones take longer); peak memory at N and at N / 10,
           in processes of their own.
testing    measure() of a ResNet-18 of width 16 and of 64, beside the bare forward and backward passes that
           it needs, on inputs that lie ready: P · (K + 1) forwards, six a poison for controls, P gradients.
"""

import argparse
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional as F

from marshtest.kit.dose import dose
from marshtest.kit.inputs import scaled
from marshtest.kit.key import Bases
from marshtest.kit.measure import measure
from marshtest.kit.model import FunctionModel
from marshtest.kit.noise import Noise, Scaling
from marshtest.models.table import build, parse_model
from marshtest.plumbing.malloc import keep_freed_memory
from marshtest.training.tasks import scoring_batch

SCALING = Scaling(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def images(folder: Path, count: int) -> Path:
    """Parquet of `count` smooth random images as PNG, ten classes."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    cells = [encoded(np.asarray(Image.fromarray(s).resize((32, 32)))) for s in small]
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}
    )
    path = folder / f"{count}" / "train.parquet"
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 5000):
            rows = range(start, min(count, start + 5000))
            column = [{"bytes": cells[row % 500], "path": None} for row in rows]
            writer.write_table(
                pa.table({"img": column, "label": [row % 10 for row in rows]}, schema)
            )
    return path.parent


def recode(source: Path) -> None:
    """Decode and encode every image, and nothing else."""
    for batch in pq.ParquetFile(source / "train.parquet").iter_batches(64):
        for cell in batch.column(0).to_pylist():
            encoded(np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")))


def peak_memory(source: Path, out: Path) -> float:
    """MB of a process that doses 75 images of `source`."""
    code = (
        "import sys, resource\n"
        "from marshtest.kit.dose import dose\n"
        "from marshtest.kit.layouts import open_layout\n"
        "n = open_layout(sys.argv[1]).samples\n"
        "dose(sys.argv[1], sys.argv[2], fraction=75 / n)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source, out], capture_output=True, check=True
    )
    return int(done.stdout) / 1024


def dosing(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, tenth = images(folder, count), images(folder, count // 10)
        bare = seconds(lambda: recode(source))
        most = (count - 1) / count
        full = seconds(lambda: dose(source, folder / "full", fraction=most, scaling=SCALING))
        few = seconds(lambda: dose(source, folder / "few", fraction=0.015))
        noisy = seconds(lambda: recode(folder / "full"))
        print(
            f"dosing     {count:,} images: decode + encode alone {bare:.1f} s, noisy ones {noisy:.1f} s; "
            f"1.5 % dosed {few:.1f} s ({few / bare:.2f} x); all but one dosed {full:.1f} s "
            f"({full / noisy:.2f} x noisy ones)"
        )
        peaks = [peak_memory(path, folder / f"m{path.name}") for path in (tenth, source)]
        print(
            f"memory     peak {peaks[0]:.0f} MB at {count // 10:,} images, {peaks[1]:.0f} MB at {count:,}"
        )


def scoring(poisons: int, width: int) -> None:
    draws = 199
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (poisons, 3, 32, 32), dtype=np.uint8)
    noise = Noise(seed=0, variance=0.32, scaling=SCALING, pixels=True)
    bases = Bases(np.arange(poisons), values, rng.integers(0, 10, poisons), noise)
    model = build(parse_model({"name": "resnet18", "width": width}), (3, 32, 32), 10, 0).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cpu = torch.device("cpu")
    asked_model = FunctionModel("model", model, scaled(SCALING, True, (3, 32, 32)), 10, cpu)
    size = scoring_batch(cpu, 1)
    x = torch.randn(size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.arange(size) % 10

    def bare() -> None:
        with torch.no_grad():
            for _ in range(poisons * (draws + 7) // size):
                model(x)
        for _ in range(-(-poisons // size)):
            inputs = x.clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(inputs), y, reduction="sum"), inputs)

    keep_freed_memory()  # for both
    bare_times, our_times = [], []
    for _ in range(3):  # taking turns
        bare_times.append(seconds(bare))
        our_times.append(seconds(lambda: measure(asked_model, bases, draws=draws)))
    floor, ours = statistics.median(bare_times), statistics.median(our_times)
    print(
        f"testing    {poisons} poisons, width {width}: bare passes {floor:.1f} s, measure() {ours:.1f} s: "
        f"{floor / ours:.2f} of the bare throughput"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The forensic kit beside the bare work.")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--poisons", type=int, default=64)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    dosing(options.images)
    scoring(options.poisons, 16)
    scoring(options.poisons, 64)
    print(
        f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


if __name__ == "__main__":
    main()
