"""Rows of several runs put together where they can be compared, and kept apart where they cannot.

Rows can be compared where data, model, training, attack and verdict settings are the same, the code
that made them gives the same results (its algorithm number), and they were trained in the same
precision on the same kind of device. They may differ in seeds, poison and compute budgets, unlearners,
metrics, and whether a reference was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from marshtest.experiment.cells import cell_columns
from marshtest.experiment.recorded import Recorded
from marshtest.experiment.row_file import FILE, Rows, read_file, recipes_in
from marshtest.hypotheses.studied import Study
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.summary import Results

VARIED = {
    *("name", "description", "unlearners", "budgets", "poison_budgets", "seeds", "first_seed"),
    # these change no model, or are told by the rows
    *("metrics", "reference", "repeats", "device", "deterministic"),
}
CONTENT = "content of the data"  # as differences call it
PLACE = {CONTENT, "precision", "device"}  # in which one experiment elsewhere may differ
RAN = ("marshtest", "commit", "torch", "python", "machine")
Runs: TypeAlias = Mapping[str, Mapping[str, Any]]
OF_THE_RUN = ["recipe", "entry", "seconds", "scoring_seconds"]  # in which equal rows may differ


@dataclass(frozen=True)
class Merged:
    """What files of rows hold.

    Attributes:
        results: each of rows that can be compared with each other.
        studies: of the hypotheses.
        said: what was put together, and what was kept apart and why.
    """

    results: Sequence[Results]
    studies: Sequence[Study]
    said: Sequence[str] = field(default_factory=list)


def read_all(sources: Sequence[str | Path]) -> Merged:
    """Read runs, sweeps, hypotheses, files of rows, or folders of them.

    Raises:
        MarshtestError: a source holds no rows, or cannot be read.
    """
    studies, parts = [], []
    for source in sources:
        for file in files_of(source):
            rows = read_file(file)
            if rows.kind == "hypothesis":
                studies.append(Study.of(rows))
            else:
                parts += list(_parts(rows))
    results, said = _merge(parts)
    return Merged(_told_apart(results), studies, said)


def read_one(source: str | Path) -> Results:
    """Rows that can all be compared with each other.

    Raises:
        MarshtestError: there are none, or of several settings.
    """
    merged = read_all([source])
    if len(merged.results) != 1:
        names = "; ".join(results.recipe.name for results in merged.results)
        raise MarshtestError(
            f"{source}: holds rows of {len(merged.results)} settings ({names or 'hypotheses only'}). Give "
            "those of one."
        )
    return merged.results[0]


def files_of(source: str | Path) -> list[Path]:
    """The files of rows in a folder: its own, or else those of its folders; a file is itself.

    Where none is a run's own, they are those that say of themselves that they hold rows, as a report's do.

    Raises:
        MarshtestError: there is none.
    """
    path = Path(source)
    if not path.is_dir() or (path / FILE).exists():
        return [path]
    every = sorted(path.rglob(FILE)) or sorted(filter(recipes_in, path.rglob("*.parquet")))
    topmost = [f for f in every if not any((p / FILE).exists() for p in _between(f, path))]
    if not topmost:
        raise MarshtestError(
            f"{path}: holds no rows (no {FILE} or other Parquet file, here or in its folders)."
        )
    return topmost


def _between(file: Path, top: Path) -> list[Path]:
    """The folders above a file's own, up to the top: a sweep's own file has its variants' rows."""
    above = file.parent.parents
    return [p for p in above if p != top and top in p.parents]


def _parts(rows: Rows) -> Iterator[Results]:
    """The rows of each recipe in a file."""
    if len(rows.runs) == 1:
        yield Results.of(rows, next(iter(rows.runs)))
        return
    beside: dict[str, Path] = {}  # the variants' own folders, where they are whole
    if rows.path.name == FILE:
        for file in sorted(rows.path.parent.glob(f"*/{FILE}")):
            beside |= dict.fromkeys(read_file(file).runs, file.parent)
    for recipe in rows.frame["recipe"].unique():
        yield Results.of(rows, recipe, beside.get(recipe, rows.path.parent / recipe))


def setting(results: Results) -> dict[str, Any]:
    """What two rows must share to be compared."""
    values = results.recipe.model_dump(mode="json", exclude=VARIED)
    values["data"].pop("path", None)  # where somebody's copy lies
    about = next(iter(results.runs.values()))
    # From the rows: what the recipe's `auto` was is another thing on another machine.
    return {
        **values,
        CONTENT: about["data"],
        "algorithm": about["algorithm"],
        "precision": _each(results.rows["precision"]),
        "device": _each(results.rows["device"]),
    }


def _each(column: pd.Series) -> str:
    """A column's value, or all that it has: rows of several are comparable with rows of the same alone."""
    return " and ".join(sorted(column.unique()))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys, with dots, at which two settings differ, and both values.

    What only one of them has and leaves off was added to recipes since the other was written.
    """
    differing: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing |= {f"{key}.{sub}": both for sub, both in differences(a, b).items()}
        elif a != b and ((key in one and key in other) or a or b):
            differing[key] = (a, b)
    return differing


def _merge(parts: Sequence[Results]) -> tuple[list[Results], list[str]]:
    merged: list[Results] = []
    said: list[str] = []
    for part in parts:
        name, reasons = part.recipe.name, list[str]()
        for i, other in enumerate(merged):
            differing = differences(setting(other), setting(part))
            clash = None if differing else _clash(other, part)
            if not differing and clash is None:
                merged[i] = together(other, part)
                said.append(
                    f"{part.folder}: {len(part.rows):,} rows merged with those of {other.recipe.name} in "
                    f"{other.folder} ({len(merged[i].rows):,} in all, what is twice there once)."
                )
                break
            if clash is not None:
                reasons.append(clash)
            elif other.recipe.name == name:  # of another recipe nobody expects that it is merged
                changes = [f"{key} is {b}, not {a}" for key, (a, b) in differing.items()]
                reasons.append("; ".join(changes[:3]) + ("; …" if len(changes) > 3 else ""))
        else:
            merged.append(part)
            if reasons:
                said.append(f"{part.folder}: rows of {name} kept apart: {reasons[0]}.")
    return merged, said


def _clash(one: Results, other: Results) -> str | None:
    """Why rows of the same cells do not agree."""
    cell = cell_columns(one.rows)
    columns = [c for c in one.rows if c in other.rows and c not in [*cell, *OF_THE_RUN]]
    # One model has one row: where two differ, something changed that no setting tells of.
    both = one.rows.merge(other.rows, on=cell, suffixes=("", " again"))
    for column in columns:
        a, b = both[column], both[f"{column} again"]
        differs = ~((a == b) | (a.isna() & b.isna()))
        if differs.any():
            line = both[differs].iloc[0]
            return (
                f"{line['unlearner']} at poison budget {line['poison_budget']:g}, seed {line['seed']} was "
                f"measured twice and differs ({column} {a[differs].iloc[0]} and {b[differs].iloc[0]})"
            )
    return _of_one_size(pd.concat([one.rows, other.rows]))


def _of_one_size(rows: pd.DataFrame) -> str | None:
    """Which poison budgets make as many poisons, which no recipe has together; None if none do."""
    initial = rows[rows["role"] == "initial"]
    for (_, size), of in initial.groupby(["seed", "forget_size"]):
        shares = sorted(of["poison_budget"].unique())
        if len(shares) > 1:
            told = " and ".join(f"{share:g}" for share in shares)
            return f"poison budgets {told} both make {size:,.0f} poisons"
    return None


def together(one: Results, other: Results) -> Results:
    """The rows of both, without what is there twice: of a cell that both have, the first one's."""
    entries = [*one.recipe.unlearners]
    # A row has one place: searches that share a trial are one search.
    for trials in other.recipe.unlearners:
        shared = [of for of in entries if any(trial in of for trial in trials)]
        known = [trial for of in shared for trial in of]
        joined = (*known, *(trial for trial in trials if trial not in known))
        at = entries.index(shared[0]) if shared else len(entries)
        entries = [of for of in entries if of not in shared]
        entries.insert(at, joined)
    update = {
        "unlearners": tuple(entries),
        "reference": one.recipe.reference or other.recipe.reference,
        "poison_budgets": _union(one.recipe.poison_budgets, other.recipe.poison_budgets),
        "budgets": _union(one.recipe.budgets, other.recipe.budgets),
        "metric_columns": {**other.recipe.metric_columns, **one.recipe.metric_columns},
    }
    recipe: Recorded = one.recipe.model_copy(update=update)
    # Cell by cell: of one that both have, scores and shifts are the first run's as well, so that the
    # tables of a row are never of two runs.
    cell = cell_columns(one.rows)
    there = pd.MultiIndex.from_frame(one.rows[cell])

    def both(mine: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
        if not len(others):
            return mine
        new = others[~pd.MultiIndex.from_frame(others[cell]).isin(there)]
        return pd.concat([mine, new], ignore_index=True) if len(mine) else new

    merged = replace(
        one,
        rows=both(_filled(one.rows, other.rows), other.rows),
        scores=both(one.scores, other.scores),
        shifts=both(one.shifts, other.shifts),
        runs=_what_ran(one.runs, other.runs),
        examples=one.examples if len(one.examples) else other.examples,
    )
    # Entries are places in a recipe, and this one is neither's.
    return merged.placed(recipe)


def _filled(mine: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The rows, with what others tell of the same cells: columns of a metric that they alone asked for."""
    cell = cell_columns(mine)
    missing = [c for c in others if c not in cell and (c not in mine or mine[c].hasnans)]
    theirs = mine[cell].merge(others[[*cell, *missing]], on=cell, how="left").set_axis(mine.index)
    told = {
        str(c): mine[c].where(mine[c].notna(), theirs[c]) if c in mine else theirs[c]
        for c in missing
    }
    return mine.assign(**told)


def _what_ran(one: Runs, other: Runs) -> Runs:
    """What ran the rows of both, by recipe; of a recipe of both, each of what differs."""
    runs = {**one, **other}
    for recipe in one.keys() & other.keys():
        told = dict(one[recipe])
        for key in RAN:
            mine, others = (str(about.get(key) or "") for about in (one[recipe], other[recipe]))
            if others not in mine:
                told[key] = ", ".join(filter(None, [mine, others]))
        runs[recipe] = told
    return runs


def _union(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.union1d(one, other).tolist())


def _told_apart(results: Sequence[Results]) -> list[Results]:
    """Names that tell what those of one name differ in."""
    named = []
    for one in results:
        name = one.recipe.name
        alike = [r for r in results if r.recipe.name == name and r is not one]
        keys = {key for other in alike for key in differences(setting(one), setting(other))}
        flat = {key: value for key, value in _flat(setting(one)) if key in keys}
        if alike:
            marks = [f"{key.removeprefix('attack.')}={value}" for key, value in flat.items()]
            # Without a mark their rows clashed: one setting, and other numbers.
            name = ", ".join([name, *marks]) if marks else f"{name} ({results.index(one) + 1})"
        named.append(replace(one, recipe=one.recipe.model_copy(update={"name": name})))
    return named


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield before + key, value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
