"""Models unlearned elsewhere: what is handed out suffices, what comes back is judged like any other."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

import marshtest
from marshtest.experiment.recipe import load_recipe
from marshtest.models.checkpoint import load_model
from marshtest.models.networks import MLP
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.tables import explained
from marshtest.results.leaderboard import leaderboard
from marshtest.results.summary import Results


def run(out: str, **change: Any) -> Results:
    """In the working folder."""
    entry = {"name": "outside", "folder": "exchange"}
    recipe = {**TINY, "seeds": 1, "unlearners": [entry, "gd"], **change}
    return marshtest.run(recipe, out=out, report=False)


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a first run has handed its model out, and waits."""
    folder = tmp_path_factory.mktemp("outside")
    with contextlib.chdir(folder):
        run("first")
    return folder


@pytest.fixture
def exchange(handed_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was handed out, in a working folder that is a copy."""
    shutil.copytree(handed_out, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("exchange")


def line(results: Results, unlearner: str) -> dict[str, Any]:
    rows = results.rows[results.rows["unlearner"] == unlearner]
    assert len(rows) == 1
    return dict(rows.iloc[0])


def answer_with_what_was_given(exchange: Path) -> None:
    for place in exchange.iterdir():
        model = load_model(place / "initial.safetensors")
        save_file(model.state_dict(), place / "updated.safetensors")


def test_a_model_that_comes_back_as_it_went_is_the_initial_one(exchange: Path) -> None:
    waiting = line(Results.read("first"), "outside")
    assert "updated.safetensors, the model after unlearning" in waiting["note"]
    answer_with_what_was_given(exchange)
    results = run("second")
    outside, initial = line(results, "outside"), line(results, "none")
    for column in ("test_accuracy", "gus_dependence", "rank_dependence"):
        assert outside[column] == initial[column]
    assert outside["passes"] == 0
    summary = results.summary.set_index("unlearner")
    assert summary.loc["outside", "verdict"] == summary.loc["none", "verdict"]


def test_what_is_handed_out_suffices_to_retrain(exchange: Path) -> None:
    """Somebody who has the files alone trains a new model on the retain set, and it is judged."""
    (place,) = exchange.iterdir()
    retain, forget = (load_file(place / f"{name}.safetensors") for name in ("retain", "forget"))
    assert (len(retain["y"]), len(forget["y"])) == (160, 40)
    assert not set(retain["ids"].tolist()) & set(forget["ids"].tolist())
    torch.manual_seed(0)
    model = MLP(width=32).build(tuple(retain["x"].shape[1:]), 10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(retain["x"]), retain["y"]).backward()
        optimizer.step()
    save_file(model.state_dict(), place / "updated.safetensors")
    found = line(run("second"), "outside")
    assert found["test_accuracy"] > 0.7
    assert abs(found["rank_dependence"]) < 4 * found["rank_error"]


def test_the_same_command_goes_on_with_the_answers(exchange: Path) -> None:
    """In the folder that waits: models are there already, and answered rows replace those that waited."""
    waiting = Results.read("first")
    assert "there is no model to be asked (waits for" in " ".join(explained(waiting))
    answer_with_what_was_given(exchange)
    results = run("first")
    assert line(results, "outside")["note"] == ""
    assert line(results, "outside")["rank_dependence"] == line(results, "none")["rank_dependence"]
    assert line(results, "none")["seconds"] == line(waiting, "none")["seconds"]  # not trained again
    board = leaderboard([waiting, results]).set_index("unlearner")
    assert "outside" in board.index


def test_another_answer_is_another_experiment(exchange: Path) -> None:
    answer_with_what_was_given(exchange)
    run("second")
    (place,) = exchange.iterdir()
    weights = load_file(place / "updated.safetensors")
    save_file({name: 0 * of for name, of in weights.items()}, place / "updated.safetensors")
    with pytest.raises(
        MarshtestError, match="second: holds results of this recipe with other code"
    ):
        run("second")
    with pytest.raises(MarshtestError, match="not those that this recipe was stored with"):
        load_recipe("second/recipe.yaml")


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_an_answer_that_is_no_such_model_is_one_line_in_its_row(
    content: bytes | None, exchange: Path
) -> None:
    (place,) = exchange.iterdir()
    if content is None:
        save_file({"weight": torch.zeros(3)}, place / "updated.safetensors")
    else:
        (place / "updated.safetensors").write_bytes(content)
    note = line(run("second"), "outside")["note"]
    assert "holds no weights of this model" in note


def test_a_clean_twin_is_handed_out_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attack = {"name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 2}
    run("first", attack=attack, poison_budgets=0.1)
    assert len(list(Path("exchange").iterdir())) == 2


def test_a_folder_is_read_with_the_recipe(tmp_path: Path) -> None:
    recipe = {**TINY, "unlearners": [{"name": "outside", "folder": str(tmp_path)}]}
    assert load_recipe(recipe).unlearners[0][0].hyperparameters["answers"] == ""
