"""A user's attack, metrics and model at work: what they raise, change or answer amiss is one line.

The package's own go through the same calls, and nothing is looked at.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from marshtest.attacks.base import Attack, Effect, Poisoned
from marshtest.attacks.soundness import (
    numbers,
    refuse_another,
    refuse_names,
    refuse_unsound_effect,
    refuse_unsound_poison,
)
from marshtest.data.samples import Dataset, Marked, Samples, Trigger
from marshtest.experiment.columns import (
    KINDS,
    MEASURED,
    check_values,
    kinds_of,
    refuse_column_names,
)
from marshtest.metrics.base import Metric
from marshtest.metrics.dependence import NOTHING
from marshtest.models.base import ModelSettings
from marshtest.models.state import copied
from marshtest.models.table import Factory
from marshtest.plumbing.choice import Choice, is_foreign
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.seeds import seeded, switches_kept

CHECKSUMMED = 2**26  # bytes; larger tensors are told by the number of their changes alone


@contextmanager
def guarded(part: Choice, where: str, *samples: Samples) -> Iterator[None]:
    """Run a user's attack or metric inside; one of the package's runs as if nothing were here.

    Args:
        where: how a complaint begins.
        samples: those that others use too.

    Raises:
        MarshtestError: the code raised anything, or changed the samples in place.
    """
    if not is_foreign(part):
        yield
        return
    before = [_marks(of_one) for of_one in samples]
    with switches_kept(), foreign(where):
        yield
    if before != [_marks(of_one) for of_one in samples]:
        raise MarshtestError(
            f"{where}: changed samples in place, which others use too. Change a copy: samples.x.clone()."
        )


def _marks(samples: Samples) -> list[tuple[int, int]]:
    """What changes when a tensor of the samples does: a count of changes, and a checksum of its bytes."""
    tensors = (tensor for tensor in vars(samples).values() if isinstance(tensor, Tensor))
    return [(tensor._version, _checksum(tensor)) for tensor in tensors]


def _checksum(tensor: Tensor) -> int:
    # PyTorch does not count what is written through NumPy or `.data`.
    if tensor.nbytes > CHECKSUMMED:
        return 0
    values = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(values.view(torch.uint8).numpy().data)


def seeded_if_foreign(part: Choice, seed: int) -> Any:
    """A context in which a user's attack draws from a seed, if it draws from the global generators."""
    return seeded(seed) if is_foreign(part) else nullcontext()


def model_for(part: Choice, model: nn.Module) -> nn.Module:
    """The model that an attack or a metric may ask: a user's gets a copy, which may be changed."""
    return copied(model) if is_foreign(part) else model


def asking(model: ModelSettings) -> Any:
    """A context in which whatever a user's model raises is one line."""
    return foreign(f"model {model.name}") if isinstance(model, Factory) else nullcontext()


# An attack's methods beside `effect`


class Work(NamedTuple):
    """What an attack is expected to cost: see `Attack.crafting`, `Attack.added` and `Attack.passes`."""

    steps: int
    each: float
    added: int
    passes: float


def work_of(attack: Attack, poisons: int, tests: int) -> Work:
    """What an attack is expected to cost.

    Raises:
        MarshtestError: a method of a user's attack raised, or gave no numbers.
    """
    with guarded(attack, _name(attack)):
        steps, each = attack.crafting(poisons)
        added, passes = attack.added(poisons), attack.passes(poisons, tests)
        return Work(int(steps), float(each), int(added), float(passes))


def trigger_of(attack: Attack) -> Trigger | None:
    """The word that an attack searches texts for.

    Raises:
        MarshtestError: a user's attack raised, or gave no Trigger.
    """
    with guarded(attack, _name(attack)):
        trigger = attack.trigger()
    if trigger is not None:
        refuse_another(trigger, Trigger, "trigger", _name(attack))
    return trigger


def candidates_of(attack: Attack, samples: Samples, marked: Marked | None) -> Samples:
    """The samples that an attack can poison.

    Raises:
        MarshtestError: a user's attack raised, changed the samples, or gave none.
    """
    with guarded(attack, _name(attack), samples):
        candidates = attack.candidates(samples, marked)
    refuse_another(candidates, Samples, "candidates", _name(attack))
    return candidates


def shuffled_of(attack: Attack, poisoned: Poisoned, seed: int) -> Samples:
    """The training set of an attack's control.

    Raises:
        MarshtestError: a user's attack raised, changed the samples, or gave none.
    """
    with guarded(attack, _name(attack), poisoned.clean):
        blind = attack.shuffled(poisoned, seed)
    refuse_another(blind, Samples, "shuffled", _name(attack))
    assert blind is not None
    return blind


def fresh_of(attack: Attack, poisoned: Poisoned, test: Samples) -> Samples | None:
    """Test samples dosed by the poisons' law; None of an attack without such a law.

    Raises:
        MarshtestError: a user's attack raised, changed the samples, or gave none.
    """
    with guarded(attack, _name(attack), poisoned.clean, test):
        fresh = attack.fresh(poisoned, test)
    if fresh is not None:
        refuse_another(fresh, Samples, "fresh", _name(attack))
        if not len(fresh):
            raise MarshtestError(f"{_name(attack)}: fresh gave no samples. Use more test data.")
    return fresh


def _name(attack: Attack) -> str:
    return f"attack {attack.name}"


# What an attack and a metric give, looked at before it is stored


def refuse_unfit_poison(attack: Attack, poisoned: Any, data: Dataset) -> None:
    """Raise MarshtestError where what a user's attack made is no poisoned set of the samples."""
    if not is_foreign(attack):
        return
    bounds = None if data.prompted else (0, data.classes - 1)
    refuse_unsound_poison(poisoned, bounds, _name(attack))
    where, ids = f"{_name(attack)}: poison", poisoned.forget_ids
    if len(ids.unique()) < len(ids):
        raise MarshtestError(f"{where}: forget_ids names a sample twice. Name each once.")
    figures = {f"crafting_{name}": value for name, value in poisoned.figures.items()}
    check_values(numbers(figures, where), where, KINDS)
    with foreign(where):
        poisoned.samples  # noqa: B018 - raises where ids are not there, or shapes do not fit


def sound_effect(attack: Attack, effect: Any, poisoned: Poisoned, row: Mapping[str, Any]) -> Effect:
    """The effect that a user's attack measured; MarshtestError where rows cannot hold it.

    Args:
        row: what the model's row holds already.
    """
    if not is_foreign(attack):
        return effect  # type: ignore[no-any-return]
    where, shown = _name(attack), attack.shown
    refuse_unsound_effect(effect, where)
    figures = numbers(effect.figures, where)
    # Of those that the harness measures itself, its own values are told instead.
    beside = [name for name in figures if name not in MEASURED]
    named = [*effect.scores, *(name for name in beside if name not in _of_scores(attack))]
    refuse_names(named, where)
    refuse_column_names(named, where)
    if taken := [name for name in beside if name in row]:
        raise MarshtestError(f"{where}: {taken[0]!r} is a column of every row. Take another name.")
    _refuse_missing(where, attack, effect, poisoned, figures, row)
    check_values({**figures}, where, kinds_of(shown, shown.columns) | KINDS)
    return Effect(effect.ids, effect.scores, figures)


def _of_scores(attack: Attack) -> set[str]:
    return {column for name in attack.shown.null_scores for column in NOTHING.columns(name)}


def _refuse_missing(
    where: str,
    attack: Attack,
    effect: Effect,
    poisoned: Poisoned,
    figures: Mapping[str, Any],
    row: Mapping[str, Any],
) -> None:
    """Raise where a column or score that the presentation names was not measured."""
    shown = attack.shown
    counts = [c.count for c in shown.columns.values() if isinstance(c.count, str) and c.count]
    known = {*figures, *row, *MEASURED, *_of_scores(attack)}
    needed = [*shown.columns, *shown.reference_columns.values(), *counts]
    if missing := [name for name in needed if name not in known]:
        raise MarshtestError(
            f"{where}: did not measure {missing[0]!r}, which its presentation names."
        )
    for name in shown.null_scores:
        given = figures.keys() & NOTHING.columns(name).keys()
        if given and len(given) < len(NOTHING.columns(name)):
            raise MarshtestError(
                f"{where}: gives a part of the columns of score {name!r}. Give all or none."
            )
        if name not in effect.scores and not given:
            raise MarshtestError(
                f"{where}: did not measure score {name!r}, which its presentation names."
            )
        strange = np.setdiff1d(effect.ids, poisoned.samples.ids.cpu().numpy())
        if not given and len(strange):
            raise MarshtestError(
                f"{where}: id {strange[0]} of the effect is no sample's. Give the poisons' ids."
            )


def refuse_unfit_columns(
    metric: Metric, values: Mapping[str, float], attack: Attack, row: Mapping[str, Any]
) -> None:
    """Raise MarshtestError where a value is out of its column's range, or lacks what it is a share of."""
    where = f"metrics.{metric.name}"
    for column in metric.columns.values():
        if isinstance(column.count, str) and column.count and column.count not in {*row, *values}:
            raise MarshtestError(
                f"{where}: count {column.count!r} is no column of the row. Name one."
            )
    check_values(values, where, kinds_of(attack.shown, metric.columns) | KINDS)
