"""What a recipe's scores say together."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from marshtest.experiment.cells import cell_columns, cells, groups
from marshtest.experiment.protocol import Row
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
    """Gather what was measured of a recipe, in the order of its cells.

    Raises:
        DamagedError: a score is not as it was recorded.
    """
    rows: list[Row] = []
    scores: list[pd.DataFrame] = []
    shifts: list[Row] = []
    missing = 0
    failures, faults = raised(store), []
    for cell in (cell for group in groups(keys.recipe) for cell in cells(keys.recipe, group)):
        key, axes = keys.row(cell), dict(cell.place)
        place = {"recipe": keys.recipe.hash, "entry": cell.entry, **axes}
        # A record wins over a failure: a later attempt made it.
        if store.is_recorded(key):
            score = store.load(key)
            row = score["row"] | place
            columns = {name: row[name] for name in (*cell_columns(row), "entry")}
            table = pd.read_parquet(io.BytesIO(store.file(key, "scores.parquet")))
            if len(table):
                scores.append(pd.concat([pd.DataFrame(columns, table.index), table], axis=1))
            shifts += [columns | shift for shift in score["shifts"]]
            rows.append(row)
        elif key in failures:
            faults.append(failures[key])
            rows.append(failures[key]["row"] | place)
        else:
            missing += 1
    every_score = pd.concat(scores, ignore_index=True) if scores else pd.DataFrame()
    return Collected(pd.DataFrame(rows), every_score, pd.DataFrame(shifts), missing, faults)
