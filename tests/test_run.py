"""The four steps end to end on a tiny recipe: rows, reuse, resumption, and what users bring."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TIMES, TINY
from torch import nn

import marshtest
from marshtest.attacks import Knowledge
from marshtest.data.load import load
from marshtest.experiment import protocol
from marshtest.experiment.cells import CELL, groups
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.accuracy import accuracy
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.tables import legend
from marshtest.results.summary import Results, worth_of
from marshtest.sweeps.jobs import Job, jobs
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.worker import Worker

pytestmark = pytest.mark.usefixtures("no_report")


def test_there_is_one_row_a_model(tiny_run: Results) -> None:
    rows = tiny_run.rows
    assert len(rows) == 2 * (2 + 3)
    assert (
        rows.groupby("seed")["unlearner"].apply(list).tolist()
        == [["none", "retrain (full)", "gd", "euk", "scrub"]] * 2
    )
    assert (rows["forget_size"] == 40).all()
    assert rows["test_accuracy"].between(0, 1).all()
    assert not rows.duplicated(CELL).any()
    csv = pd.read_csv(tiny_run.folder / "rows.csv", dtype={"recipe": str}).drop(
        columns="note"
    )  # "" reads as nan
    pd.testing.assert_frame_equal(csv, rows.drop(columns="note"), check_dtype=False)


def test_no_unlearner_overspends_and_costs_are_shares_of_training(tiny_run: Results) -> None:
    updated = tiny_run.rows[tiny_run.rows["role"] == "updated"]
    assert updated["spent"].between(0.39, 0.5).all()
    assert np.allclose(updated["epochs"], updated["spent"] * 6)
    full = tiny_run.rows[tiny_run.rows["role"] == "retrained"]
    assert np.allclose(full["spent"], 160 / 200)  # the retain set's share of the samples


def test_scores_are_the_rows_figures(tiny_run: Results) -> None:
    keys = CELL
    means = tiny_run.scores.groupby(keys, sort=False)["gus"].mean().reset_index()
    joined = tiny_run.rows.merge(means, on=keys, suffixes=("", "_mean"))
    assert len(joined) == len(tiny_run.rows)
    assert np.allclose(joined["gus"], joined["gus_mean"])
    assert (tiny_run.scores.groupby(keys).size() == 40).all()


def test_the_summary_pools_the_poisons_of_all_seeds(tiny_run: Results) -> None:
    line = tiny_run.summary.iloc[0]
    scores = tiny_run.scores[tiny_run.scores["role"] == "initial"]["rank"]
    assert line["rank_poisons"] == len(scores) == 80
    assert line["rank_dependence"] == pytest.approx(-scores.mean())
    rows = tiny_run.rows[tiny_run.rows["role"] == "initial"]
    assert line["test_accuracy_sd"] == pytest.approx(rows["test_accuracy"].std())


def test_the_same_seed_gives_the_same_rows(tiny_run: Results, tmp_path: Path) -> None:
    again = marshtest.run(TINY, out=tmp_path / "again")
    pd.testing.assert_frame_equal(
        again.rows.drop(columns=TIMES), tiny_run.rows.drop(columns=TIMES), check_exact=True
    )
    pd.testing.assert_frame_equal(again.scores, tiny_run.scores, check_exact=True)


def test_a_finished_folder_is_not_done_again(
    tiny_run: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        pytest.fail("worked again")

    monkeypatch.setattr(Worker, "__call__", fail)
    before = {file: file.stat().st_mtime_ns for file in tiny_run.folder.rglob("*")}
    assert marshtest.run(TINY, out=tiny_run.folder).rows.equals(tiny_run.rows)
    assert {file: file.stat().st_mtime_ns for file in tiny_run.folder.rglob("*")} == before


@pytest.mark.parametrize("stop", [1, 9])
def test_a_stopped_run_goes_on_where_it_was(
    stop: int, tiny_run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = Worker.__call__

    def stopping(worker: Worker, job: Job, *rest: Any) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        real(worker, job, *rest)
        done.append(job.label)

    monkeypatch.setattr(Worker, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        marshtest.run(TINY, out=tmp_path / "run")
    with pytest.raises(MarshtestError, match="holds no finished run"):
        marshtest.read_rows(tmp_path / "run")

    stop = -1
    rows = marshtest.run(TINY, out=tmp_path / "run").rows
    assert done == [job.label for job in jobs(Keys(load_recipe(TINY)), keep_models=False)]
    assert not (tmp_path / "run" / "stages").exists()
    pd.testing.assert_frame_equal(
        rows.drop(columns=TIMES), tiny_run.rows.drop(columns=TIMES), check_exact=True
    )


def test_another_recipes_folder_is_refused_and_left_alone(
    tiny_run: Results, tmp_path: Path
) -> None:
    before = (tiny_run.folder / "rows.parquet").read_bytes()
    with pytest.raises(MarshtestError, match="holds results of another recipe"):
        marshtest.run({**TINY, "seeds": 3}, out=tiny_run.folder)
    assert (tiny_run.folder / "rows.parquet").read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MarshtestError, match="is not empty and holds no run"):
        marshtest.run(TINY, out=tmp_path)


def good(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in budget.stream(task.batches(retain, 32, seed)):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()
    return model


def greedy(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    for batch in task.batches(retain, 32, seed):
        task.loss(model, batch).mean().backward()


def broken(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise KeyError("lost")


def test_a_users_unlearners_run_beside_ours_and_their_faults_are_rows(tmp_path: Path) -> None:
    recipe = {**TINY, "unlearners": [], "seeds": 1}
    results = marshtest.run(recipe, out=tmp_path / "run", unlearners=[good, greedy, broken])
    notes = results.rows.set_index("unlearner")["note"].to_dict()
    name = __name__
    assert notes[f"{name}:good"] == ""
    assert notes[f"{name}:greedy"] == "stopped at the budget before its first step"
    line = broken.__code__.co_firstlineno + 1
    assert notes[f"{name}:broken"] == f"raised KeyError: 'lost' (test_run.py:{line})"
    accuracies = results.rows.set_index("unlearner")["test_accuracy"]
    assert accuracies[f"{name}:good"] > 0.5
    assert accuracies[f"{name}:greedy"] == accuracies["none"]  # never took a step
    assert math.isnan(accuracies[f"{name}:broken"])
    summary = results.summary.set_index("unlearner")
    assert summary.loc[f"{name}:broken", "verdict"] == "INCONCLUSIVE"


class Late(nn.Module):
    """Answers for two samples, and for no more."""

    def __init__(self, model: nn.Module, end: BaseException) -> None:
        super().__init__()
        self.model, self.end = model, end

    def forward(self, x: Any) -> Any:
        if len(x) > 2:
            raise self.end
        return self.model(x)


def late(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return Late(copy.deepcopy(model), RuntimeError("too many\nsamples"))


def leaves(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return Late(copy.deepcopy(model), SystemExit(7))


def weightless(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return copy.deepcopy(model).to("meta")


def frozen_for_good(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    with torch.inference_mode():
        updated = copy.deepcopy(model)
        for parameter in updated.parameters():
            parameter.mul_(0.9)
    return updated


def test_a_model_that_cannot_be_measured_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    bad = [late, leaves, weightless, frozen_for_good]
    recipe = {**TINY, "unlearners": [], "seeds": 1}
    results = marshtest.run(recipe, out=tmp_path / "run", unlearners=[*bad, good], report=False)
    rows = results.rows[results.rows["role"] == "updated"].set_index("unlearner")
    place = f"(test_run.py:{Late.forward.__code__.co_firstlineno + 2})"
    said = rows["note"].to_dict()
    assert said[f"{__name__}:late"] == (
        f"its model raised RuntimeError: too many samples {place} as it was measured"
    )
    assert said[f"{__name__}:leaves"].startswith("its model raised SystemExit: 7")
    assert said[f"{__name__}:weightless"].startswith("returned a model that raises")
    assert "Inference tensors cannot be saved" in said[f"{__name__}:frozen_for_good"]
    for fault in bad:
        assert math.isnan(rows.loc[f"{__name__}:{fault.__name__}", "test_accuracy"])
    assert not rows["note"].str.contains("\n").any()
    assert rows.loc[f"{__name__}:good", "test_accuracy"] > 0.5


class Remembering(nn.Module):
    """A model that stores more than tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)

    def get_extra_state(self) -> Any:
        return {"steps": 3}


def remembering(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return Remembering(copy.deepcopy(model))


def test_a_model_that_cannot_be_kept_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    recipe = {**TINY, "unlearners": [], "seeds": 1}
    given: dict[str, Any] = {"unlearners": [remembering, good], "report": False}
    results = marshtest.run(recipe, out=tmp_path / "run", **given, keep_models=True)
    rows = results.rows.set_index("unlearner")
    assert "cannot be kept: model: " in rows.loc[f"{__name__}:remembering", "note"]
    assert math.isnan(rows.loc[f"{__name__}:remembering", "test_accuracy"])
    assert rows.loc[f"{__name__}:good", "test_accuracy"] > 0.5


def test_data_in_memory_and_another_model_are_welcome(tmp_path: Path) -> None:
    digits = load("digits", train=120, test=50)
    data = marshtest.Dataset.from_tensors(
        (digits.train.x.float() / 255, digits.train.y), (digits.test.x.float() / 255, digits.test.y)
    )
    recipe = {**TINY, "seeds": 1, "model": {"name": "resnet18", "width": 8}, "unlearners": ["cfk"]}
    results = marshtest.run(recipe, out=tmp_path / "run", data=data)
    assert (results.rows["data"] == "in-memory").all()
    assert (results.rows["forget_size"] == 24).all()
    other = marshtest.Dataset.from_tensors((data.test.x, data.test.y), (data.test.x, data.test.y))
    with pytest.raises(MarshtestError, match="results of this recipe on other data"):
        marshtest.run(recipe, out=tmp_path / "run", data=other)


def test_the_best_trial_is_chosen_on_held_out_data_alone(tmp_path: Path) -> None:
    recipe = {
        **TINY,
        "data": {"name": "digits", "train": 200, "test": 100, "validation": 0.25},
        "unlearners": [{"name": "gd", "lr": [1e-6, 5.0]}],
    }
    results = marshtest.run(recipe, out=tmp_path / "run")
    rows = results.rows[results.rows["role"] == "updated"]
    assert len(rows) == 4  # every trial is kept
    means = rows.groupby("hyperparameters")["validation_accuracy"].mean()
    chosen = results.summary[results.summary["role"] == "updated"]
    assert chosen["hyperparameters"].tolist() == [means.idxmax()]
    assert json.loads(means.idxmax())["lr"] == 1e-6

    assert results.searched(0.2)[["trials", "spent"]].round(3).values.tolist() == [
        [2, round(2 * rows["spent"].mean(), 3)]
    ]
    assert (
        "Trials, and the share of the training's compute that they took together: GD 2 ("
        in legend(results)
    )

    altered = results.rows.assign(test_accuracy=0.0, gus=0.0, rank_dependence=9.0)
    again = Results(results.folder, results.recipe, altered, results.scores, results.runs)
    assert set(again.chosen(0.2)["hyperparameters"]) == set(results.chosen(0.2)["hyperparameters"])


@pytest.mark.parametrize(
    ("held_out", "forget", "best"),
    [
        ([0.90, 0.92], [0.50, 0.60], 1),  # both forgot: the more accurate
        ([0.90, 0.92], [0.91, 1.00], 0),  # 0.89 against 0.84: the second still knows the forget set
        (
            [0.90, 0.92],
            [0.00, 1.00],
            0,
        ),  # below held-out accuracy nothing is won: 0.90 against 0.84
    ],
)
def test_a_search_weighs_accuracy_against_what_is_seen_of_forgetting(
    held_out: list[float], forget: list[float], best: int
) -> None:
    means = pd.DataFrame({"validation_accuracy": held_out, "forget_accuracy": forget})
    worth = worth_of(means)
    expected = [h - max(0.0, f - h) for h, f in zip(held_out, forget, strict=True)]
    assert worth.tolist() == pytest.approx(expected)
    assert worth.idxmax() == best


def test_a_trial_that_gave_no_model_in_a_seed_is_not_chosen_by_the_others(
    tiny_run: Results,
) -> None:
    rows = tiny_run.rows.assign(validation_accuracy=0.5, forget_accuracy=0.0)
    one = rows[(rows["unlearner"] == "gd")]
    other = one.assign(hyperparameters="{}", validation_accuracy=[0.9, math.nan])
    both = Results(tiny_run.folder, tiny_run.recipe, pd.concat([one, other]), tiny_run.scores)
    assert set(both.chosen(0.2)["hyperparameters"]) == set(one["hyperparameters"])
    whole = other.assign(validation_accuracy=[0.9, 0.8])
    both = Results(tiny_run.folder, tiny_run.recipe, pd.concat([one, whole]), tiny_run.scores)
    assert set(both.chosen(0.2)["hyperparameters"]) == {"{}"}
    # That another model has more seeds says nothing of the trials.
    full = tiny_run.rows[tiny_run.rows["role"] == "retrained"]
    longer = pd.concat([one, whole, full, full.assign(seed=full["seed"] + 10)])
    of_gd = replace(both, rows=longer).chosen(0.2).query("unlearner == 'gd'")
    assert set(of_gd["hyperparameters"]) == {"{}"}


def test_held_out_samples_are_neither_trained_on_nor_poisoned() -> None:
    recipe = load_recipe({**TINY, "data": {"name": "digits", "validation": 0.25}, "unlearners": []})
    pipeline = set_up(recipe, load("digits"))
    held_out, kept = protocol.split(pipeline, 0)
    assert len(held_out) == 350
    assert not set(held_out.ids.tolist()) & set(kept.ids.tolist())
    assert protocol.split(pipeline, 1)[0].ids.tolist() != held_out.ids.tolist()


def test_a_recipe_too_small_for_a_verdict_says_so(tiny_run: Results) -> None:
    line = tiny_run.summary.set_index("role").loc["retrained"]
    assert line["verdict"] == "INCONCLUSIVE"
    small, impossible = tiny_run.warnings
    assert "too small for a verdict" in small
    assert "must be REMOVED" in small
    assert "80 poisons in all are few for REMOVED of 3 unlearners judged together" in impossible


def test_rows_measure_the_very_model(tmp_path: Path) -> None:
    """The initial model's accuracy, recomputed from the pipeline, without the protocol."""
    recipe = load_recipe({**TINY, "seeds": 1, "unlearners": []})
    data = load("digits", train=200, test=100)
    pipeline = set_up(recipe, data)
    rows = marshtest.run(recipe, out=tmp_path / "run", data=data).rows
    from marshtest.plumbing.seeds import derive

    seed = derive(0, 0.2)
    _, kept = protocol.split(pipeline, 0)
    test = pipeline.data.test
    victim = Knowledge(pipeline.task, test, clean=lambda: pipeline.trainer.new_model(0))
    poisoned = recipe.attack.poison(kept, 40, victim, derive(seed, "attack"))
    model, _ = pipeline.trainer.fit(poisoned.samples, derive(seed, "initial"))
    assert rows["test_accuracy"][0] == accuracy(model, pipeline.task, test)


def mixed(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes))


def test_steps_of_a_users_model_are_each_counted() -> None:
    """One that skips layers by what it has learned could cost more where nobody looks."""
    data = load("digits", train=120, test=50)
    foreign = load_recipe({**TINY, "model": {"name": f"{__name__}:mixed"}})
    assert not set_up(foreign, data).task.steady
    assert set_up(load_recipe(TINY), data).task.steady


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"poison_budgets": 0.001}, "makes fewer than two poisons"),
        ({"poison_budgets": 0.999}, "poison_budgets: 0.999 leaves no training sample to retain"),
        ({"poison_budgets": [0.2, 0.201]}, "0.2 and 0.201 both make 40 poisons. Drop one."),
        ({"unlearners": ["euk"]}, "k: 3 is more than the model's 2 layers"),
        ({"device": "cuda"}, "device: cuda was asked for, and PyTorch finds no GPU here. Use cpu"),
        ({"model": {"name": "mlp", "depth": 0}, "training": {"epochs": 2, "lr": 1e30}}, "diverged"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    change: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MarshtestError, match=says):
        marshtest.run({**TINY, **change}, out=tmp_path / "run")
    assert says == "diverged" or not (tmp_path / "run").exists()


def counting(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    epoch = task.batches_per_epoch(retain, 32)
    for batch in budget.stream(task.batches(retain, 32, seed), epoch):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()
    return model


def test_budgets_may_be_epochs_of_a_methods_own_training_set(tmp_path: Path) -> None:
    """Half of 6 epochs: 3 of 160 retained samples, or of 40 to forget, where training took 6 of 200."""
    recipe = {**TINY, "seeds": 1, "unlearners": ["gd", "ga", "retrain"], "budget_unit": "epochs"}
    results = marshtest.run(recipe, out=tmp_path / "run", unlearners=[counting, good])
    rows = results.rows.set_index("unlearner")
    expected = {"gd": 160, "ga": 40, "retrain": 160, f"{__name__}:counting": 160}
    for name, samples in expected.items():
        row = rows.loc[name]
        assert row["note"] == ""
        assert row["budget"] == 0.5
        assert row["spent"] == pytest.approx(3 * samples / (6 * 200), rel=0.01)
        assert row["epochs"] == pytest.approx(6 * row["spent"])
    (note,) = [note for note in rows["note"] if note]
    assert note.startswith("budget: this one counts epochs")
    values = marshtest.run({**recipe, "budget_unit": "compute"}, out=tmp_path / "other").rows
    assert float(values.set_index("unlearner").loc["ga", "spent"]) > 4 * rows.loc["ga", "spent"]


def test_the_unit_of_budgets_tells_stages_apart() -> None:
    plain, other = (load_recipe({**TINY, "budget_unit": unit}) for unit in ("compute", "epochs"))
    assert plain.hash == load_recipe(TINY).hash != other.hash
    group, method = groups(plain)[0], plain.unlearners[0][0]
    one, two = Keys(plain), Keys(other)
    assert one.updated(group, method, 0.5) != two.updated(group, method, 0.5)
    assert one.model("initial", group) == two.model("initial", group)
