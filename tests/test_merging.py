"""Files of rows: what they say of themselves, what is merged, what is kept apart, what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import TINY
from scipy.stats import binomtest

import marshtest
from marshtest.commands.sweep import sweep
from marshtest.experiment.row_file import FORMAT, Rows, read_file, write_rows
from marshtest.metrics.presentation import Column
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.tables import why
from marshtest.results.merging import _clash, read_all, read_one
from marshtest.results.summary import Results, _interval
from marshtest.sweeps.run_folder import describe

Change = Callable[[Path, Rows], object]


@pytest.fixture(scope="module")
def other_seeds(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The tiny recipe at seeds 1 to 3, with another unlearner; seed 1 is the tiny run's too."""
    recipe = {**TINY, "seeds": 3, "first_seed": 1, "unlearners": ["ngd", "gd"]}
    return marshtest.run(recipe, out=tmp_path_factory.mktemp("runs") / "other", report=False)


def test_a_file_of_rows_tells_the_whole_recipe_and_what_ran_it(tiny_run: Results) -> None:
    (about,) = read_file(tiny_run.folder / "rows.parquet").runs.values()
    again = marshtest.Recipe.parse(about["values"], "")
    assert again.hash == tiny_run.recipe.hash
    assert tiny_run.recipe.model_dump(mode="json") == about["values"]
    assert about["torch"]
    assert about["marshtest"]
    metadata = pq.read_schema(tiny_run.folder / "rows.parquet").metadata  # as any reader sees it
    told = json.loads(metadata[b"PANDAS_ATTRS"])["marshtest"]
    assert told["format"] == FORMAT
    assert tiny_run.recipe.hash in told["runs"]


def test_rows_alone_give_the_same_summary(tiny_run: Results, tmp_path: Path) -> None:
    alone = tmp_path / "mine.parquet"
    alone.write_bytes((tiny_run.folder / "rows.parquet").read_bytes())
    read = Results.read(alone)
    assert not len(read.scores)
    pd.testing.assert_frame_equal(read.summary, tiny_run.summary, check_exact=True)


def test_comparable_rows_are_merged_and_what_is_twice_is_there_once(
    tiny_run: Results, other_seeds: Results
) -> None:
    merged = read_all([tiny_run.folder, other_seeds.folder])
    (both,) = merged.results
    assert f"{len(other_seeds.rows)} rows merged" in merged.said[0]
    # Seed 1 of the controls and of GD is in both.
    assert len(both.rows) == len(tiny_run.rows) + len(other_seeds.rows) - 3
    assert both.seeds == [0, 1, 2, 3]
    counts = both.summary.set_index("unlearner")["seeds"].to_dict()
    assert counts == {
        "none": 4, "retrain (full)": 4, "gd": 4, "euk": 2, "scrub": 2, "ngd": 3
    }  # fmt: skip
    of_gd = pd.concat([tiny_run.scores, other_seeds.scores]).query("unlearner == 'gd'")
    expected = of_gd.drop_duplicates(["seed", "id"])["rank"]
    line = both.summary.query("unlearner == 'gd'").iloc[0]
    assert line["rank_poisons"] == len(expected) == 160
    assert line["rank_dependence"] == pytest.approx(-expected.mean())
    assert line["rank_error"] == pytest.approx(expected.std(ddof=1) / np.sqrt(160))
    assert len(both.scores_of(0.2, line)) == 160
    assert not both.gaps


def test_the_order_of_the_files_does_not_change_the_numbers(
    tiny_run: Results, other_seeds: Results
) -> None:
    folders = [tiny_run.folder, other_seeds.folder]
    one, two = (
        read_all(order).results[0].summary.set_index("unlearner").sort_index()
        for order in (folders, folders[::-1])
    )
    numbers = ["test_accuracy", "gus_dependence", "rank_dependence", "rank_error", "seeds"]
    pd.testing.assert_frame_equal(one[numbers], two[numbers])


def test_merged_rows_are_read_again_as_they_were(
    tiny_run: Results, other_seeds: Results, tmp_path: Path
) -> None:
    (both,) = read_all([tiny_run.folder, other_seeds.folder]).results
    write_rows(both.rows, tmp_path / "both.parquet", both.runs)
    (again,) = read_all([tmp_path / "both.parquet"]).results
    assert not again.gaps
    assert again.recipe.unlearners == both.recipe.unlearners
    order = ["unlearner", "hyperparameters"]
    one, two = (of.summary.sort_values(order, ignore_index=True) for of in (both, again))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"training": {**TINY["training"], "epochs": 5}}, "training.epochs is 5, not 6"),
        ({"verdict": {"margin": 0.3}}, "verdict.margin is 0.3, not 0.2"),
    ],
)
def test_rows_of_other_settings_are_kept_apart_and_the_difference_is_named(
    change: dict[str, Any], says: str, tiny_run: Results, tmp_path: Path
) -> None:
    other = marshtest.run({**TINY, **change, "seeds": 1, "unlearners": []}, out=tmp_path / "run")
    merged = read_all([tiny_run.folder, other.folder])
    assert len(merged.results) == 2
    assert says in merged.said[0]
    names = [results.recipe.name for results in merged.results]
    assert names[0] != names[1]
    key, _, value = says.partition(" is ")
    assert f"{key}={value.partition(',')[0]}" in names[1]


def altered(rows: Rows, path: Path, **about: Any) -> Path:
    """The same rows with something else said of them."""
    (name,) = rows.runs
    write_rows(rows.frame, path, {name: {**rows.runs[name], **about}})
    return path


def test_rows_of_another_algorithm_or_precision_are_kept_apart(
    tiny_run: Results, tmp_path: Path
) -> None:
    rows = read_file(tiny_run.folder)
    later = altered(rows, tmp_path / "later.parquet", algorithm=99)
    merged = read_all([tiny_run.folder, later])
    assert len(merged.results) == 2
    assert "algorithm is 99" in merged.said[0]
    frame = rows.frame.assign(precision="bfloat16")
    coarse = altered(replace(rows, frame=frame), tmp_path / "coarse.parquet")
    assert "precision is bfloat16, not float32" in read_all([tiny_run.folder, coarse]).said[0]


def test_merged_rows_name_every_commit_that_they_come_from(
    tiny_run: Results, tmp_path: Path
) -> None:
    rows = read_file(tiny_run.folder)
    files = [
        altered(rows, tmp_path / f"{i}.parquet", commit=commit, torch="2.13.0")
        for i, commit in enumerate(["aaaaaaa", "bbbbbbb", "aaaaaaa", None])
    ]
    (merged,) = read_all(files).results
    (about,) = merged.runs.values()
    assert about["commit"] == "aaaaaaa, bbbbbbb"
    assert about["torch"] == "2.13.0"


@pytest.mark.parametrize("told", [b"null", b"[" * 100_000])
def test_metadata_of_another_kind_are_one_line(
    told: bytes, tiny_run: Results, tmp_path: Path
) -> None:
    table = pq.read_table(tiny_run.folder / "rows.parquet")
    file = tmp_path / "odd.parquet"
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"PANDAS_ATTRS": told}), file
    )
    with pytest.raises(MarshtestError, match=r"odd.parquet: "):
        read_all([file])


def test_cells_measured_twice_that_differ_are_not_merged(tiny_run: Results, tmp_path: Path) -> None:
    rows = read_file(tiny_run.folder)
    frame = rows.frame.assign(test_accuracy=rows.frame["test_accuracy"] + 0.01)
    other = altered(replace(rows, frame=frame), tmp_path / "other.parquet")
    merged = read_all([tiny_run.folder, other])
    assert [len(results.rows) for results in merged.results] == [len(rows.frame)] * 2
    assert "measured twice and differs (test_accuracy" in merged.said[0]


@pytest.mark.usefixtures("no_report")
def test_a_sweeps_rows_and_a_folder_of_runs_are_read_once(tmp_path: Path) -> None:
    grid = {
        "name": "grid",
        "recipe": {**TINY, "seeds": 1, "unlearners": ["gd"]},
        "grid": {"attack.variance": [4.0, 1.0]},
    }
    done = sweep(grid, store=tmp_path / "store", out=tmp_path / "runs" / "grid")
    marshtest.run({**grid["recipe"], "first_seed": 1}, out=tmp_path / "runs" / "run")  # type: ignore[dict-item]
    merged = read_all([tmp_path / "runs"])
    assert sorted(len(results.rows) for results in merged.results) == [3, 6]
    assert [len(results.scores) for results in merged.results] == [240, 120]
    assert "variance=1.0" in merged.results[1].recipe.name
    with pytest.raises(MarshtestError, match="holds rows of 2 settings"):
        read_one(done.folder)


@pytest.mark.slow
def test_a_report_of_two_settings_keeps_their_files_apart(bare_rows: Path, tmp_path: Path) -> None:
    rows = read_file(bare_rows)
    frame = rows.frame.assign(test_accuracy=rows.frame["test_accuracy"] + 0.01)
    write_rows(frame, tmp_path / "other.parquet", rows.runs)
    merged = marshtest.report(bare_rows, tmp_path / "other.parquet", out=tmp_path / "out")
    assert len(merged.results) == 2
    tables = sorted((tmp_path / "out" / "tables").glob("*-table.csv"))
    assert len(tables) == 2
    assert tables[0].read_bytes() != tables[1].read_bytes()


def test_missing_cells_are_named_and_nothing_stands_in(tiny_run: Results) -> None:
    rows = tiny_run.rows
    gone = ((rows["unlearner"] == "gd") & (rows["seed"] == 1)) | (rows["role"] == "retrained")
    partial = replace(tiny_run, rows=rows[~gone].reset_index(drop=True))
    assert partial.gaps == [
        "poison budget 0.2: there is no retrained model",
        "poison budget 0.2: gd at compute budget 0.5: seed 1 missing",
    ]
    summary = partial.summary.set_index("unlearner")
    assert "retrain (full)" not in summary.index
    assert summary["accuracy_cost"].isna().all()
    assert summary.loc["gd", "seeds"] == 1
    assert "no retrained model among the rows" in partial.warnings[0]
    assert not tiny_run.gaps


def test_without_the_initial_model_nothing_is_removed(tiny_run: Results) -> None:
    rows = tiny_run.rows[tiny_run.rows["role"] != "initial"].reset_index(drop=True)
    partial = replace(tiny_run, rows=rows)
    assert "REMOVED" not in set(partial.summary["verdict"])
    assert "no initial model (no unlearning) among the rows" in partial.warnings[0]


def test_budgets_of_different_seeds_without_an_initial_model_are_judged() -> None:
    whole = read_one(Path(__file__).parents[1] / "docs" / "reproduce" / "digits-indiscriminate")
    rows = whole.rows[whole.rows["role"] != "initial"]
    fewer = rows[(rows["poison_budget"] != 0.2) | (rows["seed"] < 7)].reset_index(drop=True)
    summary = replace(whole, rows=fewer).summary
    assert "REMOVED" not in set(summary["verdict"])


def test_a_seed_without_a_share_adds_nothing_to_what_it_is_of() -> None:
    rows = pd.DataFrame({"x": [0.5, 0.5, np.nan], "of": [200, 200, 200]})
    column = Column(title="x", interval="exact", count="of")
    expected = binomtest(200, 400).proportion_ci(0.95)
    found = _interval(rows, "x", column)
    assert (found["x_low"], found["x_high"]) == pytest.approx(tuple(expected))
    assert all(map(math.isnan, _interval(rows[2:], "x", column).values()))


def test_a_share_is_over_all_seeds_as_its_interval_is(tiny_run: Results) -> None:
    """A seed of few scores must not weigh as much as one of many."""
    rows = tiny_run.rows.copy()
    few = (rows["unlearner"] == "gd") & (rows["seed"] == 1)
    rows.loc[few, ["rank_poisons", "tpr_rank"]] = [4.0, 1.0]
    line = replace(tiny_run, rows=rows).summary.set_index("unlearner").loc["gd"]
    other = rows[(rows["unlearner"] == "gd") & (rows["seed"] == 0)].iloc[0]
    n = other["rank_poisons"]
    assert line["tpr_rank"] == pytest.approx((n * other["tpr_rank"] + 4) / (n + 4))
    assert line["tpr_rank_low"] <= line["tpr_rank"] <= line["tpr_rank_high"]


def test_poison_budgets_of_one_size_are_kept_apart(tiny_run: Results) -> None:
    """A recipe with both is refused: figures by size would draw two models in one place."""
    rows = tiny_run.rows.assign(poison_budget=0.2001, unlearner="ngd")
    again = replace(tiny_run, rows=rows)
    assert _clash(tiny_run, again) == "poison budgets 0.2 and 0.2001 both make 40 poisons"
    assert _clash(tiny_run, replace(again, rows=rows.assign(forget_size=41))) is None


def test_a_folder_of_a_reports_rows_is_read(tiny_run: Results, tmp_path: Path) -> None:
    written = tmp_path / "out" / "rows" / "tiny.parquet"
    written.parent.mkdir(parents=True)
    shutil.copy(tiny_run.folder / "rows.parquet", written)
    for source in (written, written.parent, tmp_path / "out"):
        assert len(read_one(source).rows) == len(tiny_run.rows)


def no_attrs(path: Path, rows: Rows) -> None:
    rows.frame.to_parquet(path)


def newer(path: Path, rows: Rows) -> None:
    frame = rows.frame.copy()
    frame.attrs = {"marshtest": {"format": FORMAT + 1, "kind": "recipe", "runs": {}}}
    frame.to_parquet(path)


def empty(path: Path, rows: Rows) -> None:
    write_rows(rows.frame.head(0), path, rows.runs)


def no_column(path: Path, rows: Rows) -> None:
    write_rows(rows.frame.drop(columns="test_accuracy"), path, rows.runs)


def no_score(path: Path, rows: Rows) -> None:
    write_rows(rows.frame.drop(columns="rank_hidden"), path, rows.runs)


def no_seed(path: Path, rows: Rows) -> None:
    frame = rows.frame.astype({"seed": "float"})
    frame.loc[3, "seed"] = np.nan
    write_rows(frame, path, rows.runs)


def no_recipe(path: Path, rows: Rows) -> None:
    write_rows(rows.frame.assign(recipe="0" * 8), path, rows.runs)


def unasked(path: Path, rows: Rows) -> None:
    gd = rows.frame["unlearner"] == "gd"
    other = rows.frame["unlearner"].mask(gd, "mine:fn")
    write_rows(rows.frame.assign(unlearner=other), path, rows.runs)


def text(path: Path, rows: Rows) -> None:
    path.write_text("seed,role\n0,initial\n")


BAD = [
    (no_attrs, "is not a marshtest rows file"),
    (newer, "was written by a newer marshtest"),
    (empty, "holds no rows"),
    (no_column, "has no column 'test_accuracy'"),
    (no_score, "gaussian rows: has no column 'rank_hidden'"),
    (no_seed, "column 'seed' .* holds nan in row 3"),
    (no_recipe, "come without it"),
    (unasked, "unlearner 'mine:fn' with .* is in no entry of the recipe"),
    (text, "not a readable Parquet file"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_what_is_no_rows_is_refused_in_one_line(
    change: Change, says: str, tiny_run: Results, tmp_path: Path
) -> None:
    path = tmp_path / "bad.parquet"
    change(path, read_file(tiny_run.folder))
    with pytest.raises(MarshtestError, match=says) as refused:
        read_all([path])
    assert "bad.parquet" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MarshtestError, match="holds no rows"):
        read_all([tmp_path])
    with pytest.raises(MarshtestError, match="holds no finished run"):
        read_all([tmp_path / "nowhere"])


def test_rows_do_not_tell_where_the_data_lay() -> None:
    recipe = marshtest.load_recipe({**TINY, "data": {"name": "digits", "path": "/home/me/digits"}})
    assert "/home/me" not in json.dumps(describe(recipe, None))


def test_a_merged_verdict_says_what_it_was_judged_with(
    tiny_run: Results, other_seeds: Results
) -> None:
    """Seeds 0 to 3 and four unlearners, of which NGD has three seeds; no number is below what is there."""
    (both,) = read_all([tiny_run.folder, other_seeds.folder]).results
    summary = both.summary
    line = summary[summary["unlearner"] == "ngd"].iloc[0]
    assert not any(summary["needed"] <= summary["rank_poisons"])
    said = why(line.copy().replace({line["verdict"]: "INCONCLUSIVE"}), both)
    assert "with the 4 unlearners of 2 runs, by what 4 seeds" in said
    assert "of which this one has 3" in said
    assert "runs" not in why(tiny_run.summary.iloc[-1], tiny_run)
