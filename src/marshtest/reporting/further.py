"""Tables that a report has only where the recipe asks for more than one verdict a model."""

from typing import NamedTuple

import pandas as pd

from marshtest.reporting import states
from marshtest.reporting.requests import request_head, request_legend, request_table
from marshtest.reporting.tables import as_markdown
from marshtest.results.summary import Results


class Further(NamedTuple):
    """One such table.

    Attributes:
        name: of its files.
        title: its heading.
        lines: its numbers, one line a line of the table.
        table: what is shown, as text.
        legend: the meaning of its columns.
    """

    name: str
    title: str
    lines: pd.DataFrame
    table: pd.DataFrame
    legend: str


def further(results: Results) -> list[Further]:
    """The further tables of results: by share known or request, and by state."""
    head, legend = request_head(results), request_legend(results)
    every = (
        Further("requests", head, results.by_request, request_table(results), legend),
        Further(
            "states", "After-care", results.states, states.states_table(results), states.LEGEND
        ),
    )
    return [one for one in every if len(one.lines)]


def further_markdown(results: Results) -> str:
    """The further tables, each with its heading and legend, in Markdown."""
    return "".join(
        f"\n## {one.title}\n\n{one.legend}\n\n{as_markdown(one.table)}\n"
        for one in further(results)
    )
