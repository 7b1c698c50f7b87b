"""Check what a user brings before any long run: an unlearner, an attack, a metric or a data set."""

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from marshtest.attacks import ATTACKS, Attack
from marshtest.attacks.check import GROUNDS, Ground, check_attack
from marshtest.data.load import LOADERS
from marshtest.data.samples import Dataset
from marshtest.experiment.recipe import parse_data
from marshtest.experiment.recipe_data import digest, samples_of
from marshtest.metrics.base import Metric, Question
from marshtest.metrics.table import METRICS, parse_metric
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.facts import KINDS, RUNS, Fact, refuse_unknown_kinds
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.identity import name_of
from marshtest.plumbing.imports import check_spec, load_object
from marshtest.plumbing.seeds import seeded
from marshtest.unlearning import UNLEARNERS, parse_trials
from marshtest.unlearning.check import check_unlearner

SAME = 0.01  # share of the test samples that may be in the training split by chance
SHARE = 0.1  # of a data set that a metric's check takes for the forget set


def check(thing: Any, on: Collection[str] = (), **options: Any) -> list[Fact]:
    """Run whatever is given through its gate.

    Args:
        thing: the name of an unlearner, an attack, a metric or a data set; "pkg.mod:name" of one of yours;
            or the class, object or function itself. A function that can be called without arguments loads
            data; any other function is an unlearner.
        on: kinds of data, of "images", "features", "text"; by default those that it may be made for.
        options: of the thing, as a recipe gives them.

    Returns:
        All facts, in the order of checking; the thing is fit for use if every one holds.

    Raises:
        MarshtestError: an unknown name, or an option that it does not take.
    """
    refuse_unknown_kinds(on)
    what = what_is(thing)
    described = {"name": thing, **options} if options or what == "data" else thing
    if what == "attack":
        return check_attack(described, on)
    if what == "metric":
        return check_metric(described, on)
    if what == "data":
        return check_data(described)
    return check_unlearner(_unlearner(thing, options), on or KINDS)


def what_is(thing: Any) -> str:
    """Which of "unlearner", "attack", "metric" and "data" something is; see `check`."""
    if isinstance(thing, str) and ":" not in thing:
        shipped: dict[str, Collection[str]] = {
            "attack": ATTACKS,
            "metric": METRICS,
            "data": LOADERS,
        }
        kinds = [what for what, names in shipped.items() if thing in names]
        if not kinds and thing not in UNLEARNERS:
            names = [*UNLEARNERS, *(name for names in shipped.values() for name in names)]
            raise MarshtestError(
                f"check: {unknown('name', thing, names)} Or one of yours, 'pkg.mod:name'."
            )
        return kinds[0] if kinds else "unlearner"
    if isinstance(thing, str):
        check_spec(thing, "check")
        thing = load_object(thing, "check")
    cls = thing if inspect.isclass(thing) else type(thing)
    bases = {"attack": Attack, "metric": Metric}
    kinds = [what for what, base in bases.items() if issubclass(cls, base)]
    return kinds[0] if kinds else "data" if _loads(thing) else "unlearner"


def _loads(thing: Any) -> bool:
    """Whether a callable needs no argument, as one that loads data."""
    if not inspect.isroutine(thing):
        return False
    try:
        inspect.signature(thing).bind()
    except (TypeError, ValueError):  # it needs some, or does not tell
        return False
    return True


def _unlearner(thing: Any, options: Mapping[str, Any]) -> Any:
    if not options:
        return parse_trials(thing)[0] if isinstance(thing, str) else thing
    name = thing if isinstance(thing, str) else name_of(thing)
    ready, *more = parse_trials({"name": name, **options})
    if more:
        raise MarshtestError("check: an option has one value here. Check one at a time.")
    return ready


def check_metric(metric: Any, on: Collection[str] = ()) -> list[Fact]:
    """Run a metric through its gate.

    Args:
        metric: a metric, its class, its name or "pkg.mod:Class", or a mapping with a name and options.
        on: kinds of data, of "images", "features", "text"; by default all.
    """
    ready = parse_metric(metric).imported()
    return [
        Fact.of(kind, name, holds, mend)
        for kind in KINDS
        if kind in (on or KINDS)
        for name, holds, mend in _of_metric(ready, GROUNDS[kind]())
    ]


def _of_metric(metric: Metric, ground: Ground) -> Iterator[tuple[str, bool, str]]:
    state, size = copy.deepcopy(ground.model.state_dict()), round(SHARE * len(ground.samples))
    forget, retain = ground.samples[:size], ground.samples[size:]
    test, task = ground.knowledge.test, ground.knowledge.task
    question = Question(forget, retain, test, test[:0], task, seed=0)

    def measure(draws: int) -> dict[str, float]:
        with seeded(draws), foreign(metric.name):
            return dict(metric.measure(ground.model, question))

    # The global generators are seeded otherwise the second time: a metric that draws from them, and
    # not from the question's seed, gives itself away.
    try:
        values, again = measure(0), measure(1)
        yield f"{RUNS}numbers", all(map(_is_number, values.values())), f"it returned {values}"
    except MarshtestError as error:
        yield f"{RUNS}numbers", False, str(error)
        return
    yield (
        "measures the columns that it names",
        values.keys() == metric.columns.keys(),
        f"measured {sorted(values)}, `columns` are {sorted(metric.columns)}",
    )
    beyond = [
        name
        for name, column in metric.columns.items()
        if not (_or(column.low, -np.inf) <= values.get(name, np.nan) <= _or(column.high, np.inf))
        and not np.isnan(values.get(name, np.nan))
    ]
    yield "keeps to the ranges of its columns", not beyond, f"{', '.join(beyond)} out of range"
    yield (
        "same seed, same numbers",
        repr(values) == repr(again),  # as text, where nan equals nan
        "two runs differ; draw whatever is random from `question.seed`",
    )
    yield (
        "leaves the model as it was",
        same_tensors(ground.model.state_dict(), state),
        "measure a copy: copy.deepcopy(model)",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not np.isinf(value)


def _or(bound: float | None, default: float) -> float:
    return default if bound is None else bound


def check_data(data: Any) -> list[Fact]:
    """Run a data set through its gate.

    Args:
        data: a name, "pkg.mod:load", a function, or a mapping with a name and options.
    """
    values = dict(data) if isinstance(data, Mapping) else {"name": data}
    if callable(values["name"]):
        values["name"] = name_of(values["name"])
    return [Fact.of("data", name, holds, mend) for name, holds, mend in _of_data(values)]


def _of_data(values: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    try:
        settings = parse_data(values).imported()
        data, again = samples_of(settings)[0], samples_of(settings)[0]
        yield f"{RUNS}a data set", True, ""
    except MarshtestError as error:
        yield f"{RUNS}a data set", False, str(error)
        return
    yield (
        "gives the same samples every time",
        digest(data) == digest(again),
        "two loads differ; draw whatever is random from a seed of your own",
    )
    yield (
        "has every class in its training split",
        len(data.train.y.unique()) == data.classes,
        f"{len(data.train.y.unique())} of {data.classes} classes are there",
    )
    shared = _shared(data)
    yield (
        "tests on samples that it does not train on",
        shared <= SAME * len(data.test),
        f"{shared} of {len(data.test)} test samples are training samples too",
    )


def _shared(data: Dataset) -> int:
    """How many test samples stand in the training split."""
    # By their bytes, in a set: comparing all pairs would take N · M comparisons.
    train = {x.numpy().tobytes() for x in data.train.x}
    return sum(x.numpy().tobytes() in train for x in data.test.x)
