"""Dose a data set on disk: noise into a random share of its samples, everything else as it was."""

import csv
import hashlib
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marshtest.errors import MarshtestError
from marshtest.kit.key import Key, current_versions
from marshtest.kit.layouts import Layout, Place, Value, digest, open_layout
from marshtest.kit.noise import Noise, Scaling
from marshtest.seeds import derive


@dataclass(frozen=True)
class Dose:
    """What dosing wrote.

    Attributes:
        key: stays with the auditor.
        out, forget_file, key_file: the dosed data, the forget request, and the key.
        power: share of the noise's variance that rounding and clipping left, exactly, on average.
    """

    key: Key
    out: Path
    forget_file: Path
    key_file: Path
    power: float


def dose(
    source: str | Path,
    out: str | Path,
    *,
    fraction: float,
    variance: float = 0.32,
    scaling: Scaling | None = None,
    seed: int | None = None,
    key_file: str | Path | None = None,
    forget_file: str | Path | None = None,
) -> Dose:
    """Write `source` to `out` with Gaussian noise in a random share of its training samples.

    Args:
        source: Parquet files, a folder of images by class, an .npz or a .safetensors file.
        out: a new folder or file of the same layout.
        fraction: of the training samples, in (0, 1).
        variance: ε², in squared units of the scaled inputs (normalised pixels).
        scaling: how values become model inputs; by default 8-bit images are normalised by the dosed
            samples' own mean and deviation a channel, and floating-point values are taken as they are.
        seed: of every draw; by default 63 bits that nobody can guess.
        key_file: by default `out` with .key.json behind its name.
        forget_file: by default `out` with .forget.csv behind its name. It has one line a dosed sample: its
            id, its file inside `out`, its row there.

    Raises:
        MarshtestError: data that cannot be read, a fraction that makes fewer than two poisons or
            leaves no clean sample, a file that exists already. Nothing is left behind then.
    """
    out = Path(out)
    key_file = Path(key_file or f"{out}.key.json")
    forget_file = Path(forget_file or f"{out}.forget.csv")
    for path in (out, key_file, forget_file):
        if path.exists():
            raise MarshtestError(f"{path}: exists already. Choose another name, or remove it.")
    if not variance > 0:
        raise MarshtestError(f"dose: the variance must be above 0. Got {variance:g}.")
    layout = open_layout(source)
    if layout.classes < 2:
        raise MarshtestError(
            f"{source}: has one class. Give the folder that holds the class folders."
        )
    if layout.path.is_file() and out.suffix != layout.path.suffix:
        raise MarshtestError(f"{out}: must end in {layout.path.suffix}, as {source} does.")
    seed = secrets.randbits(63) if seed is None else seed
    ids = _chosen(layout.samples, fraction, seed)
    if scaling is None:
        images = (value for _, value, _ in layout.each(ids))
        scaling = Scaling.measured(images) if layout.pixels else Scaling()
    noise = Noise(seed=seed, variance=variance, scaling=scaling, pixels=layout.pixels)
    writer = _Writer(noise)
    places = layout.copy(out, writer, ids)
    try:
        key = _key(layout, Path(source), out, ids, writer)
        _write_forget_request(places, forget_file)
        key.save(key_file)
    except OSError:  # without its key the dose is lost: leave nothing that looks like one
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        forget_file.unlink(missing_ok=True)
        key_file.unlink(missing_ok=True)
        raise
    return Dose(key, out, forget_file, key_file, writer.power / len(ids))


def _chosen(samples: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """[P] increasing ids, drawn uniformly without replacement."""
    count = round(samples * fraction) if 0 < fraction < 1 else 0
    if not 2 <= count < samples:
        raise MarshtestError(
            f"dose: a fraction of {fraction:g} of {samples} samples must make at least two poisons "
            "and leave a clean sample."
        )
    rng = np.random.default_rng(derive(seed, "choose"))
    return np.sort(rng.choice(samples, count, replace=False, shuffle=False))


class _Writer:
    """Gives each chosen sample its noise, in order, and keeps account of what was written."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.digested, self.power = noise, hashlib.sha256(), 0.0

    def __call__(self, seed_id: int, value: Value) -> Value:
        written = self.noise.written(value, seed_id)
        self.digested.update(written.tobytes())
        self.power += self.noise.power(value)
        return written


def _key(layout: Layout, source: Path, out: Path, ids: NDArray[np.int64], writer: _Writer) -> Key:
    return Key(
        noise=writer.noise,
        samples=layout.samples,
        classes=layout.classes,
        ids=tuple(ids.tolist()),
        input=digest(source),
        output=digest(out),
        dosed=writer.digested.hexdigest(),
        versions=current_versions(),
    )


def _write_forget_request(places: list[Place], path: Path) -> None:
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "file", "row"])
        lines.writerows([p.id, p.file, "" if p.row is None else p.row] for p in places)
