"""A run's folder: whose it is, what is written into it, and that it is made once."""

import json
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from marshtest.data.samples import Dataset
from marshtest.experiment.cells import groups
from marshtest.experiment.poison_examples import examples
from marshtest.experiment.prospects import family_of, prospects
from marshtest.experiment.protocol import poison_count
from marshtest.experiment.recipe import Named, Recipe
from marshtest.experiment.row_file import write_rows
from marshtest.plumbing.errors import NOTE, MarshtestError, first_line
from marshtest.plumbing.progress import Progress, part
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.whole_files import write
from marshtest.sweeps.collect import Collected, collect
from marshtest.sweeps.jobs import jobs, passes
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import ALGORITHM
from marshtest.sweeps.store import DamagedError, Store
from marshtest.sweeps.worker import Worker, packed

RAISED = "raised.log"  # in a run's folder, where unlearners raised: their tracebacks
DONE = "is done already; nothing was run."


def with_damage_mended(store: Store, work: Callable[[], object], progress: Progress) -> list[str]:
    """Do it; where a stored stage turns out to be damaged, say so, forget it, and do it again.

    Returns:
        What was damaged.
    """
    damaged = []
    while True:
        try:
            work()
        except DamagedError as error:
            progress(0.0, f"{error.key} {error.what} is damaged, so it is made again")
            damaged.append(f"{error.key} {error.what}")
            store.forget(error.key)
        else:
            return damaged


def do_all(worker: Worker, keys: Keys, progress: Progress) -> None:
    """All jobs of a recipe that are not done yet, one after the other.

    Raises:
        DamagedError: what an earlier run recorded is not as it was.
        MarshtestError: a job failed.
    """
    store, todo = worker.store, list(jobs(keys, keep_models=False))
    store.prepare()
    if todo[0].kind == "features" and not store.is_recorded(keys.features):
        worker(todo[0], part(progress, 0.0, 0.0, todo[0].label))
    data = worker.pipeline(keys).data
    for line in foreseen(keys.recipe, data):
        progress(0.0, line)
    weights = [sum(passes(job, data).values()) for job in todo]
    total, done = sum(weights), 0.0
    for job, weight in zip(todo, weights, strict=True):
        if not all(map(store.is_recorded, job.makes)):
            of_job = part(progress, done / total, weight / total, job.label)
            of_job(0.0)
            fault = worker(job, of_job)
            if fault:
                progress(done / total, f"{NOTE}{fault}; the traceback is in {RAISED}")
        done += weight


def foreseen(recipe: Recipe, data: Dataset | None = None) -> Iterator[str]:
    """Answers that the recipe's numbers of poisons, where data are given, and trainings rule out."""
    for share in recipe.poison_budgets:
        poisons = None if data is None else poison_count(recipe, share, data)
        for line in prospects(recipe, family_of(recipe), recipe.seeds, poisons):
            yield f"{NOTE}{recipe.name}, poison budget {share:g}: {line}"


def write_results(worker: Worker, keys: Keys, folder: Path, found: Collected | None = None) -> None:
    """Write rows.parquet, rows.csv, scores.parquet, shifts.parquet and examples.parquet, rows.parquet
    last; of crafted poisons crafting.parquet, and of all that are compared with retraining poisons/; what
    unlearners raised into raised.log.

    Raises:
        DamagedError: a score is not as it was recorded.
        MarshtestError: the disk is full, or does not let itself be written.
    """
    recipe, found = keys.recipe, found or collect(worker.store, keys)
    history: list[dict[str, Any]] = []
    shown = examples(worker.pipeline(keys), worker.poisoned(keys, groups(recipe)[0]))
    if len(shown):
        write(shown, folder / "examples.parquet")
    for group in groups(recipe) if recipe.attack.needs_twin else ():
        poisoned = worker.poisoned(keys, group)
        write(packed(poisoned.tensors()), folder / "poisons" / f"{group.name}.safetensors")
        of = {"poison_budget": group.poison_budget, "seed": group.seed}
        history += [{**of, **line} for line in poisoned.history]
    if history:
        write(pd.DataFrame(history), folder / "crafting.parquet")
    write(found.shifts, folder / "shifts.parquet")
    write(found.scores, folder / "scores.parquet")
    write(found.rows, folder / "rows.csv")
    (folder / "report.html").unlink(missing_ok=True)  # of the rows of before
    told = "\n".join(f"{of['job']}: {of['fault']}\n{of['traceback']}" for of in found.raised)
    if told:
        write(told.encode(), folder / RAISED)
    about = json.loads((folder / "run.json").read_text())
    write_rows(found.rows, folder / "rows.parquet", {recipe.hash: about})
    if not told:
        (folder / RAISED).unlink(missing_ok=True)


def refuse_anothers(folder: Path, recipe: Named, identity: dict[str, Any]) -> None:
    """Raise where the folder holds another recipe's results, or what is no run.

    Where unlearners raised, the recipe may go on with their code mended, or with answers from outside.
    """
    about = folder / "run.json"
    if about.exists():
        found = _read_about(about)
        if {key: found.get(key) for key in identity} != identity:
            values = [_but_for_code(of) for of in (found.get("values"), _values(recipe))]
            other = found.get("recipe") != recipe.hash
            same = other and values[0] == values[1] and found.get("data") == identity.get("data")
            if same and (folder / RAISED).exists():
                return
            if same:
                raise MarshtestError(
                    f"{folder}: holds results of this recipe with other code of yours, or other answers "
                    "from outside. Choose another --out, or remove the folder."
                )
            raise MarshtestError(
                f"{folder}: holds results of another recipe ({found.get('name')}-"
                f"{found.get('recipe')}; this one is {recipe.name}-{recipe.hash}). "
                "Choose another --out, or remove the folder."
            )
    elif folder.is_file():
        raise MarshtestError(f"{folder}: is a file, not a folder. Choose another --out.")
    elif folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise MarshtestError(f"{folder}: is not empty and holds no run. Choose another --out.")


def _read_about(about: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(about.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MarshtestError(
            f"{about}: cannot be read ({first_line(error)}). Restore it, or choose another --out."
        ) from None
    return found


def claim(folder: Path, recipe: Named, identity: dict[str, Any]) -> None:
    """Make the folder this recipe's own, once.

    Raises:
        MarshtestError: it is another's, or cannot be written.
    """
    about = folder / "run.json"
    if about.exists():
        refuse_anothers(folder, recipe, identity)  # another command may have made it meanwhile
        if _read_about(about).get("recipe") == identity["recipe"]:
            return
    write(recipe.to_yaml().encode(), folder / "recipe.yaml")
    started = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    values = {"name": recipe.name, **identity, **started, **describe(recipe, identity["data"])}
    write((json.dumps(values, indent=2) + "\n").encode(), about)


def describe(recipe: Named, data: str | None) -> dict[str, Any]:
    """What rows say of themselves: the recipe in full, and what runs it here.

    Args:
        data: digest of data that the recipe does not determine.
    """
    return {
        "data": data,
        "marshtest": version("marshtest"),
        "algorithm": ALGORITHM,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "values": _values(recipe),
        **(_shown(recipe) if isinstance(recipe, Recipe) else {}),
    }


def _shown(recipe: Recipe) -> dict[str, Any]:
    """What a report must know of the rows' attack and metrics, so that nobody's code is needed for it."""
    presentation = {"presentation": _told(recipe.attack.shown)}
    columns = [of for metric in recipe.metrics for of in metric.columns.items()]
    return presentation | (
        {"metrics": {name: _told(of) for name, of in columns}} if columns else {}
    )


def _told(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude_defaults=True)


def _values(recipe: Named) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"data": {"path"}})


def _but_for_code(values: Any) -> Any:
    """A recipe's values without what tells versions of unlearners' code, or of answers, apart."""
    if not isinstance(values, dict) or not isinstance(values.get("unlearners"), list):
        return values
    beside = {"source", "answers"}
    trials = [
        [{key: of[key] for key in of.keys() - beside} for of in trials if isinstance(of, dict)]
        for trials in values["unlearners"]
        if isinstance(trials, list)
    ]
    return {**values, "unlearners": trials}
