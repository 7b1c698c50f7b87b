"""Effects compared with a clean twin, training by training: their tests, and runs from poison to page."""

import html
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TIMES
from safetensors.torch import load_file
from scipy import stats

import marshtest
from marshtest.attacks import Poisoned, gradient_matching
from marshtest.attacks.crafting import shuffled
from marshtest.commands.plan import effects_of
from marshtest.data.load import load
from marshtest.data.samples import Samples
from marshtest.experiment.protocol import Trainer
from marshtest.experiment.recipe import Recipe
from marshtest.metrics import power
from marshtest.metrics.trainings import Difference
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.reporting.figures import figures_of
from marshtest.reporting.tables import label, table2, table2_caption
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results
from marshtest.sweeps.jobs import Job, jobs
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.worker import Worker

pytestmark = pytest.mark.usefixtures("no_report")
TRAINING = {"epochs": 20, "batch_size": 32, "lr": 0.1, "weight_decay": 5e-3}
DATA = {"name": "digits", "train": 300, "test": 150}
DIGITS = load("digits", train=300, test=150)
BASE: dict[str, Any] = {"data": DATA, "training": TRAINING, "unlearners": ["gd"], "seeds": 2}
CRAFTING = {"epsilon": 96, "restarts": 2, "steps": 15, "targets": 2}
CANCELING: dict[str, Any] = BASE | {
    "model": {"name": "mlp", "depth": 0},
    "attack": {"name": "gradient-canceling", "steps": 60},
    "poison_budgets": [0.1, 0.2],
    "budgets": [0.25, 0.5],
}
MATCHING: dict[str, Any] = BASE | {
    "model": {"name": "mlp", "width": 32},
    "attack": {"name": "gradient-matching", **CRAFTING},
    "poison_budgets": 0.1,
    "budgets": 0.5,
}
LOW, HIGH = stats.binom.interval(0.999, 2000, 0.05)
BOTH = pytest.mark.parametrize("kind", ["canceling", "matching"])


class Watched(NamedTuple):
    results: Results
    begun: list[Job]
    fits: list[int]  # seeds of what was trained from scratch


Runs = dict[str, Watched]


def watched(recipe: dict[str, Any], folder: Path) -> Watched:
    begun, fits, begin, fit = list[Job](), list[int](), Worker.__call__, Trainer.fit

    def beginning(worker: Worker, job: Job, progress: Any) -> None:
        begun.append(job)
        begin(worker, job, progress)

    def fitting(pipeline: Trainer, samples: Samples, seed: int, *rest: Any) -> Any:
        fits.append(seed)
        return fit(pipeline, samples, seed, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "__call__", beginning)
        patch.setattr(Trainer, "fit", fitting)
        return Watched(marshtest.run(recipe, out=folder, report=False), begun, fits)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    recipes, folder = (
        {"canceling": CANCELING, "matching": MATCHING},
        tmp_path_factory.mktemp("runs"),
    )
    return {kind: watched(recipe, folder / kind) for kind, recipe in recipes.items()}


def equal(one: Results, two: Results) -> None:
    rows, more = (results.rows.drop(columns=TIMES) for results in (one, two))
    pd.testing.assert_frame_equal(rows, more, check_exact=True)
    pd.testing.assert_frame_equal(one.scores, two.scores, check_exact=True)


@pytest.mark.parametrize("n", [7, 8, 10])
@pytest.mark.parametrize("effect", [1.0, 1.3, 1.6])
def test_power_with_few_trainings_is_that_of_simulated_t_tests(n: int, effect: float) -> None:
    """Of removal a lower bound, as both sides may miss together. The rates' own error: 0.4 points."""
    drawn = np.random.default_rng(n).normal(0, 1, (20_000, n))
    mean, error = drawn.mean(1), stats.sem(drawn, axis=1)
    rejected = np.abs(mean + effect) / error > stats.t.isf(0.025, n - 1)
    found = power.detection(n, effect, estimated=True)
    assert found == pytest.approx(rejected.mean(), abs=0.015)
    for left in (0.0, 0.2):
        removed = (effect - np.abs(mean + left)) / error > stats.t.isf(0.05, n - 1)
        found = power.removal(n, effect, left=left, estimated=True)
        assert removed.mean() - 0.05 < found < removed.mean() + 0.015


@pytest.mark.parametrize("effect", [0.001, 0.002, 0.003])
def test_power_with_many_seeds_is_the_normal_ones(effect: float) -> None:
    for test in (partial(power.detection, effect=effect), partial(power.removal, margin=effect)):
        assert test(1e6, estimated=True) == pytest.approx(test(1e6), abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "column", "score"),
    [("canceling", "test_error", "error"), ("matching", "target_probability", "target")],
)
def test_dependence_is_the_mean_difference_to_the_clean_twin_of_the_same_seed(
    kind: str, column: str, score: str, runs: Runs
) -> None:
    results = runs[kind].results
    roles = ["initial", "shuffled", "retrained", "reference", "updated"]
    assert results.rows["role"].unique().tolist() == roles
    assert set(results.summary["role"]) == set(roles) - {"reference"}
    for _, line in results.summary.iterrows():
        rows = results.rows[results.rows["poison_budget"] == line["poison_budget"]]
        own = rows[(rows["role"] == line["role"]) & (rows["budget"] == line["budget"])]
        left = own[column] - own[f"twin_{column}"]
        assert len(left) == line[f"{score}_trainings"] == 2
        assert line[f"{score}_dependence"] == pytest.approx(left.mean(), abs=1e-12)


@BOTH
def test_the_retrained_models_twin_is_another_retraining(kind: str, runs: Runs) -> None:
    rows = runs[kind].results.rows.set_index(["poison_budget", "seed"])
    column = {"canceling": "test_error", "matching": "target_probability"}[kind]
    other = rows.loc[rows["role"] == "reference", column]
    twin = rows.loc[rows["role"] == "retrained", f"twin_{column}"]
    assert twin.tolist() == other.tolist()


@pytest.mark.slow
def test_nothing_but_the_poison_differs_between_a_model_and_its_twin(tmp_path: Path) -> None:
    """Poisons that change nothing: both arms are the same models, to the bit, whatever the unlearner."""
    recipe = MATCHING | {
        "attack": {"name": "gradient-matching", "epsilon": 1e-9, "restarts": 1, "steps": 1},
        "unlearners": ["retrain", "gd", "ga", {"name": "euk", "k": 1}, "neggrad+"],
        "poison_budgets": 0.05,
    }
    results = marshtest.run(recipe, out=tmp_path / "run")
    same = results.rows[results.rows["role"].isin(["initial", "shuffled", "updated"])]
    left = same["target_probability"] - same["twin_target_probability"]
    assert left.abs().max() < 1e-5
    assert set(results.summary["verdict"]) == {"INCONCLUSIVE"}


@pytest.mark.slow
def test_table_2_is_accuracy_by_epochs_unlearner_and_poison_budget(
    runs: Runs, tmp_path: Path
) -> None:
    results = replace(runs["canceling"].results, folder=tmp_path)
    page = write_report(results)
    found = table2(results).set_index("epochs")
    expected = {}
    for share in (0.1, 0.2):
        rows = results.rows.query(f"role == 'updated' and poison_budget == {share}")
        by_budget = 100 * rows.pivot(index="budget", columns="seed", values="test_accuracy")
        means, spreads = by_budget.mean(axis=1), by_budget.std(axis=1)
        cells = [f"{mean:.2f}±{spread:.2f}" for mean, spread in zip(means, spreads)]
        expected[f"GD, {100 * share:g}%"] = dict(zip(("5", "10"), cells))
    assert found.to_dict() == expected
    saved = pd.read_csv(results.folder / "table2.csv", dtype=str)
    assert saved.set_index("epochs").to_dict() == expected
    caption = table2_caption(results)
    assert "by equal compute, in epochs of the initial training." in caption
    for share, size in ((0.1, 30), (0.2, 60)):
        own = results.rows.query(f"role == 'initial' and poison_budget == {share}")["test_accuracy"]
        assert f" {100 * own.mean():.2f}±{100 * own.std():.2f} % with {size} poisons" in caption
    assert caption in html.unescape(page.read_text())
    recipe = results.recipe.model_copy(update={"budget_unit": "epochs"})
    told = Results(results.folder, recipe, results.rows, results.scores, results.runs)
    assert "by epochs of the method's own training set, as the paper" in table2_caption(told)


def test_what_an_entry_searches_is_in_no_name(runs: Runs) -> None:
    """Two searches over one list of rates, with two values of σ²: the rate that was chosen is not named."""
    entries = [{"name": "ngd", "lr": [0.1, 0.2], "noise_variance": of} for of in (1e-7, 1e-6)]
    values = runs["canceling"].results.recipe.model_dump(mode="json")
    values["data"]["validation"] = 0.1
    recipe = Recipe.parse({**values, "unlearners": [*entries, "gd"]}, "")
    names = set()
    for trial in (trial for trials in recipe.unlearners for trial in trials):
        given = json.dumps(trial.hyperparameters, sort_keys=True)
        line = {"unlearner": trial.name, "role": "updated", "hyperparameters": given, "budget": 0.5}
        names.add(label(line, recipe, with_budget=False))
    assert names == {"NGD noise_variance=1e-07", "NGD noise_variance=1e-06", "GD"}


def test_no_poison_budget_is_lost_from_table_2(runs: Runs) -> None:
    results, few = runs["canceling"].results, {0.1: 0.0001, 0.2: 0.0002}
    recipe = results.recipe.model_copy(update={"poison_budgets": tuple(few.values())})
    rows, scores = (f.replace({"poison_budget": few}) for f in (results.rows, results.scores))
    assert table2(Results(results.folder, recipe, rows, scores, results.runs)).shape == (2, 3)


@BOTH
def test_only_targeted_poisons_have_figure_3(kind: str, runs: Runs) -> None:
    results = runs[kind].results
    by_budget = {"figure8", "left-by-budget"}  # of several
    wanted = {"figure3"} if kind == "matching" else by_budget
    assert set(figures_of(results, 0.1)) == {"dependence", "shift"} | wanted


@BOTH
def test_no_plan_of_poisons_from_a_verdict_that_rests_on_trainings(kind: str, runs: Runs) -> None:
    with pytest.raises(MarshtestError, match="needs trainings, not poisons"):
        effects_of(runs[kind].results)


def test_a_warning_asks_for_the_seeds_that_its_two_controls_need(runs: Runs) -> None:
    results = replace(runs["matching"].results)
    summary = results.summary.assign(needed=[5.0, 999.0, 7.0, 999.0])
    summary["verdict"] = "INCONCLUSIVE"
    vars(results)["summary"] = summary  # initial, shuffled, retrained, updated
    few, impossible = results.warnings
    assert "For these two about 7 trainings in all would do" in few
    assert "2 trainings can give no verdict: NOT REMOVED needs 6 at least" in impossible


def test_the_crafting_has_one_line_a_step_and_its_end_is_in_the_rows(runs: Runs) -> None:
    lines = pd.read_parquet(runs["canceling"].results.folder / "crafting.parquet")
    assert lines.groupby(["poison_budget", "seed"]).size().tolist() == [61] * 4
    lines = pd.read_parquet(runs["matching"].results.folder / "crafting.parquet")
    assert lines.groupby(["seed", "target", "restart"]).size().tolist() == [16] * 8
    best = lines[lines["step"] == 15].groupby(["seed", "target"])["objective"].min()
    for seed, rows in runs["matching"].results.rows.groupby("seed"):
        assert rows["crafting_objective"].tolist() == pytest.approx([best[seed].mean()] * 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_saved_poisons_stay_within_epsilon_and_the_range_of_pixels(seed: int, runs: Runs) -> None:
    data, results = DIGITS, runs["matching"].results
    saved = load_file(results.folder / "poisons" / f"0.1-{seed}.safetensors")
    assert data.std is not None
    assert saved["perturbations"].shape == (30, 1, 8, 8)
    change = saved["perturbations"] * data.std[0]
    assert 0.1 < float(change.abs().max()) <= 96 / 255 + 1e-6
    pixels = data.train.x[saved["ids"]] / 255 + change
    assert -1e-6 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-6


@BOTH
def test_the_jobs_foretold_are_done_once_and_the_clean_model_serves_all_poison_budgets(
    kind: str, runs: Runs
) -> None:
    (results, begun, fits), recipe = runs[kind], runs[kind].results.recipe
    keys = Keys(Recipe.parse(recipe.model_dump(mode="json"), ""))
    foretold = [job.makes for job in jobs(keys, keep_models=False)]
    assert [job.makes for job in begun] == list(dict.fromkeys(foretold))
    cells, updated = 2 * len(recipe.poison_budgets), int((results.rows["role"] == "updated").sum())
    expected = {"train": 2 + 5 * cells, "craft": cells, "score": 4 * cells}
    expected["unlearn"] = updated // len(recipe.budgets)
    assert pd.Series([job.kind for job in begun]).value_counts().to_dict() == expected
    assert len(fits) == expected["train"]
    assert [fits.count(derive(seed, "clean")) for seed in (0, 1)] == [1, 1]


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_rows(runs: Runs, tmp_path: Path) -> None:
    equal(marshtest.run(CANCELING, out=tmp_path / "again"), runs["canceling"].results)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, lambda b: b[:-4], lambda b: b"", lambda b: b[:-1] + b"?"])
def test_a_run_stopped_between_restarts_goes_on_with_the_next(
    damage: Any, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a restart that was damaged on the disk is made again."""
    real, crafted = gradient_matching.craft, list[int]()  # type: ignore[attr-defined]

    def counted(*args: Any, stop: int, **options: Any) -> Any:
        if len(crafted) == stop:
            raise KeyboardInterrupt
        crafted.append(options["seed"])
        return real(*args, **options)

    monkeypatch.setattr(gradient_matching, "craft", partial(counted, stop=1))
    with pytest.raises(KeyboardInterrupt):
        marshtest.run(MATCHING, out=tmp_path / "run")
    (kept,) = (file for file in (tmp_path / "run").rglob("partial/*/*"))
    if damage is not None:
        kept.write_bytes(damage(kept.read_bytes()))
    monkeypatch.setattr(gradient_matching, "craft", partial(counted, stop=-1))
    again = watched(MATCHING, tmp_path / "run")
    assert len(crafted) == 2 * 2 * 2 + (damage is not None)  # seeds, targets, restarts: none twice
    assert derive(0, "clean") not in again.fits
    equal(again.results, runs["matching"].results)


def test_shuffled_shifts_have_their_own_values_in_another_order() -> None:
    shifts = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = Samples(torch.zeros(20, 2, 5, 5), torch.zeros(20).long(), torch.arange(20))
    ids = torch.tensor([3, 17, 0, 9, 11, 4])
    poisoned = Poisoned(plain, ids, seed=0, perturbations=shifts)
    before, after = poisoned.samples.perturbation(), shuffled(poisoned, 1).perturbation()
    assert before is not None
    assert after is not None
    assert torch.equal(after.flatten(1).sort(1).values, before.flatten(1).sort(1).values)
    assert torch.equal((after != before).flatten(1).any(1), torch.isin(plain.ids, ids))
    assert not after[~torch.isin(plain.ids, ids)].any()


def test_success_has_wilsons_interval(runs: Runs) -> None:
    """By its formula, for all seeds' targets together."""
    for _, line in runs["matching"].results.summary.iterrows():
        n, share, z = 4, line["target_success"], stats.norm.isf(0.025)
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        assert line["target_success_low"] == pytest.approx(centre - half, abs=1e-9)
        assert line["target_success_high"] == pytest.approx(centre + half, abs=1e-9)


def test_one_model_in_some_trainings_and_none_in_others_is_no_proof(runs: Runs) -> None:
    results = runs["matching"].results
    rows = results.rows.copy()
    lost = (rows["role"] == "updated") & (rows["seed"] == 1)
    rows.loc[rows["role"] == "updated", "twin_same"] = 1.0
    rows.loc[lost, ["twin_same", "target_probability", "twin_target_probability"]] = np.nan
    shown = replace(results, rows=rows)._evidence(rows[rows["role"] == "updated"])
    assert isinstance(shown, Difference)
    assert not shown.same
