"""Samples keep their ids; loaders read what they claim and refuse what they cannot."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_cifar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from marshtest.data.load import load, save_dataset
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.recipe import DataSettings
from marshtest.experiment.recipe_data import content, digest
from marshtest.plumbing.errors import MarshtestError


def some(count: int = 6) -> Samples:
    return Samples(
        torch.arange(count * 2.0).view(count, 2), torch.arange(count) % 3, torch.arange(count) * 10
    )


@given(st.sets(st.integers(0, 9)))
def test_only_and_without_split_the_samples_and_keep_each_ids_row(chosen: set[int]) -> None:
    samples = some(10)
    ids = torch.tensor([10 * i for i in chosen], dtype=torch.int64)
    only, without = samples.only(ids), samples.without(ids)
    assert set(only.ids.tolist()) | set(without.ids.tolist()) == set(samples.ids.tolist())
    assert len(only) == len(chosen)
    for part in (only, without):
        assert torch.equal(part.x[:, 0], part.ids / 5)


def test_shift_belongs_to_its_id_after_any_selection() -> None:
    samples = some().perturbed(torch.tensor([40, 10]), torch.tensor([[4.0, 4.0], [1.0, 1.0]]))
    shift = samples.only(torch.tensor([10, 20, 40])).perturbation()
    assert shift is not None
    assert shift.tolist() == [[1.0, 1.0], [0.0, 0.0], [4.0, 4.0]]


def test_shifting_an_unknown_id_or_twice_is_refused() -> None:
    with pytest.raises(MarshtestError, match="id 11 is not among this set"):
        some().perturbed(torch.tensor([11]), torch.ones(1, 2))
    with pytest.raises(MarshtestError, match="carries perturbations already"):
        some().perturbed(torch.tensor([10]), torch.ones(1, 2)).perturbed(
            torch.tensor([10]), torch.ones(1, 2)
        )


def test_digits_are_scikit_learns_all_of_them_once() -> None:
    data = load("digits")
    ours = torch.cat([data.train.x, data.test.x]).flatten(1)
    theirs = (load_digits().images.reshape(-1, 64) * 255 / 16).round().astype(np.uint8)
    assert data.train.x.dtype == torch.uint8
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_cifar10_is_read_from_parquet_with_the_hubs_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = write_cifar(tmp_path / "cifar10")
    data = load("cifar10", str(tmp_path / "cifar10"), test=2)
    assert np.array_equal(data.train.x.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.train.y.tolist() == [0, 1, 2, 3, 4]
    assert (len(data.test), data.classes) == (2, 10)

    monkeypatch.setenv("MARSHTEST_DATA", str(tmp_path))
    assert torch.equal(load("cifar10").train.x, data.train.x)


def test_a_local_copy_is_told_from_the_hub_and_from_another_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that a store gives what was made of one for the other."""

    def told(folder: str | None) -> str | None:
        path = None if folder is None else str(tmp_path / folder)
        return content(DataSettings(name="cifar10", path=path), None)

    write_cifar(tmp_path / "copy")
    write_cifar(tmp_path / "other", rows=6)
    shutil.copytree(tmp_path / "copy", tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("what is no part of the data")
    of_copy = told("copy")
    assert of_copy == told("moved") != told("other")
    assert told(None) is None
    assert content(DataSettings(name="digits"), None) is None
    monkeypatch.setenv("MARSHTEST_DATA", str(tmp_path))
    (tmp_path / "copy").rename(tmp_path / "cifar10")
    assert told(None) == of_copy
    # Of images in folders the folder is the label.
    for folder, label in (("one", "cat"), ("two", "dog")):
        (tmp_path / folder / "train" / label).mkdir(parents=True)
        (tmp_path / folder / "train" / label / "0.png").write_bytes(picture())
    of_one = told("one")
    assert of_one != told("two")
    (tmp_path / "one" / "train" / ".DS_Store").write_bytes(b"which systems leave")
    assert told("one") == of_one


def test_a_copy_of_a_table_and_a_folder_has_the_digest_of_both(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    for table in tmp_path.glob("test*.parquet"):
        table.unlink()
    image = tmp_path / "test" / "cat" / "0.png"
    image.parent.mkdir(parents=True)
    settings = DataSettings(name="cifar10", path=str(tmp_path))
    told = []
    for content_of in (picture(), picture(16)):
        image.write_bytes(content_of)
        told.append(content(settings, None))
    assert told[0] != told[1]


def test_a_folder_of_the_hubs_name_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "uoft-cs" / "cifar10")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARSHTEST_DATA", raising=False)
    with pytest.raises(MarshtestError, match="a folder uoft-cs/cifar10 is here"):
        load("cifar10", None)


def test_perturbed_data_have_no_digest() -> None:
    """It would be that of the data without their perturbations, and so give those their models."""
    perturbed = some().perturbed(torch.tensor([10]), torch.ones(1, 2))
    with pytest.raises(MarshtestError, match="carry perturbations"):
        digest(Dataset("mine", perturbed, some(), 3))


def test_files_that_were_replaced_are_read_anew(tmp_path: Path) -> None:
    """`datasets` keeps what it read by path and time, and a copy that is unpacked may have an old time."""
    place, later = tmp_path / "place", tmp_path / "later"
    first, other = write_cifar(place), write_cifar(later, rows=6)
    for file in (*place.iterdir(), *later.iterdir()):
        os.utime(file, (1e9, 1e9))
    assert len(load("cifar10", str(place)).train) == len(first)
    shutil.rmtree(place)
    later.rename(place)
    assert len(load("cifar10", str(place)).train) == len(other)


def picture(size: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (
            [picture(), picture(16)],
            [0, 1],
            r"row 1 of the train split .* another size .*\(32 × 32 and 16",
        ),
        ([picture(), b"no picture"], [0, 1], "cannot read the images of the train split"),
        ([picture(), None], [0, 1], "cannot read the images of the train split"),
        ([picture(), picture()], [0, None], "labels of the train split"),
        ([picture(), picture()], ["cat", "dog"], "labels of the train split"),
        ([picture(), picture()], [0.0, 1.9], "train split: row 1 has label 1.9"),
        ([1, 2], [0, 1], "'img' of the train split holds no images .* Store PNG or JPEG"),
    ],
)
def test_pictures_and_labels_that_are_none_are_one_line(
    images: list[Any], labels: list[Any], says: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"img": images, "label": labels}), tmp_path / f"{split}.parquet")
    with pytest.raises(MarshtestError, match=says) as raised:
        load("cifar10", str(tmp_path))
    assert "\n" not in str(raised.value)


def test_cifar10_is_read_from_folders_of_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for index, name in enumerate(("airplane", "automobile")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / "a.png")
    data = load("cifar10", str(tmp_path))
    assert data.train.x[:, 0, 0, 0].tolist() == data.train.y.tolist() == [0, 1]


def test_in_memory_images_are_normalised_by_their_own_statistics() -> None:
    x = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    data = Dataset.from_tensors((x, torch.arange(50) % 2), (x, torch.arange(50) % 2))
    channels = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert data.mean == pytest.approx(channels.mean(1), rel=1e-5)
    assert data.std == pytest.approx(channels.std(1, ddof=1), rel=1e-5)
    # What is given stays, and the other is theirs.
    y = torch.arange(50) % 2
    given = Dataset.from_tensors((x, y), (x, y), mean=[0.1, 0.2, 0.3])
    assert given.mean == (0.1, 0.2, 0.3)
    assert given.std == data.std


NAN = torch.tensor([[0.0], [float("nan")]])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (NAN, torch.tensor([0, 1]), "train: row 1 holds NaN or infinite values"),
        (torch.ones(2, 1), torch.tensor([0, 7]), r"train: row 1 has label 7; .* 0\.\.1"),
        (torch.ones(2, 1), torch.tensor([-1, 0]), "train: row 0 has label -1"),
        (torch.ones(3, 1), torch.tensor([0, 1]), "train: x has 3 rows and y 2 labels"),
        (torch.ones(0, 1), torch.ones(0, dtype=torch.int64), "train: x holds no samples"),
    ],
)
def test_bad_tensors_are_refused_with_their_row(
    x: torch.Tensor, y: torch.Tensor, says: str
) -> None:
    good = (torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(MarshtestError, match=says):
        Dataset.from_tensors((x, y), good, classes=2)


X = torch.tensor([[0.5, 1.0], [2.0, 3.0], [4.0, 5.25]])
LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.half(),
        X.double(),
        X.clone().requires_grad_(),
        X.numpy(),
        X.numpy().astype(">f8"),
        X.numpy()[::-1][::-1],
    ],
)
@pytest.mark.parametrize(
    "y",
    [
        LABELS,
        LABELS.int(),
        LABELS.bool(),
        LABELS.double(),
        LABELS[:, None],
        torch.nn.functional.one_hot(LABELS),
        torch.nn.functional.one_hot(LABELS).numpy().astype(np.float32),
        LABELS.numpy().astype(np.uint16),
    ],
)
def test_what_loses_nothing_is_converted(x: Any, y: Any) -> None:
    data = Dataset.from_tensors((x, y), (x, y))
    assert data.train.x.dtype == torch.float32
    assert torch.equal(data.train.x, X)
    assert torch.equal(data.train.y, LABELS)
    assert data.classes == 2


@pytest.mark.parametrize("kind", [torch.bool, torch.int16, torch.int64])
def test_whole_features_become_exact_floats(kind: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(kind)
    found = Dataset.from_tensors((x, LABELS), (x, LABELS)).train.x
    assert torch.equal(found.to(kind), x)


IMAGES = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X, torch.tensor([0.0, 0.3, 1.0]), "row 1 has label 0.3; labels must be class numbers"),
        (X, torch.tensor([[0.3, 0.7]] * 3), "row 0 of y is .* must be one-hot"),
        (X, torch.tensor([[0, 1], [1, 1], [1, 0]]), r"row 1 of y is \[1, 1\]"),
        (X, torch.tensor([-1, 1, 1]), "row 0 has label -1; labels must count from 0"),
        (
            X,
            torch.tensor([1, 2, 2]),
            "no sample has label 0. Count labels from 0, or give classes=3",
        ),
        (X, torch.tensor([0, 0, 0]), "all labels are 0"),
        (X, torch.tensor([0.0, torch.nan, 1.0]), "row 1 has label nan"),
        (X, LABELS[:, None, None], r"y has shape \[3, 1, 1\]"),
        (X, [0, 1, 1], "y is list; give a dense tensor or NumPy array"),
        (X[:, 0], LABELS, r"x has shape \[3\]; it must be \[N, ...\]"),
        (X[:, :0], LABELS, "at least one feature"),
        (X.to_sparse(), LABELS, "x is torch.float32; give a dense tensor"),
        (X.to(torch.complex64), LABELS, "x is torch.complex64"),
        (np.array([["a"], ["b"], ["c"]]), LABELS, "x is <U1; give a dense tensor"),
        (X.double() * 1e300, LABELS, "row 0 holds NaN or infinite"),
        (torch.full((3, 2), 2**24 + 1), LABELS, "integers above 16,777,216"),
        (torch.full((3, 2), -(2**63)), LABELS, "integers above 16,777,216"),
        (IMAGES, LABELS, r"looks like \[N, H, W, C\]"),
        (IMAGES[..., 0], LABELS, r"grey images \[N, 1, H, W\]"),
        (IMAGES[:, 0, 0], LABELS, "features in floating point"),
    ],
)
def test_what_could_mean_something_else_is_refused(x: Any, y: Any, says: str) -> None:
    with pytest.raises(MarshtestError, match=says):
        Dataset.from_tensors((x, y), (x, y))


def test_splits_and_scaling_must_go_together() -> None:
    with pytest.raises(MarshtestError, match="train and test differ in shape or type"):
        Dataset.from_tensors((X, LABELS), (X[:, :1], LABELS))
    images = IMAGES.permute(0, 3, 1, 2)
    with pytest.raises(MarshtestError, match="train and test differ in shape or type"):
        Dataset.from_tensors((images, LABELS), (images.float(), LABELS))
    with pytest.raises(
        MarshtestError, match="mean and std must be 3 finite numbers, one a channel"
    ):
        Dataset.from_tensors((images, LABELS), (images, LABELS), mean=[0.5], std=[0.5])
    with pytest.raises(MarshtestError, match="finite numbers"):
        Dataset.from_tensors(
            (images, LABELS), (images, LABELS), mean=[0.5] * 3, std=[torch.nan] * 3
        )
    with pytest.raises(MarshtestError, match="mean and std scale uint8 images"):
        Dataset.from_tensors((X, LABELS), (X, LABELS), mean=[0.5], std=[0.5])


def test_data_that_a_model_sees_otherwise_have_another_digest() -> None:
    """Not only the bytes: their kind, their shape, and what turns pixels into inputs."""
    images = IMAGES.permute(0, 3, 1, 2)
    data = Dataset.from_tensors((images, LABELS), (images, LABELS), mean=[0.5] * 3, std=[0.5] * 3)
    mean = Dataset.from_tensors((images, LABELS), (images, LABELS), mean=[0.4] * 3, std=[0.5] * 3)
    std = Dataset.from_tensors((images, LABELS), (images, LABELS), mean=[0.5] * 3, std=[0.4] * 3)
    classes = replace(data, classes=3)
    train = replace(data.train, x=data.train.x.reshape(3, 3, 4, 16))
    kind = replace(data.train, x=data.train.x.to(torch.int8))
    others = [mean, std, classes, replace(data, train=train), replace(data, train=kind)]
    assert len({digest(of) for of in [data, *others]}) == 6
    assert digest(data) == digest(replace(data, name="another"))


def test_missing_folders_and_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MarshtestError, match="unknown data set 'digit'. Did you mean 'digits'"):
        load("digit")
    with pytest.raises(MarshtestError, match="data.path: no folder '/no/such'"):
        load("cifar10", "/no/such")
    with pytest.raises(MarshtestError, match="holds neither train"):
        load("cifar10", str(tmp_path))
    for split in ("train", "test"):
        pq.write_table(pa.table({"picture": [1], "label": [0]}), tmp_path / f"{split}.parquet")
    with pytest.raises(MarshtestError, match=r"columns \['picture', 'label'\]; it needs 'img'"):
        load("cifar10", str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(MarshtestError, match="data: cannot read"):
        load("cifar10", str(tmp_path))


def test_tensors_come_back_from_their_file(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    train = (torch.randn(6, 3, generator=draws), torch.arange(6) % 3)
    data = Dataset.from_tensors(train, (train[0][:2], train[1][:2]), classes=3)
    path = tmp_path / "mine.safetensors"
    save_dataset(data, path)
    found = load("tensors", str(path), train=4)
    assert torch.equal(found.train.x, data.train.x[:4])
    assert torch.equal(found.test.y, data.test.y)
    assert found.classes == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_y": torch.arange(5)}, "tensors train: x has 6 rows and y 5 labels"),
        ({"test_x": torch.full((2, 3), torch.nan)}, "tensors test: row 0 holds NaN"),
        ({"test_y": None}, "test_y is missing"),
        ({"train_x": torch.tensor(1.0)}, "train_x is a single number"),
        ({"train_y": torch.arange(6) + 2**60}, f"tensors train: row 0 has label {2**60}"),
    ],
)
def test_bad_files_of_tensors_are_refused(
    change: dict[str, Tensor | None], said: str, tmp_path: Path
) -> None:
    whole: dict[str, Tensor | None] = {
        "train_x": torch.zeros(6, 3),
        "train_y": torch.arange(6) % 3,
        "test_x": torch.zeros(2, 3),
        "test_y": torch.arange(2),
    }
    path = tmp_path / "mine.safetensors"
    save_file({k: v for k, v in (whole | change).items() if v is not None}, str(path))
    with pytest.raises(MarshtestError, match=said):
        load("tensors", str(path))


def test_unsigned_tensors_are_read_as_numbers(tmp_path: Path) -> None:
    x = torch.arange(18).reshape(6, 3)
    parts = {"train_x": x.to(torch.uint32), "train_y": (torch.arange(6) % 3).to(torch.uint16)}
    parts |= {"test_x": parts["train_x"].clone(), "test_y": parts["train_y"].clone()}
    save_file(parts, str(tmp_path / "mine.safetensors"))
    found = load("tensors", str(tmp_path / "mine.safetensors"))
    assert torch.equal(found.train.x, x.float())
    assert found.train.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("no")
    with pytest.raises(MarshtestError, match="not a readable safetensors file"):
        load("tensors", str(tmp_path / "mine.safetensors"))
    with pytest.raises(MarshtestError, match="data.path: no file ''"):
        load("tensors")
