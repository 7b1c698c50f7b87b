"""What is read runs nothing: rows and recipes of others are looked at without importing what they name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY
from typer.testing import CliRunner

import marshtest
from marshtest.cli.app import app
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.comparison import compare
from marshtest.results.leaderboard import leaderboard
from marshtest.results.merging import read_all, read_one
from marshtest.results.summary import Results

pytestmark = pytest.mark.usefixtures("no_report", "quick_start")
EVIL = "an_evil_module"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that must not be imported."""
    (tmp_path / f"{EVIL}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_naming(results: Results, folder: Path, change: dict[str, Any]) -> Path:
    """The rows of a run whose recipe is said to be another, or to have further unlearners."""
    (of,) = results.runs
    about = dict(results.runs[of])
    further = {
        key: [*about["values"][key], *of] for key, of in change.items() if key == "unlearners"
    }
    about["values"] = {**about["values"], **change, **further}
    write_rows(results.rows, folder / "rows.parquet", {of: about})
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    "change",
    [
        {"unlearners": [[{"name": f"{EVIL}:fn", "source": "", "options": {}}]]},
        {"unlearners": [[{"name": f"{EVIL}:fn", "lr": 1}]]},
        {"model": {"name": f"{EVIL}:fn", "source": ""}},
        {"data": {"name": f"{EVIL}:fn", "source": ""}},
        {"data": {"name": "digits", "features": {"model": {"name": f"{EVIL}:fn"}}}},
        {"metrics": [{"name": f"{EVIL}:fn"}]},
    ],
)
def test_rows_import_nothing_that_they_name(
    change: dict[str, Any], tiny_run: Results, evil: Path
) -> None:
    file = rows_naming(tiny_run, evil / "run", change)
    Results.read(file)
    merged = marshtest.report(file, out=evil / "report")
    leaderboard(merged.results)
    compare(read_one(file), read_one(file))
    assert EVIL not in sys.modules


@pytest.mark.parametrize(
    "change", [{"unlearners": [f"{EVIL}:fn"]}, {"model": f"{EVIL}:fn"}, {"attack": f"{EVIL}:fn"}]
)
def test_short_forms_which_rows_never_hold_are_refused_and_not_imported(
    change: dict[str, Any], tiny_run: Results, evil: Path
) -> None:
    with pytest.raises(MarshtestError, match="recipe"):
        Results.read(rows_naming(tiny_run, evil / "run", change))
    assert EVIL not in sys.modules


@pytest.mark.parametrize("command", ["plan --pilot run", "compare run run", "leaderboard run"])
def test_commands_that_read_rows_import_nothing(
    command: str, tiny_run: Results, evil: Path
) -> None:
    rows_naming(tiny_run, evil / "run", {"unlearners": [f"{EVIL}:fn"], "model": f"{EVIL}:m"})
    CliRunner().invoke(app, command.split())
    assert EVIL not in sys.modules


def test_a_rows_file_whose_recipe_is_a_path_is_refused(tiny_run: Results, tmp_path: Path) -> None:
    (about,) = tiny_run.runs.values()
    rows = tiny_run.rows.assign(recipe="../../elsewhere")
    write_rows(rows, tmp_path / "rows.parquet", {"../../elsewhere": about})
    with pytest.raises(MarshtestError, match="elsewhere: String should match pattern"):
        read_all([tmp_path / "rows.parquet"])


@pytest.mark.parametrize("change", [{"unlearners": [f"{EVIL}:fn"]}, {"model": f"{EVIL}:fn"}])
def test_explain_imports_nothing_that_a_recipe_names(change: dict[str, Any], evil: Path) -> None:
    (evil / "theirs.yaml").write_text(json.dumps({**TINY, **change}))
    said = CliRunner().invoke(app, ["explain", "theirs.yaml"])
    assert said.exit_code == 0, said.output
    assert EVIL in said.output
    assert EVIL not in sys.modules
    assert ("cannot be told" in said.output) == ("model" in change)


def test_list_and_status_import_nothing(evil: Path) -> None:
    assert CliRunner().invoke(app, ["list"]).exit_code == 0
    assert EVIL not in sys.modules


def test_a_recipe_that_is_run_runs_what_it_names(evil: Path) -> None:
    with pytest.raises(MarshtestError, match="SystemExit: imported"):
        load_recipe({**TINY, "unlearners": [f"{EVIL}:fn"]})


def make(rate: float) -> Callable[..., Any]:
    def unlearner(
        model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
    ) -> Any:
        return task.train(retain, seed + int(100 * rate), budget)

    return unlearner


def module_level(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int, extra: int = 0
) -> Any:
    return task.train(retain, seed + extra, budget)


ONE = {**TINY, "seeds": 1, "unlearners": []}
NAMED = {**ONE, "unlearners": [{"name": f"{__name__}:module_level", "extra": 1}]}


def test_a_stored_recipe_with_a_callable_runs_again(tmp_path: Path) -> None:
    first = marshtest.run(NAMED, out=tmp_path / "one")
    again = marshtest.run(tmp_path / "one" / "recipe.yaml", out=tmp_path / "two")
    values = next(iter(read_file(tmp_path / "one").runs.values()))["values"]
    third = marshtest.run(Recipe.parse(values, ""), out=tmp_path / "three")
    for other in (again, third):
        assert other.recipe.hash == first.recipe.hash
        columns = ["unlearner", "hyperparameters", "test_accuracy", "rank_dependence"]
        pd.testing.assert_frame_equal(first.rows[columns], other.rows[columns], check_exact=True)


def test_a_stored_closure_must_be_given_and_takes_its_place(tmp_path: Path) -> None:
    first = marshtest.run(ONE, out=tmp_path / "one", unlearners=[make(0.1)])
    stored = tmp_path / "one" / "recipe.yaml"
    with pytest.raises(MarshtestError, match=r"cannot be imported. Give that callable: .*run\("):
        marshtest.run(stored, out=tmp_path / "two")
    with pytest.raises(MarshtestError, match="cannot be imported"):  # another of the same name
        marshtest.run(stored, out=tmp_path / "two", unlearners=[make(0.2)])
    assert not (tmp_path / "two").exists()
    again = marshtest.run(stored, out=tmp_path / "two", unlearners=[make(0.1)])
    assert again.recipe.hash == first.recipe.hash


def test_a_stored_callable_that_changed_is_refused_before_any_training(tmp_path: Path) -> None:
    recipe = load_recipe(NAMED)
    values = recipe.model_dump(mode="json")
    values["unlearners"][0][0]["source"] = "00000000"
    with pytest.raises(MarshtestError, match="is not what it was when this recipe was stored"):
        marshtest.run(values, out=tmp_path / "run")
    values["unlearners"][0][0]["source"] = ""
    assert load_recipe(values).hash == recipe.hash
    assert not (tmp_path / "run").exists()


def test_two_callables_of_one_name_are_two_entries(tmp_path: Path) -> None:
    results = marshtest.run(ONE, out=tmp_path / "run", unlearners=[make(0.1), make(0.2)])
    updated = results.rows[results.rows["role"] == "updated"]
    assert updated["hyperparameters"].nunique() == len(updated) == 2
    assert updated["entry"].tolist() == [0, 1]
    assert updated["flops"].nunique() == 1
    assert updated["rank_dependence"].nunique() == 2
    turned = marshtest.run(ONE, out=tmp_path / "turned", unlearners=[make(0.2), make(0.1)])
    other = turned.rows[turned.rows["role"] == "updated"]
    assert updated["rank_dependence"].tolist() == other["rank_dependence"].tolist()[::-1]
    with pytest.raises(MarshtestError, match="given twice with the same values"):
        marshtest.run(ONE, out=tmp_path / "twice", unlearners=[make(0.1), make(0.1)])


def test_a_factory_counts_in_the_hash_by_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import test_models

    recipe = {**TINY, "model": {"name": "test_models:make", "width": 9}}
    before = load_recipe(recipe)
    assert Recipe.parse(before.model_dump(mode="json"), "").imported().hash == before.hash
    monkeypatch.setattr(test_models, "make", lambda shape, classes, width: test_models.nn.ReLU())
    assert load_recipe(recipe).hash != before.hash
    with pytest.raises(MarshtestError, match="model.name: .*is not what it was"):
        Recipe.parse(before.model_dump(mode="json"), "").imported()


def test_a_run_says_that_it_was_done_already(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        marshtest.run(ONE, out=tmp_path / "run", progress=lambda share, text="": said.append(text))
    assert [text for text in said if "done already; nothing was run" in text] == [said[-1]]


def test_shipped_recipes_name_no_code() -> None:
    for kind in ("recipes", "sweeps", "hypotheses"):
        assert not [name for name, text in shipped(kind).items() if "pkg.mod" in text]


@pytest.mark.parametrize("spec", ["a:b:c", ":x", "a:", "1a:b", "a..b:c", "a:b.", "a b:c", ":"])
def test_what_can_never_be_imported_is_refused_as_it_is_read(spec: str) -> None:
    for change in ({"unlearners": [{"name": spec}]}, {"unlearners": [spec]}, {"model": spec}):
        with pytest.raises(MarshtestError, match="names no callable. Give 'pkg.mod:name'"):
            load_recipe({**TINY, **change})
    said = CliRunner().invoke(
        app, ["explain", "digits-gaussian", f'unlearners=[{{name: "{spec}"}}]']
    )
    assert said.exit_code == 2
    assert "names no callable" in " ".join(said.output.split())


@pytest.mark.parametrize("workers", ["0", "-2"])
def test_a_sweep_of_no_workers_is_refused(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["sweep", "digits-budgets", "--engine", "processes", "--workers", workers]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 2
    assert f"workers: must be at least 1. Got {workers}." in said.output
    assert not list(tmp_path.iterdir())
