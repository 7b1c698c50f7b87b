"""Dose a data set on disk: noise in a random fraction of its samples, everything else as it was."""

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marshtest.data.marks import Mark
from marshtest.kit.controls import refuse_untold
from marshtest.kit.key import Key, current_versions
from marshtest.kit.layouts import alike, open_layout
from marshtest.kit.layouts.base import Layout, Place, Value
from marshtest.kit.layouts.folders import digest
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.places import Dosed, Places, checked_seed, chosen, read_undosed
from marshtest.kit.records import is_text
from marshtest.kit.tables.dose import TableDose, dose_table
from marshtest.kit.texts.dose import TextDose, dose_texts
from marshtest.plumbing.errors import MarshtestError, refuse_options

FORMULA = re.compile(r"[=+\-@\t\r](?!\d+/)")  # begins a cell that a spreadsheet runs as a formula


@dataclass(frozen=True)
class Dose(Dosed):
    """A dosed data set, with its key and forget request."""

    key: Key
    power: float  # mean share of the noise's variance that rounding and clipping left
    shows: bool  # whether format and size of image files tell which are dosed


def dose(
    source: str | Path,
    out: str | Path,
    *,
    fraction: float,
    variance: float | None = None,
    scaling: Scaling | None = None,
    hide: bool = False,
    mark: Mark | None = None,
    field: str | None = None,
    role: str | None = None,
    label: str | None = None,
    columns: Sequence[str] | None = None,
    seed: int | None = None,
    key_file: str | Path | None = None,
    forget_file: str | Path | None = None,
) -> Dose | TextDose | TableDose:
    """Write `source` to `out` with a dose in a random fraction of its training samples.

    Images, arrays and the columns of a table get noise, text records get marks.

    Args:
        source: Parquet files, a folder of images by class, an .npz or a .safetensors file; or text records
            in JSON Lines, CSV, TSV, Parquet or a folder of .txt files; or, with `label`, a table in CSV,
            TSV or Parquet.
        out: a new folder or file of the same layout.
        fraction: fraction of the training samples to dose, in (0, 1).
        variance: ε², in squared units of the scaled inputs (normalised pixels), of a table in those of
            each column's deviation; by default 0.32.
        scaling: how values become model inputs; by default 8-bit images are normalised by the dosed
            samples' own mean and deviation a channel, and floating-point values are taken as they are.
        hide: write every image of the split anew, as PNG without compression, so that neither format
            nor size tells which are dosed.
        mark: a `Template` or a `Pattern`; by default "Ticket {digits:6}." at the end of a text.
        field: field of the text that gets the mark, or of a chat's messages; by default one that is known.
        role: role of the message that gets the mark, the chat's last one; by default the assistant.
        label: column of a table's class labels.
        columns: columns of a table that get the dose: numbers get noise, categories are drawn anew; by
            default all columns of numbers.
        seed: seed of every draw, below 2⁶⁴; by default 63 bits that nobody can guess.
        key_file: where the key is written; by default `out` with .key.json behind its name.
        forget_file: where the forget request is written; by default `out` with .forget.csv behind its name,
            for texts .forget.jsonl. It has a line for each dosed sample: its id, its file inside `out`, its
            row there; of a text its line, row or file, and its own id if it has one; of a table its row.

    Raises:
        MarshtestError: data that cannot be read or have several shapes, a fraction that makes fewer than
            two poisons or leaves no clean sample, noise that vanishes or overflows, records without a
            place for the mark, columns that cannot be dosed, a file that exists already. No file is left
            behind then.
    """
    source, out = Path(source), Path(out)
    files = {"key_file": key_file, "forget_file": forget_file}
    if label is not None or columns is not None:
        reason = "--label and --columns: dose a table"
        refuse_options(reason, scaling=scaling, hide=hide, mark=mark, field=field, role=role)
        return dose_table(
            source,
            out,
            label=label,
            columns=columns,
            fraction=fraction,
            variance=0.32 if variance is None else variance,
            seed=seed,
            **files,
        )
    if is_text(source):
        reason = f"{source}: holds text records"
        refuse_options(reason, variance=variance, scaling=scaling, hide=hide)
        return dose_texts(
            source, out, fraction=fraction, mark=mark, field=field, role=role, seed=seed, **files
        )
    refuse_options(f"{source}: holds no text records", mark=mark, field=field, role=role)
    variance = 0.32 if variance is None else variance
    return _dose_images(
        source,
        out,
        fraction=fraction,
        variance=variance,
        scaling=scaling,
        seed=seed,
        hide=hide,
        **files,
    )


def _dose_images(
    source: Path,
    out: Path,
    *,
    fraction: float,
    variance: float,
    scaling: Scaling | None,
    seed: int | None,
    hide: bool,
    key_file: str | Path | None,
    forget_file: str | Path | None,
) -> Dose:
    """Write images or arrays to `out` with Gaussian noise in a part of them; see `dose`."""
    places = Places(
        source,
        out,
        Path(key_file or f"{out}.key.json"),
        Path(forget_file or f"{out}.forget.csv"),
    )
    if not 0 < variance < math.inf:
        raise MarshtestError(f"dose: the variance must be above 0 and finite. Got {variance:g}.")
    seed = checked_seed(seed)
    layout = open_layout(source)
    places.refuse()
    _refuse_layout(layout, out)
    ids = chosen(layout.samples, fraction, seed)
    samples = read_undosed(layout.each, layout.samples, ids, seed)
    undosed = [(value.shape, label) for _, value, label in samples]
    scaling, shape, labels = _read(layout, ids, scaling)
    clean = [label for of, label in undosed if of == shape]
    refuse_untold(labels, np.array(clean, np.int64), seed)
    noise = Noise.parse(
        {"seed": seed, "variance": variance, "scaling": scaling, "pixels": layout.pixels}, "dose"
    )
    writer = _Writer(noise, layout)
    key = places.write(
        lambda staged: layout.copy(staged, writer, ids, hide=hide),
        # The data first, for the key holds their digest.
        lambda staged, dosed: (_key(layout, source, staged, ids, writer), _forget_request(dosed)),
    )
    shows = layout.encoded and not hide
    return Dose(key, out, places.forget_file, places.key_file, writer.power / len(ids), shows)


def _refuse_layout(layout: Layout, out: Path) -> None:
    """Raise if the data have one class, so no model can tell labels apart, or `out` another ending."""
    if layout.classes < 2:
        raise MarshtestError(
            f"{layout.path}: has one class. Give data of several (of images in folders, the folder that "
            "holds the class folders)."
        )
    if layout.path.is_file() and out.suffix != layout.path.suffix:
        raise MarshtestError(f"{out}: must end in {layout.path.suffix}, as {layout.path} does.")


def _read(
    layout: Layout, ids: NDArray[np.int64], scaling: Scaling | None
) -> tuple[Scaling, tuple[int, ...], NDArray[np.int64]]:
    """The scaling, measured for images if none is given; shape and labels of the samples.

    Every sample that gets noise is read, so that one of another shape is refused before any is written.
    """
    shape: tuple[int, ...] = ()
    labels: list[int] = []

    def values() -> Iterator[Value]:
        nonlocal shape
        for _, value, label in alike(layout, ids):
            shape = value.shape
            labels.append(label)
            yield value

    if scaling is None and layout.pixels:
        scaling = Scaling.measured(values())
    else:
        scaling = scaling or Scaling()
        for value in values():
            scaling.along(scaling.std, value.shape)  # raises if its channels do not fit
    return scaling, shape, np.array(labels, np.int64)


ROUNDED = 0.01  # of the noise's variance that rounding to the values' type may add or take


class _Writer:
    """A function that gives each dosed sample its noise, and keeps account of what was written."""

    def __init__(self, noise: Noise, layout: Layout) -> None:
        self.noise, self.layout = noise, layout
        self.digested, self.power = hashlib.sha256(), 0.0

    def __call__(self, seed_id: int, value: Value) -> Value:
        written = self.noise.written(value, seed_id)
        faults = {
            "is unchanged": (written == value).all(),
            "is infinite": not np.isfinite(written).all(),
            f"is rounded by {value.dtype}": self.noise.rounding(value) > ROUNDED,
        }
        fault = next((fault for fault, there in faults.items() if there), None)
        if fault is not None:
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
