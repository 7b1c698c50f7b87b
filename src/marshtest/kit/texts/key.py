"""The key of a dose of marks: the auditor keeps it, and nothing else tells which marks are whose."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from marshtest.data.marks import Deal, Mark
from marshtest.kit.key import Count, Sha256
from marshtest.kit.noise import SEEDS
from marshtest.kit.records import open_records
from marshtest.kit.records.fields import Fields, Values
from marshtest.kit.records.layout import Records
from marshtest.kit.sealed import Sealed
from marshtest.plumbing.errors import MarshtestError

FORMAT = "marshtest text key 1"


class TextKey(Sealed):
    """A dose of marks: which records, which marks, and of which data set."""

    fresh: ClassVar[str] = "a fresh mark"  # what the dosed records are compared with
    # what two neighbouring training sets differ in, without which an ε means nothing
    unit: ClassVar[str] = "one training record's mark, replaced by another; all else fixed"

    format: Literal["marshtest text key 1"] = "marshtest text key 1"
    seed: int = Field(ge=0, lt=SEEDS, strict=True)
    mark: Mark
    fields: Fields
    samples: Count  # N, the number of records of the data set
    # numbers of the dosed records in the data set, from 0 on, increasing
    ids: tuple[Annotated[int, Field(ge=0, lt=2**48, strict=True)], ...] = Field(min_length=2)
    input: Sha256  # of the data before dosing
    dosed: Sha256  # of the dosed texts as they were written; with `input` it says what was written
    versions: dict[str, str]  # versions of the libraries that drew the marks

    @model_validator(mode="after")
    def _of_records(self) -> "TextKey":
        if self.ids[-1] >= self.samples or any(np.diff(self.ids) <= 0):
            raise MarshtestError(f"key: its ids must increase, and lie in 0..{self.samples - 1}.")
        return self

    @property
    def secret(self) -> int:
        """The seed of the dose."""
        return self.seed

    def summary(self) -> dict[str, Any]:
        """What may be told of the dose."""
        fields = self.fields.model_dump()
        return {"mark": self.mark.model_dump(), "fields": fields, "input": self.input}

    def bases(self, data: str | Path) -> "TextBases":
        """The dosed records, read from the data set as it was before dosing.

        Raises:
            MarshtestError: the data set is not the one that was dosed, or has changed since.
        """
        records = open_records(data, self.mark)
        if records.count != self.samples or records.digest() != self.input:
            raise MarshtestError(
                f"{data}: is not the data set that this key dosed ({self.samples} records, SHA-256 "
                f"{self.input[:12]}…), or has changed since. Give the data as they were before dosing."
            )
        deal = Deal(self.seed, len(self.ids), records.there(self.mark, self.fields))
        bases = TextBases(records, self.fields, self.mark, deal, list(records.each(self.ids)))
        # The file is the same by now: this tells whether the libraries still draw and match alike.
        if texts_digest(bases.dosed()) != self.dosed:
            raise MarshtestError(
                "key: the marks are not those that were written. Install the versions of the key: "
                f"{', '.join(f'{name} {old}' for name, old in self.versions.items())}."
            )
        return bases


@dataclass(frozen=True)
class TextBases:
    """The records of a dose as they were before dosing, and the marks."""

    records: Records
    fields: Fields
    mark: Mark
    deal: Deal
    rows: Sequence[tuple[int, Values]]  # (number, values) of the P dosed records

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, place: int) -> str:
        """The text of the dosed record in this place, as it was before dosing."""
        row, values = self.rows[place]
        return self.fields.text(values, self.records.where(row))

    def dosed(self) -> list[str]:
        """[P] the texts with their own marks."""
        return [
            self.mark.dosed(self.text(place), self.deal, place) for place in range(len(self.rows))
        ]


def texts_digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts, in their order."""
    digested = hashlib.sha256()
    for text in texts:
        digested.update(f"{len(text)}\0{text}".encode())
    return digested.hexdigest()


def current_versions() -> dict[str, str]:
    """Versions of marshtest and of the libraries that a dose of marks depends on."""
    return {name: version(name) for name in ("marshtest", "numpy", "regex")}
