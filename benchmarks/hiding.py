"""What tells which files are dosed, to somebody without the key: AUCs, into docs/audit.md.

    python benchmarks/hiding.py [--images N] [--write]

A tenth of the images gets noise. Each signal orders all images of the split; its AUC is the chance that a
dosed one comes after an undosed one. Order and times are taken together: modification, change and birth,
the time from one file's change or birth to the next one's, inode, place in the directory, permissions; the
AUC that is furthest from one half is given. CIFAR-10 is read from $MARSHTEST_DATA/cifar10/train.parquet.
"""

import argparse
import io
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from marshtest.kit.dose import dose

VARIANCES = (0.32, 0.05, 0.01, 0.002)
PAGE = Path(__file__).parents[1] / "docs" / "audit.md"
BEGIN, END = "<!-- written by benchmarks/hiding.py -->", "<!-- end -->"
HEAD = (
    "| data | ε² | file size | file size, `--hide` | order and times | order and times, `--hide` "
    "| pixels, compressed | pixels, roughness |\n| --- " + "| ---: " * 7 + "|"
)


def digits(folder: Path, _: int) -> Path:
    """scikit-learn's digits, 32 × 32, as PNG."""
    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        (folder / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image * (255 / 16)).astype(np.uint8))
        bigger = pixels.resize((32, 32), Image.Resampling.BILINEAR)
        bigger.save(folder / "digits" / str(label) / f"{number:04}.png")
    return folder / "digits"


def cifar(count: int) -> pa.Table:
    path = Path(os.environ["MARSHTEST_DATA"]) / "cifar10" / "train.parquet"
    return pq.read_table(path).slice(0, count)


def cifar_png(folder: Path, count: int) -> Path:
    table = cifar(count)
    for number, (cell, label) in enumerate(
        zip(table["img"].to_pylist(), table["label"].to_pylist(), strict=True)
    ):
        (folder / "cifar" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.open(io.BytesIO(cell["bytes"]))
        image.save(folder / "cifar" / str(label) / f"{number:05}.png")
    return folder / "cifar"


def cifar_parquet(folder: Path, count: int) -> Path:
    (folder / "parquet").mkdir()
    pq.write_table(cifar(count), folder / "parquet" / "train.parquet")
    return folder / "parquet"


SOURCES = {
    "digits, PNG": digits,
    "CIFAR-10, PNG": cifar_png,
    "CIFAR-10, JPEG in Parquet": cifar_parquet,
}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def images(root: Path) -> Iterator[bytes]:
    """The encoded images, in the order of their ids."""
    for path in files(root):
        if path.suffix == ".parquet":
            yield from (cell["bytes"] for cell in pq.read_table(path)["img"].to_pylist())
        else:
            yield path.read_bytes()


def pixels(image: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened, np.float64).reshape(32, 32, -1)


def compressed(image: bytes) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels(image).squeeze().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return len(buffer.getvalue())


def roughness(image: bytes) -> float:
    """Mean absolute second difference, the usual estimate of noise."""
    at = pixels(image)
    return float(np.abs(np.diff(np.diff(at, 2, 0), 2, 1)).mean())


def order(root: Path) -> dict[str, NDArray[np.float64]]:
    """What the file system tells of each file, in the order of the ids."""
    found = files(root)
    stats = [path.stat() for path in found]
    born = subprocess.run(["stat", "-c", "%.9W", *found], capture_output=True, check=True).stdout
    births = np.array([float(line) for line in born.split()])
    changes = np.array([stat.st_ctime_ns for stat in stats], np.float64)
    listed = {entry.path: at for f in root.iterdir() for at, entry in enumerate(os.scandir(f))}
    return {
        "modified": np.array([stat.st_mtime_ns for stat in stats], np.float64),
        "changed": changes,
        "time to change": np.diff(changes, append=changes[-1]),
        "born": births,
        "time to birth": np.diff(births, append=births[-1]),
        "inode": np.array([stat.st_ino for stat in stats], np.float64),
        "listed": np.array([listed[str(path)] for path in found], np.float64),
        "mode": np.array([stat.st_mode for stat in stats], np.float64),
    }


def worst(root: Path, dosed: NDArray[np.bool_]) -> float:
    """The AUC furthest from one half; nan where all samples lie in one file."""
    if len(files(root)) == 1:
        return math.nan
    aucs = {name: roc_auc_score(dosed, signal) for name, signal in order(root).items()}
    print("   ", {name: round(auc, 3) for name, auc in aucs.items()})
    return max(aucs.values(), key=lambda auc: abs(auc - 0.5))


def line(name: str, source: Path, variance: float) -> str:
    size, ordered, told = [], [], []
    for hide in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            done = dose(source, out, fraction=0.1, variance=variance, seed=0, hide=hide)
            dosed = np.isin(np.arange(done.key.samples), done.key.positions)
            ordered.append(worst(out, dosed))
            encoded = list(images(out))
            size.append(roc_auc_score(dosed, [len(image) for image in encoded]))
            told = [
                roc_auc_score(dosed, [signal(image) for image in encoded])
                for signal in (compressed, roughness)
            ]
    figures = [f"{auc:.3f}".replace("nan", "–") for auc in (*size, *ordered, *told)]
    return f"| {name} | {' | '.join([f'{variance:g}', *figures])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="What tells which files are dosed.")
    parser.add_argument("--images", type=int, default=4000, help="of CIFAR-10")
    parser.add_argument("--write", action="store_true", help="the table into docs/audit.md")
    options = parser.parse_args()
    lines = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in SOURCES.items():
            source = make(Path(folder), options.images)
            for variance in VARIANCES:
                lines.append(line(name, source, variance))
                print(lines[-1], flush=True)
    if options.write:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        table = "\n".join(lines)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
