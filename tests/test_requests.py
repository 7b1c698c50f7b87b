"""Poisons of which a part is known, and poisons that are asked for in turn."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TIMES, TINY
from torch import Tensor, nn

import marshtest
from marshtest.attacks import Poisoned
from marshtest.data.samples import Samples
from marshtest.experiment import in_turn, protocol
from marshtest.experiment.asked import Asked
from marshtest.experiment.cells import cells, groups
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.experiment.requests import ALL, Request, last_request, requests_of
from marshtest.experiment.roles import Role
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.dependence import dependence
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.page import costs
from marshtest.results.merging import read_all
from marshtest.results.summary import Results
from marshtest.sweeps.jobs import jobs
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.settings import read_sweep
from marshtest.sweeps.worker import Worker
from marshtest.training.budget import Cost
from marshtest.unlearning.harness import Outcome

pytestmark = pytest.mark.usefixtures("no_report")

FLIPS = TINY | {
    "name": "flips",
    "training": {
        "epochs": 40,
        "batch_size": 32,
        "lr": 0.1,
    },  # wrong labels are learned by heart late
    "attack": {"name": "label-flip"},
    "unlearners": ["retrain", "gd"],
    "seeds": 1,
}


def poisoned_set(labels: bool = False) -> Poisoned:
    rng = torch.Generator().manual_seed(0)
    x, ids = torch.randn(60, 4, generator=rng), torch.arange(100, 160)
    forget = ids[torch.randperm(60, generator=rng)[:23]]
    perturbations = None if labels else torch.randn(23, 4, generator=rng)
    wrong = torch.ones(23, dtype=torch.int64) if labels else None
    clean = Samples(x, torch.zeros(60, dtype=torch.int64), ids)
    return Poisoned(clean, forget, 0, labels=wrong, perturbations=perturbations)


def ids_of(samples: Samples) -> set[int]:
    return set(samples.ids.tolist())


def inputs(samples: Samples) -> Tensor:
    shift = samples.perturbation()
    return samples.x if shift is None else samples.x + shift


# Partitions


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_disjoint_equal_and_together_all(parts: int) -> None:
    poisoned = poisoned_set()
    asked = [Asked(poisoned, Request(1.0, number, parts), 5) for number in range(1, parts + 1)]
    new = [set(one.new_ids.tolist()) for one in asked]
    assert all(not a & b for a, b in itertools.combinations(new, 2))
    assert set.union(*new) == set(poisoned.forget_ids.tolist())
    assert max(map(len, new)) - min(map(len, new)) <= 1
    for number, one in enumerate(asked, 1):
        so_far = set.union(*new[:number])
        assert set(one.ids.tolist()) == so_far
        assert ids_of(one.forget(Role.INITIAL)) == new[number - 1]
        assert ids_of(one.retain(Role.INITIAL)) == ids_of(poisoned.samples) - so_far


@pytest.mark.parametrize("known", [0.1, 0.25, 0.5, 1.0])
def test_a_share_is_as_large_as_it_says_and_lies_in_every_larger_one(known: float) -> None:
    poisoned = poisoned_set()
    asked = Asked(poisoned, Request(known), 5)
    assert len(asked.ids) == round(known * 23)
    larger = Asked(poisoned, Request(min(1.0, 2 * known)), 5)
    assert set(asked.ids.tolist()) <= set(larger.ids.tolist())
    both = ids_of(asked.forget(Role.INITIAL)) | ids_of(asked.retain(Role.INITIAL))
    assert both == ids_of(poisoned.samples)


def test_another_seed_asks_for_others() -> None:
    poisoned = poisoned_set()
    one, other = (Asked(poisoned, Request(0.5), seed).ids.tolist() for seed in (1, 2))
    assert set(one) != set(other)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("request_", [Request(0.3), Request(1.0, 2, 3), ALL, Request(1.0, 3, 3)])
def test_both_arms_are_asked_for_the_same_and_only_poison_tells_them_apart(
    labels: bool, request_: Request
) -> None:
    poisoned = poisoned_set(labels)
    asked = Asked(poisoned, request_, 5)
    for sets in (asked.retain, asked.forget):
        own, twin = sets(Role.INITIAL), sets(Role.TWIN)
        assert own.ids.tolist() == twin.ids.tolist()
        assert (own.perturbations is None) == (twin.perturbations is None)  # of one kind
        plain = torch.isin(own.ids, poisoned.forget_ids)
        assert torch.equal(inputs(own)[~plain], inputs(twin)[~plain])
        clean = poisoned.clean
        assert torch.equal(inputs(twin), clean.x[clean.positions(twin.ids)])
        assert (twin.y == 0).all()
        if plain.any():
            differ = (own.y != twin.y) if labels else (inputs(own) != inputs(twin)).any(1)
            assert torch.equal(differ, plain)


def test_at_the_last_request_the_retain_set_is_the_ordinary_one() -> None:
    poisoned = poisoned_set()
    last, ordinary = Asked(poisoned, Request(1.0, 4, 4), 5), Asked(poisoned, ALL, 5)
    for role in (Role.INITIAL, Role.TWIN):
        one, other = last.retain(role), ordinary.retain(role)
        assert one.ids.tolist() == other.ids.tolist() == poisoned.retain.ids.tolist()
        assert torch.equal(inputs(one), inputs(other))


# What keys and hashes are


def test_defaults_change_no_hash_key_or_row() -> None:
    plain = load_recipe(TINY)
    for more in ({"known": 1}, {"known": [1.0]}, {"requests": 1}, {"known": 1, "requests": 1}):
        with_key = load_recipe({**TINY, **more})
        assert with_key.hash == plain.hash
        assert with_key.to_yaml() == plain.to_yaml()
    assert "known" not in plain.to_yaml()
    assert "requests" not in plain.to_yaml()


def test_all_that_is_known_has_the_keys_of_a_recipe_without_shares() -> None:
    """So it is the very model, and stores serve both."""
    plain, part = Keys(load_recipe(TINY)), Keys(load_recipe({**TINY, "known": [0.5, 1]}))
    group = groups(plain.recipe)[0]
    ordinary = {plain.row(cell) for cell in cells(plain.recipe, group)}
    shared = {part.row(cell) for cell in cells(part.recipe, group)}
    assert ordinary < shared
    every = list(jobs(part, keep_models=True))
    made = [key for job in every for key in job.makes]
    assert len(set(made)) == len(made)
    for job in every:  # each behind those that it needs
        before = {key for other in every[: every.index(job)] for key in other.makes}
        assert before.issuperset(job.needs)


@pytest.mark.parametrize("more", [{"known": [0.25, 1]}, {"requests": 3}])
def test_no_two_cells_share_a_key(more: dict[str, Any]) -> None:
    keys = Keys(load_recipe({**FLIPS, **more, "budgets": [0.2, 0.4]}))
    rows = [keys.row(cell) for group in groups(keys.recipe) for cell in cells(keys.recipe, group)]
    assert len(set(rows)) == len(rows)


# Runs


@pytest.fixture(scope="module")
def in_part(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("runs") / "in-part"
    recipe = {**TINY, "known": [0.5, 1], "unlearners": ["retrain", *TINY["unlearners"]]}
    return marshtest.run(recipe, out=folder, report=False)


@pytest.fixture(scope="module")
def by_turns(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("runs") / "by-turns"
    recipe = {**TINY, "requests": 3, "unlearners": ["retrain", "gd"], "budgets": [0.25, 0.5]}
    return marshtest.run(recipe, out=folder, report=False)


@pytest.fixture(scope="module")
def flips(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("runs") / "flips"
    return marshtest.run({**FLIPS, "known": [0.5, 1]}, out=folder, report=False)


def test_rows_of_all_that_is_known_are_those_without_the_key(
    in_part: Results, tiny_run: Results
) -> None:
    rows, summary = in_part.rows, in_part.summary
    ours = rows[(rows["known"] == 1) | (rows["role"] == "initial")]
    ours = ours[ours["unlearner"] != "retrain"].reset_index(drop=True)
    beside = ["recipe", "entry", *TIMES]
    columns = [column for column in tiny_run.rows if column not in beside]
    pd.testing.assert_frame_equal(ours[columns], tiny_run.rows[columns], check_exact=True)
    own = summary[summary["unlearner"] != "retrain"].reset_index(drop=True)
    drawn = ["unlearner", "rank_dependence", "rank_error", "test_accuracy", "gus_dependence"]
    pd.testing.assert_frame_equal(own[drawn], tiny_run.summary[drawn], check_exact=True)


def test_exact_unlearning_leaves_the_unknown_poisons_and_not_the_known_ones(
    in_part: Results,
) -> None:
    """It never saw the known ones, whose scores are N(0, 1) then; and it trained on the others."""
    rows = in_part.rows
    exact = in_part.by_request.query("role == 'exact'").iloc[0]
    n = exact["asked_rank_poisons"]
    assert n == exact["unasked_rank_poisons"] == 40  # of 80 in two seeds
    assert abs(exact["asked_rank_dependence"]) < 4 / n**0.5
    initial = in_part.summary.query("role == 'initial'").iloc[0]
    assert exact["unasked_rank_dependence"] > 0.8 * initial["rank_dependence"]
    whole = (exact["asked_rank_dependence"] + exact["unasked_rank_dependence"]) / 2
    assert exact["rank_dependence"] == pytest.approx(whole)
    retrained = in_part.by_request.query("unlearner == 'retrain' and known == 0.5").iloc[0]
    assert abs(retrained["asked_rank_dependence"]) < 4 / n**0.5
    assert retrained["unasked_rank_dependence"] > 0.5
    assert len(rows[rows["role"] == "exact"]) == 2


def test_columns_of_the_parts_are_drawn_from_the_scores_of_each(in_part: Results) -> None:
    recipe = load_recipe({**TINY, "known": [0.5, 1]})
    pipeline = set_up(recipe, data_of(recipe.data, recipe.device))
    group = groups(recipe)[0]
    poisoned = protocol.poison(pipeline, group)
    asked = protocol.asked_for(group, poisoned, Request(0.5))
    one = (in_part.scores["unlearner"] == "gd") & (in_part.scores["known"] == 0.5)
    scores = in_part.scores[one & (in_part.scores["seed"] == group.seed)]
    row = in_part.rows.query(f"unlearner == 'gd' and known == 0.5 and seed == {group.seed}")
    is_asked = scores["id"].isin(asked.ids.tolist())
    for before, part in (("asked_", is_asked), ("unasked_", ~is_asked)):
        left = dependence(scores.loc[part, "rank"].to_numpy())
        assert row[f"{before}rank_dependence"].item() == pytest.approx(left.value)
        assert row[f"{before}rank_error"].item() == pytest.approx(left.error)
        assert row[f"{before}rank_tail"].item() == left.tail


def test_tables_are_of_the_largest_share_and_the_last_request(
    in_part: Results, by_turns: Results
) -> None:
    assert len(in_part.summary) == 2 + 4
    assert len(by_turns.summary) == 2 + 2 * 2
    final = by_turns.rows.query("request == 3 and role == 'updated'")
    means = final.groupby(["unlearner", "budget"])["test_accuracy"].mean()
    for _, line in by_turns.summary.query("role == 'updated'").iterrows():
        assert line["test_accuracy"] == means[line["unlearner"], line["budget"]]
    assert by_turns.gaps == []
    assert in_part.gaps == []
    partial = by_turns.by_request.query("request < 3")
    assert (partial["verdict"] == "").all()
    assert (by_turns.by_request.query("request == 3")["verdict"] != "").all()


def test_a_missing_request_is_named(by_turns: Results) -> None:
    lost = by_turns.rows.query("unlearner == 'gd' and budget == 0.5 and request == 2").index
    (gap,) = replace(by_turns, rows=by_turns.rows.drop(lost)).gaps
    assert gap == "poison budget 0.2, request 2: there is no gd at compute budget 0.5"


def test_requests_share_the_budget_and_costs_add_up(by_turns: Results) -> None:
    updated = by_turns.rows[by_turns.rows["role"] == "updated"]
    # Rounding apart, request r has spent at most r thirds.
    assert (updated["spent"] <= updated["budget"] * updated["request"] / 3 + 1e-9).all()
    for _, rows in updated.groupby(["seed", "unlearner", "budget"]):
        assert rows["spent"].is_monotonic_increasing
        assert rows["spent"].iloc[-1] > 0.6 * rows["budget"].iloc[0]
    paid = by_turns.rows.drop(updated.index[updated["request"] < 3])
    assert f"({paid['flops'].sum():.2g} floating-point" in costs(by_turns)


def test_requests_in_turn_are_calls_in_turn(by_turns: Results) -> None:
    """Each on the last one's model, without a shortcut over budgets, anytime or not."""
    recipe = load_recipe({**TINY, "requests": 3, "unlearners": ["gd"], "budgets": [0.25, 0.5]})
    pipeline = set_up(recipe, data_of(recipe.data, recipe.device))
    group = groups(recipe)[0]
    poisoned = protocol.poison(pipeline, group)
    model, trained = protocol.train(pipeline, group, poisoned, Role.INITIAL)
    (gd,) = recipe.unlearners[0]
    assert gd.anytime
    for budget in (0.25, 0.5):
        now: nn.Module | None = model
        for number in (1, 2, 3):
            assert now is not None
            asked = Request(1.0, number, 3)
            (outcome,) = protocol.update(
                pipeline, group, poisoned, now, trained, gd, [budget], request=asked
            )
            now = outcome.model
            assert now is not None
            right = accuracy(now, pipeline.task, pipeline.data.test)
            where = f"unlearner == 'gd' and budget == {budget} and request == {number}"
            row = by_turns.rows.query(f"{where} and seed == {group.seed}")
            assert row["test_accuracy"].item() == right


def test_effects_without_a_null_law_are_told_apart_beside_their_twins(flips: Results) -> None:
    rows = flips.rows
    partial = rows[rows["known"] == 0.5]
    assert set(partial["role"]) == {"exact", "updated"}
    for _, row in partial.iterrows():
        for twin in ("", "twin_"):
            parts = [row[f"{twin}{part}asked_flip_probability"] for part in ("", "un")]
            assert row[f"{twin}flip_probability"] == pytest.approx(np.mean(parts))
    exact, retrained = (
        partial[partial["unlearner"] == name].iloc[0] for name in ("retrain (asked)", "retrain")
    )
    for row in (exact, retrained):
        known, unknown = (
            row[f"{part}asked_flip_probability"] - row[f"twin_{part}asked_flip_probability"]
            for part in ("", "un")
        )
        assert unknown > 0.2 + known
    # Retraining ends in two models where the arms' retain sets differ, and in one where they do not.
    assert rows.query("unlearner == 'retrain'")["twin_same"].tolist() == [0, 1]


def test_in_sequence_the_arms_of_retraining_end_in_one_model(tmp_path: Path) -> None:
    recipe = {**FLIPS, "requests": 2, "unlearners": ["retrain"]}
    done = marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert done.rows.query("unlearner == 'retrain'")["twin_same"].tolist() == [0, 1]
    assert done.gaps == []


@pytest.mark.slow
def test_models_are_kept_and_serve_again(tmp_path: Path, by_turns: Results) -> None:
    recipe = {**TINY, "requests": 3, "unlearners": ["retrain", "gd"], "budgets": [0.25, 0.5]}
    kept = marshtest.run(recipe, out=tmp_path / "run", report=False, keep_models=True)
    columns = [name for name in by_turns.rows if name not in TIMES]
    pd.testing.assert_frame_equal(kept.rows[columns], by_turns.rows[columns], check_exact=True)
    models = kept.models
    updated = models[models["role"] == "updated"]
    assert len(updated) == 2 * 2 * 2 * 3
    assert updated["path"].nunique() == len(updated)
    assert set(models.query("role == 'exact'")["request"]) == {1, 2}


@pytest.mark.parametrize("more", [{"known": [0.5, 1]}, {"requests": 2}])
def test_a_run_that_was_stopped_goes_on(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**TINY, **more, "unlearners": ["gd"], "seeds": 1}
    whole = marshtest.run(recipe, out=tmp_path / "whole", report=False)
    record, left = Worker._record, iter(range(4))

    def stops(self: Any, *args: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        record(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_record", stops)
        with pytest.raises(KeyboardInterrupt):
            marshtest.run(recipe, out=tmp_path / "stopped", report=False)
    again = marshtest.run(recipe, out=tmp_path / "stopped", report=False)
    columns = [name for name in whole.rows if name not in TIMES]
    pd.testing.assert_frame_equal(again.rows[columns], whole.rows[columns], check_exact=True)


def test_rows_with_another_share_are_kept_apart(in_part: Results, tiny_run: Results) -> None:
    merged = read_all([in_part.folder, tiny_run.folder])
    assert len(merged.results) == 2
    assert "known" in merged.said[0]


def test_an_unlearner_that_raises_in_the_second_request_is_told_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outcomes behind it are its own, and what was spent is told of all."""
    outcomes = iter(
        [
            Outcome(nn.Linear(1, 1), Cost(1, 2, 3), "odd"),
            Outcome(None, Cost(4, 5, 6), "no", "trace"),
        ]
    )
    monkeypatch.setattr(in_turn, "update", lambda *args: [next(outcomes)])
    start: Any = nn.Linear(1, 1)
    nothing: Any = None
    first, second, third = in_turn.update_in_turn(
        nothing, nothing, nothing, start, nothing, nothing, 0.1, 3
    )
    assert first.note == "request 1: odd"
    assert second.note == "request 1: odd; request 2: no"
    assert second.cost == Cost(5, 7, 9)
    assert third == second
    assert third.trace == "trace"


@pytest.mark.slow
def test_the_report_has_table_figure_and_words(tmp_path: Path, in_part: Results) -> None:
    out = tmp_path / "report"
    marshtest.report(in_part.folder, out=out)
    assert (out / "figures" / "tiny-left-by-known.png").exists()
    table = pd.read_csv(out / "tables" / "tiny-requests.csv")
    assert set(table["known"]) == {"50%", "100%"}
    assert {"rank score, all", "rank score, known", "rank score, unknown"} <= set(table)
    page = (out / "report.html").read_text()
    assert "Known in part" in page
    assert "unlearners that knew 100% of the poisons" in page


# Bad input


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"known": 0}, "known"),
        ({"known": 1.2}, "known"),
        ({"known": []}, "known"),
        ({"known": [0.5, 0.5]}, "known: 0.5 is given twice"),
        ({"requests": 0}, "requests"),
        ({"requests": 2.5}, "requests"),
        ({"known": 0.5, "requests": 2}, "Leave out known or requests"),
        ({"known": 0.5, "unlearners": [{"name": "outside", "folder": "x"}]}, "outside answers one"),
    ],
)
def test_recipes_that_ask_for_nonsense_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(MarshtestError, match="known|requests") as refused:
        load_recipe({**TINY, **more})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"known": [0.02, 1]},
            "known: 0.02 of 40 poisons (poison budget 0.2) leaves fewer than two known",
        ),
        ({"known": 0.98}, "leaves fewer than two unknown"),
        (
            {"requests": 21},
            "requests: 21 parts of 40 poisons (poison budget 0.2) leave fewer than two",
        ),
    ],
)
def test_parts_of_fewer_than_two_poisons_are_refused_before_any_training(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(MarshtestError) as refused:
        marshtest.run({**TINY, **more}, out=tmp_path / "run")
    assert said in str(refused.value)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_twenty_requests_of_forty_poisons_are_two_each() -> None:
    recipe = load_recipe({**TINY, "requests": 20})
    set_up(recipe, data_of(recipe.data, recipe.device))
    assert last_request(recipe).count(40) == 40
    sizes = np.diff([0, *(request.count(40) for request in requests_of(recipe))])
    assert (sizes == 2).all()


def test_the_recipe_that_rows_tell_has_the_keys(in_part: Results) -> None:
    (about,) = in_part.runs.values()
    assert about["values"]["known"] == [0.5, 1.0]
    assert in_part.recipe.known == (0.5, 1.0)
    assert json.loads(json.dumps(about["values"]))["known"] == [0.5, 1.0]


def test_a_sweep_takes_shares_from_its_recipe() -> None:
    with pytest.raises(MarshtestError, match=r"grid\.known: a recipe takes several shares itself"):
        read_sweep({"name": "s", "recipe": TINY, "grid": {"known": [0.5, 1]}})


@pytest.mark.slow
def test_of_effects_on_targets_the_whole_is_told(tmp_path: Path) -> None:
    attack = {"name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 3, "targets": 2}
    recipe = {**TINY, "attack": attack, "unlearners": ["gd"], "seeds": 1, "known": [0.5, 1]}
    recipe["poison_budgets"] = 0.1
    done = marshtest.run(recipe, out=tmp_path / "run", report=False)
    assert not [name for name in done.rows if name.startswith(("asked_", "unasked_"))]
    assert done.gaps == []
    lines = done.by_request
    assert lines["target_dependence"].notna().all()
    assert not [name for name in lines if "asked_" in name]
    marshtest.report(done.folder, out=tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "tables" / "tiny-requests.csv")
    assert set(table["known"]) == {"50%", "100%"}
