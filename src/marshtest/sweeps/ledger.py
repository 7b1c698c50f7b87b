"""What a sweep consists of and how far it is, from the store alone: no model, no data, no torch.

The ledger of a sweep is one file of its store, `sweeps/NAME-HASH.json`: its variants, its cells (a cell is
one row to be) with the keys of their scores, and its jobs with the keys of what they make.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import fmean
from typing import Any

from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.whole_files import TEMPORARY
from marshtest.plumbing.yaml_files import parse_override
from marshtest.sweeps.locks import Watched
from marshtest.sweeps.settings import Sweep
from marshtest.sweeps.store import DamagedError, Store

ALGORITHM = 3  # raised whenever a change of the code changes what a recipe gives
# The same, of attacks that alone were concerned by a later change.
CHANGED = {"gradient-canceling": 4}
SAMPLED = 30  # finished stages of a kind that the remaining time is judged by


@dataclass(frozen=True)
class PlannedJob:
    """A job: its kind, what it does in words, and the keys of the stages that it makes and needs."""

    kind: str
    label: str
    makes: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class PlannedCell:
    """A row to be: the key of its score, its variant, its place in the recipe's unlearners.

    `place` are further columns of the row, with their values.
    """

    key: str
    variant: int
    entry: int
    place: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """A sweep as it was planned.

    Attributes:
        id: its name and the hash of what was asked for.
        made_by: version of the code that planned it.
        variants: the values of each variant's axes.
        recipes: the hash of each variant's recipe.
        runs: by that hash what its rows say of themselves, as in marshtest.experiment.row_file.
        cells, jobs: in their order.
    """

    id: str
    made_by: str
    variants: Sequence[Mapping[str, Any]]
    recipes: Sequence[str]
    runs: Mapping[str, Mapping[str, Any]]
    cells: Sequence[PlannedCell]
    jobs: Sequence[PlannedJob]

    def write(self, store: Store) -> None:
        """Write it into the store."""
        store.write(f"sweeps/{self.id}.json", json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, store: Store, id: str) -> "Ledger":
        """Read the ledger of a sweep of the store.

        Raises:
            FileNotFoundError: no such sweep.
            MarshtestError: the file cannot be read.
        """
        name = f"sweeps/{id}.json"
        try:
            values = json.loads(store.read(name))
            cells = [PlannedCell(**cell) for cell in values.pop("cells")]
            jobs = [
                PlannedJob(job["kind"], job["label"], tuple(job["makes"]), tuple(job["needs"]))
                for job in values.pop("jobs")
            ]
            kinds = {"variants": list, "recipes": list, "runs": dict}
            if not all(isinstance(values[key], kind) for key, kind in kinds.items()):
                raise ValueError
            return cls(**values, cells=cells, jobs=jobs)
        except (ValueError, KeyError, TypeError):
            raise MarshtestError(
                f"store: {store.url}/{name} cannot be read. Start the sweep again; it is made anew."
            ) from None

    @property
    def keys(self) -> set[str]:
        """Keys of all stages that the sweep makes."""
        return {key for job in self.jobs for key in job.makes}


def sweeps(store: Store) -> list[str]:
    """Ids of the sweeps of a store."""
    names = store.names("sweeps")
    return sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and n[0] != ".")


def find(store: Store, name: str | None) -> str:
    """The id that a sweep's name, or its beginning, stands for; without a name, of a store's only sweep.

    Raises:
        MarshtestError: none, or several.
    """
    known = sweeps(store)
    if not known:
        raise MarshtestError(
            f"store: {store.url} holds no sweep. Start one: marshtest sweep RECIPE."
        )
    matches = [id for id in known if name is None or id == name or id.startswith(f"{name}-")]
    if not matches:
        raise MarshtestError(f"store: {store.url}: {unknown('sweep', str(name), known)}")
    if len(matches) > 1:
        raise MarshtestError(
            f"store: {store.url} holds several sweeps: {', '.join(matches)}. Name one."
        )
    return matches[0]


@dataclass
class Standing:
    """How many jobs of a kind are where, and how long one takes.

    Attributes:
        seconds: mean of finished jobs; None where none is finished.
        at_work: labels of the running jobs.
    """

    done: int = 0
    running: int = 0
    failed: int = 0
    waiting: int = 0
    seconds: float | None = None
    at_work: list[str] = field(default_factory=list)

    @property
    def all(self) -> int:
        """How many jobs of the kind there are."""
        return self.done + self.running + self.failed + self.waiting


def standing(store: Store, ledger: Ledger, watched: Watched | None = None) -> dict[str, Standing]:
    """How far a sweep is, by kind of job; who has `watched` for long knows which drivers are dead."""
    recorded = store.recorded()
    # A lock outlives the record for a moment.
    locks = _locks(store, _drivers(store, watched))
    running = {name.rpartition(".")[0] for name, held in locks.items() if held} - recorded
    failed = {name.removesuffix(".json") for name in store.names("failures")}
    by_kind: dict[str, Standing] = {}
    finished: dict[str, list[str]] = {}
    for job in ledger.jobs:
        of_kind = by_kind.setdefault(job.kind, Standing())
        if recorded.issuperset(job.makes):
            of_kind.done += 1
            finished.setdefault(job.kind, []).append(job.makes[0])
        elif running.intersection(job.makes):
            of_kind.running += 1
            of_kind.at_work.append(job.label)
        elif failed.intersection(job.makes):
            of_kind.failed += 1
        else:
            of_kind.waiting += 1
    for kind, keys in finished.items():
        # Spread over all of them: the first jobs of a sweep may be of its smallest variant.
        seconds = list(_seconds(store, keys[:: max(1, len(keys) // SAMPLED)]))
        by_kind[kind].seconds = fmean(seconds) if seconds else None
    return by_kind


def _drivers(store: Store, watched: Watched | None) -> dict[str, bool]:
    """Whether it is alive, by the id of a driver."""
    watched = watched or Watched(store)
    return {id: watched.is_alive(id) for id in store.names("drivers")}


def _locks(store: Store, drivers: Mapping[str, bool]) -> dict[str, bool]:
    """Whether a living driver holds it, by the name KEY.N of a lock."""
    held: dict[str, bool] = {}
    for name in store.names("locks"):
        with suppress(FileNotFoundError):  # released meanwhile
            held[name] = drivers.get(store.read(f"locks/{name}").decode(), False)
    return held


def _seconds(store: Store, keys: Sequence[str]) -> Iterator[float]:
    for key in keys:
        with suppress(DamagedError):  # the sweep will notice and make it again
            yield store.load(key)["seconds"]


def remaining(standing: Mapping[str, Standing]) -> float | None:
    """Expected seconds until a sweep ends, with as many at work as now; None where nothing is known.

    A kind of which none is finished is taken to be as long as the mean of the others.
    """
    kinds = standing.values()
    known = [of_kind.seconds for of_kind in kinds if of_kind.seconds is not None]
    if not known:
        return None
    mean = fmean(known)
    left = sum((kind.waiting + kind.running) * (kind.seconds or mean) for kind in kinds)
    return left / max(1, sum(of_kind.running for of_kind in kinds))


def rows(store: Store, ledger: Ledger) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that are there, the axes' values first, and the keys of damaged ones."""
    recorded, failed = store.recorded(), raised(store)
    sound: list[dict[str, Any]] = []
    damaged: list[str] = []
    for cell in ledger.cells:
        if cell.key in recorded or cell.key in failed:
            try:
                row = (store.load if cell.key in recorded else failed.__getitem__)(cell.key)["row"]
            except DamagedError:
                damaged.append(cell.key)
                continue
            place = {"recipe": ledger.recipes[cell.variant], "entry": cell.entry, **cell.place}
            sound.append({**ledger.variants[cell.variant], **row, **place})
    return sound, damaged


def failures(store: Store, ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Label, line and traceback of each job that failed, by the key that was to be made."""
    failed = _failures(store)
    return {key: failed[key] for job in ledger.jobs for key in job.makes if key in failed}


def raised(store: Store) -> dict[str, dict[str, Any]]:
    """The failures of unlearners that raised, each with a `row`, by the key of the missing score."""
    return {key: failure for key, failure in _failures(store).items() if "row" in failure}


def _failures(store: Store) -> dict[str, dict[str, Any]]:
    names = (name for name in store.names("failures") if name.endswith(".json"))
    read = {name.removesuffix(".json"): failure_in(store, name) for name in names}
    return {key: failure for key, failure in read.items() if failure is not None}


def failure_in(store: Store, name: str) -> dict[str, Any] | None:
    """What a file of a job's failure says; None where it is damaged, or another driver just removed it."""
    try:
        failure = json.loads(store.read(f"failures/{name}"))
    except (FileNotFoundError, ValueError):
        return None
    return failure if isinstance(failure, dict) and "fault" in failure else None


def matching(rows: list[dict[str, Any]], filters: Sequence[str]) -> list[dict[str, Any]]:
    """The rows whose columns hold what each "key=value" says.

    Raises:
        MarshtestError: no such column.
    """
    for key, value in map(parse_override, filters):
        known = {name for row in rows for name in row}
        if rows and key not in known:
            raise MarshtestError(f"rows: {unknown('column', key, known)}")
        # As text too: YAML may have made a number or a mapping of what is text in the rows.
        rows = [row for row in rows if row.get(key) == value or str(row.get(key)) == str(value)]
    return rows


def finished(store: Store, sweep: Sweep) -> Ledger | None:
    """A sweep of which all is recorded; None too where that cannot be told without planning it."""
    if sweep.reads_files:
        return None
    try:
        planned = Ledger.read(store, sweep.id)
    except FileNotFoundError:
        return None
    # Another version may call the same work by other keys.
    whole = planned.made_by == made_by() and planned.keys <= store.recorded()
    return planned if whole else None


def made_by() -> str:
    """The version of the code that names stages."""
    return f"{version('marshtest')}, algorithm {ALGORITHM}, {sorted(CHANGED.items())}"


def algorithm(attack: str) -> int:
    """The number of the code that makes the rows of an attack; with another they are other rows."""
    return CHANGED.get(attack, ALGORITHM)


def rubbish(
    store: Store, forgotten: Sequence[str] = (), watched: Watched | None = None
) -> list[str]:
    """Names of files that nothing refers to: stages of no sweep or without a record, dead drivers' locks.

    Whatever a living driver could be at work on stays: while there is one, all that is finished or half
    finished, since a score has no plan in the store that would say what is its.

    Args:
        forgotten: ids of sweeps that are not to count, and to go.
        watched: tells which drivers are dead; of another place, one that has watched for some time.
    """
    drivers = _drivers(store, watched)
    used: set[str] = set()
    for id in set(sweeps(store)) - set(forgotten):
        used |= Ledger.read(store, id).keys
    # In this order, so that a stage which is begun or recorded meanwhile is in none of them, or in a later.
    stages = store.names("stages")
    locks = _locks(store, drivers)
    recorded = store.recorded()
    busy = {name.rpartition(".")[0] for name, held in locks.items() if held}
    names = [f"sweeps/{id}.json" for id in forgotten]
    names += [f"drivers/{id}" for id, lives in drivers.items() if not lives]
    # A dead driver's lock below a living one's stays with it, or the stage could be locked twice.
    names += [
        f"locks/{name}"
        for name, held in locks.items()
        if not held and name.rpartition(".")[0] not in busy
    ]
    if any(drivers.values()):
        return sorted([*names, *(f"stages/{key}" for key in stages - recorded - busy)])
    names += [f"records/{key}.json" for key in recorded - used]
    names += [f"stages/{key}" for key in stages - (recorded & used)]
    # What an unfinished stage has so far stays as long as a sweep wants the stage.
    names += [f"partial/{key}" for key in store.names("partial") - (used - recorded)]
    failed = {name.removesuffix(".json") for name in store.names("failures")}
    names += [f"failures/{key}.json" for key in failed if key not in used or key in recorded]
    names += [name for name in store.find("") if name.endswith(TEMPORARY)]
    return sorted(names)
