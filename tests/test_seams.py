"""What a user brings goes the whole way: run, rows, tables, figures, page, and the rows alone again."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import homemade
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TIMES
from homemade import RECIPE, LabelFlipping, LossAUC
from scipy.stats import mannwhitneyu

import marshtest
from marshtest.attacks import Effect, Gaussian, Poisoned
from marshtest.data.load import LOADERS
from marshtest.data.texts import TEXTS
from marshtest.experiment.cells import Group
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.experiment.roles import Role
from marshtest.experiment.row_file import read_file
from marshtest.hypotheses.shift import Shift
from marshtest.metrics.presentation import Column
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.summary import Results
from marshtest.sweeps.keys import Keys

ROOT = Path(__file__).parents[1]
SPEC = "homemade:LabelFlipping"
pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return marshtest.run(RECIPE, out=tmp_path_factory.mktemp("seams") / "homemade")


def test_all_of_it_stands_in_the_rows(done: Results) -> None:
    rows = done.rows
    roles = ["initial", "retrained", "reference", "updated"]  # no control: nothing was shuffled
    assert rows["role"].tolist() == 2 * roles
    assert set(rows["data"]) == {"homemade:blobs"}
    assert set(rows["attack"]) == {SPEC}
    assert rows["loss_auc"].between(0, 1).all()
    poisoned, clean = (rows[rows["role"] == role] for role in ("initial", "retrained"))
    assert (poisoned["flip_probability"].to_numpy() > clean["flip_probability"].to_numpy()).all()
    assert (poisoned["twin_flip_probability"] < 0.1).all()  # trained on the true labels


def test_the_numbers_are_those_of_the_models(tmp_path: Path) -> None:
    """The metric and the effect by their definitions, on a model trained by hand as the run does it."""
    from marshtest.experiment.protocol import Subject, measure, poison, split, train

    recipe = load_recipe(RECIPE)
    pipeline, group = set_up(recipe, data_of(recipe.data, "cpu")), Group(0.2, 0)
    poisoned = poison(pipeline, group)
    model, fitted = train(pipeline, group, poisoned, Role.INITIAL)
    subject = Subject(Role.INITIAL, "none", 0.0, model, fitted.cost)
    row = measure(pipeline, group, poisoned, subject, fitted, None, model).row
    forget, test = poisoned.forget, pipeline.data.test
    with torch.no_grad():
        members, others = (
            torch.nn.functional.cross_entropy(model(of.x), of.y, reduction="none").cpu().numpy()
            for of in (forget, test)
        )
        p = model(forget.x).softmax(1)
    smaller = mannwhitneyu(others, members).statistic / (len(members) * len(others))
    assert row["loss_auc"] == pytest.approx(smaller)
    clean = split(pipeline, 0)[1]
    true = clean.y[clean.positions(forget.ids)]
    assert torch.equal(forget.y, (true + 2) % 3)
    wrong = p[torch.arange(len(p)), forget.y].double().mean()
    assert row["flip_probability"] == row["twin_flip_probability"] == pytest.approx(float(wrong))


def test_tables_figures_and_the_page_show_it(done: Results) -> None:
    summary = (done.folder / "summary.md").read_text()
    page = (done.folder / "report.html").read_text()
    for text in (summary, page):
        for title in ("flipped probability", "flip success", "loss AUC"):
            assert title in text
        assert "homemade:fine_tuned" in text
    assert "flipped labels (2 places on)" in page
    assert list((done.folder / "figures").glob("*.png"))


@pytest.mark.slow
def test_a_report_is_drawn_again_from_the_rows_alone(done: Results, tmp_path: Path) -> None:
    """In a process that cannot import the user's module."""
    shutil.copy(done.folder / "rows.parquet", tmp_path)
    code = (
        "import sys, marshtest\n"
        "sys.path = [p for p in sys.path if not p.endswith('tests')]\n"
        "marshtest.report('rows.parquet', out='again')\n"
        "assert 'homemade' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    page = (tmp_path / "again" / "report.html").read_text()
    for title in ("flipped probability", "flip success", "loss AUC"):
        assert title in page


def test_two_runs_are_compared(done: Results, tmp_path: Path) -> None:
    faster = {"unlearners": [{"name": "homemade:fine_tuned", "lr": 0.1}]}
    other = marshtest.run({**RECIPE, **faster}, out=tmp_path / "other")
    lines = marshtest.compare(done, other)
    assert all("homemade:fine_tuned" in name for name in lines["a"])
    assert "flipped probability" in set(lines["title"])


# What is stored, and what it is refused for


def test_reading_a_recipe_imports_nothing() -> None:
    values = {
        **RECIPE,
        "attack": {"name": "nowhere:Attack", "options": 3},
        "metrics": ["nowhere:M"],
    }
    recipe = load_recipe({**values, "data": "nowhere:load"}, imports=False)
    assert "nowhere" not in sys.modules
    assert recipe.to_yaml()
    with pytest.raises(MarshtestError, match="data.name: cannot import 'nowhere'"):
        recipe.imported()


def test_a_stored_recipe_is_the_same_recipe() -> None:
    recipe = load_recipe(RECIPE)
    values = recipe.model_dump(mode="json")
    unread = Recipe.parse(values, "")
    assert unread.hash == recipe.hash
    assert unread.imported().hash == recipe.hash
    assert unread.imported().model_dump(mode="json") == values
    assert load_recipe({**RECIPE, "attack": SPEC}).hash != recipe.hash  # one place on


@pytest.mark.parametrize("given", [LabelFlipping, {"name": LabelFlipping}, LabelFlipping(), SPEC])
def test_a_class_an_object_and_a_name_are_one_attack(given: Any) -> None:
    recipe = load_recipe({**RECIPE, "attack": given})
    assert recipe.hash == load_recipe({**RECIPE, "attack": {"name": SPEC, "places": 1}}).hash
    assert recipe.attack.name == SPEC


@pytest.mark.parametrize(
    ("key", "place", "says"),
    [
        ("attack", ("attack",), "attack: homemade:LabelFlipping is not what it was"),
        ("metrics", ("metrics", 0), "metrics: homemade:LossAUC is not what it was"),
        ("data", ("data",), "data.name: homemade:blobs is not what it was"),
    ],
)
def test_code_that_changed_is_refused_before_any_training(
    key: str, place: tuple[Any, ...], says: str, tmp_path: Path
) -> None:
    recipe = load_recipe(RECIPE)
    values: Any = recipe.model_dump(mode="json")
    part = values
    for step in place:
        part = part[step]
    part["source"] = "00000000"
    with pytest.raises(MarshtestError, match=f"{says}.*Or leave|{says}.*Leave out `source`"):
        marshtest.run(values, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    part["source"] = ""
    assert load_recipe(values).hash == recipe.hash


def test_what_a_class_does_counts_in_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_recipe(RECIPE)

    def effect(self: Any, model: Any, poisoned: Any, task: Any) -> Effect:
        return Effect(poisoned.forget_ids.cpu().numpy(), {}, {})

    monkeypatch.setattr(LabelFlipping, "effect", effect)
    assert load_recipe(RECIPE).hash != before.hash
    with pytest.raises(MarshtestError, match="is not what it was"):
        Recipe.parse(before.model_dump(mode="json"), "").imported()


def test_a_class_given_in_python_must_be_given_again() -> None:
    class Mine(LabelFlipping):
        pass

    values = load_recipe({**RECIPE, "attack": Mine}).model_dump(mode="json")
    with pytest.raises(
        MarshtestError, match="attack: .*Mine was given in Python .*Give that class"
    ):
        load_recipe(values)


class Bare(homemade.Attack):
    def poison(self, *given: Any) -> Any:
        return None


class Unshown(Bare):
    def effect(self, *given: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attack": "homemade:nothing"}, "attack: module 'homemade' has no 'nothing'"),
        ({"attack": "homemade:blobs"}, "attack: homemade:blobs is no attack. Extend marshtest"),
        ({"attack": "homemade blobs:x"}, "names no callable"),
        ({"attack": {"name": SPEC, "place": 2}}, "attack.place: unknown key 'place'. Did you mean"),
        ({"attack": Bare}, "Bare lacks effect, presentation. Define it"),
        ({"attack": Unshown}, "Unshown lacks presentation. Define it"),
        ({"metrics": "homemade:LossAUC"}, "metrics: a list of metrics is needed"),
        ({"metrics": ["auc"]}, "metrics.name: unknown metric 'auc'"),
        ({"metrics": ["homemade:blobs"]}, "metrics: homemade:blobs is no metric"),
        ({"metrics": 2 * ["homemade:LossAUC"]}, "metrics: homemade:LossAUC is given twice"),
        ({"data": {"name": "homemade:blobs", "path": "x"}}, "data.path: homemade:blobs loads"),
        (
            {"data": {"name": "homemade:blobs", "spred": 1}},
            "data.name: homemade:blobs: raised Type",
        ),
        (
            {"data": {"name": "homemade:RECIPE"}},
            "data.name: 'homemade:RECIPE' is a dict, not a call",
        ),
        (
            {"data": {"name": "homemade:fine_tuned"}},
            "data.name: homemade:fine_tuned: raised TypeErr",
        ),
        ({"data": {"name": "builtins:dict"}}, "data.name: builtins:dict"),
        ({"data": {"name": "digits", "spread": 1}}, "data.spread: unknown key 'spread'"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(MarshtestError, match=re.escape(says)) as error:
        marshtest.run({**RECIPE, **changes}, out=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "rows.parquet").exists()


def test_data_of_ones_own_by_the_command_line_short_form(tmp_path: Path) -> None:
    recipe = load_recipe("digits-gaussian", "data=homemade:blobs", "data.spread=2", imports=False)
    assert (recipe.data.name, recipe.data.path) == ("homemade:blobs", None)
    assert recipe.data.model_dump()["options"] == {"spread": 2}


def test_what_the_data_hold_counts_as_for_tensors(tmp_path: Path) -> None:
    """Two contents under one name are two runs: the folder of one refuses the other."""
    quick = {**RECIPE, "seeds": 1, "unlearners": []}
    marshtest.run(quick, out=tmp_path / "run")
    digest = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert re.fullmatch("[0-9a-f]{16}", digest)
    data = data_of(load_recipe(quick).data, "cpu")
    assert torch.equal(data.train.x, data_of(load_recipe(quick).data, "cpu").train.x)
    few = data_of(load_recipe({**quick, "data": {**RECIPE["data"], "train": 50}}).data, "cpu")
    assert torch.equal(few.train.x, data.train.x[:50])


def test_a_study_refuses_an_attack_that_it_would_have_to_import() -> None:
    values = {"name": "mine", "hypothesis": "shift", "sets": {"flips": SPEC}}
    with pytest.raises(MarshtestError, match="sets.flips: a study takes attacks that ship .*yours"):
        Shift.parse(values, "")


# Metrics


class Meddling(LossAUC):
    """Draws from every generator there is."""

    def measure(self, model: Any, question: Any) -> Any:
        torch.rand(100), np.random.rand(100)
        return super().measure(model, question)


@pytest.mark.slow
def test_a_metric_moves_no_other_number(done: Results, tmp_path: Path) -> None:
    without = {key: value for key, value in RECIPE.items() if key != "metrics"}
    plain = marshtest.run(without, out=tmp_path / "plain")
    noisy = marshtest.run({**RECIPE, "metrics": [Meddling]}, out=tmp_path / "noisy")
    timed = ["recipe", *TIMES]
    expected = plain.rows.drop(columns=timed)
    for other in (done, noisy):
        found = other.rows.drop(columns=[*timed, "loss_auc"])
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert noisy.rows["loss_auc"].tolist() == done.rows["loss_auc"].tolist()
    assert "loss_auc" not in plain.rows


def test_rows_say_what_a_report_must_know_of_a_metric(done: Results) -> None:
    (about,) = read_file(done.folder).runs.values()
    column = LossAUC.columns["loss_auc"]
    assert {n: Column(**of) for n, of in about["metrics"].items()} == {"loss_auc": column}
    assert about["presentation"]["title"] == "label flipping"


def test_other_metrics_score_the_same_models() -> None:
    keys, plain = (
        Keys(load_recipe(of), "data")
        for of in (RECIPE, {k: v for k, v in RECIPE.items() if k != "metrics"})
    )
    group = Group(0.2, 0)
    assert keys.dose(group) == plain.dose(group)
    model = keys.model(Role.INITIAL, group)
    assert model == plain.model(Role.INITIAL, group)
    assert keys.score(model) != plain.score(model)
    other = Keys(load_recipe({**RECIPE, "metrics": [{"name": LossAUC, "power": 2}]}), "data")
    assert other.score(model) not in (keys.score(model), plain.score(model))


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("test_accuracy", "test_accuracy: is the name of a column that every row has"),
        ("Loss AUC", "columns.Loss AUC: String should match pattern"),
        ("flip_probability", "'flip_probability' is a column of every row"),
        ("flip_success", "'flip_success' is a column of every row"),
        ("flip", "'flip' is a column of a score's"),
        ("twin_flip", "'twin_flip' is a column of every row"),
        ("scoring_seconds", "'scoring_seconds' is a column of every row"),
    ],
)
def test_a_column_that_is_taken_is_refused_before_any_training(
    column: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossAUC, "columns", {column: Column(title="x")})
    with pytest.raises(MarshtestError, match=f"metrics.*homemade:LossAUC.*{says}"):
        marshtest.run(RECIPE, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_metrics_need_two_columns(tmp_path: Path) -> None:
    with pytest.raises(MarshtestError, match="'loss_auc' is a column of another metric"):
        marshtest.run({**RECIPE, "metrics": [LossAUC, Meddling]}, out=tmp_path / "run")


class Failing(LossAUC):
    def measure(self, model: Any, question: Any) -> Any:
        raise ValueError("no luck")


class Elsewhere(LossAUC):
    def measure(self, model: Any, question: Any) -> Any:
        return {"other": 1.0}


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (Failing, r"raised ValueError: no luck \(test_seams.py:"),
        (Elsewhere, r"measured \['other'\], and its columns are \['loss_auc'\]"),
    ],
)
def test_a_metric_that_fails_is_one_line(metric: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(MarshtestError, match=says):
        marshtest.run({**RECIPE, "metrics": [metric]}, out=tmp_path / "run")


# The harness


class Boasting(LabelFlipping):
    """Says that nothing was lost."""

    def effect(self, *given: Any) -> Effect:
        effect = super().effect(*given)
        return replace(
            effect, figures={**effect.figures, "test_accuracy": 1.0, "forget_accuracy": 0.0}
        )


def test_the_harness_measures_and_the_attack_does_not(done: Results, tmp_path: Path) -> None:
    boast = marshtest.run(
        {**RECIPE, "attack": {"name": Boasting, "places": 2}}, out=tmp_path / "run"
    )
    for column in ("test_accuracy", "forget_accuracy", "twin_test_accuracy"):
        np.testing.assert_array_equal(boast.rows[column], done.rows[column])


class Quiet(Gaussian):
    """Tells each poison's scores, and leaves what they come to to the harness."""

    def effect(self, *given: Any) -> Effect:
        effect = super().effect(*given)
        figures = {name: v for name, v in effect.figures.items() if "tpr" in name}
        return replace(effect, figures=figures)


def test_the_harness_sums_up_scores_with_a_known_null_law(tmp_path: Path) -> None:
    own = {**RECIPE, "attack": {"name": Quiet, "draws": 19}, "seeds": 1}
    quiet = marshtest.run(own, out=tmp_path / "quiet")
    loud = marshtest.run({**own, "attack": {"name": Gaussian, "draws": 19}}, out=tmp_path / "loud")
    assert loud.recipe.attack.name == "gaussian"
    columns = [name for name in loud.rows if re.match("(gus|rank)_", name)]
    assert len(columns) > 20
    pd.testing.assert_frame_equal(quiet.rows[columns], loud.rows[columns], check_exact=True)


def test_an_attack_that_asks_for_a_clean_model_says_so(tmp_path: Path) -> None:
    class Asks(LabelFlipping):
        def poison(self, samples: Any, count: int, knowledge: Any, *rest: Any) -> Any:
            knowledge.clean()
            return super().poison(samples, count, knowledge, *rest)

    with pytest.raises(MarshtestError, match="crafted: ClassVar"):
        marshtest.run({**RECIPE, "attack": Asks, "seeds": 1}, out=tmp_path / "one")

    class Says(Asks):
        crafted: ClassVar[bool] = True

    made = marshtest.run({**RECIPE, "attack": Says, "seeds": 1}, out=tmp_path / "two")
    assert (made.rows["role"] == "initial").any()


def test_images_with_other_labels_are_shown(tmp_path: Path) -> None:
    small = {"name": "digits", "train": 100, "test": 50}
    made = marshtest.run(
        {**RECIPE, "data": small, "attack": LabelFlipping, "seeds": 1}, out=tmp_path / "run"
    )
    assert (made.examples["given"] == (made.examples["label"] + 1) % 10).all()
    assert list(made.examples) == ["id", "label", "given", "base", "dosed"]


# What was before


def test_poisons_stored_before_are_read() -> None:
    """A stage of 0.1: `shifts` for perturbations; of 0.2: true labels beside the attacker's."""
    data = homemade.blobs()
    ids = torch.tensor([3, 7])
    labels = data.train.y[ids]
    old = {"ids": ids, "labels": labels, "shifts": torch.ones(2, 8)}
    shifted = Poisoned.of(old, data.train, data.test, seed=1)
    assert torch.equal(shifted.samples.perturbations[1:], torch.ones(2, 8))  # type: ignore[index]
    old = {"ids": ids, "labels": 1 - labels, "true_labels": labels, "targets": data.test.ids[:3]}
    flipped = Poisoned.of(old, data.train, data.test, seed=1)
    assert torch.equal(flipped.samples.y[ids], 1 - labels)
    assert torch.equal(flipped.true_labels, labels)
    assert torch.equal(flipped.unpoisoned.y, data.train.y)
    assert flipped.rest is not None
    assert torch.equal(flipped.rest.ids, data.test.ids[3:])
    assert flipped.tensors().keys() == old.keys()


STORED = {  # keys as they were before recipes had metrics; tests/golden.json has the hashes
    "digits-gaussian": ("dose-4648c2db268cecde", "score-dd4e949a2508ebee"),
    "digits-indiscriminate": ("dose-634905a5b827e8fb", "score-3f6de4f1f5cb8e55"),
    "digits-targeted": ("dose-d6d200fe1cbc2728", "score-0efeafa1d4f824de"),
    "cifar10-small-targeted": ("dose-51dafb2c8d048a68", "score-df96caaf027a4719"),
    "imdb-small-trigger": ("dose-4dfe8291f48c541d", "score-28b6519cf91cbef8"),
    "paper-cifar10-gaussian": ("dose-4afd5b98854b10fb", "score-7f855364c20b4169"),
}


FORMER = {  # what recipes were that have changed since
    "cifar10-small-targeted": ["data.train=5000", "data.test=2000", "model.width=16"],
}


@pytest.mark.parametrize("name", STORED)
def test_a_recipe_without_metrics_has_the_keys_that_it_had(name: str) -> None:
    former = FORMER.get(name, [])
    recipe = load_recipe(name, *former)
    keys, group = Keys(recipe), Group(recipe.poison_budgets[0], 0)
    updated = keys.updated(group, recipe.unlearners[0][0], recipe.budgets[0])
    assert (keys.dose(group), keys.score(updated)) == STORED[name]
    assert "metrics" not in recipe.model_dump()
    assert load_recipe(name, *former, "metrics=[]").hash == recipe.hash


# One line for a data set


@pytest.mark.parametrize("name", [*LOADERS, *TEXTS])
def test_no_data_set_is_taken_for_a_path(name: str) -> None:
    recipe = load_recipe("digits-gaussian", f"data={name}")
    assert (recipe.data.name, recipe.data.path) == (name, None)


def test_the_documents_name_every_data_set() -> None:
    texts = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    for name in (*LOADERS, *TEXTS):
        assert any(f"`{name}`" in text for text in texts), name
    assert {load_recipe(name).data.name for name in shipped()} <= {*LOADERS, *TEXTS}
