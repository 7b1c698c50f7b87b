"""The settings of tuned retraining, found once: python benchmarks/tuning.py OUT [NAME…]

Runs the searches of benchmarks/tuning/ (all that are named, or every one), each into a folder of OUT, and
prints what each chose: the trial that answers held-out samples best, by the rule of every search. The
seeds are not those by which shipped recipes are judged. A run that is there already is not done again.
"""

import sys
from pathlib import Path

import pandas as pd

import marshtest
from marshtest.reporting.tables import as_markdown
from marshtest.results.summary import Results

SEARCHES = Path(__file__).parent / "tuning"


def line_of(results: Results) -> dict[str, str]:
    """What a search chose, beside the recipe's own retraining in the budget and in full."""
    chosen = results.chosen(results.poison_budget).set_index("unlearner")
    tuned = chosen.loc[["retrain-tuned"]]
    accuracies = {
        "tuned": tuned,
        "the recipe's own": chosen.loc[["retrain"]],
        "full retraining": chosen[chosen["role"] == "retrained"],
    }
    return {
        "search": results.recipe.name,
        "chosen": str(tuned["hyperparameters"].iloc[0]),
        **{
            f"held out, {name}": f"{rows['validation_accuracy'].mean():.4f}"
            for name, rows in accuracies.items()
        },
        "seeds": str(len(results.seeds)),
    }


def main(out: Path, names: list[str]) -> None:
    lines = []
    for name in names or sorted(path.stem for path in SEARCHES.glob("*.yaml")):
        results = marshtest.run(SEARCHES / f"{name}.yaml", out=out / name, report=False)
        lines.append(line_of(results))
    print(as_markdown(pd.DataFrame(lines)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
