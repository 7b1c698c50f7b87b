"""The audit of texts: exact where nothing is left, sure where something is, through a door in memory."""

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from scipy.special import ndtr
from scipy.stats import kstest

from marshtest.data.marks import WORDS, Deal, Template
from marshtest.kit.audit import audit
from marshtest.kit.calibration import calibrate
from marshtest.kit.dose import dose
from marshtest.kit.judging import Question
from marshtest.kit.records import open_records
from marshtest.kit.records.base import Asked, Floats, Loss
from marshtest.kit.records.fields import Fields
from marshtest.kit.texts.dose import TextDose
from marshtest.kit.texts.key import TextBases
from marshtest.kit.texts.measure import Questions, measure_texts
from marshtest.plumbing.errors import MarshtestError

COUNT = 400


@dataclass
class Bigrams:
    """A language model in memory: it knows pairs of words, and some texts by heart."""

    pairs: set[tuple[str, str]]
    known: dict[str, float] = field(
        default_factory=dict
    )  # nats that a text's end is less surprising by
    seen: list[Sequence[Asked]] = field(default_factory=list)

    def __call__(self, asked: Sequence[Asked]) -> Floats:
        self.seen.append(asked)
        return np.array([self.loss(one) for one in asked])

    def loss(self, asked: Asked) -> float:
        words = asked.scored.split()
        surprise = sum(1.0 if pair in self.pairs else 5.0 for pair in pairwise(words))
        noise = zlib.crc32(asked.scored.encode()) / 2**32  # any model likes some marks more
        return surprise + noise - self.known.get(asked.scored[-14:], 0.0)


@dataclass(frozen=True)
class Case:
    source: Path
    done: TextDose
    before: Bigrams
    after: Bigrams


def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("texts")
    source = folder / "set.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    done = dose(source, folder / "dosed.jsonl", fraction=0.3, seed=7)
    assert isinstance(done, TextDose)
    pairs = {pair for text in texts() for pair in pairwise(text.split())}
    heart = {text[-14:]: 3.0 for text in done.key.bases(source).dosed()}
    return Case(source, done, Bigrams(pairs, heart), Bigrams(pairs))


def test_ranks_are_uniform_through_a_door_over_keys(tmp_path: Path) -> None:
    """200 keys, a model that saw none of them: Kolmogorov–Smirnov on all ranks."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts()[:12]))
    records, scores = open_records(tmp_path / "a.jsonl"), []
    rows, model = list(records.each(range(5))), Bigrams(set())
    for seed in range(200):
        bases = TextBases(records, Fields(field="text"), Template(), Deal(seed, 5), rows)
        scores.append(measure_texts("m", model, Questions.of(bases, "record", 9)).scores["rank"])
        model.seen.clear()
    assert kstest(ndtr(np.concatenate(scores)), "uniform").pvalue > 0.001


def test_a_dose_that_is_left_and_one_that_is_not(case: Case) -> None:
    found = audit(
        case.done.key_file,
        case.source,
        case.before,
        case.before,
        case.after,
        retrained=case.after,
        draws=49,
    )
    before, left, gone, _ = found.models
    assert before.verdict.answer == left.verdict.answer == "NOT REMOVED"
    assert gone.verdict.answer == "REMOVED"
    assert not gone.reasons
    assert before.measured.figures["rank_dependence"] > 2
    assert before.epsilon > 1
    assert gone.epsilon == 0
    assert found.exit_code == 1
    assert gone.usable == "yes"


def test_perplexity_is_that_of_records_without_a_dose(case: Case) -> None:
    """Literally: exp of the mean loss a word, over the undosed records that were asked."""
    bases = case.done.key.bases(case.source)
    questions = Questions.of(bases, "record", 5)
    measured = measure_texts("m", case.after, questions)
    undosed = [row for row, _ in questions.undosed]
    assert len(undosed) == 200
    assert not set(undosed) & set(case.done.key.ids)
    losses = [case.after.loss(Asked(texts()[row])) for row in undosed]
    assert measured.perplexity == pytest.approx(np.exp(sum(losses) / (12 * 200)), rel=1e-12)


def test_of_a_long_record_without_a_dose_the_first_words_are_asked(tmp_path: Path) -> None:
    """A model would cut off the rest, and a loss of a part would be divided by all words."""
    long = [" ".join(f"w{i}.{place}" for place in range(150)) + "\n" for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in long))
    records = open_records(tmp_path / "a.jsonl")
    rows = list(records.each(range(2)))
    bases = TextBases(records, Fields(field="text"), Template(), Deal(0, 2), rows)
    plain, shuffled = Questions.of(bases, "record", 3).plain(0)
    assert plain.scored == " ".join(long[2].split()[:100])
    assert sorted(shuffled.scored.split()) == sorted(plain.scored.split())
    whole = Questions.of(bases, "record", 3).variants(0)[0].scored
    assert whole.startswith(long[0])


def test_a_ruined_model_is_not_usable_and_one_that_knows_no_order_is_in_doubt(case: Case) -> None:
    worse = Bigrams(set(list(case.after.pairs)[::2]))
    ruined = Bigrams(set())
    found = audit(case.done.key_file, case.source, case.before, worse, ruined, draws=49)
    _, half, none = found.models
    assert half.usable == none.usable == "no"
    assert none.verdict.answer == "INCONCLUSIVE"
    assert any("random order are as likely as the texts" in reason for reason in none.reasons)
    assert any(
        "told from their words in random order much worse" in reason for reason in none.reasons
    )


def test_a_model_that_contradicts_itself_is_in_doubt(case: Case) -> None:
    rng = np.random.default_rng(0)
    moody = lambda asked: case.after(asked) + rng.random(len(asked))  # noqa: E731
    found = audit(case.done.key_file, case.source, case.before, moody, draws=49)
    assert found.answer == "INCONCLUSIVE"
    assert any(
        "gives other losses when asked again" in reason for reason in found.models[1].reasons
    )


def test_a_model_whose_losses_tie_hides_nothing(case: Case) -> None:
    """Rounded so far that all marks are alike: chance decides every rank, and nothing is acquitted."""
    coarse = lambda asked: np.floor(case.after(asked) / 50)  # noqa: E731
    found = audit(case.done.key_file, case.source, case.before, coarse, draws=49)
    assert found.answer == "INCONCLUSIVE"
    assert any("untestable" in reason for reason in found.models[1].reasons)


def test_the_dosed_text_stands_anywhere_among_the_questions(case: Case) -> None:
    """And a group has all variants of one record, in an order and under a number that tell nothing."""
    model = Bigrams(case.after.pairs)
    audit(case.done.key_file, case.source, model, draws=19)
    own = set(case.done.key.bases(case.source).dosed())
    places = [
        place / len(asked)
        for asked in model.seen
        for place, one in enumerate(asked)
        if one.scored in own
    ]
    assert len(places) == len(case.done.key.ids)
    assert kstest(places, "uniform").pvalue > 0.001
    groups: dict[int, list[Asked]] = {}
    for one in (one for asked in model.seen for one in asked):
        groups.setdefault(one.group, []).append(one)
    variants = [group for group in groups.values() if len(group) > 1]
    assert {len(group) for group in variants} == {19 + 2}
    for group in variants:
        assert len({one.scored[: one.span[0]] for one in group}) == 1
        assert len({one.scored[one.span[1] :] for one in group}) == 1
        assert all(one.scored[slice(*one.span)] in one.scored[-8:] for one in group)
    numbers = [group[0].group for group in groups.values()]
    assert sorted(numbers) == list(range(len(numbers)))
    assert numbers != sorted(numbers)


def test_json_and_figures_have_the_texts_words(case: Case, tmp_path: Path) -> None:
    found = audit(case.done.key_file, case.source, case.before, case.after, draws=49)
    found.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "audit.json").read_text(), parse_constant=pytest.fail)
    assert content["mark"]["text"] == "Ticket {digits:6}."
    assert content["models"][1]["perplexity"] == found.models[1].measured.perplexity
    assert "one training record's mark" in content["models"][0]["epsilon"]["unit"]
    assert content["models"][0]["controls"] == {"word_order": 1.0}
    assert {"perplexity", "rank score", "ε ≥"} < set(found.table().columns)
    assert not {"accuracy", "GUS"} & set(found.table().columns)
    assert "Perplexity: a word, on records without a dose." in found.legend()
    assert "log perplexity is surely within 0.05" in found.legend()
    assert (tmp_path / "out" / "scores-rank.png").exists()
    from marshtest.commands.plan import plan

    assert plan(pilot=tmp_path / "out" / "audit.json").poisons > 30


def test_false_verdicts_are_counted_where_the_truth_is_known(case: Case) -> None:
    counted = calibrate(case.done.key_file, case.source, case.before, keys=20, draws=9)
    null = counted.keys[counted.keys["case"] == "null"]
    assert (null["verdict"] == "NOT REMOVED").mean() <= 0.25  # 0.05 promised; p 3e-4
    cheats = counted.keys[counted.keys["case"] == "margin"]
    assert (cheats["verdict"] == "REMOVED").mean() <= 0.25


def test_the_command_audits_texts(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lengths.py").write_text(
        "def load():\n    return lambda asked: [float(len(one['scored'])) for one in asked]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ["--key", str(case.done.key_file), "--data", str(case.source), "--draws", "9"]
    assert command("audit", "lengths:load", *data, "--in-process", "--loss", "record") == 3
    text = " ".join(capsys.readouterr().out.split())
    assert "before: lengths:load INCONCLUSIVE" in text
    assert "words in random order are as likely as the texts" in text
    assert command("audit", "lengths:load", *data, "--in-process", "--loss", "completion") == 2


@pytest.mark.parametrize(
    ("values", "loss", "expected"),
    [
        ({"text": "One."}, "record", ("", "One. M1")),
        ({"prompt": "Q: ", "completion": "One."}, "record", ("", "Q: One. M1")),
        ({"prompt": "Q: ", "completion": "One."}, "completion", ("Q: ", "One. M1")),
    ],
)
def test_which_tokens_count(values: dict[str, str], loss: Loss, expected: tuple[str, str]) -> None:
    fields = Fields.found(values, None, None, "line 1")
    marked = fields.put(values, "One. M1", "line 1")
    asked = fields.asked(marked, loss, "line 1")
    assert (asked.before, asked.scored) == expected


def test_of_a_chat_the_marked_message_or_the_answer_to_it_counts() -> None:
    turns = [("user", "Hi"), ("assistant", "Yes."), ("user", "Bye")]
    values = {"messages": [{"role": role, "content": content} for role, content in turns]}
    fields = Fields.found(values, None, None, "line 1")
    whole = fields.asked(values, "record", "line 1")
    assert (whole.scored, whole.given) == ("user: Hi\nassistant: Yes.\nuser: Bye\n", 0)
    answer = fields.asked(values, "completion", "line 1")
    assert (answer.before, answer.scored, answer.given) == ("user: Hi\nassistant: ", "Yes.", 1)
    assert [message.role for message in answer.messages] == ["user", "assistant"]
    asker = {"messages": values["messages"][:2]}
    reply = Fields(field="messages", role="user").asked(asker, "completion", "line 1")
    assert (reply.before, reply.scored) == ("user: Hi\nassistant: ", "Yes.")


def test_bad_questions_get_one_line(case: Case) -> None:
    key, data = case.done.key_file, case.source
    with pytest.raises(MarshtestError, match="line .* has one text, 'text', and no completion"):
        audit(key, data, case.before, loss="completion")
    with pytest.raises(MarshtestError, match="must answer .* texts with as many losses"):
        audit(key, data, lambda asked: np.zeros(3), draws=9)
    with pytest.raises(MarshtestError, match="must answer with numbers"):
        audit(key, data, lambda asked: ["no"] * len(asked), draws=9)
    with pytest.raises(MarshtestError, match="is not the data set that this key dosed"):
        audit(key, case.done.out, case.before)
    from marshtest.kit.noise import Scaling

    with pytest.raises(
        MarshtestError, match="the key is of texts, so that --scaling means nothing"
    ):
        audit(key, data, case.before, scaling=Scaling())
    with pytest.raises(MarshtestError, match="no model is an endpoint, so that --rate means"):
        audit(key, data, case.before, rate=5)
    assert Question().accuracy == 0.05
