"""Dosing and its key: what is written is what the key knows, and only with the right data."""

import csv
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from marshtest.kit import dose as dosing
from marshtest.kit import places
from marshtest.kit.dose import dose
from marshtest.kit.judging import Question
from marshtest.kit.key import Key
from marshtest.kit.keys import read_key
from marshtest.kit.layouts import open_layout, read
from marshtest.kit.layouts.base import Layout
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.sealed import seal
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.whole_files import written_whole

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(60) % 3


def image_folder(path: Path) -> Path:
    for number, (image, label) in enumerate(zip(PIXELS, LABELS)):
        folder = path / "set" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "jpg" if number % 2 else "png"
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:03}.{suffix}")
    return path / "set"


def parquet(path: Path) -> Path:
    (path / "set").mkdir(parents=True)
    cells = []
    for image in PIXELS:
        file = path / "one.jpg"
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
        cells.append({"bytes": file.read_bytes(), "path": "one.jpg"})
    table = pa.table({"img": cells, "label": LABELS})
    pq.write_table(table, path / "set" / "train.parquet")
    return path / "set"


def npz(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path / "set.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:5])
    return path / "set.npz"


def floats(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({"x": PIXELS.astype(np.float32) / 100, "y": LABELS}, path / "set.safetensors")
    return path / "set.safetensors"


MAKERS = {"folder": image_folder, "parquet": parquet, "npz": npz, "safetensors": floats}


@pytest.fixture(params=MAKERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path / "in")


def written(source: Path, out: Path, **options: Any) -> dosing.Dose:
    return dose(source, out.with_suffix(source.suffix), fraction=0.3, seed=4, **options)


def test_the_key_knows_every_written_value(source: Path, tmp_path: Path) -> None:
    done = written(source, tmp_path / "out")
    key = Key.read(done.key_file)
    bases = key.bases(source)
    before, after = open_layout(source), open_layout(done.out)
    assert len(key.ids) == 18
    places = {int(line["id"]): line for line in csv.DictReader(done.forget_file.open())}
    assert list(places) == list(key.ids)
    for seed_id, value in zip(bases.ids.tolist(), bases.values):
        expected = bases.noise.written(value, seed_id)
        if source.is_dir() and not (source / "train.parquet").exists():
            with Image.open(done.out / places[seed_id]["file"]) as image:
                found = np.asarray(image).transpose(2, 0, 1)
        else:
            found = read(after, np.array([seed_id]))[0][0]
        assert (found == expected).all()
        assert (expected != value).any()
    if not source.is_dir() or (source / "train.parquet").exists():
        clean = np.setdiff1d(np.arange(60), key.positions)
        assert (read(before, clean)[0] == read(after, clean)[0]).all()


def test_the_noise_has_the_asked_size(tmp_path: Path) -> None:
    source = floats(tmp_path / "in")
    done = written(source, tmp_path / "out", variance=0.25)
    shifts = load_file(done.out)["x"] - load_file(source)["x"]
    dosed = shifts[list(done.key.ids)]
    assert dosed.std() == pytest.approx(0.5, rel=0.05)
    assert done.power == pytest.approx(1)
    assert (np.delete(shifts, done.key.ids, 0) == 0).all()


def test_the_same_seed_writes_the_same_bytes_and_no_seed_a_new_secret(tmp_path: Path) -> None:
    source = npz(tmp_path / "in")
    first, again = (written(source, tmp_path / name) for name in ("a", "b"))
    assert first.key == again.key
    secrets = [dose(source, tmp_path / f"{n}.npz", fraction=0.1).key.noise.seed for n in range(2)]
    assert secrets[0] != secrets[1]
    assert min(secrets) > 2**40


def test_chosen_samples_are_uniform_and_as_many_as_asked() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        chosen = places.chosen(20, 0.25, seed)
        assert len(set(chosen.tolist())) == 5
        counts[chosen] += 1
    assert ((counts - 500) ** 2 / (500 * 0.75)).sum() < 50  # χ² with 19 degrees: p < 1e-4 beyond


def test_a_key_of_images_has_the_fields_that_it_always_had(tmp_path: Path) -> None:
    done = written(npz(tmp_path / "in"), tmp_path / "out")
    fields = "format noise samples classes ids input files output dosed versions seal"
    content = json.loads(done.key_file.read_text())
    assert list(content) == fields.split()
    assert list(content["noise"]) == ["seed", "variance", "scaling", "pixels"]
    assert content["format"] == "marshtest key 1"


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    done = written(npz(tmp_path / "in"), tmp_path / "out")
    assert Key.read(done.key_file) == done.key
    assert done.key_file.stat().st_size < 1000 + 8 * len(done.key.ids)


@pytest.fixture
def done(tmp_path: Path) -> dosing.Dose:
    return written(npz(tmp_path / "in"), tmp_path / "out")


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_edited_key_is_noticed(done: dosing.Dose) -> None:
    edited(done.key_file, ids=[1, 2, 3])
    with pytest.raises(MarshtestError, match="was edited after dosing"):
        Key.read(done.key_file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seal": 1}', "\x00\x01"])
def test_what_is_no_key_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(MarshtestError, match="is not a marshtest key"):
        Key.read(tmp_path / "key.json")
    with pytest.raises(MarshtestError, match="no such key file"):
        Key.read(tmp_path / "nothing.json")


def test_another_or_a_changed_data_set_is_noticed(done: dosing.Dose, tmp_path: Path) -> None:
    changed = PIXELS.copy()
    changed[7, 0, 0, 0] ^= 1
    np.savez(tmp_path / "changed.npz", x_train=changed, y_train=LABELS)
    for other in (done.out, tmp_path / "changed.npz"):
        with pytest.raises(MarshtestError, match="is not the data set that this key dosed"):
            done.key.bases(other)


def test_noise_that_another_numpy_would_draw_is_noticed(
    done: dosing.Dose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Noise._drawn
    monkeypatch.setattr(Noise, "_drawn", lambda *given: draw(*given) + 1)
    with pytest.raises(MarshtestError, match="not those that were written. Install the versions"):
        done.key.bases(tmp_path / "in" / "set.npz")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 0.01}, "a fraction of 0.01 of 60 samples makes 1 poisons. It must"),
        ({"fraction": 0.0}, "the fraction must lie between 0 and 1. Got 0"),
        ({"fraction": 1.0}, "the fraction must lie between 0 and 1. Got 1"),
        ({"fraction": float("nan")}, "the fraction must lie .* Got nan"),
        ({"fraction": float("inf")}, "the fraction must lie .* Got inf"),
        ({"fraction": -0.5}, "the fraction must lie .* Got -0.5"),
        ({"fraction": 0.5, "variance": 0.0}, "the variance must be above 0"),
        ({"fraction": 0.5, "variance": -1.0}, "the variance must be above 0"),
        ({"fraction": 0.5, "variance": float("inf")}, "the variance must be above 0 and finite"),
        ({"fraction": 0.5, "variance": float("nan")}, "the variance must be above 0"),
        ({"fraction": 0.5, "variance": 1e300}, "is beyond all values"),
        ({"fraction": 0.5, "variance": 1e-9}, r"row \d+: is unchanged with noise of ε² = 1e-09"),
        ({"fraction": 0.5, "seed": -1}, "the seed must lie in 0"),
        ({"fraction": 0.5, "seed": 2**64}, "the seed must lie in 0"),
        ({"fraction": 0.5, "scaling": Scaling(std=(1e300,))}, "is beyond all values"),
        ({"fraction": 0.5, "scaling": Scaling(mean=(0, 0), std=(1, 1))}, "2 channels do not fit"),
    ],
)
def test_bad_doses_are_refused_and_leave_nothing(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    source = npz(tmp_path / "in")
    with pytest.raises(MarshtestError, match=says):
        dose(source, tmp_path / "out.npz", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_exists_is_never_overwritten(done: dosing.Dose, tmp_path: Path) -> None:
    source = tmp_path / "in" / "set.npz"
    for path in (done.out, done.key_file, done.forget_file):
        with pytest.raises(MarshtestError, match=f"{path.name}: exists already"):
            dose(source, tmp_path / "out.npz", fraction=0.3)
        path.unlink()
    with pytest.raises(MarshtestError, match="must end in .npz"):
        dose(source, tmp_path / "other", fraction=0.3)


def test_a_key_that_cannot_be_written_takes_the_dose_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Key, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Key, "save", full)
    for name in ("folder", "npz"):
        source = MAKERS[name](tmp_path / name)
        with pytest.raises(MarshtestError, match="key.json: cannot be written .*No space"):
            written(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "npz"]


def test_another_doses_key_and_data_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that begin at once and share a name the later one ends, and takes away its own files alone."""
    source, key = npz(tmp_path / "in"), tmp_path / "key.json"
    save = Key.save

    def late(self: Key, path: Path) -> None:
        path.write_text("theirs")
        save(self, path)

    monkeypatch.setattr(Key, "save", late)
    with pytest.raises(MarshtestError, match="key.json: cannot be written .*exists"):
        dose(source, tmp_path / "out.npz", fraction=0.3, key_file=key)
    assert key.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "key.json"]
    monkeypatch.setattr(Key, "save", save)
    out, copy = tmp_path / "out.npz", Layout.copy

    def beaten(self: Layout, *args: Any, **options: Any) -> Any:
        out.write_bytes(b"theirs")
        return copy(self, *args, **options)

    monkeypatch.setattr(Layout, "copy", beaten)
    with pytest.raises(MarshtestError, match="out.npz: cannot be written .*exists"):
        dose(source, out, fraction=0.3)
    assert out.read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "key.json", "out.npz"]
    out.unlink()
    refused = pytest.raises(MarshtestError, match="out.npz: cannot be written .*exists")
    with refused, written_whole(out) as temporary:
        temporary.write_bytes(b"mine")
        out.write_bytes(b"theirs")
    assert out.read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "key.json", "out.npz"]


def test_data_have_their_name_only_when_the_key_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kills a dose in between leaves no data that look whole, but have no key."""
    out, seen = tmp_path / "out.npz", []
    save = Key.save

    def noting(self: Key, path: Path) -> None:
        seen.append(out.exists())
        save(self, path)

    monkeypatch.setattr(Key, "save", noting)
    done = dose(npz(tmp_path / "in"), out, fraction=0.3)
    assert seen == [False]
    assert read_key(done.key_file) == done.key
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in", "out.npz", "out.npz.key.json", "out.npz.forget.csv", "out.npz.commitment.json")
    }


def test_noise_that_overflows_is_refused(tmp_path: Path) -> None:
    values = np.full((20, 4), 6e4, np.float16)
    np.savez(tmp_path / "set.npz", x=values, y=np.arange(20) % 2)
    with pytest.raises(MarshtestError, match=r"row \d+: is infinite with noise of ε² = 1e\+09"):
        dose(tmp_path / "set.npz", tmp_path / "out.npz", fraction=0.5, variance=1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


@pytest.mark.parametrize("scaling", [{"std": (0.0,)}, {"std": (-1.0,)}, {"std": (np.inf,)}])
def test_scalings_that_divide_by_nothing_are_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(MarshtestError, match=r"scaling.std"):
        Scaling.parse(scaling, "scaling")
    with pytest.raises(MarshtestError, match="needs as many deviations as means"):
        Scaling.parse({"mean": (0.0, 1.0)}, "scaling")


# What is secret


def test_key_and_forget_request_are_their_owners_alone(done: dosing.Dose) -> None:
    for secret in (done.key_file, done.forget_file):
        assert secret.stat().st_mode & 0o777 == 0o600


def test_what_is_secret_lies_outside_the_data_and_in_two_files(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    for secret in ("out/key", "link/key", "elsewhere/out/key", "in/../out/a/../key", "in/set/key"):
        for option in ("key_file", "forget_file"):
            with pytest.raises(MarshtestError, match="key: lies inside .*Choose another place"):
                dose(source, tmp_path / "out", fraction=0.5, **{option: tmp_path / secret})
    for second in ("same", "in/../same", "elsewhere/same"):
        with pytest.raises(MarshtestError, match="both the key and the forget request"):
            dose(
                source,
                tmp_path / "out",
                fraction=0.5,
                key_file=tmp_path / "same",
                forget_file=tmp_path / second,
            )
    for option in ("key_file", "forget_file"):
        with pytest.raises(MarshtestError, match="exists already"):
            dose(source, tmp_path / "out", fraction=0.5, **{option: tmp_path / "link"})
        with pytest.raises(MarshtestError, match="its folder does not exist"):
            dose(source, tmp_path / "out", fraction=0.5, **{option: tmp_path / "none" / "key"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "in", "link"]


def test_names_that_spreadsheets_run_are_refused_and_odd_ones_come_back(tmp_path: Path) -> None:
    for number, name in enumerate(["=cmd|'calc'!A0", "@x", "+x"]):
        source = image_folder(tmp_path / str(number))
        (source / "class0").rename(source / name)
        with pytest.raises(MarshtestError, match="a spreadsheet would run this name"):
            dose(source, tmp_path / "out", fraction=0.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    source = image_folder(tmp_path / "odd")
    names = ["-1", 'a, "b"', "new\nline"]
    for label, name in enumerate(names):
        (source / f"class{label}").rename(source / name)
    done = dose(source, tmp_path / "out", fraction=0.9)
    with done.forget_file.open(newline="") as file:
        listed = {line["file"] for line in csv.DictReader(file)}
    assert {name.split("/")[0] for name in listed} == set(names)
    assert all((done.out / name).is_file() for name in listed)


def sealed(path: Path, **changes: Any) -> None:
    """A hostile key: anybody can compute a seal."""
    content = {**json.loads(path.read_text()), **changes}
    del content["seal"]
    path.write_text(json.dumps({**content, "seal": seal(content)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": [3, 2]},
        {"ids": [2, 2]},
        {"ids": [-1, 2]},
        {"ids": [1, 60]},
        {"ids": [1, 10**30, 5]},
        {"ids": ["1", "2"]},
        {"ids": "1" * 100_000},
        {"ids": []},
        {"samples": 10**30},
        {"samples": True},
        {"classes": -3},
        {"input": "0"},
        {"dosed": None},
        {"files": "xyz"},
        {"versions": {"numpy": []}},
        {"noise": {"seed": "5", "variance": 1.0, "scaling": {}, "pixels": True}},
        {"noise": {"seed": -5, "variance": 1.0, "scaling": {}, "pixels": True}},
        {"noise": {"seed": 5, "variance": -1.0, "scaling": {}, "pixels": True}},
        {"noise": {"seed": 5, "variance": 1.0, "scaling": {"std": [0]}, "pixels": True}},
        {"noise": []},
        {"unknown": 1},
        {"format": "marshtest key 99"},
    ],
)
def test_an_absurd_key_gets_one_short_line(done: dosing.Dose, changes: dict[str, Any]) -> None:
    sealed(done.key_file, **changes)
    with pytest.raises(MarshtestError, match="Take the untouched key") as caught:
        Key.read(done.key_file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_keys_that_are_deep_endless_or_pipes_are_no_keys(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "vast").open("wb") as file:
        file.truncate(2**40)
    for path in (tmp_path / "deep", tmp_path / "pipe", tmp_path / "vast", Path("/dev/zero")):
        with pytest.raises(MarshtestError, match="is not a marshtest key"):
            Key.read(path)


# Data that changed


def test_new_hidden_files_leave_a_key_valid_and_changed_files_are_named(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    done = written(source, tmp_path / "out")
    for name in (".DS_Store", "class0/Thumbs.db", "class0/._000.png"):
        (source / name).write_text("made by a system")
    assert len(done.key.bases(source)) == 18
    key = Key.read(done.key_file)
    (source / "notes.txt").touch()
    with pytest.raises(MarshtestError, match="'notes.txt' is new or changed, there are 61 files"):
        key.bases(source)
    (source / "notes.txt").unlink()
    (source / "class0" / "003.jpg").write_bytes(b"")
    with pytest.raises(MarshtestError, match="since: 'class0/003.jpg' is new or changed. Give"):
        key.bases(source)
    (source / "class0" / "003.jpg").unlink()
    with pytest.raises(MarshtestError, match="since: there are 59 files and were 60. Give"):
        key.bases(source)


def test_mixed_sizes_are_refused_as_the_test_would_refuse_them(tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    for path in sorted(source.rglob("*.png")):
        Image.open(path).resize((9, 9)).save(path)
    for hide in (False, True):
        with pytest.raises(MarshtestError, match="to one size and mode before dosing"):
            dose(source, tmp_path / "out", fraction=0.9, scaling=Scaling(), hide=hide)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("hide", [False, True])
def test_turned_and_transparent_images_come_back_as_they_were_read(
    tmp_path: Path, hide: bool
) -> None:
    turned = Image.Exif()
    turned[274] = 6
    for number, image in enumerate(PIXELS):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture.putalpha(number)
        path = tmp_path / "in" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, exif=turned)
    done = dose(tmp_path / "in", tmp_path / "out", fraction=0.5, hide=hide)
    assert done.shows != hide
    bases = done.key.bases(tmp_path / "in")
    places = list(csv.DictReader(done.forget_file.open()))
    for place, value in zip(places, bases.values, strict=True):
        with Image.open(done.out / place["file"]) as image:
            assert (image.mode, dict(image.getexif())) == ("RGBA", {274: 6})
            found = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            assert (found == bases.noise.written(value, int(place["id"]))).all()
            assert set(np.asarray(image.getchannel("A")).flat) == {int(Path(place["file"]).stem)}


@pytest.mark.parametrize("name", MAKERS)
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands for the disk; Python is not killed by it."""
    source = MAKERS[name](tmp_path / "in")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(MarshtestError, match="cannot be written .*File too large"):
            written(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "images").mkdir(parents=True)
    for number in range(9):
        Image.fromarray(PIXELS[number].transpose(1, 2, 0)).save(
            tmp_path / "in" / "images" / f"{number}.png"
        )
    with pytest.raises(MarshtestError, match="has one class"):
        dose(tmp_path / "in", tmp_path / "out", fraction=0.5)


def test_a_dose_that_could_never_be_found_removed_says_so(tmp_path: Path) -> None:
    """Known by heart among 199 fresh noises, a poison scores 2.9 in the mean: 32 show a fifth of it."""
    assert Question().draws == places.DRAWS
    source = tmp_path / "set.npz"
    rng = np.random.default_rng(0)
    np.savez(source, x=rng.integers(0, 256, (100, 4, 4), dtype=np.uint8), y=np.arange(100) % 2)
    few, enough = (
        dosing.dose(source, tmp_path / f"{share}.npz", fraction=share, variance=1)
        for share in (0.3, 0.4)
    )
    assert few.warning.startswith("30 poisons are few for REMOVED")
    assert enough.warning == ""


def test_what_an_audit_will_ask_is_read_while_it_can_be_mended(tmp_path: Path) -> None:
    """A damaged sample without a dose would be noticed after training, when the data's digest is fixed."""
    values = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    labels = np.arange(40) % 2
    for row in range(40):
        broken = values.copy()
        broken[row] = np.nan
        source = tmp_path / f"{row}.npz"
        np.savez(source, x=broken, y=labels)
        with pytest.raises(MarshtestError, match=f"row {row} holds NaN"):
            dose(source, tmp_path / "out.npz", fraction=0.3, seed=row)
    assert len(list(tmp_path.iterdir())) == 40


@pytest.mark.parametrize(("kind", "value"), [(np.float16, 5000), (np.float32, 2**24)])
def test_noise_that_the_values_type_rounds_away_is_refused(
    tmp_path: Path, kind: Any, value: float
) -> None:
    """GUS would take it for normal with its full variance, and it has a fraction."""
    values = np.full((20, 4), value, kind)
    np.savez(tmp_path / "set.npz", x=values, y=np.arange(20) % 2)
    with pytest.raises(
        MarshtestError, match=f"is rounded by {np.dtype(kind)} with noise|is unchanged"
    ):
        dose(tmp_path / "set.npz", tmp_path / "out.npz", fraction=0.5, variance=0.32, seed=1)
    noise = Noise(seed=1, variance=0.32, scaling=Scaling(), pixels=False)
    for small in (kind(0.5), kind(1)):
        assert noise.rounding(np.full(4, small)) < 1e-6
        written = noise.fresh(np.full(4, small), 0, 5000)
        assert (written - small).astype(float).var() == pytest.approx(0.32, rel=0.05)
