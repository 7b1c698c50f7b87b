"""Dose text records on disk: marks in a random part of them, every other byte as it was."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marshtest.data.marks import Deal, Mark, Pattern, Template
from marshtest.kit.places import Dosed, Places, checked_seed, poisons_of, read_undosed
from marshtest.kit.records import open_records
from marshtest.kit.records.fields import Fields, NoPlaceError, id_of
from marshtest.kit.records.layout import Records
from marshtest.kit.texts.key import TextKey, current_versions, texts_digest
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive

CHECKED = 2000  # first records that are read whole: a fault that all have is seen at once
LEAST = 50  # marks that each record must have in hand: of K fresh ones, K / LEAST tie with its own
AT_ONCE = 1000  # records that are looked at first, in search of those with a place for a mark


@dataclass(frozen=True)
class TextDose(Dosed):
    """Dosed text records, with their key and forget request."""

    key: TextKey
    kind: str  # what the data are, in words


def mark_of(text: str | None, place: str | None, pattern: str | None) -> Mark | None:
    """The mark that a template's text and place, or a pattern, make; None if all are None.

    Raises:
        MarshtestError: both a template and a pattern are given, or one of them is no mark.
    """
    if pattern is not None:
        if text is not None or place is not None:
            raise MarshtestError("--pattern: redraws what is there. Leave out --mark and --place.")
        return Pattern.parse({"pattern": pattern}, "--pattern")
    given = {"text": text, "place": place}
    options = {name: value for name, value in given.items() if value is not None}
    return Template.parse(options, "--mark") if options else None


class Candidate(NamedTuple):
    """A record that can get a mark."""

    text: str  # that gets the mark, as it was before dosing
    name: str | int | None  # the record's own id, if it has one


def dose_texts(
    source: Path,
    out: Path,
    *,
    fraction: float,
    mark: Mark | None = None,
    field: str | None = None,
    role: str | None = None,
    seed: int | None = None,
    key_file: str | Path | None = None,
    forget_file: str | Path | None = None,
) -> TextDose:
    """Write text records to `out`, a random part of them with marks; see `marshtest.dose`."""
    places = Places(
        source,
        out,
        Path(key_file or f"{out}.key.json"),
        Path(forget_file or f"{out}.forget.jsonl"),
    )
    seed, mark = checked_seed(seed), mark or Template()
    places.refuse()
    if source.is_file() and out.suffix != source.suffix:
        raise MarshtestError(f"{out}: must end in {source.suffix}, as {source} does.")
    records = open_records(source, mark)
    fields = _fields(records, field, role)
    wanted = poisons_of(records.count - records.empty, fraction)
    chosen = _chosen(records, fields, mark, wanted, seed)
    texts = _dosed(chosen, mark, Deal(seed, len(chosen), records.there(mark, fields)))
    for _ in read_undosed(records.each, records.count, list(texts), seed):
        pass
    key = TextKey(
        seed=seed,
        mark=mark,
        fields=fields,
        samples=records.count,
        ids=tuple(texts),
        input=records.digest(),
        dosed=texts_digest(texts.values()),
        versions=current_versions(),
    )
    request = _forget_request(records, chosen)
    places.write(lambda staged: records.copy(staged, texts, fields), lambda *_: (key, request))
    kind = f"{records.kind}, {fields.kind}"
    return TextDose(key, out, places.forget_file, places.key_file, kind)


def _fields(records: Records, field: str | None, role: str | None) -> Fields:
    """The fields of the data; the first records are seen to have them.

    Raises:
        MarshtestError: a record lacks a field, or it is no text.
    """
    fields: Fields | None = None
    for row, values in records.each(range(min(records.count, CHECKED))):
        where = records.where(row)
        fields = fields or Fields.found(values, field, role, where)
        try:
            fields.text(values, where)
        except NoPlaceError:
            continue
    if fields is None:
        raise MarshtestError(f"{records.path}: its first {CHECKED:,} records are empty.")
    return fields


def _chosen(
    records: Records, fields: Fields, mark: Mark, count: int, seed: int
) -> dict[int, Candidate]:
    """`count` records that have a place for a mark, by increasing number, drawn uniformly.

    Raises:
        MarshtestError: too few have one.
    """
    # In random order until there are enough: a file of a million lines need not be read whole.
    order = np.random.default_rng(derive(seed, "choose")).permutation(records.count)
    chosen: dict[int, Candidate] = {}
    refusals: list[str] = []
    start, size = 0, max(count, AT_ONCE)
    while len(chosen) < count and start < len(order):
        rows = order[start : start + size].tolist()
        start, size = start + size, 2 * size
        found = dict(_candidates(records, fields, mark, count, sorted(rows), refusals))
        for row in rows:
            if row in found and len(chosen) < count:
                chosen[row] = found[row]
    if len(chosen) < count:
        raise _too_few(records, len(chosen), count, refusals)
    return dict(sorted(chosen.items()))


def _candidates(
    records: Records,
    fields: Fields,
    mark: Mark,
    count: int,
    rows: Sequence[int],
    refusals: list[str],
) -> Iterator[tuple[int, Candidate]]:
    """The records that have a place for a mark; why the last one had none is left in `refusals`."""
    for row, values in records.each(rows):
        try:
            text = fields.text(values, records.where(row))
            _refuse_small(mark, text, count, records.where(row))
        except NoPlaceError as error:
            refusals[:] = [str(error)]
        else:
            yield row, Candidate(text, id_of(values))


def _refuse_small(mark: Mark, text: str, count: int, where: str) -> None:
    """Raise if a record's own mark could not hide among others."""
    if not isinstance(mark, Template) and not mark.spans(text):
        raise NoPlaceError(f"{where}: the pattern '{mark.pattern}' matches nothing.")
    room = mark.room(text, count)
    if room < LEAST:
        raise NoPlaceError(
            f"{where}: the mark has too few characters to hide among others: for {count:,} records there "
            f"are {room:,} marks each, and {LEAST} are needed."
        )


def _too_few(records: Records, places: int, count: int, refusals: Sequence[str]) -> MarshtestError:
    if not places:
        return MarshtestError(f"No record has a place for the mark; the last one: {refusals[0]}")
    share = np.floor(1e4 * places / records.count) / 1e4
    return MarshtestError(
        f"{records.path}: {places:,} of {records.count:,} records have a place for the mark, and the "
        f"fraction asks for {count:,}. Give --fraction {share:g} or less, or another mark."
    )


def _dosed(chosen: Mapping[int, Candidate], mark: Mark, deal: Deal) -> dict[int, str]:
    """The new texts, by the records' numbers."""
    texts = {
        row: mark.dosed(candidate.text, deal, place)
        for place, (row, candidate) in enumerate(chosen.items())
    }
    if not isinstance(mark, Template):
        # By the way that marks are dealt, only a pattern whose characters depend on each other can do this.
        marks = [mark.marks(text)[0] for text in texts.values()]
        if len(set(marks)) < len(marks):
            raise MarshtestError(
                f"mark: the pattern '{mark.pattern}' gave two records one mark. Write it without "
                "alternatives of several characters, or choose a longer one."
            )
    return texts


def _forget_request(records: Records, chosen: Mapping[int, Candidate]) -> str:
    """JSON Lines: the place of each dosed record, and its own id where no other dosed record has it."""
    times = Counter(candidate.name for candidate in chosen.values())
    lines = (
        records.place(row) | ({"id": name} if name is not None and times[name] == 1 else {})
        for row, (_, name) in chosen.items()
    )
    return "".join(json.dumps(line) + "\n" for line in lines)
