"""Audits by labels alone: the exact null, memorisers, models that show nothing, answers that are none."""

import json
import math
import sys
import unicodedata
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr
from subjects import audited

from marshtest.commands.plan import SPREAD, plan
from marshtest.kit.audit import Audit, audit
from marshtest.kit.certificates.issue import certify
from marshtest.kit.certificates.page import Page
from marshtest.kit.certificates.verify import verify
from marshtest.kit.labels import LabelModel
from marshtest.kit.noise import Scaling
from marshtest.metrics.labels import (
    OF_AUDITS,
    expected,
    label_dependence,
    label_scores,
    poisson_binomial_p,
)
from marshtest.metrics.labels import testable as informative
from marshtest.metrics.verdict import Evidence, rests_on, verdicts
from marshtest.plumbing.errors import MarshtestError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import labels as known

DRAWS = 19


@cache
def asked(*models: str, **rest: Any) -> Audit:
    case = audited()
    names = [model if set(model) & set(":.") else f"labelling:{model}" for model in models]
    rest = {"scaling": Scaling(), "draws": DRAWS, "in_process": True, "device": "cpu"} | rest
    return audit(case.done.key_file, case.source, *names, **{"answers": "labels"} | rest)


def test_every_choice_of_the_own_variant_is_counted_as_the_null_says() -> None:
    """All 3⁵ ways in which chance may choose the own one among three variants of five poisons."""
    table = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]], bool)
    share = table.mean(1)
    p_values = []
    for own in product(range(3), repeat=5):
        hits = int(table[np.arange(5), own].sum())
        p_values.append(poisson_binomial_p(hits, share))
        same = np.array([table[np.arange(5), other].sum() for other in product(range(3), repeat=5)])
        smaller = min((same <= hits).mean(), (same >= hits).mean())
        assert p_values[-1] == pytest.approx(min(1.0, 2 * smaller))
    for level in (0.05, 0.1, 0.3, 0.5):
        assert (np.array(p_values) <= level).mean() <= level


def test_nulls_are_rejected_as_often_as_stated() -> None:
    """2,500 models that do not depend on the noise, of bases that differ much."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(2500):
        right = rng.random((120, DRAWS + 1)) < ndtr(0.8 + rng.standard_normal((120, 1)))
        scores = label_scores(right)
        p_values.append(label_dependence(scores["label_right"], scores["label_share"]).p_value)
    for level in (0.01, 0.05, 0.2):
        rejected = int((np.array(p_values) <= level).sum())
        interval = stats.binomtest(rejected, len(p_values)).proportion_ci(0.999)
        assert interval.low <= level
        assert rejected > level * len(p_values) / 2  # and not so seldom that it has no power


def test_small_probabilities_keep_their_digits() -> None:
    chances = np.full(400, 0.5)
    assert poisson_binomial_p(400, chances) == pytest.approx(2 * 0.5**400)
    expected_p = 2 * stats.binom.sf(259, 400, 0.5)
    assert poisson_binomial_p(260, chances) == pytest.approx(expected_p, rel=1e-9)


def test_the_score_is_petos_log_odds_and_alike_variants_add_nothing() -> None:
    """One stratum of equal shares: (O − E) / V by hand; a poison with all variants alike does nothing."""
    right, share = np.array([1.0, 1, 0, 1]), np.array([0.5, 0.5, 0.5, 0.5])
    found = label_dependence(right, share)
    assert found.value == pytest.approx((3 - 2) / 1.0)
    more = label_dependence(np.append(right, [1.0, 0.0]), np.append(share, [1.0, 0.0]))
    assert (more.value, more.error, more.p_value) == (found.value, found.error, found.p_value)
    assert informative(np.array([0.5, 0.05, 1.0, 0.0])) == 2


def test_what_is_answered_alike_now_and_was_not_before_is_hidden() -> None:
    before = np.full(1000, 0.5)
    half = np.where(np.arange(1000) < 500, 1.0, 0.5)
    right = np.concatenate([np.ones(500), np.tile([1.0, 0.0], 250)])
    assert label_dependence(right, half, before).hidden == pytest.approx(0.5)
    assert label_dependence(right, half).hidden == 0  # it is so in the model before as well
    alike = label_dependence(np.ones(1000), np.ones(1000), before)
    assert math.isnan(alike.value)
    assert alike.hidden == 1
    few = np.where(np.arange(1000) < 10, 0.5, 1.0)  # a variance of 2.5
    assert label_dependence(np.ones(1000), few).hidden == 1


def variants(own: bool, fresh: int, poisons: int) -> NDArray[np.bool_]:
    """Answers to 1 + 199 variants of each poison, of which the own one and the first `fresh` are right."""
    right = np.zeros((poisons, 200), bool)
    right[:, 0], right[:, 1 : fresh + 1] = own, True
    return right


def verdict_of(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> str:
    first, then = label_scores(before), label_scores(after)
    found = (
        label_dependence(first["label_right"], first["label_share"]),
        label_dependence(then["label_right"], then["label_share"], first["label_share"]),
    )
    initial, updated = (Evidence({0: {"label": one}}, OF_AUDITS) for one in found)
    rests = rests_on(initial, margin=0.2, alpha=0.05)
    return verdicts(initial, [updated], rests=rests)[0].answer


@pytest.mark.parametrize(
    ("before", "after"), [(9, 99), (19, 119), (1, 199 // 2), (99, 9), (99, 99)]
)
def test_who_answers_all_own_noises_rightly_has_forgotten_nothing(before: int, after: int) -> None:
    """However many of the fresh ones are right then: D is 1/s, and cannot be more."""
    assert verdict_of(variants(True, before, 200), variants(True, after, 200)) == "NOT REMOVED"
    scores = label_scores(variants(True, after, 200))
    found = label_dependence(scores["label_right"], scores["label_share"])
    assert found.value == pytest.approx(200 / (after + 1))
    assert found.most == pytest.approx(found.value)


def test_a_model_that_no_longer_tells_where_it_told_is_untestable() -> None:
    """However little it told by: own noises alone were right, and are as wrong as the others now."""
    rng = np.random.default_rng(0)
    before = np.concatenate([variants(True, 0, 100), np.ones((100, 200), bool)])
    after = np.concatenate([np.zeros((100, 200), bool), rng.random((100, 200)) < 0.5])
    assert verdict_of(before, after) == "INCONCLUSIVE"


def test_plan_says_how_many_poisons_labels_need() -> None:
    """At the planned number a model anew is REMOVED as often as said; one that keeps a fifth seldom is."""
    rank, right, runs = 1.5, 0.7, 100
    planned = plan(rank=rank, right=right)
    foreseen = expected(rank, right, 199, SPREAD)
    found = [*known.answers(planned.poisons, rank, right, runs)]  # type: ignore[union-attr]
    anew, fifth, effects, shares = zip(*found, strict=True)
    removed, kept = anew.count("REMOVED"), fifth.count("REMOVED")
    seen = [informative(share) / len(share) for share in shares]
    assert np.mean(effects) == pytest.approx(foreseen.effect, rel=0.05)
    assert np.mean(seen) == pytest.approx(foreseen.testable, abs=0.02)
    low, high = stats.binomtest(removed, runs).proportion_ci(0.999)
    assert low <= 0.9 <= high
    assert kept <= stats.binom.ppf(1 - 1e-4, runs, 0.05)
    assert planned.poisons > 2 * plan(rank=rank).poisons  # type: ignore[union-attr]


@pytest.mark.slow
def test_who_memorises_is_found_by_labels_and_who_never_saw_the_dose_is_not() -> None:
    found = asked("before", "retrained")
    answers = [judged.verdict.answer for judged in found.models]
    assert answers == ["NOT REMOVED", "REMOVED"]
    assert found.models[0].epsilon > 1 > 0 == found.models[1].epsilon
    assert [*found.table()][2:6] == ["accuracy", "usable", "label score", "untestable"]
    assert "label score" in found.legend()


@pytest.mark.slow
def test_a_nearest_neighbour_keeps_the_dose_and_one_that_is_refitted_does_not() -> None:
    found = asked("neighbour", "neighbour", "neighbour_refitted")
    _, kept, refitted = found.models
    assert kept.verdict.answer == "NOT REMOVED"
    assert refitted.verdict.answer == "REMOVED"
    assert refitted.measured.accuracy > 0.9


def test_one_answer_for_all_is_untestable_and_not_acquitted() -> None:
    found = asked("before", "constant")
    before, after = found.models
    assert (before.verdict.answer, after.verdict.answer) == ("NOT REMOVED", "INCONCLUSIVE")
    assert "untestable by label: all variants are answered alike" in " ".join(after.reasons)
    assert after.measured.figures["untestable"] == len(found.key.ids)
    assert f"something of 0 of {len(found.key.ids):,} poisons" in " ".join(found.sentences())
    with pytest.raises(MarshtestError, match="near chance"):
        asked("constant", "retrained")


def test_a_hash_that_has_no_model_is_not_acquitted_by_labels_either() -> None:
    (_, after) = asked("before", "hashed").models
    assert after.verdict.answer == "INCONCLUSIVE"
    assert "jump between near inputs" in " ".join(after.reasons)


def test_the_answers_of_a_box_and_names_of_classes_are_read() -> None:
    boxed = asked("box:labelling:box").models[0].measured
    plain = asked("before").models[0].measured
    assert boxed.figures == plain.figures
    model = LabelModel("m", lambda x: ["cat", "owl"], lambda x: x, 2, ("cat", "owl"))
    losses, right = model.ask(np.zeros((2, 3)), np.array([0, 0]))
    assert losses.tolist() == [0, 1]
    assert right is not None
    assert right.tolist() == [True, False]
    strange = LabelModel("m", lambda x: ["cat", "ox"], lambda x: x, 2, ("cat", "owl"))
    with pytest.raises(MarshtestError, match="'ox', which is no class of the data: cat, owl"):
        strange.ask(np.zeros((2, 3)), np.array([0, 0]))


def test_names_in_any_unicode_form_and_in_bytes_are_names() -> None:
    composed, apart = (unicodedata.normalize(form, "Grün") for form in ("NFC", "NFD"))
    assert composed != apart
    x, zeros = np.zeros((2, 3)), np.array([0, 0])

    def right(answers: list[Any], names: tuple[str, ...]) -> Any:
        return LabelModel("m", lambda _: np.array(answers), lambda x: x, 2, names).ask(x, zeros)[1]

    assert right([composed, apart], (apart, "blau")).all()
    assert right([composed, apart], (composed, "blau")).all()
    assert right([composed.encode(), b"blau"], (composed, "blau")).tolist() == [True, False]
    assert right([composed, apart], (composed, apart)).tolist() == [True, False]
    with pytest.raises(MarshtestError, match="names that are not UTF-8"):
        right([composed.encode("latin-1"), b"blau"], (composed, "blau"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("probabilities", "as many labels [2]. Got [2, 10]. These look like probabilities"),
        ("beyond", "answered label 10 for 2 of 2 inputs; the data have classes 0..9"),
        ("halves", "answered 0.5, which is no label"),
        ("one_for_all", "as many labels [2]. Got []"),
        ("named", "the data have no names of classes. Answer with their numbers, 0..9"),
        ("raises", "ValueError: the service is closed"),
        ("box:labelling:box_of_rows", "Got [1297, 10]. These look like probabilities"),
        ("box:labelling:box_of_objects", "answered object, not labels"),
        ("box:labelling:nothing.pt2", "labelling"),
        ("before.safetensors", "--answers labels is for models that give nothing but labels"),
    ],
)
def test_what_is_no_label_is_refused_in_one_line(model: str, words: str) -> None:
    with pytest.raises(MarshtestError) as refused:
        asked(model)
    assert "\n" not in str(refused.value)
    if "1297" in words:
        words = words.replace("1297", str(refused.value).partition("answer ")[2].split()[0])
    assert words in str(refused.value)


def test_labels_are_not_taken_for_losses() -> None:
    with pytest.raises(MarshtestError, match="If they are labels, give --answers labels"):
        asked("box:labelling:unasked", answers="losses")
    with pytest.raises(MarshtestError, match="answers"):
        asked("before", answers="words")


@pytest.mark.slow
def test_the_command_says_what_python_says_and_a_plan_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = audited()
    words = ["labelling:before", "labelling:retrained", "--key", str(case.done.key_file)]
    words += ["--data", str(case.source), "--scaling", "unit", "--draws", "9"]
    words += ["--answers", "labels", "--in-process", "--out", str(tmp_path / "out")]
    code = command("audit", *words)
    saved = json.loads((tmp_path / "out" / "audit.json").read_text())
    again = asked("before", "retrained", draws=9)
    assert code == saved["exit_code"] == again.exit_code
    assert saved["models"][1]["verdict"] == again.models[1].verdict.answer
    assert saved["question"]["answers"] == "labels"
    before = saved["models"][0]
    assert before["judged_by"] == ["label"]
    assert before["epsilon"]["replacement"]["lower_bound"] == before["epsilon"]["lower_bound"]
    capsys.readouterr()
    assert command("plan", "--pilot", str(tmp_path / "out" / "audit.json")) == 0
    assert "label score" in capsys.readouterr().out


def test_a_certificate_of_labels_is_drawn_and_holds_when_asked_again(tmp_path: Path) -> None:
    case, models = audited(), ("labelling:before", "labelling:retrained")
    certificate = certify(asked(*models, draws=9), tmp_path / "labels.html")
    page = Page.of(certificate)
    assert page.legend.startswith(
        "Left of the dose, by how often its labels are right (label score)"
    )
    assert "Known of the models were the labels" in dict(page.facts)["What was asked"]
    done = verify(
        tmp_path / "labels.html",
        *models,
        key=case.done.key_file,
        data=case.source,
        in_process=True,
        device="cpu",
    )
    assert done.holds
    assert done.checks[-1].result == "holds"


@pytest.mark.parametrize("words", [["--right", "0.9"], ["--right", "1", "--rank", "1"]])
def test_a_plan_by_labels_needs_what_losses_would_show(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("plan", *words) == 2
    assert "--right, a share between 0 and 1, and by --rank" in capsys.readouterr().err
    assert command("plan", "--right", "0.9", "--rank", "1", "--gus", "1") == 2
