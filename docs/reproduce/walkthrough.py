"""The walk-throughs of pages as they ran, and tables beside them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from experiments import HERE

from marshtest.metrics.dependence import SCORES
from marshtest.reporting.tables import as_markdown, plus_minus

DOORS = HERE / "audit-text" / "doors.csv"  # by benchmarks/doors.py
DOSES = HERE / "audit-tables" / "doses.csv"  # by benchmarks/tables.py
ROUNDING = HERE / "audit" / "rounding.csv"  # by benchmarks/rounding.py
LEGENDS = ("Perplexity:", "Accuracy:")  # how what explains a table begins
VERDICTS = ("Poison budget", "before ")  # how verdicts in words begin
SECTIONS = {  # of a page with another walk-through: between which lines it stands
    "first-hour": ("## Run", "## How long it took"),
    "audit": ("## The walk-through", "## "),
}
KINDS_OF_MODEL = {"forest": "random forest", "boosted": "boosted trees", "network": "network"}


def transcript(page: str) -> Path:
    """What the walk-through of a page printed, by benchmarks/walkthrough.py."""
    return HERE / page / "transcript.json"


def commands(page: str = "audit-text") -> list[str]:
    """The shell blocks of a page's walk-through."""
    return _blocks(page, "sh")


def modules(page: str) -> list[str]:
    """The Python blocks of a page's walk-through."""
    return _blocks(page, "python")


def _blocks(page: str, language: str) -> list[str]:
    begin, end = SECTIONS.get(page, ("## A walk-through", "## "))
    _, _, section = (HERE.parent / f"{page}.md").read_text().partition(f"\n{begin}\n")
    return re.findall(rf"```{language}\n(.*?)```", section.partition(f"\n{end}")[0], re.DOTALL)


def said(number: int, whole: bool = True, page: str = "audit-text") -> str:
    """What a block of the walk-through printed, or its table alone."""
    lines = _lines(number, page)
    if not whole:  # what follows the table's last line explains it
        end = next(place for place, line in enumerate(lines) if line.startswith(LEGENDS))
        lines = [line for line in lines[:end] if not line.startswith("A wider terminal")]
    return _fenced(lines)


def verdicts_said(number: int, page: str) -> str:
    """The verdicts in words that a block printed behind its table and legend, and what follows them."""
    lines = _lines(number, page)
    begin = next(place for place, line in enumerate(lines) if line.startswith(VERDICTS))
    return _fenced(lines[begin:])


def _lines(number: int, page: str) -> list[str]:
    """The lines that a block printed.

    Raises:
        ValueError: the block has other commands now.
    """
    block = json.loads(transcript(page).read_text())["blocks"][number]
    if block["commands"] != commands(page)[number]:
        raise ValueError(
            f"run `python benchmarks/walkthrough.py {page}`: its commands have changed"
        )
    return [line.rstrip() for line in block["said"].rstrip().splitlines()]


def _fenced(lines: Iterable[str]) -> str:
    told = "\n".join(lines).strip("\n")
    return f"```text\n{told}\n```"


def doses() -> str:
    """What each kind of model keeps of each dose, fitted on it and fitted anew."""
    lines = pd.read_csv(DOSES)
    shown = pd.DataFrame(
        {
            "table": lines["table"],
            "ε²": lines["variance"].map("{:g}".format),
            "model": lines["model"].map(KINDS_OF_MODEL),
            **{
                title: [
                    f"{rank:.2f} ± {error:.2f}, {verdict}"
                    for rank, error, verdict in lines[
                        [f"{role}_rank", f"{role}_error", f"{role}_verdict"]
                    ].itertuples(index=False)
                ]
                for role, title in (("before", "fitted on the dose"), ("after", "fitted anew"))
            },
            "accuracy": [
                f"{one:.3f}, {other:.3f}"
                for one, other in lines[["before_accuracy", "after_accuracy"]].itertuples(
                    index=False
                )
            ],
            "ε ≥": lines["before_epsilon"].map("{:.2f}".format),
        }
    )
    return as_markdown(shown)


def rounding() -> str:
    """What rounding and clipping leave of a dose's variance, and of what a model shows of it."""
    lines = pd.read_csv(ROUNDING)
    kinds = {"byte": "8 bit", "float": "float"}
    shown = {
        f"{score.title}, {what}": [
            plus_minus(value, error, 3) if error > 0 else "–"
            for value, error in lines[[f"{name}_{kind}", f"{name}_{kind}_error"]].itertuples(
                index=False
            )
        ]
        for name, score in SCORES.items()
        for kind, what in kinds.items()
    }
    left = lines["left"].map("{:.0%}".format)
    variance = lines["variance"].map("{:g}".format)
    return as_markdown(
        pd.DataFrame({"data": lines["data"], "ε²": variance, "variance left": left, **shown})
    )


def doors() -> str:
    """Each door beside a computation text by text, and its ranks over keys that no model has seen."""
    lines = pd.read_csv(DOORS)
    largest = [f"{value:.0e}" if value else "0" for value in lines["largest difference"]]
    shown = pd.DataFrame(
        {
            "door": lines["door"].map("`{}`".format),
            "largest difference, nats": largest,
            "ranks that differ": lines["other ranks"],
            "KS distance": lines["distance"].map("{:.3f}".format),
            "p": lines["p"].map("{:.2f}".format),
        }
    )
    keys, ranks, draws = lines[["keys", "ranks", "draws"]].iloc[0]
    return (
        f"{as_markdown(shown)}\n\n{ranks} ranks of {keys} keys, among {draws} fresh marks each; "
        "Kolmogorov–Smirnov against the uniform distribution."
    )
