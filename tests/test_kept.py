"""What a run keeps where it is asked to, and what it mends: models, a report later, damaged stages."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import TIMES, TINY

import marshtest
from marshtest.commands.sweep import sweep
from marshtest.data.load import load
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.summary import Results
from marshtest.sweeps.jobs import Job
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker

RECIPE: dict[str, Any] = {
    **TINY,
    "seeds": 1,
    "data": {**TINY["data"], "validation": 0.1},
    "unlearners": [{"name": "gd", "lr": [0.1, 0.01]}, "scrub"],
    "budgets": [0.25, 0.5],
}
CRAFTED: dict[str, Any] = {
    **TINY,
    "attack": {"name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 2},
    "poison_budgets": 0.1,
    "unlearners": ["gd"],
    "seeds": 1,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("kept") / "run"
    return marshtest.run(RECIPE, out=folder, keep_models=True, report=False)


def test_each_kept_model_is_the_one_that_its_row_measures(kept: Results) -> None:
    rows = kept.rows.set_index(["role", "unlearner", "hyperparameters", "budget"])
    pipeline = set_up(load_recipe(RECIPE), load("digits", train=200, test=100))
    models = kept.models
    assert len(models) == len(rows) == 2 + 3 * 2
    assert models["path"].nunique() == len(models)
    for _, line in models.iterrows():
        row = rows.loc[tuple(line[list(rows.index.names)])]
        model = kept.load_model(line)
        assert not model.training
        assert accuracy(model, pipeline.task, pipeline.data.test) == row["test_accuracy"]
        again = marshtest.load_model(line["path"]).state_dict()
        assert all(torch.equal(again[name], t) for name, t in model.state_dict().items())
    names = sorted(path.name for path in (kept.folder / "models").iterdir())
    assert names[:2] == ["0.2-0-gd-0.25-2.safetensors", "0.2-0-gd-0.25.safetensors"]
    assert {"0.2-0-initial.safetensors", "0.2-0-retrained.safetensors"} < set(names)


def test_keeping_models_changes_no_row(kept: Results, tmp_path: Path) -> None:
    plain = marshtest.run(RECIPE, out=tmp_path / "run", report=False)
    pd.testing.assert_frame_equal(
        plain.rows.drop(columns=TIMES), kept.rows.drop(columns=TIMES), check_exact=True
    )
    with pytest.raises(MarshtestError, match=r"holds no models. Run its recipe with keep_models"):
        _ = plain.models
    with pytest.raises(MarshtestError, match="is done already, and its models were not kept"):
        marshtest.run(RECIPE, out=tmp_path / "run", keep_models=True)
    assert not (tmp_path / "run" / "models").exists()


def test_the_list_of_models_is_read_without_torch(kept: Results) -> None:
    code = (
        "import sys; from pathlib import Path; from marshtest.results.kept_models import kept_models\n"
        f"assert len(kept_models(Path({str(kept.folder)!r}))) == 8\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_clean_twin_and_the_controls_are_kept_too(tmp_path: Path) -> None:
    results = marshtest.run(CRAFTED, out=tmp_path / "run", keep_models=True, report=False)
    roles = ["initial", "shuffled", "retrained", "reference", "updated", "twin", "twin"]
    assert results.models["role"].tolist() == roles
    models = [results.load_model(line).state_dict() for _, line in results.models.iterrows()]
    twin, updated_twin = models[-2:]
    for before, after in ((models[0], twin), (twin, updated_twin), (models[4], updated_twin)):
        assert not all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert results.models["unlearner"].tolist()[-2:] == ["none", "gd"]


def raising(model: Any, *_: Any, **__: Any) -> Any:
    if not os.environ.get("MENDED"):
        raise KeyError("lost")
    return model


def test_a_model_that_an_unlearner_owes_is_kept_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> Results:
        recipe = {**TINY, "seeds": 1, "unlearners": [f"{__name__}:raising"]}
        return marshtest.run(recipe, out=tmp_path / "run", keep_models=True, report=False)

    assert again().models["role"].tolist() == ["initial", "retrained"]
    monkeypatch.setenv("MENDED", "1")
    mended = again()
    assert mended.models["role"].tolist() == ["initial", "retrained", "updated"]
    assert not (mended.folder / "stages").exists()


@pytest.mark.slow
def test_a_run_without_a_report_is_drawn_by_a_later_call(tmp_path: Path) -> None:
    recipe = {**TINY, "seeds": 1, "unlearners": []}
    results = marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert {path.name for path in results.folder.iterdir()} == {
        *("run.json", "recipe.yaml", "rows.parquet", "rows.csv"),
        *("scores.parquet", "shifts.parquet", "examples.parquet"),
    }
    before = (results.folder / "rows.parquet").stat().st_mtime_ns
    marshtest.run(recipe, out=tmp_path / "run")
    assert (results.folder / "report.html").exists()
    assert (results.folder / "rows.parquet").stat().st_mtime_ns == before


def test_what_was_damaged_while_a_run_was_stopped_is_made_again(
    kept: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that later jobs read, and a score that only the rows do."""
    done: list[str] = []
    real = Worker.__call__

    def stopping(worker: Worker, job: Job, *rest: Any) -> str:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(job.label)
        return real(worker, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            marshtest.run(RECIPE, out=tmp_path / "run", report=False)
    store = Store(tmp_path / "run" / "stages")
    assert store.names("locks") == store.names("drivers") == set()
    model = next(key for key in store.recorded() if key.startswith("initial-"))
    score = min(key for key in store.recorded() if key.startswith("score-"))
    (tmp_path / "run" / "stages" / "stages" / model / "model.safetensors").unlink()
    (tmp_path / "run" / "stages" / "stages" / score / "scores.parquet").write_bytes(b"?")
    said: list[str] = []
    again = marshtest.run(
        RECIPE,
        out=tmp_path / "run",
        report=False,
        progress=lambda done, text="": said.append(text),
    )
    damaged = [text for text in said if "is damaged, so it is made again" in text]
    assert sorted(text.split()[0] for text in damaged) == sorted([model, score])
    pd.testing.assert_frame_equal(
        again.rows.drop(columns=TIMES), kept.rows.drop(columns=TIMES), check_exact=True
    )
    pd.testing.assert_frame_equal(again.scores, kept.scores, check_exact=True)


def test_damaged_poisons_that_only_a_folder_needs_are_crafted_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = sweep(CRAFTED, store=store.url, out=tmp_path / "one")
    (dose,) = (key for key in store.recorded() if key.startswith("dose-"))
    (tmp_path / "store" / "stages" / dose / "poisons.safetensors").write_bytes(b"?")
    again = sweep(CRAFTED, store=store.url, out=tmp_path / "two")
    assert again.damaged == [f"{dose} poisons.safetensors"]
    assert (first.done, again.done) == (len(first.ledger.jobs), 1)
    poisons = [(tmp_path / run / "poisons" / "0.1-0.safetensors") for run in ("one", "two")]
    assert poisons[0].read_bytes() == poisons[1].read_bytes()


def test_a_fault_of_ours_ends_a_run_as_it_is_and_a_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Worker, "_score", faulty)
    recipe = {**TINY, "seeds": 1, "unlearners": ["gd"]}
    with pytest.raises(ZeroDivisionError, match="a bug"):
        marshtest.run(recipe, out=tmp_path / "run")
    assert Store(tmp_path / "run" / "stages").names("failures") == set()
    done = sweep(recipe, store=tmp_path / "store", out=tmp_path / "out")
    assert list(done.failed.values()) == 2 * ["ZeroDivisionError: a bug"]
    assert (done.done, done.blocked) == (3, 0)
