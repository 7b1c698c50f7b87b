"""A run's folder: whose it is, and what is written into it.

    run.json, recipe.yaml                            what the run is, and what runs it here
    rows.parquet, rows.csv                           one line a model
    scores.parquet, shifts.parquet                   one line a poison, or a layer, and model
    examples.parquet, crafting.parquet, poisons/     a few poisons, how they were crafted, and all of them
    models.parquet, models/                          where they were asked for
    raised.log                                       tracebacks, where unlearners raised

Rows are written last: a folder with rows and without raised.log is done.
"""

import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from marshtest.data.samples import Dataset
from marshtest.experiment.cells import Cell, cells, groups, trained
from marshtest.experiment.poison_examples import examples
from marshtest.experiment.prospects import family_of, prospects
from marshtest.experiment.protocol import poison_count
from marshtest.experiment.recipe import Named, Recipe
from marshtest.experiment.requests import no_request, place_of
from marshtest.experiment.roles import ROW_NAMES, Role
from marshtest.experiment.row_file import FILE, MODELS, write_rows
from marshtest.metrics.repeats_columns import COLUMNS
from marshtest.plumbing.checkout import commit
from marshtest.plumbing.errors import NOTE, MarshtestError, first_line
from marshtest.plumbing.whole_files import write
from marshtest.plumbing.yaml_files import file_stem
from marshtest.sweeps.collect import Collected
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import ALGORITHM, algorithm
from marshtest.sweeps.worker import Worker, packed

ABOUT = "run.json"
RECIPE = "recipe.yaml"
RAISED = "raised.log"
DONE = "is done already; nothing was run."
# What a user's callable does, and answers from outside: a recipe with others may go on in its folder.
CODE = {"source", "answers"}
ALSO = ",+"  # stay in names of files: axes are set off by commas, and some unlearners end in +


def is_done(folder: Path) -> bool:
    """Whether a folder has all rows, none of them of an unlearner that raised."""
    return (folder / FILE).exists() and not (folder / RAISED).exists()


def foreseen(recipe: Recipe, data: Dataset | None = None) -> Iterator[str]:
    """Answers that the recipe's numbers of trainings rule out, and of poisons where data are given."""
    for share in recipe.poison_budgets:
        poisons = None if data is None else poison_count(recipe, share, data)
        for line in prospects(recipe, family_of(recipe), recipe.seeds, poisons):
            yield f"{NOTE}{recipe.name}, poison budget {share:g}: {line}"


# Whose it is


def refuse_anothers(
    folder: Path, recipe: Named, identity: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What the folder says of its run; None where nothing is in it.

    Where unlearners raised, the recipe may go on with their code mended, or with answers from outside.

    Raises:
        MarshtestError: the folder holds another recipe's results, or files that are no run.
    """
    if not (folder / ABOUT).exists():
        if folder.is_file():
            raise MarshtestError(f"{folder}: is a file, not a folder. Choose another --out.")
        # Hidden files do not count: a lock of ours, and what systems leave.
        if folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
            raise MarshtestError(f"{folder}: is not empty and holds no run. Choose another --out.")
        return None
    about = read_about(folder / ABOUT)
    if {key: about.get(key) for key in identity} == identity:
        return about
    values = [_without_code(recorded) for recorded in (about.get("values"), _values(recipe))]
    other_recipe = about.get("recipe") != recipe.hash
    if not other_recipe and about.get("data") != identity.get("data"):
        raise MarshtestError(
            f"{folder}: holds results of this recipe on other data (digest {about.get('data')}, not "
            f"{identity.get('data')}; earlier versions told none of a copy). Choose another --out, or "
            "remove the folder."
        )
    if not other_recipe or values[0] != values[1] or about.get("data") != identity.get("data"):
        raise MarshtestError(
            f"{folder}: holds results of another recipe ({about.get('name')}-"
            f"{about.get('recipe')}; this one is {recipe.name}-{recipe.hash}). "
            "Choose another --out, or remove the folder."
        )
    if not (folder / RAISED).exists():
        raise MarshtestError(
            f"{folder}: holds results of this recipe with other code of yours, or other answers "
            "from outside. Choose another --out, or remove the folder."
        )
    return about


def own_folder(folder: Path, recipe: Named, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder this recipe's own, once; what the folder says of its run.

    Raises:
        MarshtestError: it is another's, or cannot be written.
    """
    about = refuse_anothers(folder, recipe, identity)
    if about is not None and about.get("recipe") == identity["recipe"]:
        return about
    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"name": recipe.name, **identity, "started": started}
    about |= describe(recipe, identity["data"])
    write(recipe.to_yaml().encode(), folder / RECIPE)
    write((json.dumps(about, indent=2) + "\n").encode(), folder / ABOUT)
    return about


def read_about(file: Path) -> dict[str, Any]:
    """What a run's folder says of it.

    Raises:
        MarshtestError: the file cannot be read.
    """
    try:
        about: dict[str, Any] = json.loads(file.read_text())
        if not isinstance(about, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise MarshtestError(
            f"{file}: cannot be read ({first_line(error)}). Restore it, or choose another --out."
        ) from None
    return about


def describe(recipe: Named, data: str | None) -> dict[str, Any]:
    """What rows say of themselves: the recipe in full, and what runs it here.

    Args:
        data: digest of data that the recipe does not determine.
    """
    return {
        "data": data,
        "marshtest": version("marshtest"),
        "commit": commit(),
        "algorithm": algorithm(recipe.attack.name) if isinstance(recipe, Recipe) else ALGORITHM,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        # Threads split sums, and so change their last bits.
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "values": _values(recipe),
        **_shown(recipe),
    }


def _shown(recipe: Named) -> dict[str, Any]:
    """What a report must know of a recipe's attack, and of the columns of its metrics if it has any."""
    if not isinstance(recipe, Recipe):
        return {}
    columns = {
        name: column.model_dump(mode="json")
        for metric in recipe.metrics
        for name, column in metric.columns.items()
    }
    if recipe.repeats:
        columns |= {name: column.model_dump(mode="json") for name, column in COLUMNS.items()}
    shown = recipe.attack.shown.model_dump(mode="json", exclude_defaults=True)
    return {"presentation": shown} | ({"metrics": columns} if columns else {})


def _values(recipe: Named) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"data": {"path"}})


def _without_code(values: Any) -> Any:
    """A recipe's values without what tells versions of unlearners' code, or of answers, apart."""
    if not isinstance(values, dict) or not isinstance(values.get("unlearners"), list):
        return values
    entries = [
        [
            {key: trial[key] for key in trial.keys() - CODE}
            for trial in trials
            if isinstance(trial, dict)
        ]
        for trials in values["unlearners"]
        if isinstance(trials, list)
    ]
    return {**values, "unlearners": entries}


# What is written into it


def write_results(
    worker: Worker,
    keys: Keys,
    folder: Path,
    about: Mapping[str, Any],
    measured: Collected,
    *,
    keep_models: bool = False,
) -> None:
    """Write all files of the folder but its record and recipe, rows.parquet last.

    Args:
        about: what the folder says of its run.
        keep_models: write the models too.

    Raises:
        DamagedError: a stage is not as it was recorded.
        MarshtestError: the disk is full, or does not let itself be written.
    """
    _write_poisons(worker, keys, folder)
    if keep_models:
        _write_models(worker, keys, folder)
    write(measured.shifts, folder / "shifts.parquet")
    write(measured.scores, folder / "scores.parquet")
    write(measured.rows, folder / "rows.csv")
    (folder / "report.html").unlink(missing_ok=True)  # it shows the rows of before
    log = "\n".join(
        f"{fault['job']}: {fault['fault']}\n{fault['traceback']}" for fault in measured.raised
    )
    # Written before the rows and removed after them: at no moment do rows of a failed attempt stand
    # without it, which would pass for a run that is done.
    if log:
        write(log.encode(errors="backslashreplace"), folder / RAISED)
    write_rows(measured.rows, folder / FILE, {keys.recipe.hash: about})
    if not log:
        (folder / RAISED).unlink(missing_ok=True)


def _write_poisons(worker: Worker, keys: Keys, folder: Path) -> None:
    """Write a few poisons to look at; all, and their crafting, of attacks compared with a clean twin."""
    recipe, history = keys.recipe, []
    shown = examples(worker.pipeline(keys), worker.poisoned(keys, groups(recipe)[0]))
    if len(shown):
        write(shown, folder / "examples.parquet")
    for group in groups(recipe) if recipe.attack.needs_twin else ():
        poisoned = worker.poisoned(keys, group)
        write(packed(poisoned.tensors()), folder / "poisons" / f"{group.name}.safetensors")
        place = {"poison_budget": group.poison_budget, "seed": group.seed}
        history += [place | dict(line) for line in poisoned.history]
    if history:
        write(pd.DataFrame(history), folder / "crafting.parquet")


def _write_models(worker: Worker, keys: Keys, folder: Path) -> None:
    """Copy the models out of the store, and write the list of them, one line a file."""
    store, lines = worker.store, []
    taken: Counter[str] = Counter()
    for cell, key in _models(keys):
        stem = f"{cell.group.name}-{cell.role}"
        if cell.entry >= 0:
            name = file_stem(cell.unlearner, ALSO)
            twin = f"{cell.role}-" if cell.role == Role.TWIN else ""
            stem = f"{cell.group.name}-{twin}{name}-{cell.budget:g}"
        if cell.entry >= 0 or cell.role == Role.EXACT:
            stem += "".join(f"-{axis}-{value:g}" for axis, value in cell.place)
        # Trials of one unlearner are numbered, and names that differ in capitals alone: some file
        # systems do not tell them apart.
        taken[stem.casefold()] += 1
        number = taken[stem.casefold()]
        path = f"models/{stem}{f'-{number}' if number > 1 else ''}.safetensors"
        if store.is_recorded(key) and store.load(key)["files"]:  # else its unlearner gave no model
            write(store.file(key, "model.safetensors"), folder / path)
            lines.append(cell.columns | {"path": path})
    write(pd.DataFrame(lines), folder / MODELS)


def _models(keys: Keys) -> Iterator[tuple[Cell, str]]:
    """The cells of all models, and their keys; a clean twin has no row, and so no cell elsewhere."""
    recipe = keys.recipe
    for group in groups(recipe):
        # A state of a model can be made of it again.
        own = dict.fromkeys(cell.model for cell in cells(recipe, group))
        yield from ((cell, keys.measured(cell)) for cell in own)
        if Role.TWIN not in trained(recipe):
            continue
        place = place_of(recipe, no_request(recipe))
        twin = Cell(group, Role.TWIN, ROW_NAMES[Role.INITIAL], "{}", 0.0, place=place)
        yield twin, keys.model(Role.TWIN, group)
        for cell in (cell for cell in own if cell.role == Role.UPDATED):
            unlearner = keys.unlearner(cell)
            # Of one that looks at nothing of before, both arms end in one model.
            start = keys.arms(unlearner, cell.request)[-1]
            key = keys.updated(group, unlearner, cell.budget, start, cell.request)
            yield replace(cell, role=Role.TWIN), key


def folder_name(label: str, recipe: str) -> str:
    """A label as the name of a folder; with the recipe's hash where it cannot be taken as it is."""
    stem = file_stem(label, ALSO)
    return stem if stem == label else f"{stem}-{recipe}"
