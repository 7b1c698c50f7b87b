"""Rows of others: whatever is wrong with them is one line that names the column, or the key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from typer.testing import CliRunner

from marshtest.attacks import ATTACKS
from marshtest.cli.app import app
from marshtest.experiment.cells import measured
from marshtest.experiment.columns import ROLES
from marshtest.experiment.recipe import Recipe
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.write import write_report
from marshtest.results.leaderboard import leaderboard
from marshtest.results.merging import read_all
from marshtest.results.summary import Results

REPRODUCED = Path(__file__).parents[1] / "docs" / "reproduce"
GIVE = "Give the rows as they were written."


def column(name: str, value: Any, row: int | None = None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Another value in all rows, or in one."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[name].tolist()
        rows = range(len(values)) if row is None else [row]
        for place in rows:
            values[place] = value
        return frame.assign(**{name: pd.Series(values, frame.index)})

    return change


COLUMNS: list[tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = [
    ("'seed' .*'zz' in row 0; it must be a whole number", column("seed", "zz")),
    ("'test_accuracy' .*'x' in row 0; it must be a share", column("test_accuracy", "x")),
    ("'test_accuracy' .*inf in row 2; it must be a share", column("test_accuracy", np.inf, 2)),
    ("'spent' .*-1.0 in row 2; it must be a finite number from 0", column("spent", -1.0, 2)),
    ("'poison_budget' .*'x' in row 0", column("poison_budget", "x")),
    ("'budget' .*'x' in row 0", column("budget", "x")),
    (
        "'hyperparameters' .*'{not json' in row 3; it must be a JSON object",
        column("hyperparameters", "{not json", 3),
    ),
    ("has no column 'tpr'", lambda frame: frame.drop(columns="tpr")),
    ("has no column 'rank_p'", lambda frame: frame.drop(columns="rank_p")),
    (
        r"'unlearner' \(object\) holds .*'a'.* in row 0; it must be text",
        lambda frame: frame.assign(unlearner=[["a"]] * len(frame)),
    ),
    ("'role' .*'king' in row 1; it must be one of initial, ", column("role", "king", 1)),
    # further ones of the same kind
    ("'hyperparameters' .*'7' in row 0", column("hyperparameters", "7")),
    ("'recipe' .*7 in row 0; it must be text", column("recipe", 7)),
    ("'note' .*None|'note' .*nan in row 1", column("note", None, 1)),
    ("'seed' .*0.5 in row 0", column("seed", 0.5)),
    ("'seed' .*-1 in row 0", column("seed", -1)),
    (
        "'seed' .*holds .* in row 0",
        lambda frame: frame.assign(seed=frame["seed"].astype("Int64")),
    ),
    ("'seed' .*True in row 0", column("seed", True)),
    ("'test_accuracy' .*1.5 in row 4", column("test_accuracy", 1.5, 4)),
    ("'budget' .*nan in row 2", column("budget", np.nan, 2)),
    ("'gus_dependence' .*-inf in row 2", column("gus_dependence", -np.inf, 2)),
    ("'gus_poisons' .*2.5 in row 0", column("gus_poisons", 2.5)),
    ("'gus_tail' holds nothing in row 2", column("gus_tail", np.nan, 2)),
    ("'chance' .*'a' in row 0", column("chance", "a")),
    ("'forget_size' .*0 in row 0", column("forget_size", 0)),
    ("has no column 'forget_size'", lambda frame: frame.drop(columns="forget_size")),
    ("'twin_same' .*'no' in row 0", lambda frame: frame.assign(twin_same="no")),
]


def key(name: str, value: Any = None) -> Callable[[dict[str, Any]], Any]:
    """Another value of the metadata, or none."""

    def change(told: dict[str, Any]) -> None:
        *above, last = name.split(".")
        for part in above:
            told = next(iter(told.values())) if part == "*" else told[part]
        told.pop(last) if value is None else told.update({last: value})

    return change


METADATA: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("metadata format: .*integer. Got 'x'", key("format", "x")),
    ("metadata kind: .*'recipe' or 'hypothesis'. Got 'zz'", key("kind", "zz")),
    ("metadata kind: Field required", key("kind")),
    ("metadata runs.aaaaaaaa.values: Field required", key("runs", {"aaaaaaaa": {}})),
    ("metadata runs.aaaaaaaa: .*Got 7", key("runs", {"aaaaaaaa": 7})),
    ("metadata runs.*data: .*string. Got 5", key("runs.*.data", 5)),
    (r"metadata runs.*algorithm: .*integer. Got \[1\]", key("runs.*.algorithm", [1])),
    ("metadata runs.*started: .*string. Got 7", key("runs.*.started", 7)),
    # further ones of the same kind
    ("metadata runs: Field required", key("runs")),
    ("metadata runs: .*dictionary. Got 'x'", key("runs", "x")),
    ("metadata runs: .*at least 1", key("runs", {})),
    ("metadata runs.elsewhere: .*pattern", key("runs", {"elsewhere": {}})),
    ("metadata format: .*integer. Got 2.5", key("format", 2.5)),
    ("metadata format: .*integer. Got True", key("format", True)),
    ("metadata runs.*machine: .*string", key("runs.*.machine", {})),
    ("metadata runs.*values: .*dictionary", key("runs.*.values", [])),
]


def written(folder: Path, frame: pd.DataFrame, told: dict[str, Any]) -> Path:
    frame = frame.copy()
    frame.attrs = {"marshtest": told}
    folder.mkdir(exist_ok=True)
    frame.to_parquet(folder / "rows.parquet")
    return folder


def told_by(results: Results) -> tuple[pd.DataFrame, dict[str, Any]]:
    frame = pd.read_parquet(results.folder / "rows.parquet")
    told: dict[str, Any] = json.loads(json.dumps(frame.attrs["marshtest"]))
    return frame, told


@pytest.mark.parametrize(("says", "change"), COLUMNS)
def test_columns_that_hold_something_else_are_named(
    says: str,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    tiny_run: Results,
    tmp_path: Path,
) -> None:
    frame, told = told_by(tiny_run)
    folder = written(tmp_path / "bad", change(frame), told)
    with pytest.raises(MarshtestError, match=says) as refused:
        Results.read(folder)
    assert str(refused.value).startswith(f"{folder / 'rows.parquet'}: ")
    assert str(refused.value).endswith(GIVE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("says", "change"), METADATA)
def test_metadata_that_say_something_else_are_named(
    says: str, change: Callable[[dict[str, Any]], Any], tiny_run: Results, tmp_path: Path
) -> None:
    frame, told = told_by(tiny_run)
    change(told)
    folder = written(tmp_path / "bad", frame, told)
    with pytest.raises(MarshtestError, match=says) as refused:
        Results.read(folder)
    assert str(refused.value).endswith(GIVE)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).replace(str(folder), "")) < 250


@pytest.mark.parametrize(
    "command",
    [["report", "--out", "out"], ["leaderboard"], ["compare", "same"], ["plan", "--pilot"]],
)
def test_every_command_that_reads_rows_says_so_in_one_line(
    command: list[str], tiny_run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, told = told_by(tiny_run)
    folder = written(tmp_path / "bad", column("role", "king", 1)(frame), told)
    given = [str(tiny_run.folder) if part == "same" else part for part in command]
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, [*given, str(folder)])
    assert said.exit_code == 2
    assert "column 'role' (str) holds 'king' in row 1" in " ".join(said.output.split())
    assert "Traceback" not in said.output


@pytest.mark.slow
@pytest.mark.parametrize("run", ["tiny_run"])
def test_rows_without_any_one_column_are_refused_or_reported_whole(
    run: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    frame, told = told_by(request.getfixturevalue(run))
    refused = set()
    for name in frame.columns:
        folder = written(tmp_path / name, frame.drop(columns=name), told)
        try:
            results = Results.read(folder)
        except MarshtestError as error:
            assert f"'{name}'" in str(error)  # noqa: PT017
            refused.add(name)
        else:
            assert not results.summary.empty
            leaderboard([results])
    assert {"role", "test_accuracy", "chance"} < refused


def test_files_beside_the_rows_are_looked_at_too(tiny_run: Results, tmp_path: Path) -> None:
    frame, told = told_by(tiny_run)
    for name, change, says in (
        ("scores", column("rank", "x"), r"scores.parquet: column 'rank' .*'x' in row 0"),
        ("scores", lambda of: of.drop(columns="seed"), "scores.parquet: .*no column 'seed'"),
        ("shifts", column("layer", 3), "shifts.parquet: column 'layer' .*3 in row 0"),
        ("shifts", lambda of: of.drop(columns="l2"), "shifts.parquet: .*no column 'l2'"),
    ):
        folder = written(tmp_path / "run", frame, told)
        beside = pd.read_parquet(tiny_run.folder / f"{name}.parquet")
        change(beside).to_parquet(folder / f"{name}.parquet")
        with pytest.raises(MarshtestError, match=says):
            Results.read(folder)
        (folder / f"{name}.parquet").unlink()


@pytest.mark.slow
def test_scores_of_which_a_part_was_kept_are_drawn_as_far_as_they_go(
    tiny_run: Results, tmp_path: Path
) -> None:
    folder = written(tmp_path / "run", *told_by(tiny_run))
    kept = pd.read_parquet(tiny_run.folder / "scores.parquet").drop(columns=["id", "rank"])
    kept.to_parquet(folder / "scores.parquet")
    write_report(Results.read(folder))
    assert (folder / "figures" / "figure6.png").exists()
    assert "rank score" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_rows_that_lie_in_the_project_are_read() -> None:
    for file in sorted(REPRODUCED.glob("*/rows.parquet")):
        read = read_all([file.parent])
        kept = [len(part.rows) for part in (*read.results, *read.studies)]
        assert sum(kept) == len(pd.read_parquet(file)), file
        differ = {"cifar10-scale", "digits-canceling-rules"}  # sweeps, whose settings differ
        assert len(kept) == 1 or file.parent.name in differ, file


def test_every_role_of_a_recipe_is_known() -> None:
    for attack in ATTACKS:
        recipe = Recipe.parse({**TINY, "attack": attack, "reference": True}, "")
        assert set(measured(recipe)) | {"updated"} <= set(ROLES)
