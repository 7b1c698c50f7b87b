"""Check what a user brings before any long run: an unlearner, an attack, a metric or a data set."""

import copy
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from marshtest.attacks import ATTACKS, Attack
from marshtest.attacks.check import (
    Ground,
    beyond_range,
    bits,
    check_attack,
    copied,
    facts_on,
    keeps_nothing,
    unchanged,
)
from marshtest.attacks.table import parse_attack
from marshtest.data.load import LOADERS
from marshtest.data.samples import Dataset
from marshtest.experiment.columns import refuse_taken_columns
from marshtest.experiment.recipe import parse_data
from marshtest.experiment.recipe_data import digest, samples_of
from marshtest.metrics.base import Beside, Metric, Question
from marshtest.metrics.table import METRICS, parse_metric
from marshtest.plumbing.errors import MarshtestError, refuse_taken, unknown
from marshtest.plumbing.facts import (
    KINDS,
    RUNS,
    Fact,
    Finding,
    facts_of,
    is_number,
    refuse_unknown_kinds,
)
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.identity import digest as identity
from marshtest.plumbing.identity import name_of
from marshtest.plumbing.imports import check_spec, load_object
from marshtest.plumbing.seeds import seeded
from marshtest.unlearning import UNLEARNERS, parse_trials
from marshtest.unlearning.base import ARGUMENTS
from marshtest.unlearning.check import check_unlearner

SAME = 0.01  # share of the test samples that may be in the training split by chance
DIRECTIONS, GRID = 8, 1e-5  # on which samples are compared; steps in standard deviations
COUNTS = ("forget_size", "parameters")  # columns of every row that a column can be a share of
SHARE = 0.1  # of a data set that a metric's check takes for the forget set


def check(thing: Any, on: Collection[str] = (), **options: Any) -> list[Fact]:
    """Run whatever is given through its gate.

    Args:
        thing: the name of an unlearner, an attack, a metric or a data set; "pkg.mod:name" of one of yours;
            or the class, object or function itself. A function that can be called with the options alone,
            and not as an unlearner, loads data; any other function is an unlearner.
        on: kinds of data, of "images", "features", "text"; by default those that it may be made for.
        options: of the thing, as a recipe gives them.

    Returns:
        All facts, in the order of checking; the thing is fit for use if every one holds.

    Raises:
        MarshtestError: an unknown name, or an option that it does not take.
    """
    refuse_taken("check", options)
    refuse_unknown_kinds(on)
    what = what_is(thing, options)
    described = {"name": thing, **options} if options or what == "data" else thing
    if what == "attack":
        return check_attack(described, on)
    if what == "metric":
        return check_metric(described, on)
    if what == "data":
        return check_data(described)
    return check_unlearner(_unlearner(thing, options), on or KINDS)


def what_is(thing: Any, options: Iterable[str] = ()) -> str:
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
    return kinds[0] if kinds else "data" if _loads(thing, options) else "unlearner"


def _loads(thing: Any, options: Iterable[str]) -> bool:
    """Whether a function takes the options alone, and not an unlearner's arguments: it loads data."""
    if not inspect.isroutine(thing):
        return False
    try:
        signature = inspect.signature(thing)
        signature.bind(**dict.fromkeys(options))
    except (TypeError, ValueError):  # it needs more, or does not tell
        return False
    try:
        signature.bind(*ARGUMENTS[:3], **dict.fromkeys(ARGUMENTS[3:]), **dict.fromkeys(options))
    except TypeError:
        return True
    return False


def _unlearner(thing: Any, options: Mapping[str, Any]) -> Any:
    if not options:
        return parse_trials(thing)[0] if isinstance(thing, str) else thing
    name = thing if isinstance(thing, str) or inspect.isclass(thing) else name_of(thing)
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
    with foreign("check"):
        ready = parse_metric(metric).imported()
    return facts_on(on or KINDS, ready, _of_metric)


def _of_metric(metric: Metric, ground: Ground) -> Iterator[Finding]:
    asked = _Asked(metric, ground)
    state = identity(type(metric), metric.name)
    # The global generators are seeded otherwise the second time: a metric that draws from them, and
    # not from the question's seed, gives itself away.
    try:
        values, again = asked.measure(0), asked.measure(1)
        yield f"{RUNS}numbers", all(map(is_number, values.values())), f"it returned {values}"
    except MarshtestError as error:
        yield f"{RUNS}numbers", False, str(error)
        return
    yield (
        "measures the columns that it names",
        values.keys() == metric.columns.keys(),
        f"measured {sorted(map(str, values))}, `columns` are {sorted(metric.columns)}",
    )
    yield _names(metric)
    empty = [name for name, value in values.items() if is_number(value) and np.isnan(value)]
    yield "has a number for a usual model", not empty, f"{', '.join(empty)}: undefined (nan)"
    numbers = {name: value for name, value in values.items() if is_number(value)}
    beyond = beyond_range(metric.columns, numbers)
    yield "keeps to the ranges of its columns", not beyond, f"{beyond} out of range"
    yield (
        "same seed, same numbers",
        repr(values) == repr(again),  # as text, where nan equals nan
        "two runs differ; draw whatever is random from `question.seed`",
    )
    yield unchanged("leaves the model as it was", asked.model, ground.model)
    yield (
        "leaves the samples as they were",
        asked.samples_unchanged(),
        "clone a tensor before it is changed in place: question.test.x.clone()",
    )
    yield keeps_nothing(metric, state)


class _Asked:
    """A metric at work on a copy of a small problem's model and samples."""

    def __init__(self, metric: Metric, ground: Ground) -> None:
        self.metric, self.model = metric, copy.deepcopy(ground.model).eval()
        size, half = round(SHARE * len(ground.samples)), len(ground.knowledge.test) // 2
        self.sets = tuple(
            copied(samples)
            for samples in (
                *(ground.samples[:size], ground.samples[size:]),
                *(ground.knowledge.test[:half], ground.knowledge.test[half:]),
            )
        )
        forget, retain, test, held_out = self.sets
        task = ground.knowledge.task
        initial, retrained, reference = (copy.deepcopy(self.model) for _ in range(3))
        beside = Beside(initial, retrained, reference, fresh=test, dosed=False)
        self.question = Question(
            forget, retain, test, held_out, task, seed=0, beside=beside if metric.compares else None
        )
        self._before = [bits(samples) for samples in self.sets]

    def measure(self, draws: int) -> dict[str, Any]:
        with seeded(draws), foreign(self.metric.name):
            return dict(self.metric.measure(self.model, self.question))

    def samples_unchanged(self) -> bool:
        return [bits(samples) for samples in self.sets] == self._before


def _names(metric: Metric) -> Finding:
    """The finding that a metric's columns fit beside those of rows, whatever attack of ours made them."""
    name = "names columns that rows do not have"
    try:
        for attack in ATTACKS:
            refuse_taken_columns([metric], parse_attack(attack))
    except MarshtestError as error:
        return name, False, str(error)
    counts = [column.count for column in metric.columns.values() if isinstance(column.count, str)]
    strange = [count for count in counts if count not in {"", *metric.columns, *COUNTS}]
    return (
        name,
        not strange,
        f"count: {', '.join(strange)} is no column of rows, nor one of its own",
    )


def check_data(data: Any) -> list[Fact]:
    """Run a data set through its gate.

    Args:
        data: a name, "pkg.mod:load", a function, or a mapping with a name and options.
    """
    values = dict(data) if isinstance(data, Mapping) else {"name": data}
    if callable(values["name"]):
        values["name"] = name_of(values["name"])
    return [*facts_of("data", str(values["name"]), partial(_of_data, values))]


def _of_data(values: Mapping[str, Any]) -> Iterator[Finding]:
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
    """How many test samples stand in the training split, up to rounding."""
    # On a grid of a few random directions: comparing all pairs would take N · M comparisons.
    width = data.train.x[:1].numel()
    axes = np.random.default_rng(0).standard_normal((width, DIRECTIONS)) / width**0.5
    train, test = (
        samples.x.flatten(1).double().numpy() @ axes for samples in (data.train, data.test)
    )
    grid = GRID * (train.std(0) + (train.std(0) == 0))
    known = set(map(tuple, np.round(train / grid)))
    return sum(row in known for row in map(tuple, np.round(test / grid)))
