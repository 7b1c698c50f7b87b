"""Features: what the last layer of a network trained on other samples is given."""

import pytest
import torch
from torch import nn

from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples
from marshtest.experiment.features import FeatureSettings, apart, by_features, featured, network
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.plumbing.errors import MarshtestError

CPU = torch.device("cpu")
SETTINGS = FeatureSettings.parse(
    {"model": {"name": "mlp", "width": 24}, "training": {"epochs": 3, "lr": 0.1}, "train": 400},
    "data.features",
)


@pytest.fixture(scope="module")
def split() -> tuple[Dataset, Samples]:
    return apart(load("digits"), 400)


def test_features_are_the_last_layers_inputs_standardised(split: tuple[Dataset, Samples]) -> None:
    data, others = split
    model, task = network(data, SETTINGS, CPU)
    assert isinstance(model, nn.Sequential)
    found = by_features(data, others, model, task)

    def hidden(samples: Samples) -> torch.Tensor:
        return model[:-1](task.inputs(model, samples)).detach()

    known = hidden(others)
    expected = (hidden(data.test) - known.mean(0)) / known.std(0).clamp(min=1e-6)
    torch.testing.assert_close(found.test.x, expected)
    assert found.train.x.shape == (1000, 24)
    assert torch.equal(found.train.y, data.train.y)
    assert torch.equal(found.train.ids, data.train.ids)
    assert (found.mean, found.std) == (None, None)


def test_the_network_is_trained_on_the_other_samples_only(split: tuple[Dataset, Samples]) -> None:
    data, others = split
    assert not set(others.ids.tolist()) & set(data.train.ids.tolist())
    assert len(others) == 400
    one, two = (featured(data, others, SETTINGS, CPU) for _ in range(2))
    assert torch.equal(one.train.x, two.train.x)
    untrained = by_features(data, others, *network(data, SETTINGS, CPU))
    assert not torch.equal(one.train.x, untrained.train.x)
    with pytest.raises(MarshtestError, match="asks for 1000 rows"):
        apart(data, 1000)


def test_a_recipe_takes_rows_after_its_own_for_the_network() -> None:
    features = SETTINGS.model_dump()
    base = {
        "model": {"name": "mlp", "depth": 0},
        "training": {"epochs": 1},
        "attack": "gaussian",
        "poison_budgets": 0.1,
        "unlearners": [],
        "budgets": 0.1,
    }
    recipe = load_recipe({**base, "data": {"name": "digits", "train": 300, "features": features}})
    data = data_of(recipe.data, "cpu")
    assert data.train.ids.tolist() == list(range(300))
    assert data.train.x.shape == (300, 24)
    assert data.test.x.shape == (397, 24)


def test_by_default_the_network_is_trained_on_the_experiments_own_samples() -> None:
    settings = load_recipe(
        {
            "model": "mlp",
            "training": {"epochs": 1},
            "attack": "gaussian",
            "poison_budgets": 0.1,
            "unlearners": [],
            "budgets": 0.1,
            "data": {"name": "digits", "train": 300},
        }
    ).data
    features = {key: value for key, value in SETTINGS.model_dump().items() if key != "train"}
    own = settings.model_copy(update={"features": FeatureSettings.parse(features, "")})
    data = data_of(own, "cpu")
    assert len(data.train) == 300
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(24), rtol=0, atol=1e-5)
    raw = load("digits", train=300)
    expected = featured(raw, raw.train, own.features, CPU) if own.features else raw
    assert torch.equal(data.train.x, expected.train.x)


def test_a_grid_gives_the_feature_map_and_a_grid_of_one_its_mean() -> None:
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    y = torch.arange(20) % 10
    data = Dataset.from_tensors((images, y), (images[:5], y[:5]), classes=10)
    settings = FeatureSettings.parse(
        {"model": {"name": "resnet18", "width": 8}, "training": {"epochs": 1}, "grid": (4, 2)}, ""
    )
    model, task = network(data, settings, CPU)
    pooled = by_features(data, data.train, model, task)
    one = by_features(data, data.train, model, task, (1, 1))
    assert pooled.train.x.shape == (20, 64)
    torch.testing.assert_close(one.train.x, pooled.train.x, rtol=1e-4, atol=1e-4)
    assert by_features(data, data.train, model, task, settings.grid).train.x.shape == (20, 64 * 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(MarshtestError, match="only resnet18 has a feature map"):
        by_features(data, data.train, flat, task, (1, 1))
