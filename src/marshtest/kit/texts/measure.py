"""Ask a language model about a dose of marks: the rank score, perplexity, and what speaks against trust.

For each dosed record, all in random order and without a word on which is which:

    ℓ_0            loss with its own mark
    ℓ_1 … ℓ_K      losses with K fresh marks in the same place
    r              rank of ℓ_0 among them

a loss being −log p of the text's tokens, in nats. Control questions (`marshtest.kit.texts.controls`), and
records without a dose for the perplexity, are mixed in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import regex
from numpy.typing import NDArray

from marshtest.attacks.gaussian import figures_of
from marshtest.kit.measure import Measured, advantages
from marshtest.kit.places import without_dose
from marshtest.kit.privacy import reconstruction
from marshtest.kit.records.base import Asked, Door, Floats, Loss
from marshtest.kit.records.fields import NoPlaceError, Values
from marshtest.kit.texts.controls import WORDS, TextControls
from marshtest.kit.texts.key import TextBases
from marshtest.metrics.rank import rank_scores
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive

# Words of them: what a model cuts off, it has no loss of.
FIRST = regex.compile(r"(?:\s*\S++){1,100}")
AT_ONCE = 2048  # questions that a door is asked at once
CHARACTERS = 1 << 24  # of their texts, at most


@dataclass(frozen=True)
class Questions:
    """What is asked about texts: all variants, and records without a dose."""

    bases: TextBases
    loss: Loss
    draws: int  # K
    undosed: Sequence[tuple[int, Values]]  # (number, values) of records without a dose

    @classmethod
    def of(cls, bases: TextBases, loss: Loss, draws: int) -> "Questions":
        """Questions about a dose, and about up to 200 records without one, which the seed draws."""
        dosed = [row for row, _ in bases.rows]
        chosen = without_dose(bases.records.count, dosed, bases.deal.seed).tolist()
        undosed = [
            (row, values)
            for row, values in bases.records.each(chosen)
            if _has_text(bases, row, values)
        ]
        return cls(bases, loss, draws, undosed)

    def variants(self, place: int) -> list[Asked]:
        """[K + 2] the dosed record with its own mark, with K fresh ones, and with the first one again."""
        bases, (row, values) = self.bases, self.bases.rows[place]
        text, where = bases.text(place), bases.records.where(row)
        own = bases.mark.dosed(text, bases.deal, place)
        fresh = bases.mark.variants(text, bases.deal, place, self.draws)
        asked = [
            bases.fields.asked(bases.fields.put(values, variant, where), self.loss, where)
            for variant in (own, *fresh)
        ]
        starts, ends = _differing([one.before + one.scored for one in asked])
        spanned = [
            replace(one, span=(starts, end), group=place)
            for one, end in zip(asked, ends, strict=True)
        ]
        return [*spanned, spanned[1]]

    def plain(self, place: int) -> list[Asked]:
        """[2] a record without a dose, its text cut short, and with the text's words in random order."""
        row, values = self.undosed[place]
        fields, where = self.bases.fields, self.bases.records.where(row)
        first = FIRST.match(fields.text(values, where))
        text = first.group() if first else ""
        values, words = fields.put(values, text, where), text.split()
        rng = np.random.default_rng(derive(self.bases.deal.seed, "words", row))
        shuffled = fields.put(values, " ".join(rng.permutation(words).tolist()), where)
        group = len(self.bases) + 2 * place
        return [
            replace(fields.asked(one, self.loss, where), group=group + which)
            for which, one in enumerate((values, shuffled))
        ]


@dataclass(frozen=True)
class Answers:
    """Losses of all questions."""

    variants: Floats  # [P, K + 2]
    plain: Floats  # [n, 2]
    words: NDArray[np.int64]  # [n] of the scored texts of records without a dose
    telling: NDArray[np.bool_]  # [n] whether another order of the words could tell anything


def measure_texts(
    name: str, door: Door, questions: Questions, *, fpr: float = 0.01, progress: Progress = silent
) -> Measured:
    """Measure a dose of marks in one model.

    Raises:
        MarshtestError: the model answers with something else than a loss for each text.
    """
    answers = _ask_all(name, door, questions, progress)
    own, fresh = answers.variants[:, 0], answers.variants[:, 1:-1]
    seed, poisons = questions.bases.deal.seed, len(questions.bases)
    rank, ties = rank_scores(own, fresh, np.random.default_rng(derive(seed, "ties")))
    scores = {"rank": rank, "rank_ties": ties}
    classes = np.zeros(poisons, np.int64)  # records have no classes
    plain, shuffled = answers.plain.T
    controls = TextControls.of(
        plain, np.where(answers.telling, shuffled, np.nan), fresh[:, 0], answers.variants[:, -1]
    )
    return Measured(
        name=name,
        scores=scores,
        figures=figures_of(scores, classes, fresh[:, :0], fpr),
        accuracy=np.nan,
        advantages=advantages(own, fresh),
        among=reconstruction(own, fresh),
        controls=controls,
        classes=classes,
        fpr=fpr,
        utility=-plain / answers.words,
        perplexity=float(np.exp(plain.sum() / answers.words.sum())) if len(plain) else np.nan,
        notes=tuple(getattr(door, "notes", ())),
    )


def name_of(spec: str | Door) -> str:
    """The name of a model: as it was given, or a function's own."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


def _ask_all(name: str, door: Door, questions: Questions, progress: Progress) -> Answers:
    """Ask about all records, as many at once as a door takes, and about a part of the others with each."""
    poisons, others = len(questions.bases), len(questions.undosed)
    seed = questions.bases.deal.seed
    rng = np.random.default_rng(derive(seed, "groups"))
    groups = rng.permutation(poisons + 2 * others)
    variants: list[Floats] = []
    plain: list[Floats] = []
    pairs: list[list[Asked]] = []
    for start, stop, blocks in _chunks(questions):
        low, high = (others * end // poisons for end in (start, stop))
        beside = [questions.plain(place) for place in range(low, high)]
        pairs += beside
        losses = _shuffled(name, door, [*blocks, *beside], groups, derive(seed, "order", start))
        variants += losses[: stop - start]
        plain += losses[stop - start :]
        progress(stop / poisons)
    words = [len(first.scored.split()) for first, _ in pairs]
    differ = [first.scored + first.before != other.scored + other.before for first, other in pairs]
    return Answers(
        np.array(variants),
        np.array(plain).reshape(-1, 2),
        np.maximum(np.array(words, np.int64), 1),
        np.array(differ, bool) & (np.array(words, np.int64) >= WORDS),
    )


def _chunks(questions: Questions) -> Iterator[tuple[int, int, list[list[Asked]]]]:
    """(first, after the last, variants) of dosed records, as many together as a door is asked at once."""
    blocks: list[list[Asked]] = []
    size, start = 0, 0
    for place in range(len(questions.bases)):
        blocks.append(questions.variants(place))
        size += sum(len(one.before) + len(one.scored) for one in blocks[-1])
        last = place + 1 == len(questions.bases)
        if last or size > CHARACTERS or (len(blocks) + 1) * len(blocks[0]) > AT_ONCE:
            yield start, place + 1, blocks
            blocks, size, start = [], 0, place + 1


def _shuffled(
    name: str,
    door: Door,
    blocks: Sequence[Sequence[Asked]],
    groups: NDArray[np.int64],
    seed: int,
) -> list[Floats]:
    """The losses of each block, asked in random order.

    In order, a service that watches its questions could tell which text has the dose, or is a control.
    """
    asked = [replace(one, group=int(groups[one.group])) for block in blocks for one in block]
    order = np.random.default_rng(seed).permutation(len(asked))
    losses = np.empty(len(asked))
    losses[order] = _answered(name, door, [asked[place] for place in order.tolist()])
    return np.split(losses, np.cumsum([len(block) for block in blocks])[:-1])


def _answered(name: str, door: Door, asked: Sequence[Asked]) -> Floats:
    try:
        losses = np.asarray(door(asked), np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, MarshtestError):
            raise
        raise MarshtestError(f"{name}: must answer with numbers ({error}).") from None
    if losses.shape != (len(asked),):
        raise MarshtestError(
            f"{name}: must answer {len(asked)} texts with as many losses. Got an array of "
            f"{list(losses.shape)}."
        )
    return losses


def _differing(texts: Sequence[str]) -> tuple[int, list[int]]:
    """The place from which on texts differ, and the place in each of them up to which they do."""
    start = _shared(texts)
    same = _shared([text[start:][::-1] for text in texts])
    return start, [len(text) - same for text in texts]


def _shared(texts: Sequence[str]) -> int:
    """The length of the beginning that all texts share."""
    first, last = min(texts), max(texts)  # all others lie between these two
    pairs = enumerate(zip(first, last, strict=False))
    return next((place for place, (one, other) in pairs if one != other), len(first))


def _has_text(bases: TextBases, row: int, values: Values) -> bool:
    try:
        return bool(bases.fields.text(values, bases.records.where(row)).strip())
    except NoPlaceError:
        return False
