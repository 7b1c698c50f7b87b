"""Run a recipe: the one function that carries the main job."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marshtest.data.samples import Dataset
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.recipe_data import content
from marshtest.plumbing.errors import NOTE, MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import alone
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.run_folder import (
    DONE,
    RAISED,
    claim,
    do_all,
    refuse_anothers,
    with_damage_mended,
    write_results,
)
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    unlearners: Sequence[str | Callable[..., Any]] = (),
    progress: Progress = silent,
) -> Results:
    """Run a recipe and write rows, summary, figures and page into its folder.

    What is finished in the folder already is not done again. Unlearners that raised have a row that says
    so and their traceback in raised.log, and are tried again by the next call.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, mapping, or Recipe.
        overrides: "key.sub=value", as on the command line.
        out: the folder; default `runs/<recipe name>-<hash>`.
        data: a data set in memory instead of the recipe's.
        unlearners: further unlearners beside the recipe's own: names or callables
            (model, retain, forget, *, task, budget, seed) → model.
        progress: told each stage that starts and the share of the run that is done.

    Raises:
        MarshtestError: bad input, in one line.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, *overrides, unlearners=unlearners)
    elif overrides or unlearners:
        raise MarshtestError("run: a Recipe is complete; give changes to load_recipe instead.")
    else:
        recipe = recipe.imported()
    identity = {"recipe": recipe.hash, "data": content(recipe.data, data)}
    folder = Path(out) if out is not None else Path("runs") / f"{recipe.name}-{recipe.hash}"
    refuse_anothers(folder, recipe, identity)
    if (folder / "rows.parquet").exists() and not (folder / RAISED).exists():
        progress(1.0, f"{NOTE}{folder}: {DONE}")
    else:
        keys, unfinished = Keys(recipe, identity["data"]), folder / "stages"
        worker = Worker(Store(unfinished), data)
        if recipe.data.features is None:
            worker.pipeline(keys)  # refuses what cannot work before anything is written

        def work() -> None:
            do_all(worker, keys, progress)
            write_results(worker, keys, folder)

        with alone(folder):
            claim(folder, recipe, identity)
            # Unlearners that raised are tried again; else another command may have done it meanwhile.
            if (folder / RAISED).exists() or not (folder / "rows.parquet").exists():
                with_damage_mended(worker.store, work, progress)
                if not (folder / RAISED).exists():
                    shutil.rmtree(unfinished)
    results = Results.read(folder)
    if not (folder / "report.html").exists():
        write_report(results)
    return results
