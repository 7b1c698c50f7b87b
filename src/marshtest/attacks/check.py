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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save
from scipy.stats import kstest, ttest_1samp
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.attacks.base import Attack, Effect, Floats, Knowledge, Poisoned
from marshtest.attacks.presentation import Presentation
from marshtest.attacks.soundness import refuse_names, refuse_unsound_effect, refuse_unsound_poison
from marshtest.attacks.table import parse_attack
from marshtest.data.samples import Marked, Samples, Trigger, Written
from marshtest.metrics.presentation import Column, Score
from marshtest.models.state import same_tensors
from marshtest.plumbing.choice import Choice
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.facts import (
    KEEP_MEND,
    KEEPS_NOTHING,
    KINDS,
    RUNS,
    Fact,
    Finding,
    facts_of,
    is_number,
    refuse_unknown_kinds,
)
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.identity import digest
from marshtest.plumbing.seeds import generator, seeded
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification, LabelWord, Task
from marshtest.unlearning.check import TinyLM
from marshtest.unlearning.harness import hooks_of

TRAIN, TEST = 240, 80
COUNT = 24  # poisons
REPEATS = 25  # seeds whose scores go through one test of their law
LEVEL = 1e-4  # share of sound scores that the test refuses
ROOM = 36  # tokens of a text
SMALLER = 1e-3  # level of the test for scores that fall where the poison was trained on
MEAN = 1e-5  # how far, relatively, a score's column may be off the score's mean

MAKES = f"{RUNS}poisons"
MEASURES = f"{RUNS}the effect on a model"


@dataclass(frozen=True)
class Ground:
    """Samples to poison, what an attack may know, and a model that never saw poison."""

    samples: Samples
    knowledge: Knowledge
    model: nn.Module
    training: Training

    def poison(
        self, attack: Attack, seed: int, global_seed: int = 0, samples: Samples | None = None
    ) -> Poisoned:
        """The attack's poisons, by default in a copy of the samples.

        Args:
            global_seed: seeds the generators of the process, on which poisons must not depend.
        """
        samples = copied(self.samples) if samples is None else samples
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
            attack that looks for a trigger or writes, and the two others for any other.

    Returns:
        All facts, in the order of checking; the attack is fit for use if every one holds.

    Raises:
        MarshtestError: an unknown kind of data, no attack, or options that it does not take.
    """
    with foreign("check"):
        ready = parse_attack(attack).imported()
    refuse_unknown_kinds(on)
    with foreign(ready.name):
        trigger = ready.trigger()
    if not isinstance(trigger, Trigger | None):
        raise MarshtestError(f"{ready.name}: trigger gives {trigger!r}. Give a Trigger, or None.")
    made_for = ("images", "features") if trigger is None and not ready.writes else ("text",)
    return facts_on(on or made_for, ready, _findings)


C = TypeVar("C", bound=Choice)


def facts_on(
    kinds: Collection[str], thing: C, find: Callable[[C, Ground], Iterator[Finding]]
) -> list[Fact]:
    """What `find` finds of a thing on the small problem of each kind of data."""
    return [
        fact
        for kind in KINDS
        if kind in kinds
        for fact in facts_of(kind, thing.name, partial(find, thing, GROUNDS[kind]()))
    ]


def _findings(attack: Attack, ground: Ground) -> Iterator[Finding]:
    samples, test = copied(ground.samples), copied(ground.knowledge.test)
    state = digest(type(attack), attack.name)
    try:
        poisoned = ground.poison(attack, seed=0, samples=samples)
        again, other = (ground.poison(attack, seed, global_seed=1 + seed) for seed in (0, 1))
        labels = ground.samples.y
        refuse_unsound_poison(poisoned, (int(labels.min()), int(labels.max())), attack.name)
        _refuse_infinite(poisoned.figures, attack.name)
        with foreign(attack.name):
            poisoned.samples  # noqa: B018 - raises where ids are not there
        yield MAKES, True, ""
    except MarshtestError as error:
        yield MAKES, False, str(error)
        return
    yield (
        "leaves the samples passed in as they were",
        bits(samples) == bits(ground.samples) and bits(test) == bits(ground.knowledge.test),
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
    model = copy.deepcopy(ground.model).eval()
    try:
        effect = ground.effect(attack, poisoned, model=model)
        refuse_unsound_effect(effect, attack.name)
        _refuse_infinite(effect.figures, attack.name)
        refuse_names((*effect.scores, *effect.figures), attack.name)
        yield MEASURES, True, ""
    except MarshtestError as error:
        yield MEASURES, False, str(error)
        return
    yield unchanged("leaves the model that it measures as it was", model, ground.model)
    yield from _effect_findings(attack, ground, poisoned, effect)
    yield from _direction(attack, ground, poisoned)
    yield keeps_nothing(attack, state)


def keeps_nothing(thing: Choice, state: str) -> Finding:
    """The finding that a user's class has the digest `state` still."""
    return KEEPS_NOTHING, digest(type(thing), thing.name) == state, KEEP_MEND


def unchanged(name: str, model: nn.Module, before: nn.Module) -> Finding:
    """The finding `name` that a model in evaluation mode is as it was `before`, hooks and gradients too."""
    parameters = zip(model.parameters(), before.parameters(), strict=False)
    changed = {
        "weights": not same_tensors(model.state_dict(), before.state_dict()),
        "training mode": any(module.training for module in model.modules()),
        "hooks": any(map(hooks_of, model.modules())),
        "requires_grad": any(one.requires_grad != two.requires_grad for one, two in parameters),
        "gradients": any(parameter.grad is not None for parameter in model.parameters()),
    }
    differ = ", ".join(what for what, other in changed.items() if other)
    return name, not differ, f"{differ} differ; use a copy: copy.deepcopy(model)"


def _refuse_infinite(figures: Mapping[str, Any], where: str) -> None:
    if odd := [name for name, value in figures.items() if not is_number(value)]:
        raise MarshtestError(f"{where}: figures {', '.join(map(str, odd))} are no finite numbers.")


def _direction(attack: Attack, ground: Ground, poisoned: Poisoned) -> Iterator[Finding]:
    """What the scores say of a model that was trained on the poison, of its clean twin, and of nonsense."""
    models = [copy.deepcopy(ground.model) for _ in range(3)]
    for model, samples in zip(models, (poisoned.samples, poisoned.unpoisoned), strict=False):
        fit(model, samples, ground.knowledge.task, ground.training, 0)
    for parameter in models[2].parameters():
        parameter.data.neg_()
    scores = [ground.effect(attack, poisoned, model=model).scores for model in models]
    names = [name for name in attack.shown.scores if all(name in some for some in scores)]
    same = [name for name in names if len({some[name].tobytes() for some in scores}) == 1]
    yield (
        "has other scores on another model",
        not same,
        f"{', '.join(same)}: the same on three models; measure the model that is passed in",
    )
    # A score with a known null law may have too little power on so small a problem.
    compared = [name for name in names if name in attack.shown.reference_columns]
    smaller = [name for name in compared if _falls(scores[0][name], scores[1][name])]
    yield (
        "scores no less where the poison was trained on",
        not smaller,
        f"{', '.join(smaller)}: less than on the clean twin; more must mean that more poison is left",
    )


def _falls(poisoned: Floats, twin: Floats) -> bool:
    """Whether scores after training on the poison are less than the clean twin's, by a t-test."""
    change = (poisoned - twin)[np.isfinite(poisoned - twin)]
    return len(change) > 2 and bool(ttest_1samp(change, 0, alternative="less").pvalue < SMALLER)


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
        bits(poisoned.retain) == bits(retain),
        "samples that are no poisons differ from those passed in",
    )
    yield (
        "changes what it poisons",
        bits(poisoned.forget) != bits(poisoned.unpoisoned.only(ids)),
        "the forget set is its own bases; give labels or perturbations",
    )
    yield _control(attack, poisoned)
    counts = (*attack.crafting(COUNT), attack.added(COUNT), attack.passes(COUNT, TEST))
    yield (
        "says how much work it is",
        all(is_number(count, missing=False) and count >= 0 for count in counts),
        f"crafting, added and passes give {counts}; numbers from 0 are needed",
    )
    yield _survives(ground, poisoned)


def _control(attack: Attack, poisoned: Poisoned) -> Finding:
    blind, others = attack.shuffled(poisoned, 0), (poisoned.samples, poisoned.unpoisoned)
    is_other = blind is not None and bits(blind) not in map(bits, others)
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
    holds = _poison(back) == _poison(poisoned) and bits(back.unpoisoned) == bits(
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
    yield from _score_findings(shown, poisoned, effect)
    named = [name for name in shown.null_scores if name in effect.scores]
    yield from _null_laws(attack, ground, named)


def _score_findings(shown: Presentation, poisoned: Poisoned, effect: Effect) -> Iterator[Finding]:
    scores = {name: effect.scores[name] for name in shown.scores if name in effect.scores}
    sets = [some.ids.numpy() for some in (poisoned.forget, poisoned.targets) if some is not None]
    yield (
        "scores its poisons, or its targets, in their order",
        any(np.array_equal(effect.ids, ids) for ids in (*sets, np.array([-1]))),
        "`ids` must be `poisoned.forget.ids`, `poisoned.targets.ids`, or -1 for one score of all",
    )
    undefined = [name for name, values in scores.items() if np.isfinite(values).mean() < 0.8]
    yield (
        "has a score for each of its ids",
        not undefined,
        f"{', '.join(undefined)}: a number for each is needed, nan where one is undefined",
    )
    defined = {name: values[~np.isnan(values)] for name, values in scores.items()}
    off = [
        column
        for name, column in shown.reference_columns.items()
        if name in scores and column in effect.figures and len(defined[name])
        if not np.isclose(effect.figures[column], defined[name].mean(), MEAN, MEAN)
    ]
    yield (
        "a compared score's column is its mean",
        not off,
        f"{', '.join(off)}: {MEAN:g} of its size is allowed for rounding",
    )
    values: dict[str, Any] = {
        **effect.figures,
        **{n: scores[n] for n in shown.reference_columns if n in scores},
    }
    beyond = beyond_range({**shown.columns, **shown.scores}, values)
    yield "keeps to the ranges that its presentation gives", not beyond, f"{beyond} out of range"


def beyond_range(shown: Mapping[str, Column | Score], values: Mapping[str, Any]) -> str:
    """Names of the values that are less than their `low` or more than their `high`."""
    return ", ".join(
        name
        for name, one in shown.items()
        if name in values
        and not np.isnan(values[name]).all()
        and (
            (one.low is not None and np.nanmin(values[name]) < one.low - MEAN)
            or (one.high is not None and np.nanmax(values[name]) > one.high + MEAN)
        )
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

    return _ground(make, Samples(x, y, _ids()), task, Training(epochs=10, lr=0.05))


def features() -> Ground:
    """Gaussian blobs of three classes."""
    rng = generator(0, "attacks", "features")
    y = torch.arange(TRAIN + TEST) % 3
    x = torch.randn(3, 12, generator=rng)[y] + torch.randn(len(y), 12, generator=rng)
    samples = Samples(x, y, _ids())
    return _ground(lambda: nn.Linear(12, 3), samples, Classification(), Training(epochs=20, lr=0.1))


def text() -> Ground:
    """Prompts of two kinds of tokens, of unequal length; the label word says which kind."""
    rng = generator(0, "attacks", "text")
    kind = torch.arange(TRAIN + TEST) % 2
    words = torch.randint(3, 8, (len(kind), 6), generator=rng) + 5 * kind[:, None]
    lengths = torch.randint(3, 7, (len(kind), 1), generator=rng)
    x = F.pad(words.masked_fill(torch.arange(6) >= lengths, 0), (0, ROOM - 6))
    triggered = torch.arange(len(kind)) % 4 < 2
    x[triggered, 0] = 13  # the trigger
    samples = Samples(x, 1 + kind, _ids())
    written = Spelled(dict(zip(samples.ids.tolist(), x, strict=True)))
    train, test = (samples.ids[at][triggered[at]] for at in (slice(TRAIN), slice(TRAIN, None)))
    marked = Marked((train, 0), (test, 0), None)
    return _ground(
        lambda: TinyLM(14),
        samples,
        LabelWord(padding=0),
        Training(epochs=20, lr=0.3),
        marked,
        {"train": written, "test": written},
    )


@dataclass(frozen=True)
class Spelled:
    """Texts whose tokens stand for a digit each; letters stand for digits too, the rest for nothing."""

    by_id: Mapping[int, Tensor]

    def excerpt(self, sample: int, spare: int) -> str:
        return "".join(str(token - 3) for token in self.by_id[sample].tolist() if 3 <= token < 13)

    def size(self, text: str) -> int:
        return sum(map(str.isalnum, text))

    def write(self, texts: Sequence[str]) -> Tensor:
        rows = [[3 + ord(c) % 48 % 10 for c in text if c.isalnum()][:ROOM] for text in texts]
        return torch.tensor([row + [0] * (ROOM - len(row)) for row in rows])


def _ids() -> Tensor:
    """Ids that are no positions, in no order."""
    return 1000 + torch.randperm(TRAIN + TEST, generator=generator(0, "attacks", "ids"))


GROUNDS: dict[str, Callable[[], Ground]] = {"images": images, "features": features, "text": text}


def _ground(
    make: Callable[[], nn.Module],
    samples: Samples,
    task: Task,
    training: Training,
    marked: Marked | None = None,
    texts: Mapping[str, Written] | None = None,
) -> Ground:
    training = training.model_copy(update={"batch_size": 16})
    train, test = samples[:TRAIN], samples[TRAIN:]
    with seeded(0):
        model = make()
    fit(model, train, task, training, 0)
    shape = tuple(task.inputs(model, train[:1]).shape[1:])
    knowledge = Knowledge(
        task,
        test,
        lambda: copy.deepcopy(model),
        shape,
        marked,
        training.weight_decay,
        texts,
    )
    return Ground(train, knowledge, model, training)


# What is compared


def copied(samples: Samples) -> Samples:
    """Copy samples that carry no perturbations."""
    return Samples(samples.x.clone(), samples.y.clone(), samples.ids.clone())


def bits(samples: Samples) -> bytes:
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
        *map(bits, (poisoned.samples, *aims)),
    )


def _measured(effect: Effect) -> tuple[Any, ...]:
    scores = {name: values.tobytes() for name, values in effect.scores.items()}
    figures = {name: repr(value) for name, value in effect.figures.items()}  # nan is not nan
    return effect.ids.tobytes(), scores, figures


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
