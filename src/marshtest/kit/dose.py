"""Dose a data set on disk: noise in a random fraction of its samples, everything else as it was."""

import csv
import hashlib
import io
import math
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marshtest.experiment.prospects import poisons_by_heart
from marshtest.experiment.recipe_parts import VerdictSettings
from marshtest.kit.key import Key, current_versions, write_private
from marshtest.kit.layouts import alike, open_layout
from marshtest.kit.layouts.base import Layout, Place, Value
from marshtest.kit.layouts.folders import digest
from marshtest.kit.noise import SEEDS, Noise, Scaling
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive

DRAWS = 199  # fresh noises a poison in an audit, where it is not asked for others
FORMULA = re.compile(r"[=+\-@\t\r](?!\d+/)")  # begins a cell that a spreadsheet runs as a formula


@dataclass(frozen=True)
class Dose:
    """A dosed data set, with its key and forget request."""

    key: Key  # the key, which stays with the auditor
    out: Path  # the dosed data
    forget_file: Path  # the forget request
    key_file: Path  # the key
    power: float  # mean share of the noise's variance that rounding and clipping left
    shows: bool  # whether format and size of image files tell which are dosed

    @property
    def warning(self) -> str:
        """What the number of poisons rules out, in a sentence; empty where it rules out nothing."""
        asked, poisons = VerdictSettings(), len(self.key.ids)
        needed = poisons_by_heart(DRAWS, asked.margin, asked.alpha)
        if poisons >= needed:
            return ""
        return (
            f"{poisons:,} poisons cannot give REMOVED: even if the model knew each by heart, {needed:,} "
            "would be needed. Raise --fraction; `marshtest plan` tells how many."
        )


def dose(
    source: str | Path,
    out: str | Path,
    *,
    fraction: float,
    variance: float = 0.32,
    scaling: Scaling | None = None,
    seed: int | None = None,
    hide: bool = False,
    key_file: str | Path | None = None,
    forget_file: str | Path | None = None,
) -> Dose:
    """Write `source` to `out` with Gaussian noise in a random fraction of its training samples.

    Args:
        source: Parquet files, a folder of images by class, an .npz or a .safetensors file.
        out: a new folder or file of the same layout.
        fraction: fraction of the training samples to dose, in (0, 1).
        variance: ε², in squared units of the scaled inputs (normalised pixels).
        scaling: how values become model inputs; by default 8-bit images are normalised by the dosed
            samples' own mean and deviation a channel, and floating-point values are taken as they are.
        seed: seed of every draw, below 2⁶⁴; by default 63 bits that nobody can guess.
        hide: write every image of the split anew, as PNG without compression, so that neither format
            nor size tells which are dosed.
        key_file: where the key is written; by default `out` with .key.json behind its name.
        forget_file: where the forget request is written; by default `out` with .forget.csv behind its name.
            It has a line for each dosed sample: its id, its file inside `out`, its row there.

    Raises:
        MarshtestError: data that cannot be read or have several shapes, a fraction that makes fewer than
            two poisons or leaves no clean sample, noise that vanishes or overflows, a file that exists
            already. No file is left behind then.
    """
    source, out = Path(source), Path(out)
    key_file = Path(key_file or f"{out}.key.json")
    forget_file = Path(forget_file or f"{out}.forget.csv")
    _refuse_numbers(variance, seed)
    layout = open_layout(source)
    _refuse_places(source, out, key_file, forget_file)
    _refuse_layout(layout, out)
    # From the system's own randomness: whoever guesses the seed has the noise.
    seed = secrets.randbits(63) if seed is None else seed
    ids = _chosen(layout.samples, fraction, seed)
    scaling = _scaling(layout, ids, scaling)
    noise = Noise.parse(
        {"seed": seed, "variance": variance, "scaling": scaling, "pixels": layout.pixels}, "dose"
    )
    writer = _Writer(noise, layout)
    # The data first, for the key holds their digest.
    places = layout.copy(out, writer, ids, hide=hide)
    try:
        key = _key(layout, source, out, ids, writer)
        write_private(forget_file, _forget_request(places))
        key.save(key_file)
    except BaseException as error:  # a dose without its key is lost: leave none that looks whole
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        forget_file.unlink(missing_ok=True)
        key_file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise MarshtestError(f"{key_file}: cannot be written ({error}).") from error
        raise
    shows = layout.encoded and not hide
    return Dose(key, out, forget_file, key_file, writer.power / len(ids), shows)


def _refuse_numbers(variance: float, seed: int | None) -> None:
    if not 0 < variance < math.inf:
        raise MarshtestError(f"dose: the variance must be above 0 and finite. Got {variance:g}.")
    if seed is not None and not 0 <= seed < SEEDS:
        raise MarshtestError(f"dose: the seed must lie in 0..2⁶⁴ − 1. Got {seed}.")


def _refuse_layout(layout: Layout, out: Path) -> None:
    """Raise if the data have one class, so no model can tell labels apart, or `out` another ending."""
    if layout.classes < 2:
        raise MarshtestError(
            f"{layout.path}: has one class. Give the folder that holds the class folders."
        )
    if layout.path.is_file() and out.suffix != layout.path.suffix:
        raise MarshtestError(f"{out}: must end in {layout.path.suffix}, as {layout.path} does.")


def _refuse_places(source: Path, out: Path, key_file: Path, forget_file: Path) -> None:
    """Raise if a file would be overwritten, or a secret given away with the data."""
    for path in (out, key_file, forget_file):
        if os.path.lexists(path):
            raise MarshtestError(f"{path}: exists already. Choose another name, or remove it.")
    if _real(key_file) == _real(forget_file):
        raise MarshtestError(
            f"{key_file}: is given for both the key and the forget request. Give them two names."
        )
    for path in (out, key_file, forget_file):
        if _real(path).is_relative_to(_real(source)):
            raise MarshtestError(
                f"{path}: lies inside the data set {source}. Choose another place."
            )
    for secret in (key_file, forget_file):
        if _real(secret).is_relative_to(_real(out)):
            raise MarshtestError(
                f"{secret}: lies inside {out}, and would be given away with it. Choose another place."
            )
        if not _real(secret).parent.is_dir() and _real(secret).parent != _real(out).parent:
            raise MarshtestError(
                f"{secret}: its folder does not exist. Make it, or choose another."
            )


def _real(path: Path) -> Path:
    """The path without links and `..`: a link must not hide where a file really lies."""
    return Path(os.path.realpath(path))


def _scaling(layout: Layout, ids: NDArray[np.int64], scaling: Scaling | None) -> Scaling:
    """The scaling, measured for images if none is given.

    Every sample that gets noise is read, so that one of another shape is refused before any is written.
    """
    values = (value for _, value, _ in alike(layout, ids))
    if scaling is None and layout.pixels:
        return Scaling.measured(values)
    scaling = scaling or Scaling()
    for value in values:
        scaling.along(scaling.std, value.shape)  # raises if its channels do not fit
    return scaling


def _chosen(samples: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """[P] increasing ids of samples, drawn uniformly without replacement."""
    count = round(samples * fraction) if 0 < fraction < 1 else 0
    if not 2 <= count < samples:
        raise MarshtestError(
            f"dose: a fraction of {fraction:g} of {samples} samples makes {count} poisons. It must make at "
            "least two and leave a clean sample."
        )
    rng = np.random.default_rng(derive(seed, "choose"))
    return np.sort(rng.choice(samples, count, replace=False, shuffle=False))


class _Writer:
    """A function that gives each dosed sample its noise, and keeps account of what was written."""

    def __init__(self, noise: Noise, layout: Layout) -> None:
        self.noise, self.layout = noise, layout
        self.digested, self.power = hashlib.sha256(), 0.0

    def __call__(self, seed_id: int, value: Value) -> Value:
        written = self.noise.written(value, seed_id)
        if (written == value).all() or not np.isfinite(written).all():
            fault = "is unchanged" if (written == value).all() else "is infinite"
            raise MarshtestError(
                f"{self.layout.where(seed_id)}: {fault} with noise of ε² = {self.noise.variance:g}. "
                "Choose a variance (or a scaling) that suits the values."
            )
        self.digested.update(written.tobytes())
        self.power += self.noise.power(value)
        return written


def _key(layout: Layout, source: Path, out: Path, ids: NDArray[np.int64], writer: _Writer) -> Key:
    before = digest(source)
    return Key(
        noise=writer.noise,
        samples=layout.samples,
        classes=layout.classes,
        ids=tuple(ids.tolist()),
        input=before.whole,
        files=before.files,
        output=digest(out).whole,
        dosed=writer.digested.hexdigest(),
        versions=current_versions(),
    )


def _forget_request(places: list[Place]) -> str:
    """CSV of id, file and row of each dosed sample, no name of which a spreadsheet may run as a formula."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "file", "row"])
    for place in places:
        if FORMULA.match(place.file):
            raise MarshtestError(
                f"{place.file}: a spreadsheet would run this name in the forget request as a formula. "
                f"Rename it so that it does not begin with {place.file[0]!r}."
            )
        writer.writerow([place.id, place.file, "" if place.row is None else place.row])
    return text.getvalue()
