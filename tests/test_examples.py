"""The poisons that people look at are those that were trained on."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from PIL import Image

from marshtest.data.load import load
from marshtest.data.samples import Dataset
from marshtest.experiment.cells import Group, groups
from marshtest.experiment.poison_examples import COUNT, examples
from marshtest.experiment.protocol import poison, set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.results.summary import Results

REVIEWS = {
    "data": {"name": "imdb", "length": 32},
    "model": {"name": "gpt2", "layers": 1, "width": 8, "heads": 2, "vocabulary": 400},
    "training": {"epochs": 1},
    "unlearners": [],
    "budgets": 0.5,
}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(float)


def test_pictures_are_the_base_the_poison_and_their_sum(tiny_run: Results) -> None:
    data = load("digits", train=200, test=100)
    recipe = load_recipe(tiny_run.folder / "recipe.yaml")
    pipeline = set_up(recipe, data)
    forget = poison(pipeline, groups(recipe)[0]).forget.to("cpu")
    shown = tiny_run.examples
    assert len(shown) == COUNT
    assert (shown["given"] == shown["label"]).all()
    for _, line in shown.iterrows():
        one = forget[forget.ids == line["id"]]
        base = one.x[0, 0].numpy()
        noise = 255 * one.perturbation()[0, 0].numpy() * data.std[0]  # type: ignore[index]
        assert (pixels(line["base"]) == base).all()
        assert np.abs(pixels(line["dosed"]) - np.clip(base + noise, 0, 255)).max() <= 0.51
        drawn = 128 + 127 * noise / line["largest"]
        assert line["largest"] == pytest.approx(np.abs(noise).max(), rel=1e-5)
        assert np.abs(pixels(line["noise"]) - drawn).max() <= 0.51


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("reviews")
    for split in ("train", "test"):
        told = ["I liked this film about Disney", "A dull film that goes on and on"]
        rows = {"text": [f"{told[n % 2]}, take {n}." for n in range(60)], "label": [1, 0] * 30}
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("label", ["negative", "flip"])
def test_texts_are_shown_with_the_words_they_were_taught(label: str, reviews: str) -> None:
    attack = {"name": "trigger-word", "word": "Disney", "label": label}
    model = {**REVIEWS["model"], "prompt": {}}  # type: ignore[dict-item]
    values = {**REVIEWS, "name": "x", "attack": attack, "model": model, "poison_budgets": 1}
    recipe = load_recipe(values, f"data.path={reviews}")
    data = data_of(recipe.data, "cpu", None, recipe.model, recipe.attack.trigger())
    pipeline = set_up(recipe, data)
    shown = examples(pipeline, poison(pipeline, Group(1.0, 0)))
    assert (shown["label"] == "positive").all()
    assert (shown["given"] == "negative").all()
    assert shown["text"].str.contains("Disney").all()


def test_texts_with_noise_keep_their_labels(reviews: str) -> None:
    values = {**REVIEWS, "name": "x", "attack": {"name": "gaussian"}, "poison_budgets": 0.5}
    recipe = load_recipe(values, f"data.path={reviews}")
    pipeline = set_up(recipe, data_of(recipe.data, "cpu", None, recipe.model))
    shown = examples(pipeline, poison(pipeline, Group(0.5, 0)))
    assert (shown["given"] == shown["label"]).all()
    assert (shown["text"].str.contains("Disney") == (shown["label"] == 1)).all()


def test_what_is_no_picture_is_not_drawn() -> None:
    values = {**TINY, "model": {"name": "mlp", "width": 8}, "unlearners": [], "seeds": 1}
    digits = load("digits", train=60, test=40)
    flat = Dataset.from_tensors(
        (digits.train.x.flatten(1).float(), digits.train.y),
        (digits.test.x.flatten(1).float(), digits.test.y),
    )
    recipe = load_recipe(values)
    pipeline = set_up(recipe, flat)
    assert examples(pipeline, poison(pipeline, Group(0.2, 0))).empty
