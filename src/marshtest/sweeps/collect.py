"""What a recipe's scores say together."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from marshtest.experiment.cells import CELL, groups
from marshtest.experiment.protocol import Row
from marshtest.sweeps.jobs import lines
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import raised
from marshtest.sweeps.store import Store


@dataclass(frozen=True)
class Collected:
    """What a recipe's scores say together.

    Attributes:
        rows: one line a model; columns as in docs/rows.md.
        scores: one line a poison, or target, and model.
        shifts: one line a layer and model.
        missing: models that have no score yet.
        raised: the failures of unlearners that raised; they have a row, and nothing was measured.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame
    shifts: pd.DataFrame
    missing: int
    raised: Sequence[Mapping[str, Any]] = ()


def collect(store: Store, keys: Keys) -> Collected:
    """All that was measured of a recipe, in its order.

    Raises:
        DamagedError: a score is not as it was recorded.
    """
    rows: list[Row] = []
    scores: list[pd.DataFrame] = []
    shifts: list[Row] = []
    missing = 0
    failures = raised(store)
    found_raised = []
    for line in (line for group in groups(keys.recipe) for line in lines(keys, group)):
        of_recipe = {"recipe": keys.recipe.hash, "entry": line.entry}
        if not store.is_recorded(line.key):
            if line.key in failures:
                found_raised.append(failures[line.key])
                rows.append(failures[line.key]["row"] | of_recipe)
            else:
                missing += 1
            continue
        values = store.load(line.key)
        row: Row = values["row"] | of_recipe
        cell = {name: row[name] for name in (*CELL, "entry")}
        found = pd.read_parquet(io.BytesIO(store.file(line.key, "scores.parquet")))
        if len(found):
            scores.append(pd.concat([pd.DataFrame(cell, found.index), found], axis=1))
        shifts += [{**cell, **of} for of in values["shifts"]]
        rows.append(row)
    whole = pd.concat(scores, ignore_index=True) if scores else pd.DataFrame()
    return Collected(pd.DataFrame(rows), whole, pd.DataFrame(shifts), missing, found_raised)
