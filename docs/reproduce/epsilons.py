"""Bounds on ε of mechanisms whose ε is known, and poisons that labels need (docs/mathematics.md)."""

import pandas as pd
from experiments import HERE

from marshtest.commands.plan import DRAWS, SPREAD, plan
from marshtest.metrics.binomial import interval_of_share
from marshtest.metrics.labels import expected
from marshtest.reporting.tables import as_markdown

BOUNDS = HERE / "privacy" / "bounds.csv"  # by benchmarks/privacy.py
VERDICTS = HERE / "labels" / "verdicts.csv"  # by benchmarks/labels.py
TITLES = {
    "steinke": "Steinke",
    "f_dp": "f-DP",
    "larger": "the larger",
    "gaussian": "if Gaussian",
}


def epsilons() -> str:
    """Mean bounds beside each other, and how often the reported ones exceed the true ε."""
    rows = pd.read_csv(BOUNDS)
    lines = []
    for name, of in rows.groupby("mechanism", sort=False):
        by = of.set_index("bound")
        line = {"mechanism": name, "ε": f"{by['epsilon'].iloc[0]:.2f}"}
        line |= {title: f"{by.loc[bound, 'mean']:.2f}" for bound, title in TITLES.items()}
        for bound in ("larger", "gaussian"):
            line[f"{TITLES[bound]} exceeds ε"] = _share(by.loc[bound])
        lines.append(line)
    (repeats,) = rows["repeats"].unique()
    return f"{as_markdown(pd.DataFrame(lines))}\n\nMeans over {repeats:,} repetitions each."


def _share(line: pd.Series) -> str:
    return _interval(line["above"], line["repeats"])


def _interval(hits: int, n: int) -> str:
    low, high = interval_of_share(hits / n, n)
    return f"{hits / n:.1%} [{low:.1%}, {high:.1%}]"


def labels_acquit() -> str:
    """How often a model anew, and one that keeps a fifth, was REMOVED by labels at the planned number."""
    lines = [
        {
            "right with noise": f"{of.right:.0%}",
            "poisons": f"{of.poisons:,}",
            "REMOVED, trained anew": _interval(of.anew_removed, of.runs),
            "REMOVED, a fifth kept": _interval(of.fifth_removed, of.runs),
        }
        for of in pd.read_csv(VERDICTS).itertuples()
    ]
    return as_markdown(pd.DataFrame(lines))


def labels_needed(rank: float = 1.0) -> str:
    """Poisons for a verdict by losses and by labels, where losses would show a dependence of `rank`."""
    lines = []
    for right in (0.6, 0.8, 0.9, 0.97):
        by_losses, by_labels = plan(rank=rank), plan(rank=rank, right=right)
        lines.append(
            {
                "right with noise": f"{right:.0%}",
                "poisons of which labels tell something": f"{_testable(rank, right):.0%}",
                "to detect, by losses": _count(by_losses, "poisons to detect"),
                "by labels": _count(by_labels, "poisons to detect"),
                "to show removal, by losses": _count(by_losses, "poisons to show removal"),
                "by labels ": _count(by_labels, "poisons to show removal"),
            }
        )
    return as_markdown(pd.DataFrame(lines))


def _testable(rank: float, right: float) -> float:
    return expected(rank, right, DRAWS, SPREAD).testable


def _count(planned: object, column: str) -> str:
    table: pd.DataFrame = planned.table()  # type: ignore[attr-defined]
    return f"{table[column].iloc[-1]:,.0f}"
