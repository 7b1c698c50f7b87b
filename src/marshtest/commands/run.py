"""Run a recipe: the one function that carries the main job."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marshtest.data.samples import Dataset
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.recipe_data import content
from marshtest.experiment.row_file import MODELS
from marshtest.plumbing.errors import NOTE, MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import alone
from marshtest.reporting.write import write_report
from marshtest.results.summary import Results
from marshtest.sweeps.collect import collect
from marshtest.sweeps.engines import InProcess
from marshtest.sweeps.jobs import Job, distinct, passes
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.run_folder import (
    DONE,
    foreseen,
    is_done,
    own_folder,
    refuse_anothers,
    write_results,
)
from marshtest.sweeps.scheduler import Scheduler
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    unlearners: Sequence[str | Callable[..., Any]] = (),
    keep_models: bool = False,
    report: bool = True,
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
        keep_models: leave the initial, retrained and updated models as safetensors in the folder's
            `models/`; `Results.models` lists them, and `Results.load_model` loads one.
        report: draw figures and page; without them there are rows only, and a later call, or
            `marshtest report`, draws them.
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
    keys = Keys(recipe, content(recipe.data, data))
    folder = Path(out) if out is not None else Path("runs") / f"{recipe.name}-{recipe.hash}"
    refuse_anothers(folder, recipe, keys.identity)
    # A finished run is shown and not looked into: its stages are gone, and its rows say all.
    if is_done(folder):
        progress(1.0, f"{NOTE}{folder}: {DONE}")
    else:
        _fill(folder, keys, data, keep_models, progress)
    if keep_models and not (folder / MODELS).exists():
        raise MarshtestError(
            f"{folder}: is done already, and its models were not kept. Choose another --out."
        )
    # From the files, even just after they were written: what a reader gets is what everybody gets.
    results = Results.read(folder)
    if report and not (folder / "report.html").exists():
        write_report(results)
    return results


def _fill(
    folder: Path, keys: Keys, data: Dataset | None, keep_models: bool, progress: Progress
) -> None:
    """Do what is missing of a run, on a store in its folder that goes when all is done."""
    store = Store(folder / "stages")
    worker = Worker(store, data)
    if keys.recipe.data.features is None:
        worker.pipeline(keys)  # refuses what cannot work before anything is written
    with alone(folder):
        about = own_folder(folder, keys.recipe, keys.identity)
        if is_done(folder):  # by another command, meanwhile
            return

        def finish() -> None:
            measured = collect(store, keys)
            write_results(worker, keys, folder, about, measured, keep_models=keep_models)

        store.prepare()
        store.remove("locks")  # of a killed run: nobody else is at work here
        with Driver(store) as driver:
            _schedule(driver, worker, keys, keep_models, progress, finish)
        # What they held is in the folder's files. If an unlearner raised, the next call goes on here.
        if is_done(folder):
            shutil.rmtree(folder / "stages")


def _schedule(
    driver: Driver,
    worker: Worker,
    keys: Keys,
    keep_models: bool,
    progress: Progress,
    finish: Callable[[], object],
) -> None:
    """Do a recipe's jobs one after the other, and finish."""

    def schedule(todo: Sequence[Job], weights: Sequence[float], then: Callable[[], object]) -> None:
        scheduler = Scheduler(driver, todo, progress, weights=weights)
        engine = InProcess(worker, scheduler.hear, goes_on=False)
        scheduler.run(lambda: engine, then, retry_failed=True)

    todo = distinct([keys], keep_models=keep_models)
    # Features first, by themselves: the data that they are decide how much every other job weighs.
    features = [job for job in todo if job.kind == "features"]
    schedule(features, [0.0] * len(features), lambda: worker.pipeline(keys))
    data = worker.pipeline(keys).data
    for line in foreseen(keys.recipe, data):
        progress(0.0, line)
    schedule(todo, [sum(passes(job, data).values()) for job in todo], finish)
