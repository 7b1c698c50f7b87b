"""Membership inference agrees with slow literal references, and its answers hold their stated rates."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from numpy.typing import NDArray
from scipy.stats import betabinom, binomtest, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import marshtest
from marshtest.data.samples import Samples
from marshtest.experiment.recipe import load_recipe
from marshtest.metrics.base import Beside, Question
from marshtest.metrics.binomial import at_most
from marshtest.metrics.membership import Membership, compared, margins_of
from marshtest.metrics.membership_columns import COLUMNS, FORMS, PARTS, column_of
from marshtest.metrics.membership_verdict import FAILS, PASSES, UNSETTLED, Left, answers, p_same
from marshtest.metrics.repeats import (
    BINS,
    LEAST,
    SMOOTH,
    chance_of,
    columns,
    klom,
    ulira,
    without_each,
)
from marshtest.metrics.roc import auc, auc_error, placements, tpr_at_fpr
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.page import sentences
from marshtest.reporting.tables import legend, table
from marshtest.sweeps.keys import Keys
from marshtest.training.tasks import Classification

Floats = NDArray[np.float64]
# With a reference and few poisons' draws, so that a run takes seconds.
ASKED: dict[str, Any] = {
    **TINY,
    "attack": {"name": "gaussian", "variance": 6.0, "draws": 19},
    "unlearners": ["retrain", {"name": "gd", "lr": 1e-6}],
    "budgets": 0.5,
    "seeds": 3,
    "reference": True,
    "metrics": ["membership"],
}


def scores(seed: int, members: int = 40, others: int = 60) -> tuple[Floats, Floats]:
    """Scores with ties, of which members have somewhat larger ones."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(0.5, 1, members), 1), np.round(rng.normal(0, 1, others), 1)


# The ROC curve


def test_the_auc_is_that_of_scikit_learn_and_its_error_delongs() -> None:
    for seed in range(5):
        members, others = scores(seed)
        y = [1] * len(members) + [0] * len(others)
        assert auc(members, others) == pytest.approx(
            roc_auc_score(y, [*members, *others]), abs=1e-12
        )
        kernel = [[(m > o) + (m == o) / 2 for o in others] for m in members]
        v, w = np.mean(kernel, axis=1), np.mean(kernel, axis=0)
        variance = v.var(ddof=1) / len(v) + w.var(ddof=1) / len(w)
        assert auc_error(members, others) == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_delongs_interval_covers_half_at_its_rate_where_scores_are_exchangeable() -> None:
    rng, repetitions, covered = np.random.default_rng(0), 2000, 0
    for _ in range(repetitions):
        members, others = rng.exponential(size=60), rng.exponential(size=80)
        covered += abs(auc(members, others) - 0.5) <= 1.96 * auc_error(members, others)
    low, high = binomtest(covered, repetitions).proportion_ci(0.999)
    assert low <= 0.95 <= high


def test_members_above_the_threshold_are_beta_binomial_under_the_null() -> None:
    rng, members, others, fpr = np.random.default_rng(1), 30, 99, 0.05
    hits = np.array(
        [
            round(members * tpr_at_fpr(rng.random(members), rng.random(others), fpr))
            for _ in range(4000)
        ]
    )
    law = betabinom(members, 5, others + 1 - 5)
    for count in range(6):
        low, high = binomtest(int((hits <= count).sum()), len(hits)).proportion_ci(0.9999)
        assert low <= law.cdf(count) <= high
    assert law.mean() / members == pytest.approx(fpr)


def test_too_few_non_members_set_no_threshold() -> None:
    members = np.arange(50.0)
    assert math.isnan(tpr_at_fpr(members, np.arange(998.0), 0.001))
    assert tpr_at_fpr(members + 950, np.arange(999.0), 0.001) == pytest.approx(1 / 50)


# The two attacks


class Table(nn.Module):
    """Answers by a table of logits: the samples' x is their place."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x.flatten().long()]


def places(first: int, count: int, classes: int = 3) -> Samples:
    ids = torch.arange(first, first + count)
    return Samples(ids[:, None].float(), ids % classes, ids)


def asked(
    models: dict[str, nn.Module], members: Samples, others: Samples
) -> dict[str, dict[str, float]]:
    """The columns of each model, by its role."""
    task = Classification()
    beside = Beside(models["initial"], models["retrained"], models["reference"], others, True)
    question = Question(members, members, others, others[:0], task, 0, "", beside)
    return {
        role: dict(Membership().measure(model, replace(question, role=role)))
        for role, model in models.items()
    }


def test_both_attacks_are_those_of_literal_loops() -> None:
    torch.manual_seed(0)
    members, others = places(0, 25), places(25, 35)
    roles = ("initial", "retrained", "reference", "updated")
    models: dict[str, nn.Module] = {role: Table(2 * torch.randn(60, 3)) for role in roles}
    found = asked(models, members, others)
    p = {}
    for role, model in models.items():
        every = torch.cat([members.y, others.y])
        p[role] = model.logits.double().softmax(1)[torch.arange(60), every].numpy()  # type: ignore[union-attr]
    gamma, a = 2.0, 0.3
    margin_auc, rmia_auc = {}, {}
    for role in roles:
        out = p["retrained" if role == "reference" else "reference"]
        ratio = p[role] / (0.5 * ((1 + a) * out + 1 - a))
        score = [np.mean([x / z >= gamma for z in ratio[25:]]) for x in ratio]
        y = [1] * 25 + [0] * 35
        rmia_auc[role] = roc_auc_score(y, score)
        margin_auc[role] = roc_auc_score(y, np.log(p[role] / (1 - p[role])))
        assert found[role]["mia_rmia_auc"] == pytest.approx(rmia_auc[role], abs=1e-6)
        assert found[role]["mia_margin_auc"] == pytest.approx(margin_auc[role], abs=1e-6)
        assert found[role].keys() == COLUMNS.keys()
    for form, aucs in (("margin", margin_auc), ("rmia", rmia_auc)):
        left = found["updated"][column_of(form, "left")]
        assert left == pytest.approx(aucs["updated"] - aucs["retrained"], abs=1e-6)


class Nearest(nn.Module):
    """The nearest neighbour, with log-distances to each class's nearest sample for logits."""

    def __init__(self, samples: Samples, classes: int) -> None:
        super().__init__()
        self.register_buffer("x", samples.x.flatten(1).float())
        self.register_buffer("y", samples.y)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        far = torch.cdist(x.flatten(1).float(), self.x, compute_mode="donot_use_mm_for_euclid_dist")
        by_class = [far[:, self.y == c].amin(1) for c in range(self.classes)]
        return -torch.stack(by_class, 1).clamp_min(1e-9).log()


def cloud(seed: int, count: int) -> Samples:
    rng = np.random.default_rng(seed)
    y = torch.arange(count) % 3
    x = torch.from_numpy(rng.normal(size=(count, 4))).float() + y[:, None] / 2
    return Samples(x, y, torch.arange(count) + 10_000 * seed)


def test_a_nearest_neighbour_is_told_with_certainty_and_passes_when_it_is_refitted() -> None:
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(6):
        train, others = cloud(3 * seed + 1, 900), cloud(3 * seed + 2, 600)
        forget, retain = train[:300], train[300:]
        models: dict[str, nn.Module] = {
            "initial": Nearest(train, 3),
            "retrained": Nearest(retain, 3),
            "reference": Nearest(retain[:500], 3),
            "kept": Nearest(train, 3),
            "refitted": Nearest(retain[20:], 3),
        }
        for role, values in asked(models, forget, others).items():
            rows.setdefault(role, []).append(values)
    assert all(row["mia_margin_auc"] == 1 for row in rows["kept"])

    def left(role: str) -> Left:
        return Left(
            *(np.array([row[column_of("margin", part)] for row in rows[role]]) for part in PARTS)
        )

    family = [left("kept"), left("refitted")]
    kept, refitted = answers(left("initial"), family, alpha=0.05, margin=0.2)
    assert kept.answer == FAILS
    assert refitted.answer == PASSES


def fitted(samples: Samples) -> nn.Module:
    """Least squares on one-hot labels, times ten: a model that is trained in no time."""
    model = nn.Linear(4, 3, bias=False)
    targets = torch.nn.functional.one_hot(samples.y, 3).float()
    model.weight.data = 10 * torch.linalg.lstsq(samples.x, targets).solution.T
    return model.requires_grad_(False)


@pytest.mark.slow
def test_the_auc_of_models_trained_without_the_forget_set_covers_half() -> None:
    repetitions, covered = 400, dict.fromkeys(FORMS, 0)
    for seed in range(repetitions):
        order = torch.randperm(240, generator=torch.Generator().manual_seed(seed))
        samples = cloud(10_000 + seed, 240)[order]
        forget, retain, others = samples[:60], samples[60:160], samples[160:]
        models: dict[str, nn.Module] = {
            "initial": fitted(samples[:160]),
            "retrained": fitted(retain[:50]),
            "reference": fitted(retain[50:]),
        }
        values = asked(models, forget, others)["retrained"]
        for form in FORMS:
            away = abs(values[column_of(form, "auc")] - 0.5)
            covered[form] += away <= 1.96 * values[column_of(form, "auc_error")]
    for count in covered.values():
        low, high = binomtest(count, repetitions).proportion_ci(0.999)
        assert low <= 0.95 <= high


# The answers


def aucs(rng: np.random.Generator, shift: float, trainings: int) -> list[Left]:
    """(initial, updated) of simulated scores: of the initial's lead, `shift` deviations are left."""
    columns: dict[str, list[list[float]]] = {"initial": [], "updated": []}
    for _ in range(trainings):
        hard = rng.normal(size=70), rng.normal(size=90)  # how hard samples are, all models share

        retrained, initial, updated = (
            (hard[0] + lead + rng.normal(size=70), hard[1] + rng.normal(size=90))
            for lead in (0.0, 2.0, shift)
        )
        parts = [placements(*one) for one in (updated, initial, retrained)]
        for name, at in (("updated", 0), ("initial", 1)):
            d = [parts[at][k] - parts[2][k] for k in (0, 1)]
            d0 = [parts[1][k] - parts[2][k] for k in (0, 1)]
            n = [len(one) for one in d]
            columns[name].append(
                [
                    d[0].mean(),
                    d[0].var(ddof=1) / n[0],
                    d[1].var(ddof=1) / n[1],
                    np.cov(d[0], d0[0])[0, 1] / n[0],
                    np.cov(d[1], d0[1])[0, 1] / n[1],
                ]
            )
    return [Left(*np.array(columns[name]).T) for name in ("initial", "updated")]


@pytest.mark.parametrize("trainings", [1, 4])
def test_a_retrained_model_fails_and_one_at_the_margin_passes_at_most_at_the_level(
    trainings: int,
) -> None:
    rng, repetitions, wrong = np.random.default_rng(trainings), 400, {"fails": 0, "passes": 0}
    # AUC of normal scores that differ by s deviations of 2 each: Φ(s / 2); a fifth of the lead is left at
    lead = float(norm.cdf(2 / 2)) - 0.5
    at_margin = 2 * float(norm.ppf(0.5 + 0.2 * lead))
    for _ in range(repetitions):
        for shift, answer in ((0.0, "fails"), (at_margin, "passes")):
            initial, updated = aucs(rng, shift, trainings)
            (given,) = answers(initial, [updated], alpha=0.05, margin=0.2)
            wrong[answer] += given.answer == {"fails": FAILS, "passes": PASSES}[answer]
    for count in wrong.values():
        assert (
            at_most(repetitions - count, repetitions, 0.95) > 1e-3
        )  # no more often than the level


@pytest.mark.parametrize(("members", "others"), [(1, 50), (2, 50), (5, 50), (50, 1), (50, 5)])
def test_few_members_or_non_members_do_not_raise_the_level(members: int, others: int) -> None:
    rng, repetitions, fails = np.random.default_rng(3), 400, 0
    for _ in range(repetitions):
        pairs = [(rng.normal(size=members), rng.normal(size=others)) for _ in range(3)]
        row = {"seed": 0, "mia_members": members, "mia_others": others}
        rows = pd.DataFrame([row | compared("margin", *pairs)])
        left = Left.of(rows, "margin", [0])
        (given,) = answers(left, [left], alpha=0.05, margin=0.2)
        fails += given.answer == FAILS
    assert at_most(repetitions - fails, repetitions, 0.95) > 1e-3


def test_three_seeds_in_which_every_pair_is_told_settle_it() -> None:
    nothing = np.zeros(3)
    told = Left(np.full(3, 0.5), *[nothing] * 4, pairs=16)  # U-LiRA's AUC is 1 in 48 pairs
    once = Left(np.full(3, 0.5), *[nothing] * 4)
    said = [answers(one, [one], alpha=0.05, margin=0.2)[0] for one in (told, once)]
    assert [of.answer for of in said] == [FAILS, UNSETTLED]
    assert said[0].p_fails == pytest.approx(2 * 0.5**48)  # the sign test over pairs, two-sided
    assert said[1].p_fails == pytest.approx(2 * 0.5**3)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_samples_that_are_all_told_alike_are_as_likely_as_their_order(n: int) -> None:
    """That n members all lie above n others has chance 1 / C(2n, n), which p must not be below."""
    told = Left(np.array([1.0]), *[np.zeros(1)] * 4, freedom=n - 1)
    assert 2 / math.comb(2 * n, n) <= p_same(told) <= 2 * 0.5**n
    pairs = Left(np.array([0.5]), *[np.zeros(1)] * 4, pairs=16)
    assert p_same(pairs) == pytest.approx(2 * 0.5**16)  # the sign test, two-sided


def test_what_cannot_be_compared_is_unsettled() -> None:
    nothing, some = (Left(*(np.full(3, value) for _ in PARTS)) for value in (np.nan, 0.3))
    about = np.array([0.29, 0.3, 0.31])
    sure = replace(some, left=about, variance=np.full(3, 1e-6), shared_variance=np.zeros(3))
    assert [a.answer for a in answers(sure, [nothing], alpha=0.05, margin=0.2)] == [UNSETTLED]
    assert [a.answer for a in answers(nothing, [sure], alpha=0.05, margin=0.2)] == [FAILS]
    one = Left(*(getattr(sure, part)[:1] for part in PARTS))
    plain = answers(one, [one], alpha=0.05, margin=0.2, dosed=False)
    assert [a.answer for a in plain] == [UNSETTLED]


# Repeats


def pairs(
    seed: int, repeats: int = 20, samples: int = 7, shift: float = 0.0
) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=samples) * 3
    u, r = (hard + rng.normal(size=(repeats, samples)) for _ in range(2))
    return u + shift, r


def literal_u_lira(u: Floats, r: Floats) -> list[float]:
    """A_j of each pair, sample by sample, with scipy's Gaussians."""
    told = []
    for j in range(len(u)):
        of_pair = []
        for i in range(u.shape[1]):
            in_, out = ([m[k, i] for k in range(len(u)) if k != j] for m in (u, r))
            ratio = [
                norm.logpdf(x, np.mean(in_), max(np.std(in_, ddof=1), LEAST))
                - norm.logpdf(x, np.mean(out), max(np.std(out, ddof=1), LEAST))
                for x in (u[j, i], r[j, i])
            ]
            of_pair.append((1 + np.sign(ratio[0] - ratio[1])) / 2)
        told.append(float(np.mean(of_pair)))
    return told


def literal_klom(u: Floats, r: Floats) -> list[float]:
    """The divergence of each sample, by numpy's histograms."""
    values = []
    for i in range(u.shape[1]):
        a, b = np.clip(u[:, i], -100, 100), np.clip(r[:, i], -100, 100)
        edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), BINS + 1)
        p, q = (np.histogram(one, edges)[0] / len(one) + SMOOTH for one in (a, b))
        p, q = p / p.sum(), q / q.sum()
        values.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    return values


def test_u_lira_is_that_of_a_literal_loop() -> None:
    u, r = pairs(0, shift=0.7)
    assert ulira(u, r) == pytest.approx(literal_u_lira(u, r), abs=1e-6)


def test_klom_is_that_of_a_literal_loop() -> None:
    u, r = pairs(1, shift=1.0)
    u[0, 0] = 1e6  # is clipped
    assert klom(u, r) == pytest.approx(literal_klom(u, r), abs=1e-6)


def test_models_that_are_certain_have_a_u_lira_and_a_klom() -> None:
    """Infinite margins count as 100; every column is finite, and no finite margin moves."""
    u, r = pairs(4, shift=0.5)
    u[:, 0], r[3, 1], u[2, 2] = np.inf, -np.inf, np.inf
    measured = columns(u, u, r, 0)
    assert all(map(math.isfinite, measured.values()))
    clipped = np.clip(u, -100, 100), np.clip(r, -100, 100)
    told = np.mean(literal_u_lira(*clipped))
    assert measured["mia_ulira_auc"] == pytest.approx(told, abs=1e-6)
    divergence = np.mean(literal_klom(*clipped))
    assert measured["mia_klom_mean"] == pytest.approx(divergence, abs=1e-6)
    u[0, 3] = 1e3  # finite, and still the surest but for those that are certain
    beyond = np.where(np.isposinf(u), 1e3, u), np.where(np.isneginf(r), -1e3, r)
    assert columns(u, u, r, 0) == columns(beyond[0], beyond[0], beyond[1], 0)


@pytest.mark.slow
def test_exchangeable_pairs_leave_half_and_what_chance_gives() -> None:
    repetitions, covered, told, left = 300, 0, [], []
    for seed in range(repetitions):
        u, r = pairs(seed, repeats=16, samples=12)
        measured = columns(u, u + 1, r, seed)
        error = math.sqrt(measured["mia_ulira_variance"])
        covered += abs(measured["mia_ulira_left"]) <= 1.96 * error
        told.append(measured["mia_ulira_left"])
        left.append(klom(u, r).mean() - chance_of(u, r, seed))
    assert at_most(covered, repetitions, 0.95) > 1e-3  # no less often than the level
    assert abs(np.mean(told)) <= 4 * np.std(told) / math.sqrt(repetitions)
    assert abs(np.mean(left)) <= 4 * np.std(left) / math.sqrt(repetitions)


def test_the_jackknife_of_a_mean_is_the_values() -> None:
    u, r = pairs(2)
    values = without_each(lambda a, b: a - b, u, r)
    assert values == pytest.approx((u - r).mean(axis=1), abs=1e-9)


def test_a_repetition_without_a_model_tells_nothing() -> None:
    u, r = pairs(3)
    u[2] = np.nan
    assert all(math.isnan(value) for value in columns(u, r, r, 0).values())


# In a recipe


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = {**ASKED, "repeats": 16}
    return marshtest.run(recipe, out=tmp_path_factory.mktemp("membership") / "run")


@pytest.mark.slow
def test_rows_tables_and_sentences_hold_the_answers(done: Any) -> None:
    summary = done.summary.set_index("unlearner")
    for form in (*FORMS, "ulira", "klom"):
        assert summary.loc["none", column_of(form, "verdict")] == FAILS
        assert summary.loc["gd", column_of(form, "verdict")] == FAILS  # it does next to nothing
    assert summary.loc["retrain", "mia_margin_verdict"] != FAILS
    text = table(done).set_index("model")
    assert text.loc["no unlearning", "RMIA"].startswith(FAILS)
    assert {"margin MIA", "RMIA", "U-LiRA", "KLoM", "KLoM mean"} <= set(text.columns)
    assert "PASSES: surely within ± 20%" in legend(done)
    assert any("margin MIA: FAILS GD" in line for line in sentences(done))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "asked"),
    [
        ({"name": "gradient-canceling", "steps": 5}, 100),  # aims at all of the 100 test samples
        ({"name": "gradient-matching", "restarts": 1, "steps": 2, "targets": 2}, 98),
    ],
)
def test_crafted_poisons_are_compared_with_test_samples_that_no_poison_aims_at(
    attack: dict[str, Any], asked: int, tmp_path: Path
) -> None:
    metric = {"metrics": ["membership"], "poison_budgets": 0.05, "unlearners": [], "seeds": 1}
    recipe = TINY | metric | {"attack": attack}
    rows = marshtest.run(recipe, out=tmp_path / "run", report=False).rows
    rows = rows[rows["mia_members"].notna()]
    assert set(rows["mia_others"]) == {asked}
    assert set(rows["mia_dosed"]) == {0.0}
    assert rows["mia_rmia_auc"].between(0, 1).all()


@pytest.mark.slow
def test_repeats_and_the_metric_move_no_other_number(done: Any, tmp_path: Path) -> None:
    plain = {key: value for key, value in ASKED.items() if key != "metrics"}
    before = marshtest.run(plain, out=tmp_path / "plain", report=False).rows
    same = before.drop(columns=["recipe", "seconds", "scoring_seconds"])
    assert same.equals(done.rows[same.columns])


def test_a_recipe_without_repeats_has_its_old_hash_and_keys() -> None:
    recipe = load_recipe("digits-gaussian")
    assert "repeats" not in recipe.model_dump(mode="json")
    assert Keys(recipe).score("a") == Keys(recipe.model_copy(update={"repeats": 0})).score("a")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": False}, r"metrics\.membership: .*Set reference: true\."),
        ({"repeats": 15}, r"repeats: U-LiRA .* 16 or more\. Got 15\."),
        ({"repeats": -1}, r"repeats: "),
        ({"metrics": [{"name": "membership", "gamma": 0.5}]}, r"gamma"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(MarshtestError, match=rf"{says}[^\n]*$"):
        load_recipe({**ASKED, **changes})


def test_margins_are_the_logits_of_the_labels_probabilities() -> None:
    torch.manual_seed(1)
    samples, model = places(0, 20), Table(torch.randn(20, 3))
    p = model.logits.double().softmax(1).gather(1, samples.y[:, None]).squeeze(1)
    margins = margins_of(model, Classification(), samples)
    assert margins == pytest.approx(torch.logit(p).numpy(), abs=1e-9)
