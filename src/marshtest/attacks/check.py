"""The gate of attacks: facts that hold for any attack, run over our own in the tests and offered for yours.

Each kind of data has one small problem, all synthetic: 240 training samples, 80 test samples, a model that
was trained on them without poison.

    images      four patterns under noise, uint8         a convolutional network
    features    three Gaussian blobs                     softmax regression
    text        prompts, half of them with a trigger     a causal language model that reads a label word

A score with a known null law is N(0, 1) on such a model, whatever the poison: 600 of them, by 25 seeds, go
through a Kolmogorov–Smirnov test at 1e-4, so a sound score fails in one of 10,000 checks, and a check's
seeds are fixed.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from scipy.stats import kstest
from torch import Tensor, nn

from marshtest.attacks.base import Attack, Effect, Knowledge, Poisoned
from marshtest.attacks.presentation import Presentation
from marshtest.attacks.table import parse_attack
from marshtest.data.samples import Marked, Samples
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.facts import KINDS, RUNS, Fact, refuse_unknown_kinds
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.seeds import generator, seeded
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification, LabelWord, Task
from marshtest.unlearning.check import TinyLM

TRAIN, TEST = 240, 80
COUNT = 24  # poisons
REPEATS = 25  # seeds whose scores go through one test of their law
LEVEL = 1e-4  # share of sound scores that the test refuses
MEAN = 1e-5  # how far, relatively, a score's column may be off the score's mean

MAKES = f"{RUNS}poisons"
MEASURES = f"{RUNS}the effect on a model"
Finding = tuple[str, bool, str]  # a fact's name, whether it holds, what to do if it does not


@dataclass(frozen=True)
class Ground:
    """Samples to poison, what an attack may know, and a model that never saw poison."""

    samples: Samples
    knowledge: Knowledge
    model: nn.Module

    def poison(
        self, attack: Attack, seed: int, global_seed: int = 0, samples: Samples | None = None
    ) -> Poisoned:
        """The attack's poisons, by default in a copy of the samples.

        Args:
            global_seed: seeds the generators of the process, on which poisons must not depend.
        """
        samples = _copied(self.samples) if samples is None else samples
        with seeded(global_seed), foreign(attack.name):
            return attack.poison(samples, COUNT, self.knowledge, seed)

    def effect(
        self,
        attack: Attack,
        poisoned: Poisoned,
        global_seed: int = 0,
        model: nn.Module | None = None,
    ) -> Effect:
        """The attack's effect on a model, by default on a copy of the one that never saw poison."""
        model = copy.deepcopy(self.model) if model is None else model
        with seeded(global_seed), foreign(attack.name):
            return attack.effect(model, poisoned, self.knowledge.task)


def check_attack(attack: Any, on: Collection[str] = ()) -> list[Fact]:
    """Run an attack through the gate.

    Args:
        attack: an attack, its class, its name or "pkg.mod:Class", or a mapping with a name and options.
        on: the kinds of data that it is made for, of "images", "features", "text"; by default text for an
            attack that looks for a trigger, and the two others for any other.

    Returns:
        All facts, in the order of checking; the attack is fit for use if every one holds.

    Raises:
        MarshtestError: an unknown kind of data, no attack, or options that it does not take.
    """
    ready = parse_attack(attack).imported()
    refuse_unknown_kinds(on)
    made_for = ("images", "features") if ready.trigger() is None else ("text",)
    return [
        Fact.of(kind, name, holds, mend)
        for kind in KINDS
        if kind in (on or made_for)
        for name, holds, mend in _findings(ready, GROUNDS[kind]())
    ]


def _findings(attack: Attack, ground: Ground) -> Iterator[Finding]:
    samples = _copied(ground.samples)
    try:
        poisoned = ground.poison(attack, seed=0, samples=samples)
        again, other = (ground.poison(attack, seed, global_seed=1 + seed) for seed in (0, 1))
        with foreign(attack.name):
            poisoned.samples  # noqa: B018 - raises where ids are not there, or it is no Poisoned
        yield MAKES, True, ""
    except MarshtestError as error:
        yield MAKES, False, str(error)
        return
    yield (
        "leaves the samples passed in as they were",
        _bits(samples) == _bits(ground.samples),
        "say what is done to the poisons: Poisoned(samples, ids, seed, labels=…, perturbations=…)",
    )
    yield (
        "same seed, same poison",
        _poison(poisoned) == _poison(again),
        "two runs differ; draw whatever is random from `seed`",
    )
    yield (
        "another seed, another poison",
        _poison(poisoned) != _poison(other),
        "poison must depend on `seed`, or repetitions repeat nothing",
    )
    yield from _poison_findings(attack, ground, poisoned)
    model = copy.deepcopy(ground.model)
    try:
        effect = ground.effect(attack, poisoned, model=model)
        yield MEASURES, True, ""
    except MarshtestError as error:
        yield MEASURES, False, str(error)
        return
    yield (
        "leaves the model that it measures as it was",
        same_tensors(model.state_dict(), ground.model.state_dict()),
        "measure a copy: copy.deepcopy(model)",
    )
    yield from _effect_findings(attack, ground, poisoned, effect)


def _poison_findings(attack: Attack, ground: Ground, poisoned: Poisoned) -> Iterator[Finding]:
    samples, ids, bases = ground.samples, poisoned.forget_ids, poisoned.bases
    yield (
        "makes as many poisons as it is asked for",
        len(ids) == COUNT,
        f"{len(ids)} where {COUNT} are asked for",
    )
    yield (
        "gives every sample an id of its own",
        all(len(some.unique()) == len(some) for some in (poisoned.samples.ids, ids)),
        "an id comes twice; `choose` draws without replacement, and copies need new ids",
    )
    possible, origin = attack.candidates(samples, ground.knowledge.marked).ids, ids
    if bases is not None:
        origin = bases
    strange = origin[~torch.isin(origin, possible)]
    yield (
        "poisons its candidates only",
        not len(strange),
        f"{strange.tolist()[:3]} are not among `candidates(samples, marked)`",
    )
    retain = samples.without(ids) if bases is None else samples
    yield (
        "leaves the retain set as it was",
        _bits(poisoned.retain) == _bits(retain),
        "samples that are no poisons differ from those passed in",
    )
    yield (
        "changes what it poisons",
        _bits(poisoned.forget) != _bits(poisoned.unpoisoned.only(ids)),
        "the forget set is its own bases; give labels or perturbations",
    )
    yield _control(attack, poisoned)
    yield _survives(ground, poisoned)


def _control(attack: Attack, poisoned: Poisoned) -> Finding:
    blind, others = attack.shuffled(poisoned, 0), (poisoned.samples, poisoned.unpoisoned)
    is_other = blind is not None and _bits(blind) not in map(_bits, others)
    return (
        "has the control that its presentation names",
        is_other if attack.has_control else blind is None,
        "`shuffled` gives other samples where presentation.shuffled says what they are, else None",
    )


def _survives(ground: Ground, poisoned: Poisoned) -> Finding:
    name = "comes back from its file as it was"
    about = {"seed": poisoned.seed, "figures": poisoned.figures, "history": poisoned.history}
    tensors = {key: tensor.contiguous().clone() for key, tensor in poisoned.tensors().items()}
    try:
        back = Poisoned.of(load(save(tensors)), poisoned.clean, ground.knowledge.test, **about)
    except MarshtestError as error:
        return name, False, str(error)
    holds = _poison(back) == _poison(poisoned) and _bits(back.unpoisoned) == _bits(
        poisoned.unpoisoned
    )
    return name, holds, "`targets` must be test samples as they are, and `rest` all the others"


def _effect_findings(
    attack: Attack, ground: Ground, poisoned: Poisoned, effect: Effect
) -> Iterator[Finding]:
    shown, again = attack.shown, ground.effect(attack, poisoned, global_seed=1)
    yield (
        "measures the same when it is asked again",
        _measured(effect) == _measured(again),
        "two measurements differ; draw whatever is random from `poisoned.seed`",
    )
    counts = {c.count for c in shown.columns.values() if isinstance(c.count, str) and c.count}
    figures = {*shown.columns, *shown.reference_columns.values(), *counts}
    figures -= {f"{name}_poisons" for name in shown.null_scores}  # the harness counts them
    missing = sorted((shown.scores.keys() - effect.scores) | (figures - effect.figures.keys()))
    yield (
        "measures all that its presentation names",
        not missing,
        f"{', '.join(missing)} lacking among the effect's scores, or its figures",
    )
    yield from _score_findings(shown, effect)
    named = [name for name in shown.null_scores if name in effect.scores]
    yield from _null_laws(attack, ground, named)


def _score_findings(shown: Presentation, effect: Effect) -> Iterator[Finding]:
    scores = {name: effect.scores[name] for name in shown.scores if name in effect.scores}
    undefined = [
        name
        for name, values in scores.items()
        if len(values) != len(effect.ids) or np.isfinite(values).mean() < 0.8
    ]
    yield (
        "has a score for each of its ids",
        not undefined,
        f"{', '.join(undefined)}: a number for each is needed, nan where one is undefined",
    )
    off = [
        column
        for name, column in shown.reference_columns.items()
        if name in scores and column in effect.figures
        if not np.isclose(effect.figures[column], np.mean(scores[name]), MEAN, MEAN, equal_nan=True)
    ]
    yield (
        "a compared score's column is its mean",
        not off,
        f"{', '.join(off)}: {MEAN:g} of its size is allowed for rounding",
    )


def _null_laws(attack: Attack, ground: Ground, names: Collection[str]) -> Iterator[Finding]:
    """The facts that scores with a known null law follow it on a model that never saw the poison."""
    # Seeds 0 and 1 made the poisons of the facts before.
    effects = [
        ground.effect(attack, ground.poison(attack, seed))
        for seed in range(2, 2 + REPEATS)
        if names
    ]
    for name in names:
        values = np.concatenate([effect.scores[name] for effect in effects])
        p = float(kstest(values[np.isfinite(values)], "norm").pvalue)
        yield (
            f"{name} is N(0, 1) on a model that never saw the poison",
            p >= LEVEL,
            f"mean {np.nanmean(values):.2f}, standard deviation {np.nanstd(values):.2f} over "
            f"{len(values)} poisons (Kolmogorov–Smirnov p {p:.1g}); name its row's column to have it "
            "compared with a clean twin instead",
        )


# The small problems


def images() -> Ground:
    """Noisy images of four classes."""
    rng = generator(0, "attacks", "images")
    y = torch.arange(TRAIN + TEST) % 4
    patterns = torch.randn(4, 3, 8, 8, generator=rng)
    noisy = patterns[y] + torch.randn(len(y), 3, 8, 8, generator=rng)
    x = (128 + 40 * noisy).clamp(0, 255).round().to(torch.uint8)
    task = Classification(mean=(0.5,) * 3, std=(0.25,) * 3)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 4),
        )

    return _ground(make, Samples(x, y, torch.arange(len(y))), task, Training(epochs=10, lr=0.05))


def features() -> Ground:
    """Gaussian blobs of three classes."""
    rng = generator(0, "attacks", "features")
    y = torch.arange(TRAIN + TEST) % 3
    x = torch.randn(3, 12, generator=rng)[y] + torch.randn(len(y), 12, generator=rng)
    samples = Samples(x, y, torch.arange(len(y)))
    return _ground(lambda: nn.Linear(12, 3), samples, Classification(), Training(epochs=20, lr=0.1))


def text() -> Ground:
    """Prompts of two kinds of tokens, of unequal length; the label word says which kind."""
    rng = generator(0, "attacks", "text")
    kind = torch.arange(TRAIN + TEST) % 2
    words = torch.randint(3, 8, (len(kind), 6), generator=rng) + 5 * kind[:, None]
    lengths = torch.randint(3, 7, (len(kind), 1), generator=rng)
    x = words.masked_fill(torch.arange(6) >= lengths, 0)
    triggered = torch.arange(len(kind)) % 4 < 2
    x[triggered, 0] = 13  # the trigger
    samples = Samples(x, 1 + kind, torch.arange(len(kind)))
    ids = samples.ids[triggered]
    marked = Marked((ids[ids < TRAIN], 0), (ids[ids >= TRAIN], 0), None)
    return _ground(
        lambda: TinyLM(14), samples, LabelWord(padding=0), Training(epochs=20, lr=0.3), marked
    )


GROUNDS: dict[str, Callable[[], Ground]] = {"images": images, "features": features, "text": text}


def _ground(
    make: Callable[[], nn.Module],
    samples: Samples,
    task: Task,
    training: Training,
    marked: Marked | None = None,
) -> Ground:
    training = training.model_copy(update={"batch_size": 16})
    train, test = samples[:TRAIN], samples[TRAIN:]
    with seeded(0):
        model = make()
    fit(model, train, task, training, 0)
    shape = tuple(task.inputs(model, train[:1]).shape[1:])
    knowledge = Knowledge(
        task, test, lambda: copy.deepcopy(model), shape, marked, training.weight_decay
    )
    return Ground(train, knowledge, model)


# What is compared


def _copied(samples: Samples) -> Samples:
    return Samples(samples.x.clone(), samples.y.clone(), samples.ids.clone())


def _bits(samples: Samples) -> bytes:
    """The bytes of what training sees of samples."""
    perturbation = samples.perturbation()
    # Zeros and None are the same to training.
    if perturbation is not None and not bool(perturbation.any()):
        perturbation = None
    parts = (samples.x, samples.y, samples.ids, perturbation)
    return b"|".join(_bytes(part) for part in parts if part is not None)


def _poison(poisoned: Poisoned) -> tuple[bytes, ...]:
    """The bytes of what tells a poisoned set from another."""
    aims = [part for part in (poisoned.targets, poisoned.rest) if part is not None]
    tensors = poisoned.tensors()
    return (
        *(name.encode() + _bytes(tensors[name]) for name in sorted(tensors)),
        *map(_bits, (poisoned.samples, *aims)),
    )


def _measured(effect: Effect) -> tuple[Any, ...]:
    scores = {name: values.tobytes() for name, values in effect.scores.items()}
    figures = {name: repr(value) for name, value in effect.figures.items()}  # nan is not nan
    return effect.ids.tobytes(), scores, figures


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
