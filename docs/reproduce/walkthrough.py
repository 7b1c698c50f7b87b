"""Walk-throughs of pages as they ran, and the doors to language models beside each other."""

import json
import re
from pathlib import Path

import pandas as pd
from experiments import HERE

from marshtest.reporting.tables import as_markdown

DOORS = HERE / "audit-text" / "doors.csv"  # by benchmarks/doors.py


def transcript(page: str) -> Path:
    """What the walk-through of a page printed, by benchmarks/walkthrough.py."""
    return HERE / page / "transcript.json"


def commands(page: str = "audit-text") -> list[str]:
    """The shell blocks of a page's walk-through."""
    _, _, section = (HERE.parent / f"{page}.md").read_text().partition("\n## A walk-through\n")
    return re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def said(number: int, whole: bool = True, page: str = "audit-text") -> str:
    """What a block of the walk-through printed, or its table alone.

    Raises:
        ValueError: the block has other commands now.
    """
    block = json.loads(transcript(page).read_text())["blocks"][number]
    if block["commands"] != commands(page)[number]:
        raise ValueError(
            f"run `python benchmarks/walkthrough.py {page}`: its commands have changed"
        )
    lines = block["said"].rstrip().splitlines()
    if not whole:  # what follows the table's last line explains it
        end = next(place for place, line in enumerate(lines) if line.startswith("Perplexity:"))
        lines = [line for line in lines[:end] if not line.startswith("A wider terminal")]
    told = "\n".join(line.rstrip() for line in lines).strip("\n")
    return f"```text\n{told}\n```"


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
