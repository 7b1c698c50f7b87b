"""Score one unlearner by a suite: only its own cells run, and a card says where it stands."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marshtest.experiment.cells import Group, groups
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.recipe_data import content
from marshtest.experiment.requests import AXES
from marshtest.experiment.roles import ROW_NAMES, Role
from marshtest.experiment.row_file import FILE, MODELS, write_rows
from marshtest.plumbing.derived import derive, hashed
from marshtest.plumbing.errors import MarshtestError, placed, refuse_taken
from marshtest.plumbing.identity import name_of
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.whole_files import refuse_unwritable, write
from marshtest.plumbing.yaml_files import file_stem, read_yaml
from marshtest.reporting.card import write_card
from marshtest.results.card import Card, card_of
from marshtest.results.kept_models import kept_models
from marshtest.results.merging import differences
from marshtest.results.suite import Suite, read_suite
from marshtest.results.summary import Results
from marshtest.sweeps.collect import collect
from marshtest.sweeps.engines import InProcess
from marshtest.sweeps.jobs import distinct
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.run_folder import ABOUT, RAISED, RECIPE, describe, foreseen, read_about
from marshtest.sweeps.scheduler import Scheduler
from marshtest.sweeps.store import Store
from marshtest.sweeps.worker import Worker
from marshtest.unlearning import Unlearner, parse_trials
from marshtest.unlearning.base import Custom
from marshtest.unlearning.elsewhere import Elsewhere, Pair

Target = str | Path | Callable[..., Any]


def score(
    target: Target,
    *,
    suite: str | Path = "digits",
    store: str | Path = "runs/store",
    out: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Card:
    """Score an unlearner by a suite, beside the unlearners whose rows ship with it.

    Models from scratch are trained once and stay in the store, so that a second unlearner takes a fraction
    of the time.

    Args:
        target: an unlearner's name, with the hyper-parameters by which the suite knows it; "pkg.mod:name"
            or the callable (model, retain, forget, *, task, budget, seed) → model; or a folder of models
            that were unlearned elsewhere (docs/score.md).
        suite: name of a shipped suite, or path of a YAML file.
        store: folder, or any fsspec URL, of what is finished; sweeps may share it.
        out: folder of the card and the rows; default `runs/score-<suite>-<name>-<hash>`.
        progress: told each stage that starts and the share of the work that is done.
        options: hyper-parameters of the unlearner.

    Returns:
        The card, which is written as JSON, Markdown, LaTeX, HTML and a picture too.

    Raises:
        MarshtestError: bad input, in one line.
    """
    refuse_taken("score", options)
    if out is not None:
        refuse_unwritable(Path(out))
    chosen = read_suite(suite)
    newcomer = _newcomer(target, options, chosen)
    place = Store(store)
    worker = Worker(place)
    keys = [_keys(chosen, recipe, worker) for recipe in newcomer.recipes.values()]
    folder = Path(out) if out is not None else _folder(chosen, newcomer)
    place.prepare()
    written: list[Results] = []
    _fill(worker, keys, progress, lambda: written.extend(_written(place, keys, folder)))
    known = map(chosen.known, newcomer.recipes)
    scored = list(zip(written[-len(keys) :], known, strict=True))
    card = replace(card_of(newcomer.title, chosen.name, scored, newcomer.said), folder=folder)
    write_card(card, folder)
    return card


@dataclass(frozen=True)
class Newcomer:
    """An unlearner in each recipe of a suite; `said` tells what it cannot be asked."""

    title: str
    recipes: Mapping[str, Recipe]
    said: Sequence[str] = ()


def _newcomer(target: Target, options: Mapping[str, Any], suite: Suite) -> Newcomer:
    if isinstance(target, Path) or (isinstance(target, str) and _is_path(target)):
        return _of_folder(Path(target), options, suite)
    title = target if isinstance(target, str) else name_of(target)
    recipes = {
        recipe: _recipe(suite, recipe, _unlearner(target, options, suite, recipe))
        for recipe in suite.recipes
    }
    return Newcomer(title, recipes)


def _is_path(target: str) -> bool:
    """Whether a text is a folder's path: no name of an unlearner has a slash."""
    return Path(target).is_dir() or (":" not in target and "/" in target)


def _unlearner(
    target: str | Callable[..., Any], options: Mapping[str, Any], suite: Suite, recipe: str
) -> Unlearner:
    """The unlearner in a recipe: options win over the values by which the suite knows it."""
    trials: Sequence[Unlearner]
    if isinstance(target, str):
        trials = parse_trials({**suite.entry(recipe, target), **options})
    else:
        trials = parse_trials({"name": target, **options} if inspect.isclass(target) else target)
    if len(trials) > 1:
        raise MarshtestError(
            f"score: {target} is given several values to choose from. Give one of each."
        )
    (unlearner,) = trials
    if isinstance(unlearner, Custom) and options:
        return unlearner.model_copy(update={"options": dict(options)})
    if not isinstance(target, str | type) and options:
        raise MarshtestError("score: an object has its options already. Give its class with some.")
    return unlearner


def _recipe(suite: Suite, recipe: str, unlearner: Unlearner) -> Recipe:
    values = suite.values(recipe)
    try:
        return load_recipe({**values, "unlearners": [unlearner]})
    except MarshtestError as error:
        raise MarshtestError(f"suite {suite.name}, {recipe}: {error}") from None


def _keys(suite: Suite, recipe: Recipe, worker: Worker) -> Keys:
    """A recipe's keys; what cannot work is refused here, before any training."""
    try:
        keys = Keys(recipe, content(recipe.data, None))
        if recipe.data.features is None:
            worker.pipeline(keys)
    except MarshtestError as error:
        raise MarshtestError(f"suite {suite.name}, {recipe.name}: {error}") from None
    return keys


def _folder(suite: Suite, newcomer: Newcomer) -> Path:
    hashes = hashed([recipe.hash for recipe in newcomer.recipes.values()])[:8]
    return Path("runs") / f"score-{suite.name}-{file_stem(newcomer.title)}-{hashes}"


def _fill(
    worker: Worker, keys: Sequence[Keys], progress: Progress, finish: Callable[[], object]
) -> None:
    """Do what the store lacks, in this process: the newcomer's code need not be importable."""
    for line in dict.fromkeys(line for one in keys for line in foreseen(one.recipe)):
        progress(0.0, line)
    todo = distinct(keys, keep_models=False)
    with Driver(worker.store) as driver:
        scheduler = Scheduler(driver, todo, progress)
        engine = InProcess(worker, scheduler.hear, goes_on=False)
        scheduler.run(lambda: engine, finish, retry_failed=True)


def _written(store: Store, keys: Sequence[Keys], folder: Path) -> list[Results]:
    """Write the newcomer's rows, a file a recipe, and read them as everybody will."""
    log, results = [], []
    for one in keys:
        measured = collect(store, one)
        if measured.missing:
            raise MarshtestError(
                f"score: {measured.missing} rows of {one.recipe.name} went from {store.url} as others "
                "were made. Run the same command again: it makes them anew."
            )
        log += [
            f"{fault['job']}: {fault['fault']}\n{fault['traceback']}" for fault in measured.raised
        ]
        file = folder / "rows" / f"{file_stem(one.recipe.name)}.parquet"
        write_rows(measured.rows, file, {one.recipe.hash: describe(one.recipe, one.content)})
        results.append(Results.read(file))
    if log:
        write("\n".join(log).encode(), folder / RAISED)
    else:
        (folder / RAISED).unlink(missing_ok=True)
    return results


# Models that were unlearned elsewhere


def _of_folder(folder: Path, options: Mapping[str, Any], suite: Suite) -> Newcomer:
    """The models of a folder in each recipe that it has models of."""
    if not folder.is_dir():
        raise MarshtestError(f"{folder}: no such folder. Give the folder of the models.")
    if options:
        raise MarshtestError(
            f"{folder}: a folder of models takes no options ({', '.join(options)}). Leave them out."
        )
    recipes, said = {}, []
    for name in suite.recipes:
        recipe = _recipe(suite, name, Elsewhere())
        place = _place_of(folder, recipe)
        if place is None:
            said.append(f"{recipe.name}: not scored, as {folder} holds no models of it.")
        else:
            _refuse_another(place, recipe)
            recipes[name] = _recipe(suite, name, Elsewhere.of(_answers(place, recipe)))
    if not recipes:
        raise MarshtestError(
            f"{folder}: holds no models of the suite {suite.name}. Give a folder with a folder a recipe "
            f"({', '.join(suite.recipes)}), each with models/ in it."
        )
    return Newcomer(folder.resolve().name, recipes, said)


def _place_of(folder: Path, recipe: Recipe) -> Path | None:
    """The place of a recipe's models: the folder of its name, or this one where its own run lies here."""
    if (folder / recipe.name / "models").is_dir():
        return folder / recipe.name
    record = folder / FILE
    if (folder / "models").is_dir() and record.is_file():
        return folder if Results.read(record).recipe.name == recipe.name else None
    return None


def _refuse_another(place: Path, recipe: Recipe) -> None:
    """Refuse models of another recipe, where the folder says which recipe they are of."""
    file = place / RECIPE
    if not file.is_file():
        return
    with placed(file):
        theirs = load_recipe({**read_yaml(file, "recipes"), "unlearners": []}, imports=False)
    differing = differences(_of_models(theirs), _of_models(recipe))
    if differing:
        key, (there, here) = next(iter(differing.items()))
        raise MarshtestError(
            f"{file}: is another recipe than the suite's {recipe.name} ({key} is {there}, not {here}). "
            "Give models of the suite's recipe."
        )
    if (place / ABOUT).is_file():
        there, here = read_about(place / ABOUT).get("data"), content(recipe.data, None)
        if there != here:
            raise MarshtestError(
                f"{place}: its models were handed out on another copy of the data (digest {there}, not "
                f"{here}). Give the data that they were trained on."
            )


def _of_models(recipe: Recipe) -> dict[str, Any]:
    """What determines the models that a recipe hands out, but for poison budget and seed."""
    return recipe.model_dump(
        mode="json",
        include={"data", "model", "training", "attack"},
        exclude={"data": {"path"}},  # where somebody's copy lies
    )


def _answers(place: Path, recipe: Recipe) -> dict[int, tuple[Pair, ...]]:
    """The pairs of models of each group, by the seed of the draws that an unlearner gets."""
    listed = _listed(place)
    arms = (Role.INITIAL, Role.TWIN) if recipe.attack.needs_twin else (Role.INITIAL,)
    name = Elsewhere().name
    return {
        derive(group.draws, name): tuple(_pair(place, listed, group, arm) for arm in arms)
        for group in groups(recipe)
    }


def _pair(place: Path, listed: Mapping[Any, Path], group: Group, arm: Role) -> Pair:
    """The model that was handed out of an arm, and what became of it."""
    start = f"{group.name}-{arm}"
    ending = "updated" if arm == Role.INITIAL else f"{arm}-updated"
    files = [
        place / "models" / f"{start}.safetensors",
        listed.get((group.poison_budget, group.seed, arm))
        or place / "models" / f"{group.name}-{ending}.safetensors",
    ]
    for file in files:
        if not file.is_file():
            raise MarshtestError(
                f"{file}: there is no such model. The suite asks for poison budget "
                f"{group.poison_budget:g}, seed {group.seed}."
            )
    return files[0], files[1]


def _listed(place: Path) -> dict[tuple[float, int, str], Path]:
    """The updated models that a run kept, by poison budget, seed and arm; of one unlearner."""
    if not (place / MODELS).is_file():
        return {}
    models = kept_models(place)
    updated = models[~models["unlearner"].isin(ROW_NAMES.values())]
    if parts := [axis for axis in AXES if axis in models]:
        raise MarshtestError(
            f"{place / MODELS}: lists models that were asked for part of the poisons ({parts[0]}). Give "
            "those of a run that asks for all at once."
        )
    kinds = updated[["unlearner", "hyperparameters", "budget"]].drop_duplicates()
    if len(kinds) > 1:
        names = ", ".join(f"{x.unlearner} at {x.budget:g}" for x in kinds.itertuples())
        raise MarshtestError(
            f"{place / MODELS}: lists models of {len(kinds)} unlearners ({names}). Give a folder of one."
        )
    arms = updated["role"].replace({str(Role.UPDATED): str(Role.INITIAL)})
    places = zip(updated["poison_budget"], updated["seed"], arms, strict=True)
    return dict(zip(places, map(Path, updated["path"]), strict=True))
