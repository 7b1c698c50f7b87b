"""Retraining and shrink and perturb: what they start from, and the settings that they train by."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from stepwise import Exact, Steps, assert_same, cross_entropies, equipped, network, problem, sgd
from torch import nn

import marshtest
from marshtest.data.load import load
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.loop import Training, fit_within
from marshtest.unlearning import Unlearner, parse_trials
from marshtest.unlearning.check import images
from marshtest.unlearning.shrink_perturb import mixed

SEED, STEPS = 5, 7
PIPELINE = Training(epochs=9, batch_size=16, lr=0.03, momentum=0.5, weight_decay=0.2)
OWN = {
    "batch_size": 8,
    "lr": 0.1,
    "schedule": "linear",
    "warmup": 0.25,
    "momentum": 0.9,
    "weight_decay": 0.01,
}


def run(method: Unlearner, kind: str) -> nn.Module:
    model, retain, forget = problem(kind)
    with seeded(2):  # dropout
        return method(
            model, retain, forget, task=equipped(kind, PIPELINE), budget=Steps(STEPS), seed=SEED
        )


def by_hand(start: nn.Module, kind: str) -> nn.Module:
    """SGD on the retain set with OWN: a rate that rises for a quarter and falls linearly to 0."""
    _, retain, _ = problem(kind)
    batches = Exact().batches(retain, 8, SEED)
    objectives = [
        (lambda model, batch=batch: cross_entropies(model(batch.x), batch.y).mean())
        for batch, _ in zip(batches, range(STEPS))
    ]
    done = [step / STEPS for step in range(STEPS)]
    rates = [0.1 * min(share / 0.25, (1 - share) / 0.75) for share in done]
    with seeded(2):
        return sgd(start, objectives, rates)


@pytest.mark.parametrize("name", ["retrain", "retrain-tuned"])
@pytest.mark.parametrize("kind", ["plain", "batch norm", "dropout"])
def test_retraining_trains_a_fresh_model_by_settings_of_its_own(kind: str, name: str) -> None:
    (method,) = parse_trials({"name": name, **OWN})
    fresh = network(kind, SEED)
    assert_same(run(method, kind), by_hand(fresh, kind), fresh)


@pytest.mark.parametrize("kind", ["plain", "batch norm", "dropout"])
def test_shrink_and_perturb_trains_the_mixture_by_settings_of_its_own(kind: str) -> None:
    (method,) = parse_trials({"name": "shrink-perturb", "keep": 0.3, **OWN})
    initial, fresh = network(kind), network(kind, SEED)
    start = copy.deepcopy(initial)
    with torch.no_grad():
        states = (model.state_dict().values() for model in (start, initial, fresh))
        for own, one, other in zip(*states, strict=True):
            if own.is_floating_point():
                own.copy_(0.3 * one + 0.7 * other)
    updated = run(method, kind)
    assert_same(updated, by_hand(start, kind), start)


def test_buffers_are_mixed_as_the_weights_are() -> None:
    initial, fresh = network("batch norm"), network("batch norm", 3)
    mixture = mixed(initial, fresh, 0.3)
    for own, one, other in zip(mixture.buffers(), initial.buffers(), fresh.buffers(), strict=True):
        if own.is_floating_point():
            torch.testing.assert_close(own, 0.3 * one + 0.7 * other)
    initial[1].num_batches_tracked.fill_(7)  # type: ignore[index, operator, union-attr]
    counted = [mixed(initial, fresh, keep)[1].num_batches_tracked for keep in (0.3, 1.0)]  # type: ignore[index, union-attr]
    assert [int(count) for count in counted] == [0, 7]  # type: ignore[arg-type]


class Masked(nn.Module):
    """Two layers of which one is frozen, and a mask that closes a label."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.free = nn.Linear(3, 3)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_what_is_frozen_stays_and_a_mask_stays_a_mask(keep: float) -> None:
    with seeded(0):
        initial, fresh = Masked(), Masked()
    mixture = mixed(initial, fresh, keep)
    assert torch.equal(mixture.frozen.weight, initial.frozen.weight)
    assert torch.equal(mixture.mask, initial.mask)
    expected = keep * initial.free.weight + (1 - keep) * fresh.free.weight
    torch.testing.assert_close(mixture.free.weight, expected)


def test_nothing_kept_is_retraining_and_all_kept_is_training_on() -> None:
    given = images()
    updated = {}
    for spec in (
        "retrain",
        {"name": "shrink-perturb", "keep": 0},
        {"name": "shrink-perturb", "keep": 1},
    ):
        (method,) = parse_trials(spec)
        outcome = given.run(method, 0.3, seed=2).model
        assert outcome is not None
        updated[str(spec)] = dict(outcome.named_parameters())
    retrained, nothing, everything = updated.values()
    assert same_tensors(retrained, nothing)
    assert not same_tensors(retrained, everything)


def test_a_setting_that_is_not_given_is_the_recipes_and_no_row_tells_of_it() -> None:
    for name in ("retrain", "retrain-tuned"):
        (plain,) = parse_trials(name)
        assert plain.hyperparameters == {}
        (own,) = parse_trials({"name": name, "lr": 0.2})
        assert own.hyperparameters == {"lr": 0.2}
    trials = parse_trials({"name": "retrain-tuned", "batch_size": [16, 32], "lr": [0.1, 0.2]})
    assert [t.hyperparameters["batch_size"] for t in trials] == [16, 16, 32, 32]
    _, retain, _ = problem("plain")
    (method,) = parse_trials("retrain")
    by_default = run(method, "plain")
    expected = network("plain", SEED)
    fit_within(expected, retain, Exact(), PIPELINE, SEED, Steps(STEPS))
    assert same_tensors(dict(by_default.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"name": "shrink-perturb", "keep": 1.1}, "unlearners.shrink-perturb.keep: .*1.1"),
        ({"name": "shrink-perturb", "keep": -0.1}, "unlearners.shrink-perturb.keep: .*-0.1"),
        ({"name": "retrain-tuned", "lr": 0}, "unlearners.retrain-tuned.lr: "),
        ({"name": "retrain", "warmup": 1}, "unlearners.retrain.warmup: "),
        ({"name": "retrain", "schedule": "step"}, "unlearners.retrain.schedule: .*linear"),
        ({"name": "retrain", "epochs": 3}, "unlearners.retrain.epochs: unknown key 'epochs'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MarshtestError, match=complaint) as refused:
        parse_trials(values)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["retrain", "retrain-tuned", "shrink-perturb"])
def test_a_task_without_a_pipeline_is_told_so(name: str) -> None:
    model, retain, forget = problem("plain")
    (method,) = parse_trials(name)
    with pytest.raises(MarshtestError, match=f"{name}: the task .* Run it through a recipe"):
        method(model, retain, forget, task=Exact(), budget=Steps(1), seed=0)


def test_a_recipes_training_takes_a_start_and_changes_and_leaves_the_start_as_it_was() -> None:
    pipeline = set_up(load_recipe(TINY), load("digits", train=100, test=50))
    trainer, samples = pipeline.trainer, pipeline.data.train
    start = trainer.new_model(0)
    before = copy.deepcopy(start.state_dict())
    trained = [
        trainer(samples, 1, start=start, epochs=1, batch_size=100, lr=lr, momentum=0.0)
        for lr in (0.1, 0.2)
    ]
    assert same_tensors(start.state_dict(), before)
    first, second = (
        torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()])
        for model in trained
    )
    torch.testing.assert_close(2 * first, second, rtol=1e-3, atol=1e-6)  # one step of each rate
    with pytest.raises(MarshtestError, match="unknown key 'epoch'"):
        trainer(samples, 1, epoch=1)


def test_rows_tell_retraining_from_tuned_retraining(tmp_path: Any) -> None:
    tuned = {"name": "retrain-tuned", "batch_size": 16, "lr": 0.05, "schedule": "linear"}
    recipe = {**TINY, "seeds": 1, "unlearners": ["retrain", tuned]}
    rows = marshtest.run(recipe, out=tmp_path / "run", report=False).rows
    updated = rows[rows["role"] == "updated"].set_index("unlearner")["hyperparameters"]
    assert updated["retrain"] == "{}"
    assert updated["retrain-tuned"] == '{"batch_size": 16, "lr": 0.05, "schedule": "linear"}'


def test_tuned_retraining_without_a_setting_is_refused_before_training(tmp_path: Path) -> None:
    """Its heading would claim a search that nobody did; the gate, which compares nothing, takes it."""
    recipe = {**TINY, "unlearners": ["retrain-tuned"]}
    with pytest.raises(
        MarshtestError, match="retrain-tuned: nothing is tuned .* benchmarks/tuning"
    ):
        marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert not (tmp_path / "run").exists()
    assert all(fact.holds for fact in marshtest.check("retrain-tuned", on=["features"]))
