"""How far models moved, and where to: closed forms, chance's law, and what a run records of it."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from torch import nn

import marshtest
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.shift import ALL, Shift, shifts
from marshtest.models.networks import MLP, ModelSettings, ResNet18
from marshtest.models.table import build
from marshtest.reporting.figures import figures_of
from marshtest.results.summary import Results
from marshtest.sweeps.jobs import jobs
from marshtest.sweeps.keys import Keys

IMAGE = (3, 8, 8)


def models(settings: ModelSettings, count: int) -> list[nn.Module]:
    return [build(settings, IMAGE, 10, seed) for seed in range(count)]


def between(start: nn.Module, end: nn.Module, share: float) -> nn.Module:
    """On the straight way from one model to another."""
    found = copy.deepcopy(start)
    with torch.no_grad():
        for p, goal in zip(found.parameters(), end.parameters()):
            p.lerp_(goal, share)
    return found


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_model_on_the_straight_way_has_gone_its_share_at_cosine_one(share: float) -> None:
    initial, retrained = models(ResNet18(width=4), 2)
    whole = shifts(retrained, initial, retrained)
    part = shifts(between(initial, retrained, share), initial, retrained)
    for all_of_it, some in zip(whole, part, strict=True):
        if all_of_it.l2 == 0:  # BatchNorm starts as it is in every model
            continue
        assert some.cosine == pytest.approx(1, abs=1e-6)
        assert some.l2 == pytest.approx(share * all_of_it.l2, rel=1e-5)
        assert some.l1 == pytest.approx(share * all_of_it.l1, rel=1e-5)
        assert some.left_l2 == pytest.approx((1 - share) * all_of_it.l2, rel=1e-5, abs=1e-6)
        assert some.left_l1 == pytest.approx((1 - share) * all_of_it.l1, rel=1e-5, abs=1e-6)


def test_layers_are_apart_and_make_up_the_model() -> None:
    initial, retrained = models(ResNet18(width=4), 2)
    whole, *layers = shifts(retrained, initial, retrained)
    assert whole.layer == ALL
    assert [layer.layer for layer in layers][:2] == ["conv1", "blocks.0.conv1"]
    assert layers[-1].layer == "fc"
    assert whole.parameters == sum(layer.parameters for layer in layers)
    assert whole.parameters == sum(p.numel() for p in initial.parameters())
    assert whole.l1 == pytest.approx(sum(layer.l1 for layer in layers))
    assert whole.l2 == pytest.approx(math.hypot(*(layer.l2 for layer in layers)))


def test_a_model_that_stayed_has_no_direction_and_buffers_do_not_count() -> None:
    initial, retrained = models(ResNet18(width=4), 2)
    stayed = copy.deepcopy(initial)
    for buffer in stayed.buffers():
        buffer.add_(1)
    needed = shifts(retrained, initial, retrained)
    for found, way in zip(shifts(stayed, initial, retrained), needed, strict=True):
        assert (found.l1, found.l2) == (0, 0)
        assert math.isnan(found.cosine)
        assert (found.left_l1, found.left_l2) == (way.l1, way.l2)


def test_three_independent_models_have_cosine_one_half() -> None:
    settings = MLP(width=256, depth=2)
    initial, retrained, reference = models(settings, 3)
    found = shifts(reference, initial, retrained)[0]
    # of independent, equally spread parameters: 1/2, with a deviation of at most 1 / √D
    assert found.cosine == pytest.approx(0.5, abs=5 / math.sqrt(found.parameters))
    assert found.l2 == pytest.approx(found.left_l2, rel=0.02)


def test_the_other_way_and_across() -> None:
    initial, retrained = models(MLP(width=4), 2)
    back = shifts(between(initial, retrained, -0.5), initial, retrained)[0]
    assert back.cosine == pytest.approx(-1)
    across = copy.deepcopy(initial)
    first, second = (next(model.parameters())[0] for model in (initial, retrained))
    way = (second - first).detach()
    with torch.no_grad():
        next(across.parameters())[0, :2] += torch.stack([-way[1], way[0]])
    assert shifts(across, initial, retrained)[0].cosine == pytest.approx(0, abs=1e-6)


def test_a_model_of_another_shape_has_no_shift() -> None:
    (initial,) = models(MLP(width=4), 1)
    (other,) = models(MLP(width=5), 1)
    assert shifts(other, initial, initial) == []


def test_a_model_that_is_one_layer_has_a_name_for_it() -> None:
    lines = shifts(nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2))
    assert [line.layer for line in lines] == [ALL, "Linear"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    recipe = TINY | {"reference": True, "unlearners": ["gd", {"name": "cfk", "k": 1}]}
    return marshtest.run(recipe, out=Path(tmp_path_factory.mktemp("shift")) / "run")


def test_a_run_records_every_models_shift_by_layer(run: Results) -> None:
    lines = pd.read_parquet(run.folder / "shifts.parquet")
    assert lines.columns.tolist()[-7:] == list(Shift._fields)
    by_model = lines.groupby(["seed", "role", "unlearner"])["layer"].unique()
    assert len(by_model) == 2 * 4
    assert all(layers.tolist() == [ALL, "1", "3"] for layers in by_model)
    retrained = lines[lines["role"] == "retrained"]
    assert retrained["cosine"].tolist() == pytest.approx([1.0] * 6)
    assert (retrained[["left_l1", "left_l2"]] == 0).all(axis=None)
    frozen = lines[(lines["unlearner"] == "cfk") & (lines["layer"] == "1")]
    assert frozen["l2"].tolist() == [0, 0]
    assert frozen["cosine"].isna().all()


def test_the_second_retrained_model_is_the_null_and_no_line_of_the_verdicts(run: Results) -> None:
    assert run.rows["role"].tolist().count("reference") == 2
    assert "reference" not in set(run.summary["role"])
    moved = run.moved.set_index(["role", "layer"])
    null, needed = moved.loc[("reference", ALL)], moved.loc[("retrained", ALL)]
    assert null["left_l2"] == pytest.approx(needed["l2"], rel=0.1)
    plain = load_recipe(TINY)
    asked = load_recipe(TINY | {"reference": True})
    for recipe, extra in ((plain, 0), (asked, 1)):
        todo = [job.kind for job in jobs(Keys(recipe), keep_models=False)]
        assert todo.count("train") == 2 * (2 + extra)


def test_means_and_shares_of_the_way_are_those_of_the_lines(run: Results) -> None:
    lines = pd.read_parquet(run.folder / "shifts.parquet")
    lines = lines.set_index(["unlearner", "layer", "seed"]).sort_index()
    moved = run.moved.set_index(["unlearner", "layer"])
    needed = lines[lines["role"] == "retrained"].loc["retrain (full)", "l2"]
    for layer in (ALL, "1", "3"):
        own = lines.loc[("gd", layer), "l2"]
        share = (own / needed[layer]).to_numpy()
        line = moved.loc[("gd", layer)]
        assert line["l2"] == pytest.approx(own.mean())
        assert line["travelled"] == pytest.approx(share.mean())
        assert line["travelled_sd"] == pytest.approx(np.std(share, ddof=1))
    saved = pd.read_csv(run.folder / "shifts.csv")
    assert saved["cosine"].tolist() == pytest.approx(run.moved["cosine"].tolist(), nan_ok=True)


def test_the_report_shows_shifts_where_a_run_has_them(run: Results) -> None:
    text = (run.folder / "summary.md").read_text()
    assert "| second retrained |" in text
    assert (run.folder / "figures" / "shift.png").is_file()
    panels = figures_of(run, 0.2)["shift"].axes
    names = [tick.get_text() for tick in panels[0].get_yticklabels()]
    assert names == ["second retrained", "GD", "CFk"]
    older = replace(run, shifts=pd.DataFrame())  # rows that came without
    assert older.moved.empty
    assert "shift" not in figures_of(older, 0.2)
