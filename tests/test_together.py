"""Keys of a recipe that add rows go together: parts of the poisons, states of a model, and membership."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TIMES, TINY

import marshtest
from marshtest.experiment.cells import cell_columns, cells, groups
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.metrics.verdict import ANSWERS
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results
from marshtest.sweeps.jobs import jobs
from marshtest.sweeps.keys import Keys

ASKED: dict[str, Any] = {
    **TINY,
    "data": {"name": "digits", "train": 250, "test": 100, "validation": 0.2},
    "unlearners": ["gd"],
    "reference": True,
    "metrics": ["membership"],
}
EVERY = {**ASKED, "known": [0.5, 1], "states": ["int4", {"trained_on": 1}]}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return marshtest.run(ASKED, out=tmp_path_factory.mktemp("runs") / "asked", report=False)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("runs") / "every"
    return marshtest.run(EVERY, out=out, report=False, keep_models=True)


@pytest.mark.parametrize("attack", [TINY["attack"], {"name": "label-flip"}])
@pytest.mark.parametrize("asked_for", [{}, {"known": [0.5, 1]}, {"requests": 3}, {"repeats": 16}])
@pytest.mark.parametrize("states", [[], ["int4", "int8"]])
@pytest.mark.parametrize("keep_models", [False, True])
def test_each_row_has_one_maker_and_all_that_is_needed_is_made(
    attack: dict[str, Any], asked_for: dict[str, Any], states: list[str], keep_models: bool
) -> None:
    more = {"attack": attack, "states": states, "unlearners": ["retrain", "gd"], **asked_for}
    keys = Keys(load_recipe({**ASKED, "budgets": [0.25, 0.5], **more}))
    every = list(jobs(keys, keep_models=keep_models))
    made = [key for job in every for key in job.makes]
    assert len(made) == len(set(made))
    assert {key for job in every for key in job.needs} <= set(made)
    rows = [cell for group in groups(keys.recipe) for cell in cells(keys.recipe, group)]
    assert {keys.row(cell) for cell in rows} <= set(made)
    assert len({keys.row(cell) for cell in rows}) == len({cell.key for cell in rows}) == len(rows)


def test_each_key_adds_rows_and_changes_none(every: Results, asked: Results) -> None:
    rows = every.rows
    there = rows["known"].isin([0, 1]) & (rows["state"] == "")
    beside = {"recipe", *TIMES}
    columns = [column for column in asked.rows if column not in beside]
    own = rows.loc[there, columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, asked.rows[columns], check_exact=True)
    assert not rows.duplicated(cell_columns(rows)).any()
    # Of a seed: three controls, exact unlearning, and one unlearner of each share; in three states.
    assert len(rows) == 2 * (3 + 1 + 2) * 3
    assert rows["mia_rmia_auc"].notna().all()


def test_the_verdict_of_a_share_is_that_of_its_worst_state(every: Results) -> None:
    order = ANSWERS.index
    states = every.states.query("role == 'updated'")
    (line,) = every.by_request.query("role == 'updated' and known == 1").to_dict("records")
    assert len(states) == 3
    assert order(line["verdict"]) <= min(map(order, states["verdict"]))
    assert set(every.by_request["known"]) == {0.5, 1}
    assert every.by_request["mia_margin_verdict"].notna().all()


@pytest.mark.slow
def test_the_report_has_a_table_for_each(every: Results, tmp_path: Path) -> None:
    write_report(every)
    text = (every.folder / "summary.md").read_text()
    page = (every.folder / "report.html").read_text()
    for title, name in (("Known in part", "requests"), ("After-care", "states")):
        assert f"## {title}" in text
        assert f"<h3>{title}</h3>" in page
        assert len(pd.read_csv(every.folder / f"{name}.csv"))
    assert "margin MIA" in text


def test_kept_models_are_one_a_model_and_share(every: Results) -> None:
    models = every.models
    columns = ["poison_budget", "seed", "role", "unlearner", "known"]
    assert len(models) == 2 * (3 + 1 + 2)
    assert not models.duplicated(columns).any()
    assert all((every.folder / path).exists() for path in models["path"])


def test_rows_of_several_recipes_in_one_file_are_each_read_as_they_were(
    every: Results, asked: Results, tmp_path: Path
) -> None:
    file = tmp_path / "all.parquet"
    frame = pd.concat([asked.rows, every.rows], ignore_index=True)
    write_rows(frame, file, asked.runs | every.runs)
    rows = read_file(file)
    for results in (asked, every):
        again = Results.of(rows, results.recipe.hash).rows
        pd.testing.assert_frame_equal(
            again[results.rows.columns], results.rows, check_dtype=False, check_exact=True
        )
        assert cell_columns(again) == cell_columns(results.rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"known": 0.5, "repeats": 16}, "known: does not go with repeats"),
        ({"requests": 2, "repeats": 16}, "requests: does not go with repeats"),
        ({"requests": 2, "unlearners": ["elsewhere"]}, "requests: elsewhere answers one"),
        ({"repeats": 16, "unlearners": ["elsewhere"]}, "repeats: elsewhere answers one"),
    ],
)
def test_what_does_not_go_together_is_one_line(more: dict[str, Any], said: str) -> None:
    with pytest.raises(MarshtestError) as refused:
        load_recipe({**ASKED, **more})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
