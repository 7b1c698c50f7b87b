"""The experiments whose rows lie in this folder, and single cells of their summaries.

An experiment without rows is named as missing; nothing is put in its place.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.row_file import FILE, read_file
from marshtest.hypotheses.studied import Study
from marshtest.plumbing.yaml_files import shipped
from marshtest.reporting.tables import NAMES, as_markdown, plus_minus
from marshtest.results.merging import differences, read_all, read_one
from marshtest.results.suite import read_suite
from marshtest.results.summary import Results
from marshtest.sweeps.settings import read_sweep
from marshtest.unlearning import parse_trials

HERE = Path(__file__).parent
ROWS = HERE
SEVEN = ("gd", "ngd", "ga", "euk", "cfk", "scrub", "neggrad+")
CANCELING_RULES, SCALE = "digits-canceling-rules", "cifar10-scale"
SWEPT = (SCALE, CANCELING_RULES)  # files of several recipes
LONGER = "cifar10-gaussian-longer"  # the recipe on images without loss
ORIGINAL = "cifar10-gaussian-original"  # the same, trained for a shorter time as in the other rows
SCALE_AGAIN = "cifar10-scale-again"  # a variant of the sweep once more, in the other precision
RIVAL = "retrain"
FOREIGN = "digits-foreign"  # unlearners of other packages, on digits-gaussian
MARKED = "imdb-tiny-mark"  # most unlearners that take texts, on marks
RIVALS = {  # every unlearner of the package, on every attack
    "rivals-digits-gaussian": "digits, Gaussian",
    "rivals-digits-targeted": "digits, targeted",
    "rivals-digits-indiscriminate": "digits, indiscriminate",
    "rivals-cifar10-small-gaussian": "CIFAR-10, Gaussian",
    "rivals-cifar10-small-targeted": "CIFAR-10, targeted",
    "rivals-imdb-small-gaussian": "IMDb, Gaussian",
}
TRIALS = {  # the search for one that beats tuned retraining
    "candidates-digits-gaussian": "digits, Gaussian",
    "candidates-digits-targeted": "digits, targeted",
    "candidates-digits-indiscriminate": "digits, indiscriminate",
    "candidates-cifar10-small-gaussian": "CIFAR-10, Gaussian",
}
SUITES = {  # every unlearner of a suite, by the settings that the suite gives it
    "images/cifar10-small-gaussian": "CIFAR-10, Gaussian",
    "images/cifar10-small-indiscriminate": "CIFAR-10 features, indiscriminate",
    "images/cifar10-small-confusion": "CIFAR-10 features, confusion",
    "texts/imdb-tiny-gaussian": "IMDb (tiny), Gaussian",
    "texts/imdb-tiny-trigger": "IMDb (tiny), trigger word",
    "texts/imdb-tiny-mark": "IMDb (tiny), marks",
}
SHORT = {
    "cifar10-small-gaussian": "CIFAR-10, Gaussian",
    "cifar10-gaussian": "CIFAR-10 (49,000), Gaussian",
    ORIGINAL: "CIFAR-10 (49,000), Gaussian, original pixels",
    LONGER: "CIFAR-10 (49,000), Gaussian, original pixels, 30 epochs",
    "cifar10-small-targeted": "CIFAR-10, targeted",
    "cifar10-small-indiscriminate": "CIFAR-10 features, indiscriminate",
    "cifar10-indiscriminate": "CIFAR-10 features (24,500), indiscriminate",
    "imdb-tiny-gaussian": "IMDb (tiny), Gaussian",
    "imdb-gaussian": "IMDb (24,500), Gaussian",
    "imdb-small-trigger": "IMDb, trigger word",
    "imdb-trigger": "IMDb (24,500), trigger word",
    "imdb-tiny-trigger": "IMDb (tiny), trigger word",
    "digits-gaussian": "digits, Gaussian",
    "digits-targeted": "digits, targeted",
    "digits-indiscriminate": "digits, indiscriminate",
    "digits-indiscriminate-hidden": "digits, two layers, indiscriminate",
    "digits-budgets": "digits, Gaussian, by compute budget",
    "digits-known": "digits, Gaussian, known in part",
    "digits-requests": "digits, Gaussian, asked for in five requests",
    "digits-states": "digits, Gaussian, after care",
    "sisa-digits-gaussian": "digits, Gaussian, five shards",
    "imdb-tiny-states": "IMDb (tiny), Gaussian, after care",
    "cifar10-small-budgets": "CIFAR-10, Gaussian, by compute budget",
    "cifar10-small-sizes": "CIFAR-10, Gaussian, by size",
    "imdb-tiny-sizes": "IMDb (tiny), Gaussian, by size",
    SCALE_AGAIN: "CIFAR-10, Gaussian, a variant of cifar10-scale in bfloat16",
    "canceling-deep": "plain descent, first tensor, poisons added",
    "canceling-deep-adam": "Adam, first tensor, poisons added",
    "canceling-deep-all": "Adam, all tensors, poisons replace, sets by their sizes",
}
_ALL = "marshtest run {} seeds={} data.validation=0.1 {}unlearners=@benchmarks/rivals/{}.yaml"
_TRIALS = (
    "PYTHONPATH=benchmarks/rivals marshtest run {} seeds={} {}unlearners=@benchmarks/rivals/{}.yaml"
)
_TENTH = "poison_budgets=0.1 "
REPEATED = ("gaussian", "targeted", "indiscriminate", "badnets", "confusion")  # for U-LiRA and KLoM
_REPEATED = "python docs/reproduce/suites.py digits --recipes digits-{} --repeats 32"
_SUITE = "python docs/reproduce/suites.py {} --recipes {}"
_ORIGINAL = (
    "marshtest run cifar10-gaussian seeds=1 poison_budgets=0.015 budgets=0.1 'unlearners=[retrain]'"
)
HOW = {  # what makes the rows of an experiment that is no shipped recipe as it is
    FOREIGN: "marshtest run digits-gaussian seeds=3 \\\n    "
    """'unlearners=[retrain, "from_supreme:ssd", {name: "from_supreme:ssd", alpha: 1}, """
    """"from_erasus:fisher", {name: "from_erasus:fisher", lr: 0.001}]'""",
    **{name: _SUITE.format(*name.split("/")) for name in SUITES},
    "sisa-digits-gaussian": "marshtest run digits-gaussian seeds=5 training.shards=5 'budgets=[0.1, 1]' "
    "'unlearners=[retrain, sisa, {name: gd, lr: 0.1}]'",
    **{f"repeats-digits-{attack}": _REPEATED.format(attack) for attack in REPEATED},
    "rivals-digits-gaussian": _ALL.format("digits-gaussian", 10, "", "digits-mlp"),
    "rivals-digits-targeted": _ALL.format("digits-targeted", 12, "", "digits-mlp"),
    "rivals-digits-indiscriminate": _ALL.format(
        "digits-indiscriminate", 32, _TENTH, "digits-linear"
    ),
    "rivals-cifar10-small-gaussian": _ALL.format(
        "cifar10-small-gaussian", 2, "attack.draws=49 ", "cifar10-small"
    ),
    "rivals-cifar10-small-targeted": "marshtest run cifar10-small-targeted "
    "unlearners=@benchmarks/rivals/cifar10-small-targeted.yaml",
    "rivals-imdb-small-gaussian": _ALL.format(
        "imdb-small-gaussian", 2, "attack.draws=9 ", "imdb-small"
    ),
    "candidates-digits-gaussian": _TRIALS.format("digits-gaussian", 10, "", "candidates-mlp"),
    "candidates-digits-targeted": _TRIALS.format("digits-targeted", 30, "", "candidates-mlp"),
    "candidates-digits-indiscriminate": _TRIALS.format(
        "digits-indiscriminate", 24, _TENTH, "candidates-linear"
    ),
    "candidates-cifar10-small-gaussian": _TRIALS.format(
        "cifar10-small-gaussian", 2, "attack.draws=49 ", "candidates-cifar10-small"
    ),
    ORIGINAL: f"{_ORIGINAL} training.epochs=20 training.batch_size=128 training.schedule=cosine",
    LONGER: _ORIGINAL,
    "gpu-paper-cifar10-gaussian": "marshtest sweep paper-cifar10-gaussian device=cuda seeds=1 "
    "poison_budgets=0.015 budgets=0.1 training.epochs=20 attack.draws=99 'unlearners=[retrain, gd, "
    "{name: ngd, noise_variance: 1.0e-6}, ga, euk, cfk, scrub, neggrad+]' --engine processes --workers 6",
    **{name: f"marshtest sweep {name}" for name in SWEPT},
    "digits-indiscriminate-hidden": "marshtest run digits-indiscriminate model.depth=1 poison_budgets=0.1 "
    "seeds=94",
    "digits-budgets": "marshtest sweep digits-budgets",
    "digits-known": "marshtest run digits-gaussian seeds=5 'known=[0.1, 0.25, 0.5, 1]'",
    "digits-requests": "marshtest run digits-gaussian seeds=5 requests=5",
    "digits-states": "marshtest run digits-gaussian seeds=5 data.validation=0.1 "
    "'states=[int8, int4, trained_on 2]'",
    "imdb-tiny-states": "marshtest run imdb-tiny-gaussian 'states=[int8, int4]'",
    "cifar10-small-budgets": "marshtest run cifar10-small-gaussian attack.draws=49 "
    "'budgets=[0.04, 0.1, 0.2]' 'unlearners=[{name: ngd, noise_variance: 1.0e-6}, euk]'",
    "cifar10-small-sizes": "marshtest sweep cifar10-small-sizes model.width=8 training.epochs=20 "
    "training.batch_size=64 data.train=2000 data.test=1000 attack.draws=29",
    "imdb-tiny-sizes": "marshtest run imdb-tiny-gaussian 'poison_budgets=[0.125, 0.25]'",
    "canceling-deep-adam": "marshtest run canceling-deep attack.optimizer=adam attack.lr=0.1",
    "canceling-deep-all": "marshtest run canceling-deep attack.optimizer=adam attack.lr=0.1 "
    "attack.parameters=all attack.place=replace attack.weighting=size",
}


def there(name: str) -> bool:
    """Whether an experiment has rows."""
    return _suites_file(name).exists() if name in SUITES else (ROWS / name / FILE).exists()


def _suites_file(name: str) -> Path:
    """The file of rows that ships with a suite."""
    suite, recipe = name.split("/")
    return read_suite(suite).rows / f"{recipe}.parquet"


def first_there(*names: str) -> str:
    """The first experiment that has rows, or the last."""
    return next((name for name in names if there(name)), names[-1])


# Of an attack in several sizes the largest answers of which a verdict can be had.
GAUSSIAN_IMAGES = first_there("cifar10-gaussian", "cifar10-small-gaussian")
GAUSSIAN_TEXTS = first_there("imdb-gaussian", "imdb-tiny-gaussian")
TRIGGER = first_there("imdb-small-trigger", "imdb-tiny-trigger")
CANCELED = ("cifar10-small-indiscriminate", "cifar10-indiscriminate")
IMAGES = (GAUSSIAN_IMAGES, "cifar10-small-targeted", *CANCELED)
TEXTS = (GAUSSIAN_TEXTS, TRIGGER)
DIGITS = ("digits-gaussian", "digits-targeted", "digits-indiscriminate")
# With a layer below the last, which CFk and EUk leave as it is.
HIDDEN = "digits-indiscriminate-hidden"
ALL = (*IMAGES, *TEXTS, *DIGITS)
BESIDE = {  # and these stand beside it: slices, and larger ones of too few seeds
    "cifar10-gaussian": ("cifar10-small-gaussian",),
    "imdb-gaussian": ("imdb-tiny-gaussian",),
    "imdb-small-trigger": ("imdb-trigger", "imdb-tiny-trigger"),
}
SIZES = ("cifar10-small-sizes", "imdb-tiny-sizes")
DEEP = ("canceling-deep", "canceling-deep-adam", "canceling-deep-all")
STEPS = ("cifar10-small-budgets", "digits-budgets")


@cache
def results(name: str) -> Results:
    """An experiment's rows."""
    return read_one(_suites_file(name) if name in SUITES else ROWS / name)


@cache
def study(name: str) -> Study:
    """A hypothesis's rows and curves."""
    return Study.of(read_file(ROWS / name))


@dataclass(frozen=True)
class Cell:
    """One unlearner in one experiment, at its largest poison budget and the budget of its figures.

    Attributes:
        names: the attack's scores by which the initial model shows the poison.
    """

    experiment: str
    line: pd.Series
    initial: pd.Series
    names: list[str]

    @property
    def verdict(self) -> str:
        return str(self.line["verdict"])

    @property
    def has_effect(self) -> bool:
        """Whether the initial model surely shows the poison; of few trainings by an interval alone."""
        lows = (self.initial[f"{name}_low"] for name in self.names)
        return str(self.initial["verdict"]) == "NOT REMOVED" or any(low > 0 for low in lows)

    @property
    def left(self) -> float:
        """Share of the initial effect, by the score that shows most; negative if it turned round."""
        return max((self.share(name) for name in self.names), key=abs)

    def share(self, name: str) -> float:
        """The share of the initial effect that one score still shows; negative if it turned round."""
        return float(self.line[f"{name}_dependence"] / self.initial[f"{name}_dependence"])

    @property
    def lost(self) -> float:
        """Test accuracy that full retraining has more."""
        return float(self.line["accuracy_cost"])


def with_others(experiments: Iterable[str]) -> list[str]:
    """Experiments that have rows, each before those that stand beside it."""
    wanted = ((name, *BESIDE.get(name, ())) for name in experiments)
    return [name for group in wanted for name in group if there(name)]


def titled(experiment: str) -> str:
    """An experiment's name, with a dagger where full retraining is not REMOVED.

    That of one which stands beside another is in italics.
    """
    of = results(experiment)
    table = of.summary[of.summary["poison_budget"] == of.poison_budget]
    (retrained,) = table.loc[table["role"] == "retrained", "verdict"]
    mark = "*" * (experiment not in ALL and any(experiment in others for others in BESIDE.values()))
    return mark + SHORT[experiment] + mark + " †" * (retrained != "REMOVED")


def cell(experiment: str, unlearner: str, share: float | None = None) -> Cell:
    """Of several entries of an unlearner the last of the recipe."""
    of = results(experiment)
    table = of.summary[of.summary["poison_budget"] == (share or of.poison_budget)]
    found = table[(table["unlearner"] == unlearner) & (table["budget"] == of.budget)]
    initial = table[table["role"] == "initial"].iloc[0]
    # A share of what is not surely there, also in trainings to come, would be a share of noise.
    surely = [name for name in of.scores_shown if initial.get(f"{name}_trainings_low", 1.0) > 0]
    names = surely or list(of.scores_shown)
    return Cell(experiment, found.sort_values("entry").iloc[-1], initial, names)


def shown(of: Cell) -> str:
    """A cell in words."""
    accuracy = plus_minus(of.line["test_accuracy"], of.line["test_accuracy_sd"], 3)
    left = f"{_shares(of)} left" if of.has_effect else "no effect shown to begin with"
    return f"{of.verdict}, {left}; accuracy {accuracy} ({-of.lost:+.3f})"


def _shares(of: Cell) -> str:
    """What is left by each score, with the scores' names if there are several."""
    shares = [f"{of.share(name):z.0%}" for name in of.names]
    if len(shares) == 1:
        return shares[0]
    titles = [results(of.experiment).scores_shown[name].title for name in of.names]
    return " and ".join(f"{share} ({title})" for share, title in zip(shares, titles, strict=True))


def by_experiment(experiments: Iterable[str], unlearners: Iterable[str]) -> str:
    """Unlearners by experiments that have rows, with those that stand beside them."""
    chosen = list(unlearners)
    lines = []
    for experiment in with_others(experiments):
        texts = {NAMES[name]: shown(cell(experiment, name)) for name in chosen}
        lines.append(
            {"experiment": titled(experiment), "seeds": len(results(experiment).seeds), **texts}
        )
    return as_markdown(pd.DataFrame(lines)) if lines else ""


def command(name: str) -> str:
    """What gives an experiment's rows: the shipped recipe or sweep, and what was changed."""
    if not there(name):
        return f"`{HOW.get(name, f'marshtest run {name}')}`"
    of = results(name)
    if name in shipped("sweeps"):
        verb, base = "sweep", load_recipe(read_sweep(name).variants()[0].values)
    else:
        verb, base = "run", load_recipe(of.recipe.name)
        name = of.recipe.name
    asked, given = (
        recipe.model_dump(mode="json", exclude={"name", "description"})
        for recipe in (base, of.recipe)
    )
    given |= {"seeds": len(of.seeds), "first_seed": of.seeds[0]}  # rows may be of several runs
    changed = {key: value for key, (_, value) in differences(asked, given).items()}
    if "unlearners" in changed:
        changed["unlearners"] = [_entry(trials) for trials in given["unlearners"]]
    told = "".join(f" '{key}={json.dumps(value)}'" for key, value in changed.items())
    return f"`marshtest {verb} {name}{told}`"


def _entry(trials: list[dict[str, Any]]) -> str | dict[str, Any]:
    """An unlearner as a recipe writes it: its name, and the values that it does not have by itself."""
    name = trials[0]["name"]
    itself = parse_trials(name)[0].model_dump(mode="json")
    # Values of a grid, each once; in JSON, since some are lists. The key that changes first comes last.
    every = {key: [json.dumps(trial[key]) for trial in trials] for key in trials[0]}
    slowest = sorted(every, key=lambda key: -len(list(takewhile(every[key][0].__eq__, every[key]))))
    values = {key: [json.loads(text) for text in dict.fromkeys(every[key])] for key in slowest}
    told = {
        key: of if len(of) > 1 else of[0] for key, of in values.items() if of != [itself.get(key)]
    }
    return {"name": name, **told} if told else name


def missing(names: Iterable[str]) -> str:
    """The commands of experiments that have no rows, in a sentence; or nothing."""
    absent = [command(name) for name in names if not there(name)]
    return f"No rows of {', '.join(absent)}." if absent else ""


def hours_of_work(rows: pd.DataFrame) -> float:
    """Hours of work in rows."""
    return float(rows["seconds"].sum() + rows["scoring_seconds"].sum()) / 3600


def origin() -> str:
    """Where the rows come from."""
    lines = []
    for name in filter(there, (*SHORT, *SWEPT)):
        parts = read_all([ROWS / name]).results
        rows = pd.concat([of.rows for of in parts])
        ran = [about for of in parts for about in of.runs.values()]
        made = f"`{HOW[name]}`" if name in SWEPT else command(name)
        lines.append(
            {
                "experiment": f"`{name}`",
                "rows": f"{len(rows)}: {made}",
                "seeds": rows["seed"].nunique(),
                "data": _each(map(_read_from, ran)),
                "poisons a seed": ", ".join(f"{n:.0f}" for n in np.unique(rows["forget_size"])),
                "device": _each(rows["device"]),
                "precision": _each(rows["precision"]),
                "hours of work": f"{hours_of_work(rows):.2f}",
                "algorithm": _each(about["algorithm"] for about in ran),
                "commit": _each(about["commit"] for about in ran),
                "marshtest": _each(
                    f"{about['marshtest']}, torch {about['torch']}, {about['machine']}"
                    for about in ran
                ),
            }
        )
    return as_markdown(pd.DataFrame(lines))


def original_pixels() -> str:
    """Test accuracy of one recipe on the images as published, and on the copy that other rows are of."""
    made = [
        (LONGER, "as published"),
        (ORIGINAL, "as published"),
        ("cifar10-gaussian", "of the copy"),
    ]
    if absent := [name for name, _ in made if not there(name)]:
        return missing(absent)
    told = []
    for name, where in made:
        of = results(name)
        seeds, training = len(of.seeds), of.recipe.training
        by_role = of.summary.set_index("role")["test_accuracy"]
        told.append(
            f"{by_role['initial']:.3f} poisoned and {by_role['retrained']:.3f} retrained after "
            f"{training.epochs} epochs in batches of {training.batch_size} on the images {where} ({seeds} "
            f"seed{'s' * (seeds > 1)})"
        )
    return f"The test accuracy of `cifar10-gaussian` is {', '.join(told)}."


def _read_from(about: Mapping[str, Any]) -> str:
    """The data of a run; of a local copy the digest of its files, too."""
    name = about["values"]["data"]["name"]
    return f"{name}, copy {about['data'][:8]}" if about["data"] else name


def _each(values: Iterable[object]) -> str:
    """The different ones of several values."""
    return ", ".join(map(str, dict.fromkeys(values)))


def introduction() -> str:
    """Which experiments there are, of how many seeds and on what code, and which are not there."""
    lines = [(name, results(name)) for name in filter(there, SHORT)]
    told = ", ".join(f"`{name}` ({len(of.seeds)})" for name, of in lines)
    swept = " and ".join(f"`{name}`" for name in SWEPT)
    of_code = sorted({about["algorithm"] for _, of in lines for about in of.runs.values()})
    code = f"algorithm {' and '.join(map(str, of_code))}"
    said = f"Experiments with rows, and their seeds: {told}; the sweeps {swept}; {code}."
    return "\n\n".join(filter(None, [said, missing(SHORT)]))
