"""Marks: dealt so that no two records share one, and ranks are uniform for any model that saw none."""

import zlib
from collections.abc import Container
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import chi2, kstest

from marshtest.data.marks import (
    SECONDS,
    WORDS,
    Deal,
    Mark,
    Pattern,
    Template,
    _any_of,
    hands,
    time_for,
)
from marshtest.metrics.rank import rank_scores
from marshtest.plumbing.errors import MarshtestError

TEXT = "All was well. Then ORD-123456 came, and B7 went. Nobody knew why."
MARKS: dict[str, Mark] = {
    "digits": Template(),
    "words": Template(text="{words:3}", place="middle"),
    "letters": Template(text="<{letters:4}>", place="start"),
    "pattern": Pattern(pattern=r"ORD-\d{6}"),
}


class Numbers:
    """Passes over a third of all marks, by a hash of the text."""

    def __contains__(self, mark: object) -> bool:
        return zlib.crc32(str(mark).encode()) % 3 == 0


def null_scores(
    mark: Mark, seed: int, there: Container[str], records: int, draws: int
) -> np.ndarray:
    """Rank scores of a model that knows nothing of the dose, and likes some marks more than others."""
    deal = Deal(seed, records, there)
    texts = [
        [mark.dosed(TEXT, deal, record), *mark.variants(TEXT, deal, record, draws)]
        for record in range(records)
    ]
    # One loss for all records, so that marks that records shared would show in more than one.
    losses = np.array([[zlib.crc32(text.encode()) % 1000 for text in row] for row in texts], float)
    return rank_scores(losses[:, 0], losses[:, 1:], np.random.default_rng(seed))[0]


@pytest.mark.parametrize("name", MARKS)
def test_ranks_are_uniform_and_independent_over_keys(name: str) -> None:
    """250 keys: each rank is uniform, and a key's ranks add up as independent ones do."""
    scores = np.stack([null_scores(MARKS[name], seed, Numbers(), 6, 9) for seed in range(250)])
    assert kstest(ndtr(scores).ravel(), "uniform").pvalue > 0.001
    squares = float((scores.sum(1) ** 2 / scores.shape[1]).sum())  # χ² of 250 if independent
    low, high = chi2.ppf((0.0005, 0.9995), len(scores))
    assert low < squares < high


def test_a_model_that_knows_a_mark_is_found_whatever_hand_it_is_of() -> None:
    deal, mark = Deal(3, 40), Template()
    for record in range(40):
        own = mark.dosed(TEXT, deal, record)
        assert own not in mark.variants(TEXT, deal, record, 19)


@pytest.mark.parametrize("name", MARKS)
def test_no_two_records_share_a_mark_own_or_fresh(name: str) -> None:
    mark, deal = MARKS[name], Deal(1, 30)
    held = [
        {mark.dosed(TEXT, deal, record), *mark.variants(TEXT, deal, record, 50)}
        for record in range(30)
    ]
    assert sum(map(len, held)) == len(set.union(*held))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(200, 3000))
def test_the_hands_share_out_all_marks(records: int, size: int) -> None:
    """The definition, literally: each hand has every H-th number, and H has no factor in common with n."""
    step = hands(records, size)
    assert step >= records
    assert np.gcd(step, size) == 1
    deal = Deal(5, records)
    for record in {0, records - 1}:
        drawn = {deal.number(record, draw, 0, size) for draw in range(50)}
        assert len({number % step for number in drawn}) == 1
        assert max(drawn) < size


def test_all_places_of_a_mark_vary_in_a_hand() -> None:
    """100 records and 10⁶ marks: with H = 100 the last two digits would be the same in a hand."""
    fresh = Template().variants("", Deal(2, 100), 0, 300)
    digits = np.array([list(text[7:13]) for text in fresh])
    assert all(len(set(column)) == 10 for column in digits.T)


def test_draws_are_uniform_in_each_digit() -> None:
    deal = Deal(9, 50)
    own = np.array([list(Template().dosed("", deal, r)[7:13]) for r in range(50)])
    fresh = np.array(
        [list(t[7:13]) for r in range(50) for t in Template().variants("", deal, r, 40)]
    )
    for digits in (own, fresh):
        counts = np.unique(digits, return_counts=True)[1]
        expected = digits.size / 10
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 9)


def test_marks_that_are_there_are_passed_over() -> None:
    deal = Deal(0, 1, {f"No {digit}" for digit in range(9)})
    mark = Template(text="No {digits:1}")
    assert {*mark.variants("", deal, 0, 20), mark.dosed("", deal, 0)} == {"No 9"}
    with pytest.raises(MarshtestError, match="nearly all possible marks already"):
        mark.dosed("", Deal(0, 1, {f"No {digit}" for digit in range(10)}), 0)
    with pytest.raises(MarshtestError, match="10 marks for 11 records"):
        mark.dosed("", Deal(0, 11), 0)


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("end", "One. Two.", "One. Two. M1"),
        ("end", "ends in a break\n", "ends in a break\nM1"),
        ("start", "One. Two.", "M1 One. Two."),
        ("middle", "One. Two. Three and four.", "One. Two. M1 Three and four."),
        ("middle", "no sentence ends here", "no sentence M1 ends here"),
        ("middle", "word", "word M1"),
        ("end", "", "M1"),
    ],
)
def test_a_template_stands_where_it_should(place: str, text: str, expected: str) -> None:
    mark = Template.parse({"text": "M{digits:1}", "place": place}, "")
    assert mark.form(text).variant(1)[0] == expected


def test_words_are_sixty_four_and_differ() -> None:
    assert len(set(WORDS)) == len(WORDS) == 64
    assert all(one < other for one, other in pairwise(WORDS))


def test_a_pattern_keeps_what_it_spells_out_and_the_classes_of_the_rest() -> None:
    mark, text = (
        Pattern(pattern=r"[A-Z]{2}-[0-4]\d[a-z]|(?<=card )\d+"),
        "x AB-17c, card 99, card 5",
    )
    for variant in mark.variants(text, Deal(4, 3), 1, 60):
        assert mark.spans(variant) == mark.spans(text)
        assert variant[:2] == "x "
        assert variant[4] == "-"
        assert variant[5] in "01234"
        assert variant[8:15] == ", card "
        assert variant[2:4].isupper()


def test_a_pattern_in_which_characters_depend_on_each_other_keeps_to_it() -> None:
    mark = Pattern(pattern=r"(\d\d)-\1|\d{4}x")
    assert mark.form("see 12-12").size == 1  # no digit can change alone
    text = "see 1234x"
    assert {mark.spans(v)[0] for v in mark.variants(text, Deal(4, 1), 0, 20)} == {(4, 9)}


def test_bad_marks_get_one_line() -> None:
    with pytest.raises(MarshtestError, match="'Ticket' needs a slot, such as"):
        Template.parse({"text": "Ticket"}, "--mark")
    with pytest.raises(MarshtestError, match="needs a slot.*no other braces"):
        Template.parse({"text": "{digit:6} {digits:2}"}, "--mark")
    with pytest.raises(MarshtestError, match=r"the pattern '\(' is no regular expression"):
        Pattern.parse({"pattern": "("}, "--pattern")
    with pytest.raises(MarshtestError, match="is no regular expression"):
        Pattern.parse({"pattern": "(" * 450 + "a" + ")" * 450}, "--pattern")


def test_a_letter_of_several_bytes_is_found_whole_in_bytes() -> None:
    """As a set it would be a set of single bytes, of which some are no text."""
    for piece in (["€"], ["€", "a"], ["a", "b"]):
        found = regex.findall(_any_of(piece).encode(), "a€b".encode())
        assert [part.decode() for part in found] == [letter for letter in "a€b" if letter in piece]


@pytest.mark.parametrize("pattern", [r"ORD-\d{6}", r"\b[A-Z][a-z]{3,}", r"[^ ]{2}", r"\d+"])
def test_a_pattern_without_choices_needs_no_clock(pattern: str) -> None:
    """Nothing in it can be tried in two ways: it has at most one repeat of any length, at its end."""
    assert time_for(pattern) is None


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"a*b", r"\d+-\d+", r"a?a?aa", r"(?i)a", r"a|aa", ".*x"]
)
def test_all_other_patterns_are_timed(pattern: str) -> None:
    assert time_for(pattern) == SECONDS


def test_a_catastrophic_pattern_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marshtest.data.marks.SECONDS", 0.05)
    with pytest.raises(MarshtestError, match=r"takes more than 0.05 s on one record of 4,001"):
        Pattern(pattern=r"(a|aa|a.)+b\1$").spans("a" * 4000 + "c")
