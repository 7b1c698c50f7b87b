"""Sweeps: what is shared, what is not done again, and that every engine gives the same rows."""

import contextlib
import copy
import json
import multiprocessing
import os
import shutil
import signal
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import GRID, TIMES, TINY, command, rows_of, write_cifar
from safetensors.torch import save_file

import marshtest
from marshtest.commands.sweep import Swept, sweep
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.merging import read_one
from marshtest.results.summary import Results
from marshtest.sweeps import ledger
from marshtest.sweeps.engines import Processes
from marshtest.sweeps.jobs import Job, jobs
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.planned import plan_sweep
from marshtest.sweeps.run_folder import folder_name
from marshtest.sweeps.settings import Sweep, columns, read_sweep
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker


@pytest.mark.usefixtures("no_report")
def test_a_variant_is_the_run_of_its_recipe(swept: tuple[Swept, Store], tmp_path: Path) -> None:
    done, _ = swept
    own = Results.read(done.folder / "attack.draws=39,attack.variance=1.0")
    recipe = {**GRID["recipe"], "attack": {"name": "gaussian", "variance": 1.0, "draws": 39}}
    alone = marshtest.run(recipe, out=tmp_path / "run")
    pd.testing.assert_frame_equal(
        own.rows.drop(columns=TIMES), alone.rows.drop(columns=TIMES), check_exact=True
    )
    pd.testing.assert_frame_equal(own.scores, alone.scores, check_exact=True)
    every = rows_of(done)
    assert len(every) == 4 * len(alone.rows)
    at = (every["attack.draws"] == 39) & (every["attack.variance"] == 1.0)
    assert (every.loc[at, "recipe"] == alone.recipe.hash).all()


def test_what_variants_share_is_done_once(swept: tuple[Swept, Store]) -> None:
    done, store = swept
    made = Counter(key.partition("-")[0] for key in store.recorded())
    # the number of draws is the score's alone: two variances and two seeds have models of their own
    assert made == {"initial": 4, "retrained": 4, "updated": 4 * 4, "score": 8 * 6}
    assert done.done == len(done.ledger.jobs) == 4 * 2 + 8 * (2 + 2)
    planned = plan_sweep(read_sweep(GRID))
    assert planned.unshared == 4 * 2 * (2 + 2 + 2 * 2)
    assert len(planned.cells) == 4 * 2 * 6


def test_a_finished_sweep_is_not_done_again(
    swept: tuple[Swept, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, store = swept

    def fail(*args: Any) -> None:
        pytest.fail("worked again")

    monkeypatch.setattr(Worker, "__call__", fail)
    before = {name: store.read(name) for name in store.find("records")}
    again = sweep(GRID, store=store.url, out=done.folder)
    assert (again.done, again.reused) == (0, len(done.ledger.jobs))
    assert {name: store.read(name) for name in store.find("records")} == before
    assert ledger.finished(store, read_sweep(GRID))
    assert not ledger.finished(store, read_sweep({**GRID, "grid": {}}))
    assert not ledger.finished(Store("memory://none"), read_sweep(GRID))
    for theirs in ({"unlearners": ["pkg.mod:mine"]}, {"data": {"name": "tensors", "path": "x"}}):
        own = read_sweep({**GRID, "recipe": {**GRID["recipe"], **theirs}})
        assert own.reads_files  # it may have changed, so it has to be planned to tell
    assert not read_sweep({**GRID, "recipe": {**TINY, "description": "a: b"}}).reads_files


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"description": "Another title", "recipe": {"verdict": {"alpha": 0.01}}}, {}),
        ({"recipe": {"budgets": [0.25, 0.5, 1.0]}}, {"updated": 2 * 4, "score": 2 * 8}),
        ({"recipe": {"seeds": 3}}, {"initial": 2, "retrained": 2, "updated": 8, "score": 24}),
        ({"recipe": {"unlearners": ["gd", "scrub", "ngd"]}}, {"updated": 8, "score": 16}),
    ],
)
def test_only_what_a_change_touches_is_made(
    change: dict[str, Any], made: dict[str, int], swept: tuple[Swept, Store], tmp_path: Path
) -> None:
    _, store = swept
    asked = {**GRID, **change, "recipe": {**GRID["recipe"], **change["recipe"]}}
    planned = plan_sweep(read_sweep(asked))
    missing = planned.ledger().keys - store.recorded()
    assert Counter(key.partition("-")[0] for key in missing) == made


def test_keys_depend_on_what_a_stage_depends_on_and_on_nothing_else() -> None:
    def keys(**changes: Any) -> dict[str, str]:
        recipe = load_recipe({**TINY, **changes, "seeds": 1})
        found = list(jobs(Keys(recipe), keep_models=True))
        return {f"{job.kind} {job.role} {job.unlearner}": job.makes[-1] for job in found}

    base = keys()
    assert keys(name="other", description="other", seeds=2) == base
    assert set(keys(training={**TINY["training"], "lr": 0.2}).values()).isdisjoint(base.values())
    assert set(keys(data={**TINY["data"], "train": 199}).values()).isdisjoint(base.values())
    assert set(keys(poison_budgets=0.25).values()).isdisjoint(base.values())
    fewer = keys(unlearners=["scrub"])
    assert fewer.items() <= base.items()
    scored = keys(attack={**TINY["attack"], "draws": 20})
    same = {name for name in base if scored[name] == base[name]}
    assert same == {name for name in base if not name.startswith("score")}


def test_a_grid_is_every_combination_and_a_zip_goes_side_by_side() -> None:
    asked = read_sweep(
        {
            **GRID,
            "change": {"seeds": 3},
            "grid": {"attack.variance": [1.0, 2.0], "poison_budgets": [0.1, [0.1, 0.2]]},
            "zip": [{"data.train": [100, 200], "training.epochs": [4, 2]}],
        },
        "training.lr=0.5",
        "grid.attack.variance=[3.0]",
    )
    variants = asked.variants()
    assert [tuple(v.axes.values()) for v in variants] == [
        (3.0, 0.1, 100, 4),
        (3.0, 0.1, 200, 2),
        (3.0, [0.1, 0.2], 100, 4),
        (3.0, [0.1, 0.2], 200, 2),
    ]
    recipe = load_recipe(variants[3].values)
    assert (recipe.data.train, recipe.training.epochs, recipe.seeds) == (200, 2, 3)
    assert (recipe.training.lr, recipe.poison_budgets) == (0.5, (0.1, 0.2))
    assert recipe.training.batch_size == TINY["training"]["batch_size"]


@pytest.mark.parametrize("name", [*shipped("sweeps"), *shipped("recipes")])
def test_shipped_sweeps_and_recipes_are_planned_and_share(name: str) -> None:
    planned = plan_sweep(read_sweep(name))
    assert len(planned.cells) == len({(cell.variant, cell.key) for cell in planned.cells})
    assert planned.ledger().keys >= {cell.key for cell in planned.cells}
    known: set[str] = set()
    for job in planned.jobs:
        assert known.issuperset(job.needs)  # each behind those that it needs
        known.update(job.makes)
    assert len(planned.jobs) <= planned.unshared


@pytest.mark.slow
def test_a_recipe_is_a_sweep_of_one_variant(tmp_path: Path) -> None:
    asked = read_sweep("digits-gaussian", "seeds=2")
    (variant,) = asked.variants()
    assert load_recipe(variant.values) == load_recipe("digits-gaussian", "seeds=2")
    tiny = {**TINY, "seeds": 1, "unlearners": []}
    done = sweep(tiny, store=tmp_path / "store", out=tmp_path / "out")
    assert (done.folder / "rows.parquet").exists()
    before = Results.read(done.folder)
    again = marshtest.run(done.folder / "recipe.yaml", out=done.folder)  # only draws its report
    assert again.rows.equals(before.rows)
    assert (done.folder / "report.html").exists()


def test_a_grid_of_one_point_has_its_rows_where_a_grid_has_them(tmp_path: Path) -> None:
    """The folder that the command names, and asks when it is given once more."""
    one = {"recipe": {**TINY, "seeds": 1, "unlearners": []}, "grid": {"attack.variance": [1.0]}}
    done = sweep(one, store=tmp_path / "store", out=tmp_path / "out")
    rows = rows_of(done)
    (own,) = done.folder.glob("*/rows.parquet")
    assert len(rows) == len(Results.read(own).rows)
    assert set(rows["attack.variance"]) == {1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"grid": {"bugdets": [0.1]}},
            "grid, at bugdets=0.1: bugdets: unknown key 'bugdets'. Did you mean 'budgets'",
        ),
        ({"grid": {"attack.varience": [1]}}, "unknown key 'varience'. Did you mean 'variance'"),
        (
            {"grid": {"budgets": []}},
            "grid.budgets: holds no value. Give some, or leave the key out",
        ),
        (
            {"grid": {"budgets": [0.5, 0.5]}},
            "the cells of budgets=0.5 and of budgets=0.5 differ in nothing",
        ),
        (
            {"grid": {"verdict.alpha": [0.1, 0.2]}},
            "the cells of verdict.alpha=0.2 and of verdict.alpha=0.1",
        ),
        ({"grid": {"budgets": [2]}}, "grid, at budgets=2: budgets.0: Input should be less than"),
        ({"grid": {"budgets": 0.5}}, "grid.budgets: Input should be a valid list"),
        ({"zip": [{"seeds": [1, 2], "budgets": [0.1]}]}, "must be as many (seeds 2, budgets 1)"),
        (
            {"zip": [{"attack.draws": [9, 19]}]},
            "zip.0.attack.draws: is varied twice. Leave one out",
        ),
        ({"recipe": {**TINY, "unlearners": ["gd", "gd"]}}, "unlearners: gd is given twice"),
        ({"recipe": {**TINY, "budgets": [0.5, 0.5]}}, "budgets: 0.5 is given twice"),
        ({"recipe": "digit"}, "unknown recipe 'digit'"),
        ({"recipes": 1}, "unknown key 'recipes'. Did you mean 'recipe'"),
        ({"resources": {"trian": {"cpus": 1}}}, "resources.trian.[key]: Input should be"),
        ({"resources": {"train": {"gpu": 1}}}, "unknown key 'gpu'. Did you mean 'gpus'"),
    ],
)
def test_bad_sweeps_are_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(MarshtestError) as error:
        plan_sweep(read_sweep({**GRID, **change}))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def two_copies(tmp_path: Path) -> dict[str, Any]:
    """A recipe, and folders first/ and second/ with other images by the same name."""
    for folder, rows in (("first", 60), ("second", 80)):
        write_cifar(tmp_path / folder / "cifar10", rows)
    recipe = {**TINY, "data": {"name": "cifar10", "train": 50, "test": 40}, "unlearners": ["gd"]}
    return {**recipe, "training": {"epochs": 1}, "seeds": 1}


def test_a_store_never_gives_one_copys_models_for_anothers(
    two_copies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {}
    for name in ("first", "second"):
        monkeypatch.setenv("MARSHTEST_DATA", str(tmp_path / name))
        alone[name] = marshtest.run(two_copies, out=tmp_path / f"run-{name}", report=False).rows
    assert not alone["first"]["test_accuracy"].equals(alone["second"]["test_accuracy"])
    for name in ("first", "second"):
        monkeypatch.setenv("MARSHTEST_DATA", str(tmp_path / name))
        out, store = tmp_path / f"out-{name}", tmp_path / "store"
        sweep(two_copies, store=store, out=out)
        rows = Results.read(out).rows
        pd.testing.assert_frame_equal(rows.drop(columns=TIMES), alone[name].drop(columns=TIMES))
    # A sweep that is done on one copy is not done on the other, and is refused before any work.
    records = sorted(Store(store).recorded())
    assert ledger.finished(Store(store), read_sweep(two_copies)) is None
    with pytest.raises(MarshtestError, match="results of this recipe on other data"):
        sweep(two_copies, store=store, out=tmp_path / "out-first")
    assert sorted(Store(store).recorded()) == records


def test_a_grid_over_copies_is_refused(two_copies: dict[str, Any], tmp_path: Path) -> None:
    paths = [str(tmp_path / name / "cifar10") for name in ("first", "second")]
    with pytest.raises(MarshtestError, match="differ in the copy of the data alone"):
        plan_sweep(read_sweep({"name": "x", "recipe": two_copies, "grid": {"data.path": paths}}))


@pytest.mark.slow
def test_any_fsspec_location_holds_a_store(swept: tuple[Swept, Store], tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    done = sweep(GRID, store=url, out=tmp_path / "out")
    pd.testing.assert_frame_equal(rows_of(done), rows_of(swept[0]), check_exact=True)
    assert ledger.rubbish(Store(url)) == []


def test_the_ledger_tells_rows_and_standing_without_the_models(
    swept: tuple[Swept, Store],
) -> None:
    done, store = swept
    planned = ledger.Ledger.read(store, ledger.find(store, "grid"))
    assert planned == done.ledger
    found, damaged = ledger.rows(store, planned)
    assert not damaged
    every = pd.read_parquet(done.folder / "rows.parquet")
    columns = list(every.columns)
    pd.testing.assert_frame_equal(pd.DataFrame(found)[columns], every, check_dtype=False)
    some = ledger.matching(found, ["unlearner=gd", "seed=1", "budget=0.5", "attack.draws=19"])
    assert len(some) == 2
    with pytest.raises(MarshtestError, match="unknown column 'unlerner'. Did you mean 'unlearner'"):
        ledger.matching(found, ["unlerner=gd"])
    standing = ledger.standing(store, planned)
    assert {kind: of.done for kind, of in standing.items()} == {
        "train": 8,
        "score": 16,
        "unlearn": 16,
    }
    assert all(of.all == of.done and of.seconds is not None for of in standing.values())
    assert ledger.remaining(standing) == 0


def test_what_remains_is_told_by_the_time_of_what_is_done() -> None:
    found = {
        "train": ledger.Standing(done=3, running=2, waiting=2, seconds=10.0),
        "unlearn": ledger.Standing(waiting=5),
        "score": ledger.Standing(done=1, waiting=1, failed=3, seconds=2.0),
    }
    assert ledger.remaining(found) == pytest.approx((4 * 10 + 5 * 6 + 1 * 2) / 2)
    assert ledger.remaining({"train": ledger.Standing(waiting=3)}) is None


FAILING: dict[str, Any] = {
    "name": "failing",
    "recipe": {**TINY, "seeds": 1, "unlearners": ["gd"]},
    "grid": {"training.lr": [0.1, 1e30]},
}


def test_a_failure_is_written_down_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    done = sweep(FAILING, store=store.url, out=tmp_path / "out")
    assert len(done.failed) == 2  # both trainings at the rate that diverges
    assert all("training: diverged in epoch 1" in line for line in done.failed.values())
    assert (done.done, done.blocked) == (5, 3)
    assert [path.name for path in done.folder.iterdir() if path.is_dir()] == ["training.lr=0.1"]
    assert len(pd.read_parquet(done.folder / "rows.parquet")) == 3
    written = ledger.failures(store, done.ledger)
    assert all("Traceback" in failure["traceback"] for failure in written.values())
    standing = ledger.standing(store, done.ledger)
    assert (standing["train"].failed, standing["score"].waiting) == (2, 2)

    tried: list[str] = []
    real = Worker.__call__

    def noted(worker: Worker, job: Job, *rest: Any) -> None:
        tried.append(job.label)
        real(worker, job, *rest)

    monkeypatch.setattr(Worker, "__call__", noted)
    again = sweep(FAILING, store=store.url, out=tmp_path / "out")
    assert (tried, again.failed, again.blocked) == ([], done.failed, 3)
    again = sweep(FAILING, store=store.url, out=tmp_path / "out", retry_failed=True)
    assert sorted(tried) == sorted(name.split(" [")[0] for name in done.failed)
    assert again.failed == done.failed


def test_what_fails_alike_in_two_variants_is_told_of_both(tmp_path: Path) -> None:
    both = {**FAILING, "grid": {"training.lr": [1e29, 1e30]}}
    done = sweep(both, store=tmp_path / "store", out=tmp_path / "out")
    assert len(done.failed) == 4  # an initial and a retrained model each
    assert len(list((tmp_path / "store" / "failures").iterdir())) == 4


def test_variants_have_folders_of_their_own_however_long_their_labels(tmp_path: Path) -> None:
    words = ["a" * 150 + end for end in ("x", "y")]
    assert len({folder_name(word, recipe) for word, recipe in zip(words, ("1", "2"))}) == 2
    assert folder_name("training.lr=0.1", "1") == "training.lr=0.1"
    assert folder_name("budgets=[0.1, 0.2]", "1") == "budgets=_0.1,_0.2_-1"


def wrapping(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return torch.nn.Sequential(copy.deepcopy(model))


def test_a_users_model_of_another_make_is_made_again_where_it_is_measured_anew(
    tmp_path: Path,
) -> None:
    recipe = {**TINY, "seeds": 1, "unlearners": [f"{__name__}:wrapping"]}
    first = sweep(recipe, store=tmp_path / "store", out=tmp_path / "one")
    again = sweep(recipe, "attack.draws=9", store=tmp_path / "store", out=tmp_path / "two")
    assert [len(done.damaged) for done in (first, again)] == [0, 1]
    assert not again.failed
    rows = pd.read_parquet(again.folder / "rows.parquet").set_index("role")
    assert rows.loc["updated", "test_accuracy"] == rows.loc["initial", "test_accuracy"]


def softening(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    """Other activations, of which a state_dict knows nothing."""
    updated = copy.deepcopy(model)
    for name, part in updated.named_children():
        if isinstance(part, torch.nn.ReLU):
            setattr(updated, name, torch.nn.Tanh())
    return updated


def test_a_users_model_that_its_file_does_not_tell_is_measured_neither_before_a_kill_nor_after(
    tmp_path: Path,
) -> None:
    """Else its row would depend on whether the command was stopped before it was measured."""
    recipe = {**TINY, "seeds": 1, "unlearners": [f"{__name__}:softening"]}
    done = sweep(recipe, store=tmp_path / "store", out=tmp_path / "one")
    row = pd.read_parquet(done.folder / "rows.parquet").set_index("role").loc["updated"]
    assert "answers otherwise when it is built again" in row["note"]
    assert pd.isna(row["test_accuracy"])


def test_data_that_changed_since_the_plan_are_not_taken_for_those_that_were_planned(
    tmp_path: Path,
) -> None:
    """A process that is begun later reads files as they are by then."""
    data = {"name": "tensors", "path": str(tmp_path / "data.safetensors")}

    def write(value: float) -> None:
        x, y = torch.full((60, 4), value) + torch.arange(60)[:, None] / 60, torch.arange(60) % 2
        save_file(
            {"train_x": x, "train_y": y, "test_x": x.clone(), "test_y": y.clone()}, data["path"]
        )

    write(0.0)
    (keys,) = plan_sweep(read_sweep({**TINY, "data": data, "seeds": 1})).keys
    Worker(Store(tmp_path / "store")).pipeline(keys)
    write(1.0)
    with pytest.raises(MarshtestError, match="is not what it was as the work was planned"):
        Worker(Store(tmp_path / "store")).pipeline(keys)


def noisy(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return Noisy(model)


class Noisy(torch.nn.Module):
    """A model that draws as it answers, and one that cannot be asked without what its file lacks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, x: Any) -> Any:
        return self.model(x + 0.001 * torch.randn_like(x))


def marking(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    updated = copy.deepcopy(model)
    updated.register_forward_pre_hook(lambda module, inputs: None)
    return updated.to(torch.bfloat16).float()


@pytest.mark.parametrize("name", ["noisy", "marking"])
def test_models_that_their_files_tell_are_measured(name: str, tmp_path: Path) -> None:
    recipe = {**TINY, "seeds": 1, "unlearners": [f"{__name__}:{name}"]}
    done = sweep(recipe, store=tmp_path / "store", out=tmp_path / "one")
    row = pd.read_parquet(done.folder / "rows.parquet").set_index("role").loc["updated"]
    assert row["test_accuracy"] > 0.5
    assert "cannot be kept" not in row["note"]


def test_rows_that_were_written_while_some_were_missing_are_not_all(
    swept: tuple[Swept, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, store = swept
    out = tmp_path / "out"
    shutil.copytree(done.folder, out)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    own = read_file(out)
    write_rows(own.frame[:-3], out / "rows.parquet", own.runs)
    given = ("sweep", str(tmp_path / "grid.yaml"), "--store", store.url, "--out", str(out))
    assert command(*given) == 0
    assert "all is done already" not in capsys.readouterr().out
    assert len(read_file(out).frame) == len(own.frame)
    assert command(*given) == 0
    assert "all is done already" in capsys.readouterr().out


def test_a_variant_without_rows_leaves_the_others_readable(tmp_path: Path) -> None:
    grid = {"training.lr": [1e30, 0.1]}  # the first one diverges
    recipe = {**TINY, "seeds": 1, "unlearners": ["gd"]}
    done = sweep(
        {"name": "s", "recipe": recipe, "grid": grid}, store=tmp_path / "store", out=tmp_path / "s"
    )
    assert done.failed
    assert len(read_one(done.folder).rows) == 3


def test_an_axis_of_several_kinds_is_told_as_json() -> None:
    axes = {"a": [0.3, [0.2, 0.4]], "b": [1, 0.5], "c": ["x", None], "d": [5, "6"]}
    variants = read_sweep(
        {"name": "s", "recipe": "digits-gaussian", "grid": {"seeds": [1, 2]}}
    ).variants()
    given = [
        replace(variant, axes={key: values[at] for key, values in axes.items()})
        for at, variant in enumerate(variants)
    ]
    assert columns(given) == [
        {"a": "0.3", "b": 1, "c": "x", "d": "5"},
        {"a": "[0.2, 0.4]", "b": 0.5, "c": None, "d": '"6"'},
    ]


def test_clean_looks_twice_at_drivers_of_another_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first sight they count as alive: their number is only seen to stand still later."""
    store, now = Store(tmp_path), [0.0]
    store.prepare()
    values = {"place": "before the restart", "pid": 1, "began": "1", "beats": 3}
    store.write("drivers/old", json.dumps(values).encode())
    store.write("stages/updated-0/model.safetensors", b"never recorded")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert command("clean", "--store", str(tmp_path)) == 0
    assert not store.names("drivers")
    assert not store.names("stages")


def test_clean_removes_what_nothing_refers_to_and_nothing_else(
    swept: tuple[Swept, Store], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    small = {**GRID, "grid": {"attack.variance": [4.0]}, "name": "small"}
    smaller = {**small, "recipe": {**small["recipe"], "unlearners": ["gd"], "seeds": 1}}
    first = sweep(small, store=store.url, out=tmp_path / "one")
    second = sweep({**smaller, "name": "smaller"}, store=store.url, out=tmp_path / "two")
    assert second.done == 0
    assert ledger.rubbish(store) == []
    store.write("stages/updated-0/model.safetensors", b"never recorded")
    store.write("locks/score-0.0", b"dead")
    store.write("drivers/dead", b"{}")
    (tmp_path / "store" / "records" / ".x.json.12345678.tmp").write_bytes(b"half")
    litter = [
        "drivers/dead",
        "locks/score-0.0",
        "records/.x.json.12345678.tmp",
        "stages/updated-0",
    ]
    assert ledger.rubbish(store) == litter
    forgotten = ledger.rubbish(store, [first.ledger.id])
    used = second.ledger.keys
    gone = {name for name in forgotten if name.startswith("records/") and name.endswith(".json")}
    assert gone == {f"records/{key}.json" for key in first.ledger.keys - used}
    for name in forgotten:
        store.remove(name)
    assert store.recorded() == used
    again = sweep({**smaller, "name": "smaller"}, store=store.url, out=tmp_path / "two")
    assert again.done == 0


def test_an_axis_of_lists_or_mappings_is_told_as_json_and_rows_keep_what_they_measured(
    tmp_path: Path,
) -> None:
    small = {**TINY, "seeds": 1, "unlearners": ["gd"]}
    grid = {"budgets": [[0.1, 0.2], [0.2]], "device": ["auto"]}
    done = sweep(
        {"name": "s", "recipe": small, "grid": grid}, store=tmp_path / "store", out=tmp_path / "s"
    )
    assert not done.failed
    rows = rows_of(done)
    assert rows["budgets"].value_counts().to_dict() == {"[0.1, 0.2]": 4, "[0.2]": 3}
    assert set(rows["device"]) == {"cpu"}
    told, damaged = ledger.rows(Store(tmp_path / "store"), done.ledger)
    assert not damaged
    assert [row["budgets"] for row in told] == rows["budgets"].tolist()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
def test_a_failures_file_that_is_damaged_stops_nothing(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.write("failures/score-1.json", content)
    store.write("failures/score-2.json", b'{"fault": "it raised", "row": {}}')
    assert set(ledger.raised(store)) == {"score-2"}


def test_rows_of_another_sweep_are_not_taken_for_those_that_are_asked_for(
    swept: tuple[Swept, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, store = swept
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID))
    given = ["sweep", str(file), "--store", store.url, "--out"]
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "rows.parquet").write_bytes(b"junk")
    assert command(*given, str(done.folder)) == 0
    assert "all is done already" in capsys.readouterr().out
    assert command(*given, str(tmp_path / "junk")) == 0  # written anew
    assert "all is done already" not in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "junk" / "rows.parquet")) == len(rows_of(done))


def test_clean_leaves_alone_what_a_living_driver_is_at(tmp_path: Path) -> None:
    from marshtest.sweeps.locks import Driver

    store = Store(tmp_path)
    store.prepare()
    with Driver(store) as driver:
        assert driver.lock("initial-1")
        store.write("stages/initial-1/model.safetensors", b"in the making")
        store.write("partial/initial-1/target-0", b"in the making")
        (tmp_path / "stages" / "initial-1" / ".model.safetensors.12345678.tmp").write_bytes(b"half")
        # A score's finished stages stand in no plan.
        record = json.dumps({"made": {}, "files": {}})
        store.write("records/initial-2.json", record.encode())
        store.write("stages/initial-2/model.safetensors", b"finished")
        assert ledger.rubbish(store) == []
    for name in ("records/initial-2.json", "stages/initial-2"):
        store.remove(name)
    assert ledger.rubbish(store) == [
        "partial/initial-1",
        "stages/initial-1",
        "stages/initial-1/.model.safetensors.12345678.tmp",
    ]


@pytest.mark.slow
def test_processes_give_the_same_rows_and_survive_the_death_of_a_worker(
    swept: tuple[Swept, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    submit = Processes.submit

    def submitting(engine: Processes, *rest: Any) -> Any:
        future = submit(engine, *rest)
        if len(killed) < 2:
            victim = multiprocessing.active_children()[0].pid
            time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):  # gone with the one before
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
        return future

    monkeypatch.setattr(Processes, "submit", submitting)
    done = sweep(
        GRID, store=tmp_path / "store", out=tmp_path / "out", engine="processes", workers=2
    )
    assert len(killed) == 2
    assert not done.failed
    pd.testing.assert_frame_equal(rows_of(done), rows_of(swept[0]), check_exact=True)


@pytest.mark.slow
def test_a_job_whose_worker_always_dies_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Processes.submit

    def submitting(engine: Processes, *rest: Any) -> Any:
        future = submit(engine, *rest)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return future

    monkeypatch.setattr(Processes, "submit", submitting)
    recipe = {**TINY, "seeds": 1, "unlearners": ["gd"]}
    done = sweep(
        recipe, store=tmp_path / "store", out=tmp_path / "out", engine="processes", workers=1
    )
    assert len(done.failed) == 2
    assert all(line.startswith("its worker died 3 times") for line in done.failed.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "clouds"}, "unknown engine 'clouds'"),
        ({"engine": "ray", "address": "127.0.0.1:1"}, "nobody answers at --address 127.0.0.1:1"),
        ({"engine": "ray", "address": "nowhere"}, "nobody answers at --address nowhere"),
        (
            {"engine": "processes", "resources": {"train": {"cpus": 4000}}},
            "asks for 4000 CPUs and 0 GPUs",
        ),
        (
            {"engine": "processes", "resources": {"train": {"gpus": 64}}},
            "64 GPUs, and no node has them",
        ),
    ],
)
def test_engines_that_cannot_work_are_refused_at_the_start(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    asked = Sweep.parse({**GRID, "resources": options.pop("resources", {})}, "")
    started = time.monotonic()
    with pytest.raises(MarshtestError) as error:
        sweep(asked, store=tmp_path / "store", out=tmp_path / "out", **options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 30  # it does not hang
    assert Store(tmp_path / "store").recorded() == set()
