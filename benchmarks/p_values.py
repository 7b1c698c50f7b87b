"""What tests of "no difference" say of a model that holds poison, and of models that never saw it.

    python benchmarks/p_values.py            # two minutes: models on digits, subsamples of poisons
    python benchmarks/p_values.py --seeds    # some minutes: retrained models on CIFAR-10, by seed alone

Rows for docs/reproduce/p-values, which docs/compared.md shows. On digits, 700 of 1,400 samples hold
Gaussian noise. Of each model the poisons' losses, GUS and ranks are measured; then n of the poisons are
drawn without replacement, a thousand times for each n, and three questions are asked of the same n:

    KS     two-sample Kolmogorov–Smirnov test of the poisons' losses by the model and by the retrained one
    MIA    Mann–Whitney test of the poisons' losses and those of n test samples with noise of the same law
    here   marshtest's verdict, with the initial model's scores of the same n poisons

CIFAR-10 is read from $MARSHTEST_DATA/cifar10: ResNet-18 of width 8 on 2,000 images, by ten seeds; the KS
test is of the losses of 10,000 other images by two of the models.
"""

import argparse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ks_2samp, mannwhitneyu
from torch import nn

from marshtest.attacks import Poisoned
from marshtest.experiment.cells import Group
from marshtest.experiment.protocol import (
    Pipeline,
    non_members,
    poison,
    set_up,
    train,
    update,
)
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.experiment.roles import Role
from marshtest.metrics.accuracy import accuracy
from marshtest.metrics.dependence import dependences
from marshtest.metrics.membership import margins_of
from marshtest.metrics.verdict import Evidence, rests_on, verdicts
from marshtest.plumbing.whole_files import write

OUT = Path(__file__).parents[1] / "docs" / "reproduce" / "p-values"
SHARE, BUDGET, ALPHA, MARGIN = 0.5, 0.1, 0.05, 0.2
SIZES, REPETITIONS = (25, 50, 100, 200, 400), 1000
UNLEARNERS = """[
  {name: simnpo, lr: 1.0e-3},
  {name: shrink-perturb, keep: 0.4, batch_size: 16, lr: 0.05, schedule: linear, warmup: 0.1},
  {name: retrain-tuned, batch_size: 8, lr: 0.05, schedule: linear, warmup: 0.1}]"""
DIGITS = (
    "digits-gaussian",
    "seeds=1",
    f"poison_budgets={SHARE}",
    f"budgets={BUDGET}",
    "device=cpu",
)
CIFAR = {
    "data": {"name": "cifar10", "train": 12000, "test": 1000},
    "model": {"name": "resnet18", "width": 8},
    "training": {"epochs": 12, "batch_size": 64, "lr": 0.05, "warmup": 0.1},
    "attack": {"name": "gaussian", "variance": 0.32},
    "poison_budgets": 0.1,
    "budgets": 0.1,
    "seeds": 1,
    "unlearners": ["retrain"],
    "device": "cpu",
}
RETAINED, SEEDS = 2000, 10
LARGE = (500, 1000, 2000, 5000)
Floats = NDArray[np.float64]


def main() -> None:
    """Write the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", action="store_true", help="the retrained models on CIFAR-10")
    if parser.parse_args().seeds:
        write(pd.DataFrame(between_seeds(margins_by_seed())), OUT / "seeds.csv")
        return
    samples, models = measured()
    write(models, OUT / "models.csv")
    write(pd.DataFrame(asked(samples)), OUT / "answers.csv")


def measured() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores of poisons and non-members by each model, a line a sample; and a line a model."""
    recipe = load_recipe(*DIGITS, f"unlearners={UNLEARNERS}")
    pipeline, group = set_up(recipe, data_of(recipe.data, "cpu")), Group(SHARE, 0)
    poisoned = poison(pipeline, group)
    initial, fit = train(pipeline, group, poisoned, Role.INITIAL)
    models = {"initial": initial}
    for name, role in (("retrained", Role.RETRAINED), ("another seed", Role.REFERENCE)):
        models[name] = train(pipeline, group, poisoned, role)[0]
    for (unlearner,) in recipe.unlearners:
        outcomes = update(pipeline, group, poisoned, initial, fit, unlearner, [BUDGET])
        models[unlearner.name] = outcomes[0].model
    samples = pd.concat([scored(name, model, pipeline, poisoned) for name, model in models.items()])
    shown = evidence(samples, "initial")
    lines = [
        {"model": name, "accuracy": accuracy(model, pipeline.task, pipeline.data.test)}
        | whole(samples, name, shown)
        for name, model in models.items()
    ]
    return samples, pd.DataFrame(lines)


def scored(name: str, model: nn.Module, pipeline: Pipeline, poisoned: Poisoned) -> pd.DataFrame:
    """Margins of poisons and of non-members, and the poisons' scores."""
    effect = pipeline.recipe.attack.effect(model, poisoned, pipeline.task)
    forget, fresh = poisoned.forget, non_members(pipeline, poisoned)[0]
    members = pd.DataFrame({"margin": margins_of(model, pipeline.task, forget)})
    members = members.assign(model=name, member=True, label=forget.y.numpy(), **effect.scores)
    others = pd.DataFrame({"margin": margins_of(model, pipeline.task, fresh)})
    return pd.concat([members, others.assign(model=name, member=False, label=fresh.y.numpy())])


def evidence(
    samples: pd.DataFrame, model: str, chosen: NDArray[np.int64] | None = None
) -> Evidence:
    """What some of the poisons show of a model; without a choice, all of them."""
    of = samples[(samples["model"] == model) & samples["member"]]
    of = of if chosen is None else of.iloc[chosen]
    scores = {name: of[name].to_numpy() for name in ("gus", "rank", "rank_ties")}
    return Evidence({0: dependences(scores, of["label"].to_numpy(), fpr=0.01)})


def verdict(initial: Evidence, one: Evidence) -> str:
    """The verdict on one model."""
    rests = rests_on(initial, margin=MARGIN, alpha=ALPHA)
    (answer,) = verdicts(initial, [one], rests=rests, alpha=ALPHA, margin=MARGIN)
    return answer.answer


def whole(samples: pd.DataFrame, name: str, initial: Evidence) -> dict[str, object]:
    """What all the poisons say of a model."""
    shown = evidence(samples, name)
    left = {
        f"{score}_left": shown.pooled[score].value / initial.pooled[score].value
        for score in ("gus", "rank")
    }
    return left | {"verdict": verdict(initial, shown)} | p_values(samples, name)


def p_values(
    samples: pd.DataFrame,
    name: str,
    chosen: NDArray[np.int64] | slice = slice(None),
    others: NDArray[np.int64] | slice = slice(None),
) -> dict[str, float]:
    """The p-values of both tests of no difference, of some poisons and non-members."""
    members, fresh = (margins(samples, name, kind) for kind in (True, False))
    retrained = margins(samples, "retrained", True)
    return {
        "ks_p": float(ks_2samp(members[chosen], retrained[chosen]).pvalue),
        "mia_p": float(mannwhitneyu(members[chosen], fresh[others]).pvalue),
    }


def margins(samples: pd.DataFrame, name: str, member: bool) -> Floats:
    """The margins of a model's poisons, or of its non-members."""
    of = samples[(samples["model"] == name) & (samples["member"] == member)]
    return of["margin"].to_numpy()


def asked(samples: pd.DataFrame) -> Iterator[dict[str, object]]:
    """How often each question is answered how, a line a model and number of poisons."""
    poisons, fresh = (len(margins(samples, "initial", kind)) for kind in (True, False))
    for name in samples["model"].unique():
        for size in SIZES if name not in ("initial", "retrained") else ():
            rng = np.random.default_rng([size, len(name)])
            draws = [
                (
                    rng.choice(poisons, size, replace=False),
                    rng.choice(fresh, min(size, fresh), replace=False),
                )
                for _ in range(REPETITIONS)
            ]
            tests = [p_values(samples, name, *draw) for draw in draws]
            answers = [
                verdict(evidence(samples, "initial", chosen), evidence(samples, name, chosen))
                for chosen, _ in draws
            ]
            yield {
                "model": name,
                "poisons": size,
                "repetitions": REPETITIONS,
                "ks_passes": sum(p["ks_p"] > ALPHA for p in tests),
                "mia_passes": sum(p["mia_p"] > ALPHA for p in tests),
                **{
                    answer: answers.count(answer)
                    for answer in ("REMOVED", "INCONCLUSIVE", "NOT REMOVED")
                },
            }
            print(name, size, flush=True)


def margins_by_seed() -> Floats:
    """[seeds, images] margins of images that no model was trained on; trained models are kept in runs/."""
    recipe = load_recipe(CIFAR)
    pipeline = set_up(recipe, data_of(recipe.data, "cpu"))
    retain, others = pipeline.data.train[:RETAINED], pipeline.data.train[RETAINED:]
    found = []
    for seed in range(SEEDS):
        file = Path("runs") / "p-values" / f"{seed}.npy"
        if not file.exists():
            model, _ = pipeline.trainer.fit(retain, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, margins_of(model, pipeline.task, others))
            print(f"seed {seed}", flush=True)
        found.append(np.load(file))
    return np.array(found)


def between_seeds(of: Floats, repetitions: int = 100) -> Iterator[dict[str, object]]:
    """How often the KS test tells two sound models apart, a line a pair of seeds and number of images."""
    count = of.shape[1]
    for one, other in combinations(range(len(of)), 2):
        for size in (*LARGE, count):
            rng = np.random.default_rng([one, other, size])
            draws = [
                rng.choice(count, size, replace=False)
                for _ in range(repetitions if size < count else 1)
            ]
            p = [ks_2samp(of[one, chosen], of[other, chosen]).pvalue for chosen in draws]
            rejected = int(np.sum(np.array(p) < ALPHA))
            yield {
                "one": one,
                "other": other,
                "accuracy": float((of[one] > 0).mean()),  # of the first; a margin above 0 is right
                "other_accuracy": float((of[other] > 0).mean()),
                "images": size,
                "repetitions": len(p),
                "rejected": rejected,
            }


if __name__ == "__main__":
    main()
