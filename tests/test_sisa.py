"""SISA: members trained apart, shards by ids, and a request that touches no other member."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn

import marshtest
from marshtest.data.samples import Samples
from marshtest.experiment.recipe import load_recipe
from marshtest.models.checkpoint import load_model, save_model
from marshtest.models.networks import MLP
from marshtest.models.sharded import Ensemble, Sharded, members, shards
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training, fit, fit_within
from marshtest.training.shards import fit_shards, fit_shards_within
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.harness import Outcome, unlearn
from marshtest.unlearning.sisa import Sisa

COUNT = 4
SETTINGS = Sharded(shards=COUNT, of=MLP(width=8))
TRAINING = Training(epochs=3, batch_size=8, lr=0.1)


def samples(number: int = 200) -> Samples:
    with seeded(1):
        return Samples(torch.randn(number, 6), torch.randint(3, (number,)), torch.arange(number))


def new_model(seed: int) -> nn.Module:
    with seeded(seed):
        return SETTINGS.build((6,), 3)


def trained(given: Samples) -> nn.Module:
    model = new_model(0)
    fit_shards(model, given, Classification(), TRAINING, 5)
    return model


def test_a_samples_shard_depends_on_its_id_alone_and_shards_are_even() -> None:
    every = samples(10_000)
    parts = shards(every, 10)
    assert sorted(torch.cat([part.ids for part in parts]).tolist()) == list(range(10_000))
    assert all(abs(len(part) - 1000) < 10 for part in parts)
    # a data set that repeats its classes in the rhythm of the shards must not give each shard one class
    for part in parts:
        assert (part.ids % 10).bincount().min() > 80
    odd = every.only(every.ids[every.ids % 3 == 1])
    for part, whole in zip(shards(odd, 10), parts, strict=True):
        assert set(part.ids.tolist()) == set(odd.ids.tolist()) & set(whole.ids.tolist())


def test_label_distributions_are_averaged() -> None:
    model, x = new_model(0), samples(20).x
    each = torch.stack([member(x).softmax(1) for member in members(model)])
    torch.testing.assert_close(model(x).exp(), each.mean(0))
    torch.testing.assert_close(model(x).exp().sum(1), torch.ones(20))


def test_each_member_is_trained_as_if_it_were_alone() -> None:
    model, alone, every = trained(samples()), new_model(0), samples()
    for place, (member, shard) in enumerate(zip(members(alone), shards(every, COUNT), strict=True)):
        fit(member, shard, Classification(), TRAINING, derive(5, "shard", place))
    assert same_tensors(model.state_dict(), alone.state_dict())


def test_a_sample_changes_its_own_member_only() -> None:
    before, changed = trained(samples()), samples()
    changed.x[0] += 1
    after = trained(changed)
    (hit,) = (k for k, shard in enumerate(shards(changed, COUNT)) if 0 in shard.ids)
    same = [
        same_tensors(one.state_dict(), other.state_dict())
        for one, other in zip(members(before), members(after), strict=True)
    ]
    assert same == [k != hit for k in range(COUNT)]


def test_the_cost_is_that_of_the_members_own_trainings() -> None:
    """A forward of the ensemble runs every member; a training step on a sample runs one."""
    model = new_model(0)
    done = fit_shards(model, samples(), Classification(), TRAINING, 5)
    single = 2 * (6 * 8 + 8 * 3)  # flops of a member's forward
    assert done.flops_per_pass == COUNT * single
    step = single + 2 * (6 * 8 + 2 * 8 * 3)  # no gradient goes to the inputs
    # a last batch of one sample is left out
    assert done.cost.flops == pytest.approx(200 * TRAINING.epochs * step, rel=0.01)
    assert done.cost.passes == pytest.approx(done.cost.flops / done.flops_per_pass)


@dataclass(frozen=True)
class Case:
    """An ensemble trained on 200 samples, and what the harness gives an unlearner of it."""

    model: nn.Module
    retain: Samples
    forget: Samples
    budget: Callable[[float], Budget]

    def run(self, share: float) -> Outcome:
        task = Classification(train=self.train, new_model=new_model)
        given = (Sisa(), self.model, self.retain, self.forget)
        return unlearn(*given, task=task, budgets=[self.budget(share)], seed=9)[0]

    @staticmethod
    def train(kept: Samples, seed: int, budget: Budget | None = None, **given: Any) -> nn.Module:
        model = copy.deepcopy(given["start"])
        assert budget is not None
        fit_within(model, kept, Classification(), TRAINING, seed, budget)
        return model  # type: ignore[no-any-return]


def case(forgotten: list[int]) -> Case:
    every, model = samples(), new_model(0)
    done = fit_shards(model, every, Classification(), TRAINING, 5)
    ids = torch.tensor(forgotten)

    def budget(share: float) -> Budget:
        passes = done.cost.passes
        return Budget(share * passes, done.flops_per_pass, training_passes=passes)

    return Case(model, every.without(ids), every.only(ids), budget)


def one_shard(count: int = 5) -> list[int]:
    return shards(samples(), COUNT)[2].ids[:count].tolist()


def test_only_members_that_held_the_request_are_trained_anew() -> None:
    given = case(one_shard())
    outcome = given.run(1.0)
    assert outcome.note == ""
    assert outcome.model is not None
    pairs = zip(members(given.model), members(outcome.model), strict=True)
    same = [same_tensors(one.state_dict(), other.state_dict()) for one, other in pairs]
    assert same == [True, True, False, True]


def test_a_member_that_was_hit_is_trained_on_what_its_shard_keeps() -> None:
    given = case(one_shard(30))
    kept, fresh = shards(given.retain, COUNT)[2], members(new_model(9))[2]
    whole = given.budget(len(kept) / 200)
    with whole:
        expected = given.train(kept, derive(9, "shard", 2), whole, start=fresh)
    outcome = given.run(1.0)
    assert outcome.model is not None
    assert same_tensors(members(outcome.model)[2].state_dict(), expected.state_dict())


def test_retraining_is_whole_where_the_budget_allows_it_and_no_more() -> None:
    given = case(one_shard())
    whole = 45 / 200  # of the initial training
    steps = TRAINING.epochs * math.ceil(45 / 8)
    spent = given.run(1.0).cost.passes / given.budget(1.0).passes
    assert whole * (1 - 1.5 / steps) < spent <= whole
    assert given.run(0.1).cost.passes <= given.budget(0.1).passes


def test_nothing_of_the_forget_set_is_left_whatever_it_was() -> None:
    given = case(one_shard() + shards(samples(), COUNT)[0].ids[:3].tolist())
    other = replace(given, forget=replace(given.forget, x=given.forget.x + 7))
    for share in (0.1, 1.0):
        one, two = given.run(share).model, other.run(share).model
        assert one is not None
        assert two is not None
        assert same_tensors(one.state_dict(), two.state_dict())
        for k in (0, 2):  # and no member that was hit starts from what it was
            fresh = members(new_model(9))[k]
            moved = torch.nn.utils.parameters_to_vector(members(one)[k].parameters())
            start = torch.nn.utils.parameters_to_vector(fresh.parameters())
            old = torch.nn.utils.parameters_to_vector(members(given.model)[k].parameters())
            if share == 0.1:
                assert (moved - start).norm().item() < (moved - old).norm().item()


def test_a_member_whose_part_affords_no_step_stays_fresh_and_takes_no_other_with_it() -> None:
    every = samples()
    given = case([int(shard.ids[0]) for shard in shards(every, COUNT)])
    first = 8 * 336 / (COUNT * 144)  # passes of a step of one member on eight samples
    for budget, trained in ((0.9 * first, 0), (4.4 * first, 4)):
        outcome = given.run(budget / given.budget(1.0).passes)
        assert outcome.model is not None
        assert outcome.note == ""
        pairs = zip(members(outcome.model), members(new_model(9)), strict=True)
        fresh = [same_tensors(one.state_dict(), two.state_dict()) for one, two in pairs]
        assert fresh.count(False) == trained


def test_members_that_are_left_alone_are_copies() -> None:
    given = case(one_shard())
    with given.budget(0.3) as budget:
        task = Classification(train=given.train, new_model=new_model)
        updated = Sisa()(given.model, given.retain, given.forget, task=task, budget=budget, seed=9)
    before = {parameter.data_ptr() for parameter in given.model.parameters()}
    assert not before & {parameter.data_ptr() for parameter in updated.parameters()}


@pytest.mark.parametrize("steps", [0.9, 4.4])
def test_a_part_without_a_step_ends_one_members_training_within_a_budget_too(steps: float) -> None:
    """An ensemble's training within a budget: each member by itself, as in SISA."""
    first = 8 * 336 / (COUNT * 144)  # passes of a step of one member on eight samples
    model, budget = new_model(0), Budget(steps * first, COUNT * 144)
    with budget:
        fit_shards_within(model, samples(), Classification(), TRAINING, 5, budget)
    pairs = zip(members(model), members(new_model(0)), strict=True)
    fresh = [same_tensors(one.state_dict(), two.state_dict()) for one, two in pairs]
    assert fresh.count(False) == int(steps)


@pytest.mark.parametrize("spent", [0.0, 0.5, 1.0])
def test_members_go_through_the_epochs_that_are_left(spent: float) -> None:
    every, model = samples(), new_model(0)
    budget = Budget.of_epochs(2.0, COUNT * 144)
    list(budget.stream(range(int(2 * 100 * spent)), 100))  # what the method has gone through before
    with budget:
        fit_shards_within(model, every, Classification(), TRAINING, 5, budget)
    whole = 2 * (1 - spent) * len(every) * 336  # flops of a step of one member on a sample
    assert budget.flops == pytest.approx(whole, rel=0.05)  # a last batch of one is left out


@pytest.mark.parametrize("name", ["euk", "cfk"])
def test_no_layer_of_an_ensemble_is_its_last(name: str) -> None:
    (method,) = parse_trials({"name": name, "k": 1})
    with pytest.raises(
        MarshtestError, match=rf"^unlearners.{name}: no layer of an ensemble is its last"
    ):
        method.check(new_model(0), new_model)


@pytest.mark.parametrize("unit", ["compute", "epochs"])
def test_methods_that_train_go_on_within_their_budget_on_an_ensemble(
    unit: str, tmp_path: Path
) -> None:
    names = ["retrain", "undo", "shrink-perturb", "distill", "sisa", "ssd", "salun", "npo"]
    own = {"ssd": {"alpha": 1.5}, "salun": {"batch_size": 32}}
    recipe = {**TINY, "seeds": 1, "budgets": [0.5], "budget_unit": unit}
    recipe["unlearners"] = [
        *({"name": name, **own.get(name, {})} for name in names),
        {"name": "certified", "steps": 2, "noisy_batch_size": 16},
    ]
    recipe["training"] = {**TINY["training"], "shards": 3, "batch_size": 8}
    rows = marshtest.run(recipe, out=tmp_path / "run", report=False).rows.set_index("unlearner")
    updated = rows[rows["role"] == "updated"]
    assert updated["note"].to_dict() == dict.fromkeys(updated.index, "")
    dearest = {"distill": 2.5, "undo": 3, "ssd": 4, "salun": 4, "npo": 4, "certified": 2}
    for name, line in updated.iterrows():
        limit = 0.5 if unit == "compute" else 0.5 * dearest.get(str(name), 1.02)
        assert line["spent"] <= limit, (name, line["spent"])


def test_a_shard_of_which_nothing_is_kept_ends_fresh() -> None:
    given = case(shards(samples(), COUNT)[1].ids.tolist())
    model = given.run(1.0).model
    assert model is not None
    assert same_tensors(members(model)[1].state_dict(), members(new_model(9))[1].state_dict())


def test_an_ensemble_is_stored_and_loaded_and_brings_no_code(tmp_path: Path) -> None:
    model = trained(samples())
    save_model(model, tmp_path / "a.safetensors", SETTINGS, (6,), 3)
    again = load_model(tmp_path / "a.safetensors")
    assert isinstance(again, Ensemble)
    assert same_tensors(model.state_dict(), again.state_dict())
    foreign = {"name": "sharded", "shards": 4, "of": {"name": "os:system", "options": {}}}
    save_model(model, tmp_path / "b.safetensors", foreign, (6,), 3)
    with pytest.raises(MarshtestError, match="'os:system', and a file is not trusted to choose"):
        load_model(tmp_path / "b.safetensors")


def test_what_cannot_work_is_refused_before_training() -> None:
    with pytest.raises(MarshtestError, match=r"sisa: needs a model .* Set training.shards"):
        Sisa().check(nn.Linear(2, 2))
    training = {"epochs": 1, "shards": 400}
    recipe = {**TINY, "training": training, "unlearners": ["sisa"]}
    with pytest.raises(MarshtestError, match=r"training.shards: 400 leave fewer than ten samples"):
        marshtest.run(recipe, report=False)


def test_a_shard_of_less_than_two_samples_is_told_as_the_training_comes_to_it() -> None:
    few = samples(5)
    with pytest.raises(MarshtestError, match=r"one of 4 shards holds [01] of 5 samples. Lower it"):
        fit_shards(new_model(0), few, Classification(), TRAINING, 5)


def test_recipes_without_shards_have_the_hash_that_they_had() -> None:
    recipe = load_recipe(TINY)
    assert "shards" not in recipe.model_dump(mode="json")["training"]
    sharded = load_recipe({**TINY, "training": {**TINY["training"], "shards": 3}})
    assert sharded.hash != recipe.hash


def test_a_run_of_a_sharded_recipe_keeps_models_that_load(tmp_path: Path) -> None:
    recipe = {**TINY, "seeds": 1, "unlearners": ["sisa", "retrain", "gd"], "budgets": [0.5, 1.0]}
    recipe["training"] = {**TINY["training"], "shards": 3}
    done = marshtest.run(recipe, out=tmp_path / "run", report=False, keep_models=True)
    rows = done.rows.set_index(["unlearner", "budget"])
    assert (rows["note"] == "").all()
    # every shard was hit, so all is retrained but for the poisons: four fifths of the training
    assert rows.loc[("sisa", 1.0), "spent"] == pytest.approx(0.8, abs=0.06)
    assert rows.loc[("sisa", 0.5), "spent"] <= 0.5
    for _, line in done.models.iterrows():
        assert isinstance(done.load_model(line), Ensemble)
