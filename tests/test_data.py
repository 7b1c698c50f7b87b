"""Samples keep their ids; loaders read what they claim and refuse what they cannot."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from marshtest.data import Dataset, Samples, load, save_dataset
from marshtest.errors import MarshtestError
from marshtest.sources import digest


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
    samples = some().shifted(torch.tensor([40, 10]), torch.tensor([[4.0, 4.0], [1.0, 1.0]]))
    shift = samples.only(torch.tensor([10, 20, 40])).shift()
    assert shift is not None
    assert shift.tolist() == [[1.0, 1.0], [0.0, 0.0], [4.0, 4.0]]


def test_shifting_an_unknown_id_or_twice_is_refused() -> None:
    with pytest.raises(MarshtestError, match="not in the set"):
        some().shifted(torch.tensor([11]), torch.ones(1, 2))
    with pytest.raises(MarshtestError, match="carries shifts already"):
        some().shifted(torch.tensor([10]), torch.ones(1, 2)).shifted(
            torch.tensor([10]), torch.ones(1, 2)
        )


def test_digits_are_scikit_learns_all_of_them_once() -> None:
    data = load("digits")
    ours = torch.cat([data.train.x, data.test.x]).flatten(1)
    theirs = (load_digits().images.reshape(-1, 64) * 255 / 16).round().astype(np.uint8)
    assert data.train.x.dtype == torch.uint8
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def write_cifar(folder: Path, rows: int = 5) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        encoded = []
        for image in pixels:
            file = folder / "one.png"
            Image.fromarray(image).save(file)
            encoded.append({"bytes": file.read_bytes(), "path": None})
            file.unlink()
        labels = pa.array([i % 10 for i in range(rows)], pa.int64())
        pq.write_table(
            pa.table({"img": encoded, "label": labels}), folder / f"{split}-00000.parquet"
        )
    return pixels


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


NAN = torch.tensor([[0.0], [float("nan")]])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (NAN, torch.tensor([0, 1]), "train: row 1 holds NaN or infinite values"),
        (torch.ones(2, 1), torch.tensor([0, 7]), r"train: row 1 has label 7; .* 0\.\.1"),
        (torch.ones(2, 1), torch.tensor([-1, 0]), "train: row 0 has label -1"),
        (torch.ones(3, 1), torch.tensor([0, 1]), "train: 3 rows of x and 2 labels"),
        (torch.ones(0, 1), torch.ones(0, dtype=torch.int64), "train: no samples"),
    ],
)
def test_bad_tensors_are_refused_with_their_row(
    x: torch.Tensor, y: torch.Tensor, says: str
) -> None:
    good = (torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(MarshtestError, match=says):
        Dataset.from_tensors((x, y), good, classes=2)


X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def split_of(x: Any, y: Any) -> Dataset:
    return Dataset.from_tensors((x[:6], y[:6]), (x[6:], y[6:]))


@pytest.mark.parametrize(
    "y",
    [
        Y.to(torch.int32),
        Y.bool(),
        Y.to(torch.uint8),
        Y.float(),
        Y[:, None],
        Y[:, None].float(),
        torch.nn.functional.one_hot(Y),
        torch.nn.functional.one_hot(Y).double(),
        Y.numpy(),
        Y.tolist(),
    ],
)
def test_labels_of_any_spelling_are_the_same_labels(y: Any) -> None:
    data = split_of(X, y)
    assert torch.equal(torch.cat([data.train.y, data.test.y]), Y)
    assert (data.train.y.dtype, data.classes) == (torch.int64, 2)


@pytest.mark.parametrize(
    "x",
    [X.double(), X.numpy(), X.double().numpy(), X.half(), (X * 10).long(), X > 0, X.tolist(),
     X.requires_grad_(), X[:, :1].long()],
)  # fmt: skip
def test_numbers_of_any_kind_are_the_same_numbers(x: Any) -> None:
    data = split_of(x, Y)
    expected = torch.as_tensor(x).detach().to(torch.float32)
    assert torch.equal(torch.cat([data.train.x, data.test.x]), expected)
    assert data.train.x.dtype == torch.float32
    assert (data.mean, data.train.x.requires_grad) == (None, False)


PIXELS = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X, X[:, 0].abs(), "train: row 0 has label .*; labels are whole numbers"),
        (X, Y * 0.4 + 0.3, r"train: row 0 has label 0\.3; labels are whole numbers"),
        (X, torch.tensor([[0.3, 0.7]] * 8), "train: row 0 has several or soft labels"),
        (X, torch.tensor([[1, 1, 0]] * 8), "train: row 0 has several or soft labels"),
        (X, torch.full((8,), torch.nan), "train: row 0 has label nan"),
        (X, Y[:, None, None], r"train y: is \[6, 1, 1\]; labels are \[N\]"),
        (X, 2 * Y - 1, r"its labels are \[-1, 1\].*counted from 0. Renumber them"),
        (X, Y + 1, r"its labels are \[1, 2\].*Renumber them"),
        (X, Y * 0, r"its labels are \[0\]; two classes are needed"),
        (X[:, 0], Y, r"train x: is \[6\]; it must be \[N, ...\]"),
        (X[:, :0], Y, "train x: is"),
        (X.to(torch.complex64), Y, "train x: is a tensor of torch.complex64"),
        (X.to_sparse(), Y, "x: is a tensor of|sparse"),
        ((X * 0).long() + 2**24 + 1, Y, "integers that float32 cannot hold"),
        (X.double() * 1e300, Y, "row 0 holds NaN or infinite"),
        ([["a"]] * 8, Y, "train x: is no tensor or array of numbers"),
        (PIXELS[:, 0], Y, r"pixels are \[N, C, H, W\].*give x\[:, None\]"),
        (PIXELS.permute(0, 2, 3, 1), Y, r"give x.permute\(0, 3, 1, 2\)"),
    ],
)
def test_what_is_no_data_of_classes_is_refused(x: Any, y: Any, says: str) -> None:
    if isinstance(x, Tensor) and x.is_sparse:
        with pytest.raises(MarshtestError, match=says):
            Dataset.from_tensors((x, Y), (x, Y))
        return
    with pytest.raises(MarshtestError, match=f"in-memory.*{says}") as error:
        split_of(x, y)
    assert "\n" not in str(error.value)


def test_splits_must_be_alike_and_statistics_fit() -> None:
    with pytest.raises(MarshtestError, match=r"train are torch.float32 \[3\] and of test .* \[2\]"):
        Dataset.from_tensors((X, Y), (X[:, :2], Y))
    with pytest.raises(MarshtestError, match="train are torch.uint8 .* and of test torch.float32"):
        Dataset.from_tensors((PIXELS, Y), (PIXELS.float(), Y))
    with pytest.raises(MarshtestError, match=r"one number a channel \(3\)"):
        Dataset.from_tensors((PIXELS, Y), (PIXELS, Y), mean=[0.5], std=[0.5])
    with pytest.raises(MarshtestError, match="std above zero"):
        Dataset.from_tensors((PIXELS, Y), (PIXELS, Y), mean=[0.5] * 3, std=[0.5, 0.5, 0])
    with pytest.raises(MarshtestError, match="mean and std are of uint8 pixels"):
        Dataset.from_tensors((X, Y), (X, Y), mean=[0.5] * 3, std=[0.5] * 3)


def test_data_that_a_model_sees_otherwise_have_another_digest() -> None:
    """Not only the bytes: their kind, their shape, and what turns pixels into inputs."""
    data = Dataset.from_tensors((PIXELS, Y), (PIXELS, Y), mean=[0.5] * 3, std=[0.5] * 3)
    mean = Dataset.from_tensors((PIXELS, Y), (PIXELS, Y), mean=[0.4] * 3, std=[0.5] * 3)
    std = Dataset.from_tensors((PIXELS, Y), (PIXELS, Y), mean=[0.5] * 3, std=[0.4] * 3)
    classes = replace(data, classes=3)
    train = replace(data.train, x=data.train.x.reshape(8, 3, 2, 8))
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
        ({"train_y": torch.arange(5)}, "tensors train: 6 rows of x and 5 labels"),
        ({"test_x": torch.full((2, 3), torch.nan)}, "tensors test: row 0 holds NaN"),
        ({"test_y": None}, "test_y is missing"),
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


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_text("no")
    with pytest.raises(MarshtestError, match="not a readable safetensors file"):
        load("tensors", str(tmp_path / "mine.safetensors"))
    with pytest.raises(MarshtestError, match="data.path: no file ''"):
        load("tensors")
