"""The key of a dose in a table: the auditor keeps it, and nothing else tells which noise the dose is."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from marshtest.kit.key import NoiseKey
from marshtest.kit.tables.layout import Table
from marshtest.kit.tables.noise import TableNoise
from marshtest.plumbing.errors import MarshtestError

FORMAT = "marshtest table key 1"


class TableKey(NoiseKey):
    """A dose in some columns of a table: which rows, which noise, and of which table."""

    fresh: ClassVar[str] = "fresh noise"
    unit: ClassVar[str] = (
        "one training row's dosed columns, replaced by the same base with other noise; labels and all else "
        "fixed"
    )
    depends: ClassVar[tuple[str, ...]] = ("marshtest", "numpy", "pandas", "scipy")

    format: Literal["marshtest table key 1"] = "marshtest table key 1"
    noise: TableNoise  # seed, ε² and the law of each dosed column
    label: str  # the column of class labels

    def summary(self) -> dict[str, Any]:
        names = [law.name for law in self.noise.columns]
        return super().summary() | {"label": self.label, "columns": names}

    def layout(self, data: str | Path) -> Table:
        table = Table(Path(data), self.label)
        for law in self.noise.columns:
            if table.column_names[law.place : law.place + 1] != [law.name]:
                raise MarshtestError(
                    f"key: {law.name!r} is not column {law.place} of {data}. Take the untouched key."
                )
        return table
