"""A dosed data set differs from its source in the dosed samples and in nothing else."""

import io
import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from safetensors.numpy import load_file, save_file

from marshtest.kit.layouts import open_layout, read
from marshtest.kit.layouts.base import Place
from marshtest.kit.layouts.folders import digest
from marshtest.kit.layouts.pictures import Picture, _mode
from marshtest.plumbing.errors import MarshtestError

IDS = np.array([3, 17, 8, 29])  # of 30 samples; not in order
Writer = Callable[[Path], Path]


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pixels_of(stored: bytes | Path) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
    return np.asarray(image).transpose(2, 0, 1)


def inverted(_: int, value: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(255 - value if value.dtype == np.uint8 else -value - 1).astype(value.dtype)


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def hub(folder: Path) -> Path:
    """Two training files and a test file, written by `datasets`, as the hub has them."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat", "dog"]),
            "note": datasets.Value("string"),
        }
    )
    for name, start, rows in [("train-00000-of-00002", 0, 16), ("train-00001-of-00002", 16, 14)]:
        write_hub(folder / f"data/{name}.parquet", features, start, rows)
    write_hub(folder / "data/test-00000-of-00001.parquet", features, 90, 5)
    (folder / "README.md").write_text("A card.")
    return folder


def write_hub(file: Path, features: Any, start: int, rows: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(start, start + rows)
    cells = [
        {"bytes": png(images(1, i)[0], "JPEG" if i % 2 else "PNG"), "path": f"{i}.jpg"}
        for i in numbers
    ]
    columns = {
        "image": cells,
        "label": [i % 3 for i in numbers],
        "note": [f"n{i}" for i in numbers],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file, batch_size=7)


def rows_of(folder: Path, pattern: str = "train*") -> list[dict[str, Any]]:
    files = sorted(folder.rglob(f"{pattern}.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def folders(folder: Path) -> Path:
    """Ten training images a class: of many kinds, one of them deeper; and test images."""
    for start, name in enumerate(["a", "a-b", "z"]):
        for i in range(10):
            suffix = ["png", "jpg", "bmp", "webp", "JPEG"][i % 5]
            file = folder / "train" / name / ("deep/" if i == 4 else "") / f"{i:02}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images(1, 10 * start + i)[0]).save(file)
        test = folder / "test" / name / "00.png"
        test.parent.mkdir(parents=True)
        test.write_bytes(png(images(1)[0]))
    (folder / "train" / "z" / "notes.txt").write_text("not an image")
    return folder


def arrays(dtype: str = "uint8", rows: int = 30) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (rows, 4, 3)) if dtype == "uint8" else rng.normal(size=(rows, 4, 3))
    return {
        "x_train": x.astype(dtype),
        "y_train": rng.integers(0, 4, rows),
        "x_test": x[:2].astype(dtype),
        "names": np.array(["one", "two"]),
    }


def savez(folder: Path, compressed: bool = False, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(folder / "set.npz", **values)
    return folder / "set.npz"


def tensors(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    numeric = {k: v for k, v in values.items() if v.dtype.kind in "iuf"}
    save_file(numeric, folder / "set.safetensors", metadata={"made": "by hand"})
    return folder / "set.safetensors"


WRITERS: dict[str, Writer] = {
    "parquet": hub,
    "folders": folders,
    "npz": lambda folder: savez(folder, **arrays()),
    "npz-compressed": lambda folder: savez(folder, compressed=True, **arrays("float32")),
    "safetensors": lambda folder: tensors(folder, **arrays("float64")),
}


@pytest.fixture(params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path / "in")


def out_of(source: Path) -> Path:
    folder = source if source.is_dir() else source.parent
    return folder.with_name("made") / f"out{source.suffix}"


# What holds in every layout


def test_each_streams_the_asked_samples_in_order_of_id(source: Path) -> None:
    layout = open_layout(source)
    assert layout.samples == 30
    found = list(layout.each(IDS))
    assert [i for i, _, _ in found] == [3, 8, 17, 29]
    everything = list(layout.each(np.arange(30)))
    for i, value, label in found:
        np.testing.assert_array_equal(value, everything[i][1])
        assert (everything[i][0], everything[i][2]) == (i, label)


def test_a_copy_without_doses_reads_as_its_source(source: Path) -> None:
    out = out_of(source)
    assert open_layout(source).copy(out, inverted, np.array([], np.int64)) == []
    if source.suffix == ".safetensors" or (source / "train").is_dir():
        assert digest(out) == digest(source)  # the other two formats are packed anew
    values, labels = read(open_layout(out), np.arange(30))
    expected, expected_labels = read(open_layout(source), np.arange(30))
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(labels, expected_labels)


def test_dosed_is_called_once_a_sample_in_order_of_id(source: Path) -> None:
    calls: list[int] = []

    def noting(i: int, value: NDArray[Any]) -> NDArray[Any]:
        value += 1  # a value may be changed in place
        calls.append(i)
        return value

    places = open_layout(source).copy(out_of(source), noting, IDS)
    assert calls == [place.id for place in places] == [3, 8, 17, 29]


def test_the_same_dose_gives_the_same_digest(source: Path) -> None:
    out = out_of(source)
    twice = out.with_name(f"twice{out.suffix}")
    layout = open_layout(source)
    for each in (out, twice):
        layout.copy(each, inverted, IDS)
    assert digest(out) == digest(twice) != digest(source)


def test_a_crash_leaves_nothing_behind(source: Path) -> None:
    def crash(i: int, value: NDArray[Any]) -> NDArray[Any]:
        if i == 17:
            raise RuntimeError("out of luck")
        return value

    out = out_of(source)
    with pytest.raises(RuntimeError, match="out of luck"):
        open_layout(source).copy(out, crash, IDS)
    assert list(out.parent.iterdir()) == []


def test_nothing_beside_it_is_touched(source: Path) -> None:
    out = out_of(source)
    others = out.with_name(f".{out.name}.tmp") / "half"
    others.mkdir(parents=True)
    open_layout(source).copy(out, inverted, IDS)
    assert set(out.parent.iterdir()) == {out, others.parent}
    assert others.is_dir()


def test_a_dose_of_another_kind_is_refused(source: Path) -> None:
    layout = open_layout(source)
    for wrong in (lambda _, v: v[:1, :1], lambda _, v: v.astype(np.complex64)):
        with pytest.raises(ValueError, match="dosed sample 3"):
            layout.copy(out_of(source), wrong, IDS)


def test_out_that_exists_or_lies_within_is_refused(source: Path) -> None:
    layout = open_layout(source)
    with pytest.raises(MarshtestError, match=r"exists already. Choose another folder"):
        layout.copy(source, inverted, IDS)
    if source.is_dir():
        with pytest.raises(MarshtestError, match="lies inside the data set"):
            layout.copy(source / "dosed", inverted, IDS)
    blocked = out_of(source)
    blocked.parent.write_text("a file where a folder should be")
    with pytest.raises(MarshtestError, match="cannot be written"):
        layout.copy(blocked, inverted, IDS)


def test_ids_outside_the_split_are_refused(source: Path) -> None:
    for ids in ([30], [-1, 2]):
        with pytest.raises(MarshtestError, match=r"ids must lie in 0\.\.29"):
            open_layout(source).each(np.array(ids))


# Parquet


def test_parquet_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    layout = open_layout(hub(tmp_path / "in"))
    assert (layout.samples, layout.classes, layout.pixels) == (30, 4, True)
    theirs = datasets.load_dataset(str(tmp_path / "in"), cache_dir=str(tmp_path / "c"))["train"]
    for i, value, label in layout.each(np.arange(30)):
        np.testing.assert_array_equal(value, np.asarray(theirs[i]["image"]).transpose(2, 0, 1))
        assert label == theirs[i]["label"]


def test_parquet_copy_changes_the_dosed_cells_only(tmp_path: Path) -> None:
    source, out = hub(tmp_path / "in"), tmp_path / "out"
    places = open_layout(source).copy(out, inverted, IDS)
    assert places[1:3] == [
        Place(8, "data/train-00000-of-00002.parquet", 8),
        Place(17, "data/train-00001-of-00002.parquet", 1),
    ]
    before, after = rows_of(source), rows_of(out)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if i in IDS:
            np.testing.assert_array_equal(
                pixels_of(new["image"]["bytes"]), 255 - pixels_of(old["image"]["bytes"])
            )
            assert new["image"]["bytes"].startswith(b"\x89PNG")
            assert new["image"]["path"] == f"{i}.png"
            old["image"] = new["image"]
        assert new == old
    for place in places:
        row = pq.read_table(out / place.file).to_pylist()[place.row or 0]
        assert row == after[place.id]
    untouched = ["README.md", "data/test-00000-of-00001.parquet"]
    assert all(contents(out)[name] == contents(source)[name] for name in untouched)
    assert contents(out).keys() == contents(source).keys()


def test_parquet_copy_keeps_schema_metadata_codec_and_row_groups(tmp_path: Path) -> None:
    source, out = hub(tmp_path / "in"), tmp_path / "out"
    open_layout(source).copy(out, inverted, IDS)
    for name in ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"):
        old, new = pq.ParquetFile(source / name), pq.ParquetFile(out / name)
        assert new.schema_arrow.equals(old.schema_arrow, check_metadata=True)
        for group in range(old.num_row_groups):
            theirs, ours = old.metadata.row_group(group), new.metadata.row_group(group)
            assert ours.num_rows == theirs.num_rows
            assert ours.column(0).compression == theirs.column(0).compression
    load = datasets.load_dataset
    before = load(str(source), cache_dir=str(tmp_path / "c"), split="train")
    after = load(str(out), cache_dir=str(tmp_path / "d"), split="train")
    assert after.features == before.features
    assert after["label"][:] == before["label"][:]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()])
def test_labels_without_a_sign_are_labels(tmp_path: Path, kind: Any) -> None:
    pictures = [png(p) for p in images(3)]
    labels: list[int | None] = [0, 2, 1]
    pq.write_table(
        pa.table({"img": pictures, "label": pa.array(labels, kind)}), tmp_path / "a.parquet"
    )
    assert open_layout(tmp_path / "a.parquet").classes == 3
    labels[1] = None
    pq.write_table(
        pa.table({"img": pictures, "label": pa.array(labels, kind)}), tmp_path / "b.parquet"
    )
    assert "b.parquet: row 1 has no label" in refused(tmp_path / "b.parquet")


def test_columns_that_stand_twice_are_refused(tmp_path: Path) -> None:
    pictures = pa.array([png(p) for p in images(3)])
    table = pa.Table.from_arrays([pictures, pictures, pa.array([0, 1, 2])], ["img", "img", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "has two columns 'img'" in refused(tmp_path / "a.parquet")


def test_samples_without_a_value_are_refused(tmp_path: Path) -> None:
    empty = {"x": np.zeros((6, 0, 4, 4), np.uint8), "y": np.arange(6) % 2}
    assert "no samples in x, or none with a value" in refused(savez(tmp_path, **empty))


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "ZSTD", "LZ4", "BROTLI"])
def test_one_parquet_file_of_plain_bytes_without_class_names(tmp_path: Path, codec: str) -> None:
    pixels = images(30)
    table = pa.table(
        {"img": [png(p) for p in pixels], "labels": pa.array([5] + [1] * 29, pa.int8())}
    )
    pq.write_table(table, tmp_path / "all.parquet", compression=codec)
    layout = open_layout(tmp_path / "all.parquet")
    assert layout.classes == 6
    places = layout.copy(tmp_path / "o.parquet", inverted, IDS)
    assert places[0] == Place(3, "o.parquet", 3)
    copied = pq.ParquetFile(tmp_path / "o.parquet")
    original = pq.ParquetFile(tmp_path / "all.parquet").metadata.row_group(0).column(0)
    assert copied.metadata.row_group(0).column(0).compression == original.compression
    for i, cell in enumerate(copied.read()["img"].to_pylist()):
        expected = 255 - pixels[i] if i in IDS else pixels[i]
        np.testing.assert_array_equal(pixels_of(cell), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["x/train.parquet", "x/other.parquet"], ["x/train.parquet"]),
        (["b/cifar_Train_1.parquet", "a/test.parquet"], ["b/cifar_Train_1.parquet"]),
        (["train/0.parquet", "test/0.parquet"], ["train/0.parquet"]),
        (["0.parquet", "1.parquet", "my-validation.parquet"], ["0.parquet", "1.parquet"]),
    ],
)
def test_which_parquet_files_are_dosed(tmp_path: Path, names: list[str], chosen: list[str]) -> None:
    table = pa.table({"image": [png(p) for p in images(3)], "label": [0, 1, 1]})
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "in" / name)
    layout = open_layout(tmp_path / "in")
    places = layout.copy(tmp_path / "out", inverted, np.arange(layout.samples))
    assert sorted({place.file for place in places}) == chosen
    before, after = contents(tmp_path / "in"), contents(tmp_path / "out")
    assert [name for name in sorted(before) if before[name] != after[name]] == chosen


def test_a_row_group_of_any_size_is_not_held_whole(tmp_path: Path) -> None:
    peaks = []
    for rows in (1000, 8000):
        cells = [bytes(16_000) + i.to_bytes(4, "big") for i in range(rows)]
        cells[0] = png(images(1)[0])
        pq.write_table(
            pa.table({"image": cells, "label": [0] * rows}),
            tmp_path / f"{rows}.parquet",
            use_dictionary=False,
        )
        del cells
        usual = pa.default_memory_pool()
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            open_layout(tmp_path / f"{rows}.parquet").copy(
                tmp_path / f"{rows}-out.parquet", inverted, np.array([0])
            )
        finally:
            pa.set_memory_pool(usual)
        peaks.append(pool.max_memory())
    assert peaks[0] < peaks[1] < 100e6  # one row group of 64 MiB, not the 128 MB of the file
    assert pq.ParquetFile(tmp_path / "8000-out.parquet").num_row_groups == 2


# Image folders


def test_folders_are_read_class_by_class(tmp_path: Path) -> None:
    layout = open_layout(folders(tmp_path / "in"))
    assert (layout.samples, layout.classes, layout.pixels) == (30, 3, True)
    files = [
        file
        for name in ["a", "a-b", "z"]
        for file in sorted((tmp_path / "in/train" / name).rglob("[0-9]*"), key=Path.as_posix)
        if file.is_file()
    ]
    for (i, value, label), file in zip(layout.each(np.arange(30)), files, strict=True):
        np.testing.assert_array_equal(value, pixels_of(file))
        assert label == i // 10


def test_folder_copy_replaces_the_dosed_files_only(tmp_path: Path) -> None:
    source, out = folders(tmp_path / "in"), tmp_path / "out"
    layout = open_layout(source)
    base, _ = read(layout, IDS)
    places = layout.copy(out, inverted, IDS)
    assert [place.file for place in places] == [
        "train/a/03.png",
        "train/a/09.png",
        "train/a-b/08.png",
        "train/z/deep/04.png",
    ]
    assert {place.row for place in places} == {None}
    for place, value in zip(places, base, strict=True):
        np.testing.assert_array_equal(pixels_of(out / place.file), 255 - value)
    before, after = contents(source), contents(out)
    same = [name for name in before if after.get(name) == before[name]]
    assert len(same) == len(before) - 4
    assert set(after) - set(same) == {place.file for place in places}


def test_class_folders_without_a_split_are_dosed_too(tmp_path: Path) -> None:
    for name in ("cat", "train"):  # a class may be called "train"
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(png(images(1)[0]))
    layout = open_layout(tmp_path / "in")
    assert (layout.samples, layout.classes) == (2, 2)
    assert layout.copy(tmp_path / "out", inverted, np.array([1])) == [Place(1, "train/1.png", None)]


def test_a_dosed_image_never_takes_the_name_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "only"
    folder.mkdir(parents=True)
    names = ["1.bmp", "1.jpg", "2.jpg", "2.jpg.png", "2.png"]
    for i, name in enumerate(names):
        Image.fromarray(images(1, i)[0]).save(folder / name)
    layout = open_layout(tmp_path / "in")
    base, _ = read(layout, np.arange(5))
    places = layout.copy(tmp_path / "out", inverted, np.array([0, 1, 2]))
    assert [Path(p.file).name for p in places] == ["1.bmp.png", "1.jpg.png", "2.jpg.png.png"]
    for place, value in zip(places, base):
        np.testing.assert_array_equal(pixels_of(tmp_path / "out" / place.file), 255 - value)
    assert len(contents(tmp_path / "out")) == 5


SOME = Image.fromarray(images(1)[0])
TURNED = Image.Exif()
TURNED[274], TURNED[271] = 6, "a camera"


def stored(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_dosed_image_keeps_its_mode_transparency_turn_and_profile(mode: str) -> None:
    image = Image.fromarray(images(1, 1)[0])
    image.putalpha(Image.fromarray(images(1, 2)[0]).convert("L"))
    image = image.convert(mode)
    for form in ("PNG", "WEBP", "JPEG") if "A" not in mode else ("PNG",):
        source = stored(image, form, exif=TURNED, icc_profile=b"profile")
        picture = Picture.read(io.BytesIO(source), "here")
        expected = np.asarray(Image.open(io.BytesIO(source)).convert("RGB")).transpose(2, 0, 1)
        assert (picture.value == expected).all()  # what pipelines see that ask for RGB
        for hide in (False, True):
            made = Image.open(io.BytesIO(picture.png(255 - picture.value, hide=hide)))
            assert (made.format, made.mode) == ("PNG", "RGB" if form == "WEBP" else mode)
            assert dict(made.getexif()) == {274: 6}
            assert made.info["icc_profile"] == b"profile"
            if "A" in mode:
                assert made.getchannel("A").tobytes() == image.getchannel("A").tobytes()
            assert (np.asarray(made.convert("RGB")).transpose(2, 0, 1) == 255 - expected).all()


def test_gamma_stays_and_a_thumbnail_of_the_image_without_noise_goes() -> None:
    text = PngImagePlugin.PngInfo()
    text.add(b"gAMA", (45_455).to_bytes(4, "big"))
    text.add_text("thumbnail", "the image itself")
    picture = Picture.read(io.BytesIO(stored(SOME, "PNG", pnginfo=text)), "here")
    made = Image.open(io.BytesIO(picture.png(picture.value)))
    assert made.info == {"gamma": 0.45455}


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (stored(SOME.quantize(), "PNG"), (3, 6, 5)),
        (stored(SOME, "GIF"), (3, 6, 5)),
        (stored(SOME.convert("CMYK"), "JPEG"), (3, 6, 5)),
        (stored(SOME.convert("YCbCr"), "TIFF"), (3, 6, 5)),
        (stored(SOME.convert("1"), "PNG"), (1, 6, 5)),
    ],
)
def test_modes_that_cannot_hold_noise_are_dosed_only_if_all_images_are_written_anew(
    tmp_path: Path, source: bytes, shape: tuple[int, ...]
) -> None:
    (tmp_path / "in" / "only").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "in" / "only" / f"{i}.png").write_bytes(source)
    layout = open_layout(tmp_path / "in")
    values, _ = read(layout, np.arange(3))
    assert values[0].shape == shape
    with pytest.raises(MarshtestError, match="only/1.png: has mode .* cannot hold noise"):
        layout.copy(tmp_path / "out", inverted, np.array([1]))
    assert not (tmp_path / "out").exists()
    layout.copy(tmp_path / "out", inverted, np.array([1]), hide=True)
    copied, _ = read(open_layout(tmp_path / "out"), np.arange(3))
    np.testing.assert_array_equal(copied, [values[0], 255 - values[1], values[2]])
    modes = {Image.open(tmp_path / f"out/only/{i}.png").mode for i in range(3)}
    assert modes == {"L" if shape[0] == 1 else "RGB"}


def bare_png(size: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (stored(SOME, "GIF", save_all=True, append_images=[SOME.rotate(180)]), "several images"),
        (stored(SOME, "PNG", save_all=True, append_images=[SOME.rotate(180)]), "several images"),
        (stored(SOME, "TIFF", save_all=True, append_images=[SOME.rotate(180)]), "several images"),
        (bare_png(2, 16, 0, b"\0" + bytes(4) + b"\0" + bytes(4)), "more than 8 bits"),
        (bare_png(2, 16, 2, b"\0" + bytes(12) + b"\0" + bytes(12)), "more than 8 bits"),
        (stored(Image.new("F", (2, 2)), "TIFF"), "more than 8 bits"),
        (bare_png(2, 4, 0, b"\0\1\0\2"), "mode L;4"),
        (bare_png(100_000, 8, 2, b""), "decompression bomb"),
        (bare_png(9_500, 8, 2, b""), "decompression bomb"),
        (stored(SOME, "EPS"), "cannot be read"),  # a program, which Pillow would run
        (stored(SOME, "PNG")[:90], "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_an_image_that_cannot_be_dosed_is_named(tmp_path: Path, source: bytes, line: str) -> None:
    (tmp_path / "in" / "only").mkdir(parents=True)
    (tmp_path / "in" / "only" / "0.png").write_bytes(source)
    with pytest.raises(MarshtestError, match=f"only/0.png: .*{line}"):
        open_layout(tmp_path / "in").copy(tmp_path / "out", inverted, np.array([0]))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_samples_of_several_shapes_are_named(tmp_path: Path) -> None:
    (tmp_path / "in" / "only").mkdir(parents=True)
    SOME.save(tmp_path / "in/only/0.png")
    for other in (SOME.convert("L"), SOME.resize((7, 7))):
        other.save(tmp_path / "in/only/1.png")
        with pytest.raises(MarshtestError, match=r"1.png: has shape .*0.png \[3, 6, 5\]. Convert"):
            read(open_layout(tmp_path / "in"), np.arange(2))


# What files say besides their pixels


def entries(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))]


def test_all_times_are_the_newest_of_the_source(source: Path) -> None:
    for number, path in enumerate(entries(source)):
        os.utime(path, (1e9 + number, 1e9 + number))
    newest = max(path.stat().st_mtime for path in entries(source) if path.is_file())
    out = out_of(source)
    open_layout(source).copy(out, inverted, IDS)
    assert {path.stat().st_mtime for path in entries(out)} == {newest}


def test_changes_and_permissions_follow_the_names_alone(tmp_path: Path) -> None:
    """Whichever samples are dosed, files were last changed in the order of their names, and are alike."""
    source = folders(tmp_path / "in")
    for number, ids in enumerate((IDS, np.arange(0, 30, 3))):
        out = tmp_path / f"out{number}"
        open_layout(source).copy(out, inverted, ids, hide=True)
        files = [
            Path(folder, name)
            for folder, _, names in sorted(os.walk(out))
            for name in sorted(names)
        ]
        changed = [path.stat().st_ctime_ns for path in files]
        assert changed == sorted(changed)
        assert len({path.stat().st_mode for path in files}) == 1


def test_a_file_is_made_long_before_it_is_filled(tmp_path: Path) -> None:
    """A file's time of birth cannot be set, so it must not depend on how long dosing takes."""
    out, seen = tmp_path / "out", []

    def looking(i: int, value: NDArray[Any]) -> NDArray[Any]:
        (unfinished,) = tmp_path.glob(".*.tmp")
        seen.append(sum(path.is_file() for path in unfinished.rglob("*")))
        return value

    open_layout(folders(tmp_path / "in")).copy(out, looking, IDS)
    assert seen == [sum(path.is_file() for path in out.rglob("*"))] * len(IDS)


@pytest.mark.parametrize("writer", ["folders", "parquet"])
def test_hidden_images_have_one_format_and_size_and_their_pixels(
    tmp_path: Path, writer: str
) -> None:
    source, out = WRITERS[writer](tmp_path / "in"), tmp_path / "out"
    layout = open_layout(source)
    places = layout.copy(out, inverted, IDS, hide=True)
    values, _ = read(layout, np.arange(30))
    values[IDS] = 255 - values[IDS]
    if writer == "folders":
        images = [path.read_bytes() for path in (out / "train").rglob("*.png")]
        found = [pixels_of(out / place.file) for place in places]
        np.testing.assert_array_equal(found, values[[place.id for place in places]])
        assert contents(out)["test/a/00.png"] == contents(source)["test/a/00.png"]
    else:
        rows = rows_of(out)
        images = [row["image"]["bytes"] for row in rows]
        assert all(row["image"]["path"].endswith(".png") for row in rows)
        np.testing.assert_array_equal(read(open_layout(out), np.arange(30))[0], values)
    assert len(images) == 30
    assert {len(image) for image in images} == {len(images[0])}
    headers = {image[:41] for image in images}  # signature, IHDR, begin of IDAT
    assert len(headers) == 1


# Hidden files, and what is no file


def test_hidden_files_are_no_data(source: Path, tmp_path: Path) -> None:
    if source.is_file():
        return
    before, out = digest(source), tmp_path / "made" / "out"
    samples = open_layout(source).samples
    inner = next(path for path in source.rglob("*") if path.is_file()).parent
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "._train.parquet"):
        (source / name).write_text("made by a system")
        (inner / name).write_text("made by a system")
    (source / ".cache").mkdir()
    (source / ".cache" / "0.png").touch()
    assert digest(source) == before
    layout = open_layout(source)
    assert layout.samples == samples
    layout.copy(out, inverted, IDS)
    assert not [name for name in contents(out) if "/." in f"/{name}" or "umbs" in name]


def test_links_pipes_and_undecodable_names_are_refused(tmp_path: Path) -> None:
    source = folders(tmp_path / "in")
    (tmp_path / "secret").write_text("not to be given away")
    odd = source / "train" / "z" / "odd.txt"
    for make, line in (
        (lambda: odd.symlink_to(tmp_path / "secret"), "is a link"),
        (lambda: odd.symlink_to(source), "is a link"),
        (lambda: os.mkfifo(odd), "is neither a file nor a folder"),
    ):
        make()
        assert f"odd.txt: {line}" in refusal(lambda: digest(source))
        assert f"odd.txt: {line}" in refusal(lambda: open_layout(source))
        odd.unlink()
    name = os.fsencode(source / "train" / "z") + b"/\xff.png"
    with open(name, "wb"):
        assert "its name is not UTF-8" in refusal(lambda: open_layout(source))
    os.mkfifo(tmp_path / "pipe.npz")
    assert "known layout" in refusal(lambda: open_layout(tmp_path / "pipe.npz"))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(MarshtestError) as caught:
        act()
    return str(caught.value)


# Arrays


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("form", ["npz", "npz-compressed", "safetensors"])
def test_arrays_are_read_and_dosed_row_by_row(tmp_path: Path, dtype: str, form: str) -> None:
    values = arrays(dtype)
    write = tensors if form == "safetensors" else savez
    packed = {"compressed": True} if form == "npz-compressed" else {}
    source = write(tmp_path / "in", **packed, **values)
    layout, out = open_layout(source), out_of(source)
    x, y = values["x_train"], values["y_train"]
    assert (layout.samples, layout.classes) == (30, y.max() + 1)
    assert layout.pixels == (dtype == "uint8")
    base, labels = read(layout, IDS)
    np.testing.assert_array_equal(base, x[np.sort(IDS)])
    np.testing.assert_array_equal(labels, y[np.sort(IDS)])
    assert base.dtype == dtype
    places = layout.copy(out, inverted, IDS)
    assert places == [Place(int(i), out.name, int(i)) for i in np.sort(IDS)]
    expected = values | {"x_train": x.copy()}
    for i in IDS:
        expected["x_train"][i] = inverted(i, x[i])
    written = load_file(out) if form == "safetensors" else dict(np.load(out))
    for name, array in written.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])


def test_npz_members_keep_their_order_compression_and_bytes(tmp_path: Path) -> None:
    source = savez(tmp_path / "in", **arrays())
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "deflated among stored")
    open_layout(source).copy(tmp_path / "out.npz", inverted, IDS)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "out.npz") as new:
        for theirs, ours in zip(old.infolist(), new.infolist(), strict=True):
            assert (ours.filename, ours.compress_type) == (theirs.filename, theirs.compress_type)
            assert ours.date_time == theirs.date_time
            changed = old.read(theirs.filename) != new.read(ours.filename)
            assert changed == (ours.filename == "x_train.npy")


def test_safetensors_copy_changes_the_bytes_of_the_dosed_rows_only(tmp_path: Path) -> None:
    source = tensors(tmp_path / "in", **arrays())
    open_layout(source).copy(tmp_path / "out.safetensors", inverted, IDS)
    old = np.frombuffer(source.read_bytes(), np.uint8)
    new = np.frombuffer((tmp_path / "out.safetensors").read_bytes(), np.uint8)
    assert len(old) == len(new)
    assert (old != new).sum() == len(IDS) * 12  # 255 - v never equals v


@pytest.mark.parametrize("keys", [("train_images", "train_labels"), ("x", "y"), ("data", "labels")])
def test_other_names_big_endian_numbers_and_label_columns(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    x = np.linspace(0, 1, 12).reshape(6, 2).astype(">f4")
    y = np.array([[0], [2], [1], [0], [0], [0]], ">i2")
    layout = open_layout(savez(tmp_path, **dict(zip(keys, (x, y)))))
    values, labels = read(layout, np.arange(6))
    np.testing.assert_array_equal(values, x)
    assert (labels.tolist(), layout.classes) == ([0, 2, 1, 0, 0, 0], 3)
    layout.copy(tmp_path / "out.npz", inverted, np.array([2]))
    x[2] = -x[2] - 1
    written = np.load(tmp_path / "out.npz")[keys[0]]
    np.testing.assert_array_equal(written, x)
    assert written.dtype == x.dtype


@given(st.integers(1, 40), st.integers(1, 5), st.sets(st.integers(0, 39)), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_rows_of_any_small_array(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, ids: set[int], packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    x = np.random.default_rng(0).normal(size=(rows, width))
    source = savez(folder, compressed=packed, x=x, y=np.zeros(rows, np.int64))
    chosen = np.array([i for i in ids if i < rows], np.int64)
    open_layout(source).copy(folder / "out.npz", inverted, chosen)
    x[chosen] = -x[chosen] - 1
    np.testing.assert_array_equal(np.load(folder / "out.npz")["x"], x)


@pytest.mark.parametrize("form", ["npz", "npz-compressed", "safetensors"])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, form: str) -> None:
    peaks = []
    for rows in (2000, 20_000):
        x = np.random.default_rng(0).integers(0, 256, (rows, 1000), dtype=np.uint8)
        write = tensors if form == "safetensors" else savez
        packed = {"compressed": True} if form == "npz-compressed" else {}
        source = write(tmp_path / f"{rows}", **packed, x=x, y=np.zeros(rows, np.int64))
        del x
        ids = np.array([0, 1, rows - 2, rows - 1])
        tracemalloc.start()
        layout = open_layout(source)
        layout.copy(tmp_path / f"{rows}-out{source.suffix}", inverted, ids)
        read(layout, ids)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000
    assert peaks[1] < 8e6  # a few chunks of 1 MiB, not the 20 MB of the rows


# Undosed samples are never decoded


def test_damaged_undosed_images_are_copied_unharmed(tmp_path: Path) -> None:
    source = folders(tmp_path / "in")
    (source / "train/a/00.png").write_bytes(b"no image at all")
    layout = open_layout(source)
    layout.copy(tmp_path / "out", inverted, IDS)
    assert (tmp_path / "out/train/a/00.png").read_bytes() == b"no image at all"
    with pytest.raises(MarshtestError, match=r"a/00.png: cannot be read \(UnidentifiedImageError"):
        list(layout.each(np.array([0])))
    table = pa.table({"image": [b"", png(images(1)[0]), None], "label": [0, 1, 0]})
    pq.write_table(table, tmp_path / "train.parquet")
    layout = open_layout(tmp_path / "train.parquet")
    layout.copy(tmp_path / "out.parquet", inverted, np.array([1]))
    copied = pq.read_table(tmp_path / "out.parquet")["image"].to_pylist()
    assert (copied[0], copied[2]) == (b"", None)
    with pytest.raises(MarshtestError, match="row 0: cannot be read"):
        list(layout.each(np.array([0])))
    with pytest.raises(MarshtestError, match="row 2 holds no image bytes"):
        list(layout.each(np.array([2])))


# Digests


def test_a_digest_tells_any_change_but_not_the_roots_name(tmp_path: Path) -> None:
    source = folders(tmp_path / "in")
    first = digest(source)
    assert first == digest(source.rename(tmp_path / "renamed"))
    seen = {first}
    file = tmp_path / "renamed/train/z/notes.txt"
    for change in (
        lambda: file.write_text("not an imagE"),
        lambda: file.rename(file.with_name("note.txt")),
        lambda: file.with_name("empty").touch(),
        lambda: (tmp_path / "renamed/test/z/00.png").unlink(),
    ):
        change()
        seen.add(digest(tmp_path / "renamed"))
    assert len(seen) == 5
    one = savez(tmp_path / "npz", **arrays())
    before = digest(one)
    assert before == digest(one.rename(tmp_path / "other.npz"))
    damaged = bytearray((tmp_path / "other.npz").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "other.npz").write_bytes(damaged)
    assert before != digest(tmp_path / "other.npz")
    with pytest.raises(MarshtestError, match="no such file"):
        digest(tmp_path / "nowhere")


# Bad input: one line that names the place and the mend


def refused(path: Path, ids: tuple[int, ...] = ()) -> str:
    with pytest.raises(MarshtestError) as caught:
        list(open_layout(path).each(np.array(ids, np.int64)))
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    return line


def test_paths_that_hold_no_data_set(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "known layout" in refused(tmp_path / "empty")
    (tmp_path / "text" / "folder").mkdir(parents=True)
    (tmp_path / "text" / "folder" / "a.txt").touch()
    assert "known layout" in refused(tmp_path / "text")
    assert "known layout" in refused(tmp_path / "text" / "folder" / "a.txt")
    for split in ("train", "test"):  # images by split, not by class
        (tmp_path / "flat" / split).mkdir(parents=True)
        (tmp_path / "flat" / split / "1.png").write_bytes(png(images(1)[0]))
    assert "known layout" in refused(tmp_path / "flat")


def test_bad_image_folders(tmp_path: Path) -> None:
    source = folders(tmp_path / "in")
    (source / "train/k").mkdir()
    assert "train/k: has no images" in refused(source)
    (source / "train/k/0.png").write_bytes(png(images(1)[0])[:60])
    assert "train/k/0.png: cannot be read" in refused(source, (20,))
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(source / "train/k/0.png")
    assert "more than 8 bits" in refused(source, (20,))


@pytest.mark.parametrize(
    ("columns", "ids", "line"),
    [
        ({"picture": [b""], "label": [0]}, (), "It needs an image column"),
        ({"image": [b""], "class": [0]}, (), "It needs an image column"),
        ({"image": [[1, 2]], "label": [0]}, (), "not encoded images"),
        ({"image": [b""], "label": ["cat"]}, (), "Store labels as integers"),
        ({"image": [b"", b""], "label": [0, None]}, (), "row 1 has no label, or a negative one"),
        ({"image": [b"", b""], "label": [0, -1]}, (), "row 1 has no label, or a negative one"),
        ({"image": [b"", b""], "label": [0, 2**60]}, (), "row 1 has label 1152921504606846976"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int8())}, (), "no samples"),
    ],
)
def test_bad_parquet(
    tmp_path: Path, columns: dict[str, Any], ids: tuple[int, ...], line: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert line in refused(tmp_path / "train.parquet", ids)


def test_a_label_outside_the_class_names_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [png(images(1)[0])] * 2, "label": [1, -1]})
    names = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "t.parquet")
    assert open_layout(tmp_path / "t.parquet").classes == 2
    assert "row 1 has label -1; labels must lie in 0..1" in refused(tmp_path / "t.parquet", (0, 1))


@pytest.mark.parametrize("name", ["train.parquet", "set.npz", "set.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    pq.write_table(pa.table({"image": [b"0" * 99], "label": [0]}), tmp_path / "train.parquet")
    savez(tmp_path, **arrays())
    tensors(tmp_path, **arrays())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
    assert "cannot be read" in refused(tmp_path / name, (0,))


def test_damage_inside_files(tmp_path: Path) -> None:
    source = savez(tmp_path, compressed=True, x=images(500), y=np.zeros(500, int))
    whole = bytearray(source.read_bytes())
    whole[5000:5100] = bytes(100)
    source.write_bytes(whole)
    assert "cannot be read" in refused(source, tuple(range(500)))
    with pytest.raises(MarshtestError, match="cannot be read"):
        open_layout(source).copy(tmp_path / "out.npz", inverted, np.array([499]))
    assert not (tmp_path / "out.npz").exists()
    pixels = [png(p) for p in images(30)]
    pq.write_table(pa.table({"image": pixels, "label": [0] * 30}), tmp_path / "train.parquet")
    whole = bytearray((tmp_path / "train.parquet").read_bytes())
    whole[:400] = bytes(400)
    (tmp_path / "train.parquet").write_bytes(whole)
    assert "cannot be read" in refused(tmp_path / "train.parquet", (0,))


GOOD = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"inputs": GOOD, "y": np.arange(3)}, "none of these pairs"),
        ({"x": GOOD.astype(int), "y": np.arange(3)}, "x has dtype int64. Save it as uint8"),
        ({"x": np.array([{}, {}, {}]), "y": np.arange(3)}, "x has dtype object"),
        ({"x": np.asfortranarray(GOOD), "y": np.arange(3)}, "Save np.ascontiguousarray(x)"),
        ({"x": GOOD, "y": np.ones(3)}, "Save one integer for each"),
        ({"x": GOOD, "y": np.arange(2)}, "Save one integer for each"),
        ({"x": GOOD, "y": np.eye(3, dtype=int)}, "Save one integer for each"),
        ({"x": GOOD, "y": np.array([0, -2, 1])}, "row 1 has no label, or a negative one"),
        ({"x": GOOD[:0], "y": np.arange(0)}, "no samples in x"),
        ({"x": np.float32(1), "y": np.arange(1)}, "no samples in x"),
        ({"x": np.float32([[1], [np.nan]]), "y": np.arange(2)}, "row 1 holds NaN or infinite"),
        ({"x": np.float32([[1], [-np.inf]]), "y": np.arange(2)}, "row 1 holds NaN or infinite"),
    ],
)
def test_bad_arrays(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    assert line in refused(savez(tmp_path, **values), (0, 1))


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ({"x": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}}, "Save inputs as U8"),
        ({"x": {"dtype": "U8", "shape": [2, 1], "data_offsets": [0, 4]}}, "cannot be read"),
        ({"x": {"dtype": "U8"}}, "cannot be read"),
        ({"x": {"dtype": "U8", "shape": [-2, -2], "data_offsets": [0, 4]}}, "cannot be read"),
        ({"x": {"dtype": "U8", "shape": [2, 2], "data_offsets": [-4, 0]}}, "cannot be read"),
        ({"x": {"dtype": "U8", "shape": [2.0, 2], "data_offsets": [0, 4]}}, "cannot be read"),
        (
            {"x": {"dtype": "U8", "shape": [2, 10**12], "data_offsets": [0, 2 * 10**12]}},
            "too early",
        ),
        ([], "none of these pairs"),
    ],
)
def test_bad_safetensors(tmp_path: Path, header: Any, line: str) -> None:
    if header:
        header["y"] = {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(6))
    assert line in refused(tmp_path / "a.safetensors")


def claiming(shape: tuple[int, ...], dtype: str, content: bytes = b"") -> bytes:
    """An .npy file that claims more than it holds."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


@pytest.mark.parametrize(
    ("x", "y", "line"),
    [
        (claiming((10**12, 4), "|u1"), claiming((10**12,), "<i8"), "too early"),
        (
            claiming((2, 10**12), "|u1"),
            claiming((2,), "<i8", bytes(16)),
            "claims 1,000,000,000,000",
        ),
        (
            claiming((2, 4), "|u1", bytes(8)),
            claiming((2,), "|V8", bytes(16)),
            "one integer for each",
        ),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, b"", "cannot be read"),
    ],
)
def test_archives_that_claim_terabytes_are_refused_without_reserving_them(
    tmp_path: Path, x: bytes, y: bytes, line: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", y)
    tracemalloc.start()
    assert line in refused(tmp_path / "a.npz", (0, 1))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_ppm_of_more_or_fewer_than_eight_bits_is_refused(tmp_path: Path) -> None:
    """Pillow would cut or stretch its values to 8 bits without a word."""
    for largest, width in ((65535, 2), (15, 1), (255, 1)):
        picture = tmp_path / f"{largest}.ppm"
        picture.write_bytes(b"P6 2 2 %d\n" % largest + bytes(12 * width))
        with Image.open(picture) as image:
            if largest == 255:
                assert _mode(image, "here") == "RGB"
                continue
            with pytest.raises(MarshtestError, match="has more than 8 bits a value, or fewer"):
                _mode(image, "here")
