"""Two runs side by side, cell by cell, with paired tests: did the new version of an unlearner do better?

Both runs poison, train and measure the same (that is checked), so their models of one seed share the
poisons and the initial model, and differences are taken within seeds. Over *seeds* a paired t test
speaks of training runs to come; over *poisons*, where a score has one value each, it speaks of these very
models, with more power. p-values are Holm-corrected within each kind.

Retraining leaves a score of 0, so the *better* of two scores is the nearer to 0: |B| < |A| if and only
if B − A and A + B have opposite signs. It is called where both are surely not 0: an intersection-union
test.
Two scores on either side of 0 may differ surely, and neither be better.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.metrics.trainings import TINY, error_of_mean, interval_over, p_positive
from marshtest.metrics.verdict import holm
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.merging import differences, setting
from marshtest.results.naming import differing, marks, settings
from marshtest.results.summary import GROUP, Results

ACCURACY = "test_accuracy"
UNITS = {"seeds": "in trainings to come", "poisons": "in these models"}
LEGEND = (
    "Difference: B − A within seeds (trainings to come) or poisons (these models), mean with the 95 % "
    "interval of this line alone; p: paired t test of a difference (sign test of differences that are all "
    "equal), Holm-corrected over all lines of the same unit with a test. Better: surely the higher "
    "accuracy, or the score nearer to 0, where retraining is; the sentences give the p of this, which is "
    "larger."
)


def compare(a: Results, b: Results) -> pd.DataFrame:
    """One line a pair of unlearners, poison and compute budget, measure and unit.

    Unlearners are paired by name and hyper-parameters; else by name, where it is there once in each;
    else, if one is left over in each, these two.

    Columns: `a` and `b` (unlearner, and by what two versions of it differ), `poison_budget`, `budget`,
    `measure` and its `title`, `unit`, `n`, `mean_a`, `mean_b`, `difference`, `low`, `high`,
    `p` (corrected; nan without a test), `p_better` (that one is better, likewise), `better` ("A", "B" or
    "").

    Raises:
        MarshtestError: the runs are of different settings, or share no seed or no unlearner.
    """
    apart = differences(setting(a), setting(b))
    if apart:
        told = "; ".join(f"{key} is {one} and {other}" for key, (one, other) in apart.items())
        raise MarshtestError(
            f"compare: the runs differ in more than unlearners ({told}), so they cannot be paired. Run "
            "both by one recipe."
        )
    if not set(a.seeds) & set(b.seeds):
        seeds = [", ".join(map(str, results.seeds)) for results in (a, b)]
        raise MarshtestError(
            f"compare: the runs share no seed (A has {seeds[0]}, B {seeds[1]}). Run the same ones."
        )
    lines = [line for pair in _pairs(a, b) for line in _lines(a, b, *pair)]
    if not lines:
        names = ["; ".join(sorted(set(r.summary["unlearner"]))) for r in (a, b)]
        raise MarshtestError(
            f"compare: no unlearner of A ({names[0]}) goes with one of B ({names[1]}). Give runs that "
            "share names, poison budgets and compute budgets, or have one unlearner each."
        )
    table = pd.DataFrame(lines)
    for _, of in table[table["p"].notna()].groupby("unit"):
        for column in ("p", "p_better"):
            table.loc[of.index, column] = holm(of[column].tolist())
    means = table[["mean_a", "mean_b"]]
    worth = means.where(table["measure"] == ACCURACY, -means.abs(), axis=0)
    better = np.where(worth["mean_a"] > worth["mean_b"], "A", "B")
    table["better"] = np.where(table["p_better"] <= a.recipe.verdict.alpha, better, "")
    return table


def unpaired(a: Results, b: Results) -> str:
    """The unlearners of either run that go with none of the other's, in a sentence; or nothing."""
    paired = [[pair[side] for pair in _pairs(a, b)] for side in (0, 1)]
    told = []
    for name, results, own in zip("AB", (a, b), paired, strict=True):
        cells = [cell for share in results.poison_budgets for cell in _cells(results, share)]
        keys = differing(results.recipe.unlearners)
        names = dict.fromkeys(
            cell[0] + marks({"unlearner": cell[0], "hyperparameters": cell[1]}, keys)
            for cell in cells
            if cell not in own
        )
        told += [f"{name} has {', '.join(names)}"] if names else []
    return f"Not compared, for want of a partner: {'; '.join(told)}." if told else ""


def sentences(table: pd.DataFrame) -> list[str]:
    """What the tests say of each pair, of these models and of trainings to come apart."""
    said = []
    for (one, other), own in table.groupby(["a", "b"], sort=False):
        name = one if one == other else f"{one} (A) and {other} (B)"
        told = [
            f"{UNITS[str(unit)]} {_found(lines)}"
            for unit, lines in own.groupby("unit", sort=False)
            if (lines["n"] > 1).any()
        ]
        shown = (own["better"] != "").any()
        said.append(f"{name}: {'; '.join(told) if shown else 'neither is shown to be better'}.")
    return said


def _found(lines: pd.DataFrame) -> str:
    """Which of two is better by what, in words, for the lines of one pair and unit."""
    found = [
        f"{line['better']} is better by {line['measure']} ({line['mean_a']:.3f} and "
        f"{line['mean_b']:.3f}, p {line['p_better']:.2g}, {line['n']:,} {line['unit']})"
        for _, line in lines[lines["better"] != ""].iterrows()
    ]
    return ", ".join(found) or "neither is shown to be better"


Cell = tuple[Any, ...]


def _pairs(a: Results, b: Results) -> Iterator[tuple[Cell, Cell, float]]:
    """Pairs of cells (unlearner, hyper-parameters, entry, compute budget) at each poison budget."""
    for share in (share for share in a.poison_budgets if share in b.poison_budgets):
        one, other = (_cells(results, share) for results in (a, b))
        for budget in (budget for budget in a.budgets if budget in b.budgets):
            left = [cell for cell in one if cell[-1] == budget]
            right = [cell for cell in other if cell[-1] == budget]
            # From the surest mark to the weakest; whoever is paired by one is out of the next.
            for same in (lambda cell: cell[:2], lambda cell: cell[:1], lambda cell: ()):
                for cell in list(left):
                    mates = [mate for mate in right if same(mate) == same(cell)]
                    rivals = [rival for rival in left if same(rival) == same(cell)]
                    if len(mates) == len(rivals) == 1:
                        yield cell, mates[0], share
                        left.remove(cell)
                        right.remove(mates[0])


def _cells(results: Results, share: float) -> list[Cell]:
    table = results.summary
    updated = table[(table["role"] == "updated") & (table["poison_budget"] == share)]
    columns = ["unlearner", "hyperparameters", "entry", "budget"]
    return list(updated[columns].itertuples(index=False, name=None))


def _lines(
    a: Results, b: Results, one: Cell, other: Cell, share: float
) -> Iterator[dict[str, Any]]:
    rows = [_left(results, _rows(results, cell, share)) for results, cell in ((a, one), (b, other))]
    names = _names(one, other, [differing(results.recipe.unlearners) for results in (a, b)])
    about = {"a": names[0], "b": names[1], "poison_budget": share, "budget": one[-1]}
    titles = {ACCURACY: "accuracy"} | {name: of.title for name, of in a.scores_shown.items()}
    for measure, title in titles.items():
        pair = rows[0].merge(rows[1], on="seed", suffixes=("_a", "_b"))
        column = measure if measure == ACCURACY else f"{measure}_dependence"
        yield about | {"title": title} | _tested(pair, column, measure, "seeds")
    told = [
        results.scores_of(share, _line(results, cell)) for results, cell in ((a, one), (b, other))
    ]
    if all(len(scores) and "id" in scores for scores in told):
        both = told[0].merge(told[1], on=["seed", "id"], suffixes=("_a", "_b"))
        for name in (n for n in a.recipe.attack.shown.null_scores if f"{n}_a" in both):
            dependence = both.assign(**{f"{name}_{x}": -both[f"{name}_{x}"] for x in ("a", "b")})
            tested = _tested(dependence, name, name, "poisons")
            yield about | {"title": titles[name]} | tested


def _names(one: Cell, other: Cell, apart: Sequence[Mapping[str, set[str]]]) -> tuple[str, str]:
    """The names of two unlearners, with the options that tell them from each other, and from others.

    Args:
        apart: of either's results the options in which entries of one name differ, by the name.
    """
    given = [settings(json.loads(cell[1])) for cell in (one, other)]
    keys = [key for key in given[0] | given[1] if given[0].get(key) != given[1].get(key)]
    if one[0] != other[0]:
        keys = []
    names = []
    for cell, of, own in zip((one, other), given, apart, strict=True):
        others = own.get(cell[0], set())
        told = [*keys, *(key for key in of if key in others and key not in keys)]
        names.append(cell[0] + "".join(f" {key}={of.get(key)}" for key in told))
    return names[0], names[1]


def _rows(results: Results, cell: Cell, share: float) -> pd.DataFrame:
    chosen = results.chosen(share)
    of = np.logical_and.reduce([chosen[c] == v for c, v in _line(results, cell).items()])
    return chosen[of]


def _left(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with what is left by effects that are compared with a clean twin's."""
    twins = {
        f"{name}_dependence": rows[column] - rows[f"twin_{column}"]
        for name, column in results.recipe.attack.shown.reference_columns.items()
    }
    return rows.assign(**twins)


def _line(results: Results, cell: Cell) -> dict[str, Any]:
    unlearner, hyperparameters, entry, budget = cell
    return dict(zip(GROUP, ("updated", entry, unlearner, hyperparameters, budget), strict=True))


def _tested(pair: pd.DataFrame, column: str, measure: str, unit: str) -> dict[str, Any]:
    both = pair[[f"{column}_a", f"{column}_b"]]
    values = both.dropna().to_numpy(dtype=np.float64)
    # Of trainings to come nothing is said by those alone that gave both models.
    whole = unit != "seeds" or len(values) == len(both)
    difference: NDArray[np.float64] = values[:, 1] - values[:, 0]
    n, low, high, p, nearer = len(values), math.nan, math.nan, math.nan, math.nan
    if whole and n > 1:
        p = nearer = _p_of_mean(difference)
        # Differences that are all equal tell no spread, and no interval.
        if difference.std() > TINY:
            low, high = interval_over(n, float(difference.mean()), error_of_mean(difference))
        if measure != ACCURACY:
            # Of a score the nearer to 0 is better, and only sum and difference together tell which.
            # Where they are opposite in each training, neither is nearer.
            nearer = max(p, _p_of_mean(values.sum(1)))
    mean = values.mean(0) if n else (math.nan, math.nan)
    return {
        "measure": measure,
        "unit": unit,
        "n": n,
        "mean_a": float(mean[0]),
        "mean_b": float(mean[1]),
        "difference": float(difference.mean()) if n else math.nan,
        "low": float(low),
        "high": float(high),
        "p": p,
        "p_better": nearer,
    }


def _p_of_mean(values: NDArray[np.float64]) -> float:
    """The two-sided p-value of "the mean is 0": a t test, or the sign test of values that are all equal."""
    return min(1.0, 2 * min(p_positive(values), p_positive(-values)))
