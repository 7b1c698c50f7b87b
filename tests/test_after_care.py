"""After-care: what a state does to a model, who is found out by it, and the error rates over states."""

import copy
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from conftest import TIMES, TINY
from scipy import stats
from torch import nn

import marshtest
from marshtest.experiment.aftercare import after_care
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.states import parse_states
from marshtest.metrics.dependence import Dependence, dependence
from marshtest.metrics.verdict import Evidence, Rest, holm, verdicts
from marshtest.models.rounding import rounded
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.states import states_table
from marshtest.reporting.write import write_report
from marshtest.results.states import worst
from marshtest.results.summary import Results
from marshtest.sweeps.worker import Worker
from marshtest.unlearning.check import images

STATES: list[Any] = ["int8", "int4", {"trained_on": 2}]
HIDING = TINY | {
    "name": "hiding",
    "data": {"name": "digits", "train": 1000, "test": 100, "validation": 0.15},
    "training": {"epochs": 15, "batch_size": 32, "lr": 0.1},
    "poison_budgets": 0.4,
    "unlearners": ["hiding:by_a_small_weight", "hiding:until_trained"],
    "budgets": 1.0,
    "states": STATES,
}
SMALL = TINY | {
    "data": {"name": "digits", "train": 200, "test": 100, "validation": 0.2},
    "unlearners": ["gd"],
    "seeds": 1,
}


@pytest.fixture(scope="module")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return marshtest.run(HIDING, out=tmp_path_factory.mktemp("runs") / "hiding", report=False)


# What rounding does


def by_hand(weight: np.ndarray, bits: int) -> np.ndarray:
    """Rows rounded one number at a time, in float64."""
    most = 2 ** (bits - 1) - 1
    out = np.zeros_like(weight)
    for channel, row in enumerate(weight):
        step = np.abs(row).max() / most
        for place, value in np.ndenumerate(row):
            levels = np.arange(-most, most + 1) * step
            out[channel][place] = levels[np.abs(levels - value).argmin()]
    return out


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layer", [nn.Linear(30, 5), nn.Conv2d(3, 5, 3), nn.Conv1d(4, 6, 2)])
def test_weights_are_rounded_as_by_hand(layer: nn.Module, bits: int) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    before = layer.weight.detach().double().numpy()  # type: ignore[union-attr,operator]
    after = rounded(layer, bits).weight.detach().double().numpy()  # type: ignore[union-attr,operator]
    most = 2 ** (bits - 1) - 1
    step = np.abs(before).reshape(len(before), -1).max(1) / most
    error = np.abs(after - before).reshape(len(before), -1).max(1)
    assert (error <= step / 2 * (1 + 1e-5)).all()
    np.testing.assert_allclose(after, by_hand(before, bits), atol=1e-6)
    assert max(len(np.unique(channel)) for channel in after) <= 2**bits - 1


def test_zero_stays_zero_and_a_second_rounding_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 6)
    with torch.no_grad():
        layer.weight[2] = 0
        layer.weight[:, 7] = 0
    once = rounded(layer, 4)
    assert bool((once.weight[2] == 0).all())  # type: ignore[union-attr,index]
    assert bool((once.weight[:, 7] == 0).all())  # type: ignore[union-attr,index]
    torch.testing.assert_close(rounded(once, 4).weight, once.weight, rtol=1e-6, atol=0)


def test_embeddings_heads_tied_to_them_norms_and_biases_stay_and_so_does_the_model() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(9, 8), nn.Linear(8, 9)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.LayerNorm(8), nn.Linear(8, 8), head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = rounded(model, 2).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2.weight"}
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_output_channels_are_found_in_every_kind_of_layer() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    scale = torch.arange(1.0, 6.0)
    transposed, attention = nn.ConvTranspose1d(4, 5, 3), nn.MultiheadAttention(4, 2)
    with torch.no_grad():
        transposed.weight.mul_(scale[None, :, None])
    for layer, axis in ((Conv1D(5, 4), 1), (transposed, 1)):
        weight = rounded(layer, 4).weight.detach().movedim(axis, 0).flatten(1)
        assert all(len(channel.unique()) <= 15 for channel in weight)
    inner = rounded(attention, 4).in_proj_weight
    assert all(len(channel.unique()) <= 15 for channel in inner)  # type: ignore[union-attr]


def test_a_weight_that_is_computed_is_rounded_by_its_value() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(20, 3))
    weight = rounded(layer, 4).weight
    assert all(len(channel.unique()) <= 15 for channel in weight)  # type: ignore[union-attr]


# Who is found out


@pytest.mark.slow
def test_a_poison_behind_a_small_weight_comes_back_by_four_bits_and_not_by_eight(
    hiding: Results,
) -> None:
    table = hiding.states.set_index(["unlearner", "state"])["verdict"]["hiding:by_a_small_weight"]
    assert table[["", "int8"]].tolist() == ["REMOVED", "REMOVED"]
    assert table["int4"] == "NOT REMOVED"


@pytest.mark.slow
def test_a_poison_that_sleeps_until_training_comes_back_by_it(hiding: Results) -> None:
    table = hiding.states.set_index(["unlearner", "state"])["verdict"]["hiding:until_trained"]
    assert (table[["", "int8"]] == "REMOVED").all()
    assert table["trained_on 2"] == "NOT REMOVED"


@pytest.mark.slow
def test_retraining_hides_nothing(hiding: Results) -> None:
    table = hiding.states[hiding.states["role"] == "retrained"]
    assert table["verdict"].tolist() == ["REMOVED"] * 4


@pytest.mark.slow
def test_the_verdict_is_the_worst_states_and_says_whose(hiding: Results) -> None:
    lines = hiding.summary[hiding.summary["role"] == "updated"]
    assert lines["verdict"].tolist() == ["NOT REMOVED", "NOT REMOVED"]
    assert lines["decided_by"].tolist() == ["int4", "trained_on 2"]
    assert lines["reasons"].str.match(r"(int4|trained_on 2): ").all()
    states = hiding.states.set_index(["unlearner", "state"])["p_removed"].groupby(level=0).max()
    for _, line in lines.iterrows():  # Holm by the largest is never below a state's own
        assert line["p_removed"] >= states[line["unlearner"]]


@pytest.mark.slow
def test_training_on_leaves_no_held_out_accuracy_and_its_cost_is_told(hiding: Results) -> None:
    rows = hiding.rows
    trained = rows["state"] == "trained_on 2"
    assert rows.loc[trained, "validation_accuracy"].isna().all()
    assert rows.loc[~trained, "validation_accuracy"].notna().all()
    share = 2 * 150 / (15 * 850)
    assert rows.loc[trained, "state_spent"].to_numpy() == pytest.approx(share)
    assert (rows.loc[~trained, "state_spent"] == 0).all()


@pytest.mark.slow
def test_a_report_shows_every_state(hiding: Results, tmp_path: Path) -> None:
    page = write_report(hiding).read_text()
    assert "What came back" in page
    assert (hiding.folder / "figures" / "came-back.png").stat().st_size > 0
    assert len(states_table(hiding)) == 4 * 4
    assert "trained_on 2" in (hiding.folder / "summary.md").read_text()


# What stays as it was


def test_states_change_nothing_of_the_model_itself(tmp_path: Path) -> None:
    plain = marshtest.run(SMALL, out=tmp_path / "plain", report=False)
    cared = marshtest.run(SMALL | {"states": STATES}, out=tmp_path / "cared", report=False)
    beside = ["recipe", *TIMES]
    itself = cared.rows[cared.rows["state"] == ""].drop(columns=["state", "state_spent"])
    assert "state" not in plain.rows
    assert (
        itself.drop(columns=beside).reset_index(drop=True).equals(plain.rows.drop(columns=beside))
    )
    scores = cared.scores[cared.scores["state"] == ""].drop(columns="state")
    assert scores.reset_index(drop=True).equals(plain.scores)
    assert "decided_by" not in plain.summary
    assert not len(plain.states)


def test_both_arms_get_the_same_care(tmp_path: Path) -> None:
    recipe = {
        "name": "twins",
        **golden.RECIPES["crafted"],
        "data": {"name": "digits", "train": 100, "test": 50, "validation": 0.3},
        "states": STATES,
    }
    rows = marshtest.run(recipe, out=tmp_path / "run", report=False).rows
    # Retraining ends with one model in both arms: by the same draws it still is one after each care.
    retrain = rows[rows["unlearner"] == "retrain"]
    assert retrain["twin_same"].tolist() == [1.0] * 4
    left = retrain["target_probability"] - retrain["twin_target_probability"]
    assert (left == 0).all()
    others = rows[rows["unlearner"] == "gd"]
    assert others["twin_target_probability"].nunique() == 4


def test_training_on_keeps_frozen_what_the_recipes_model_has_frozen() -> None:
    problem = images()
    frozen = {name for name, p in problem.model.named_parameters() if not p.requires_grad}
    assert frozen
    unlearned = copy.deepcopy(problem.model).requires_grad_(False)  # as a method may leave it
    train = problem.task.train
    assert train is not None
    cared = after_care("trained_on 1", unlearned, train, problem.retain, 0, lambda: problem.model)
    after, before = (dict(model.named_parameters()) for model in (cared, problem.model))
    assert {name for name in before if torch.equal(after[name], before[name])} == frozen


def test_a_run_that_is_stopped_between_two_states_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = SMALL | {"states": STATES}
    whole = marshtest.run(recipe, out=tmp_path / "whole", report=False).rows
    measure, done = Worker._measure, list[str]()

    def stopping(self: Worker, job: Any, *args: Any) -> None:
        if (
            len(done) == 10
        ):  # the first two models are through, and the unlearner's first two states
            raise KeyboardInterrupt
        measure(self, job, *args)
        done.append(args[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            marshtest.run(recipe, out=tmp_path / "stopped", report=False)
    again = list[str]()

    def counting(self: Worker, job: Any, *args: Any) -> None:
        again.append(args[-1])
        measure(self, job, *args)

    monkeypatch.setattr(Worker, "_measure", counting)
    rows = marshtest.run(recipe, out=tmp_path / "stopped", report=False).rows
    assert len(again) == 2
    assert not set(again) & set(done)
    assert rows.drop(columns=TIMES).equals(whole.drop(columns=TIMES))


@pytest.mark.slow
def test_a_state_that_is_missing_is_named_and_settles_nothing(hiding: Results) -> None:
    rows = hiding.rows
    gone = (rows["state"] == "int8") & (rows["unlearner"] == "hiding:until_trained")
    gone |= (rows["state"] == "int4") & (rows["role"] == "retrained") & (rows["seed"] == 0)
    part = Results(hiding.folder, hiding.recipe, rows[~gone], runs=hiding.runs)
    assert [gap.split(": ", 1)[1] for gap in part.gaps] == [
        "retrained model in state int4: seed 0 missing",
        "there is no hiding:until_trained at compute budget 1 in state int8",
    ]
    assert len(part.states) == 4 * 4 - 1


# Error rates over states


def test_holm_over_states_is_holm_of_the_largest() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(5, 3)) ** 3
    found = np.array(holm(p.ravel().tolist(), 3)).reshape(5, 3)
    assert found.max(1) == pytest.approx(holm(p.max(1).tolist()))
    assert (found >= p).all()
    assert holm(p[:, 0].tolist(), 1) == holm(p[:, 0].tolist())


def test_models_that_hide_in_different_states_are_falsely_removed_at_the_stated_rate() -> None:
    """Two models at the margin, each in another state; the other state's p-value is 0."""
    rng, alpha, trials = np.random.default_rng(0), 0.05, 4000
    false = apart = 0
    for first, second in rng.uniform(size=(trials, 2)):
        p = [first, 0.0, 0.0, second]
        adjusted = np.array(holm(p, 2)).reshape(2, 2).max(1)
        by_state = np.array([holm(p[state::2]) for state in (0, 1)]).max(0)
        false += bool((adjusted <= alpha).any())
        apart += bool((by_state <= alpha).any())
    assert false <= stats.binom.ppf(0.999, trials, alpha)
    assert apart > 1.5 * alpha * trials  # what a step by each state's own p-values would do


def evidence(rng: np.random.Generator, mean: float, poisons: int = 400) -> Evidence:
    """Two trainings whose scores are N(−mean, 1)."""
    return Evidence(
        {seed: {"rank": one(rng, mean, poisons // 2)} for seed in (0, 1)},
    )


def one(rng: np.random.Generator, mean: float, poisons: int) -> Dependence:
    return dependence(rng.normal(-mean, 1, poisons), rng.integers(0, 5, poisons), fpr=0.05)


def test_verdicts_over_states_keep_their_rates() -> None:
    rng, trials, alpha = np.random.default_rng(0), 300, 0.05
    initial, rests = evidence(rng, 1.4), (Rest("rank", "mean"),)
    rejected = removed = false = 0
    for _ in range(trials):
        clean = [evidence(rng, 0.0) for _ in range(6)]  # two models in three states
        judged = verdicts(initial, clean, rests=rests, alpha=alpha, margin=0.2, states=3)
        rejected += min(verdict.p_not_removed for verdict in judged) <= alpha
        models = [worst(dict(zip(("", "a", "b"), judged[at : at + 3])), alpha) for at in (0, 3)]
        removed += models[0][1].answer == "REMOVED"
        # The first at the margin in its second state, the second in its third.
        at_margin = list(clean)
        at_margin[1], at_margin[5] = (
            evidence(rng, 0.2 * initial.pooled["rank"].value) for _ in "12"
        )
        judged = verdicts(initial, at_margin, rests=rests, alpha=alpha, margin=0.2, states=3)
        models = [worst(dict(zip(("", "a", "b"), judged[at : at + 3])), alpha) for at in (0, 3)]
        false += any(model.answer == "REMOVED" for _, model in models)
    most = stats.binom.ppf(0.999, trials, alpha)
    assert rejected <= most
    assert false <= most
    assert removed >= stats.binom.ppf(0.001, trials, 0.9)


# Bad input


@pytest.mark.parametrize(
    ("states", "line"),
    [
        ("int9", "2 to 8 bits are possible. Got 9"),
        ("int-4", "2 to 8 bits are possible. Got -4"),
        ("int1", "2 to 8 bits are possible"),
        ("inte8", "unknown state 'inte8'. Did you mean 'int8'?"),
        ([{"trained_on": 0}], "a whole number of passes from 1 is needed. Got '0'"),
        ([{"trained_on": -1}], "from 1 is needed"),
        ([{"trained_on": 1.5}], "from 1 is needed"),
        ([{"trained": 2}], "give a list such as"),
        ([4], "give a list such as"),
        (["int4", "int8", "int4"], "int4 is given twice"),
    ],
)
def test_states_that_are_none_are_one_line(states: Any, line: str) -> None:
    with pytest.raises(MarshtestError, match="states: ") as raised:
        load_recipe({**SMALL, "states": states})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_training_on_without_held_out_samples_is_refused(tmp_path: Path) -> None:
    none = {"name": "digits", "train": 200, "test": 100}
    with pytest.raises(MarshtestError, match="held out, and there are none. Set data.validation"):
        load_recipe({**SMALL, "data": none, "states": [{"trained_on": 2}]})
    few = {**SMALL, "data": none | {"validation": 0.1}, "states": [{"trained_on": 2}]}
    with pytest.raises(MarshtestError, match="holds out 20 of 200. Raise data.validation"):
        marshtest.run(few, out=tmp_path / "run", report=False)
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_states_reads_back_as_it_was() -> None:
    recipe = load_recipe({**SMALL, "states": STATES})
    again = load_recipe(recipe.model_dump(mode="json"))
    assert again.states == recipe.states == ("int8", "int4", "trained_on 2")
    assert parse_states(list(recipe.states)) == recipe.states
    assert again.hash == recipe.hash != load_recipe(SMALL).hash
