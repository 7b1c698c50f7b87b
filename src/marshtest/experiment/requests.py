"""Which of the poisons an unlearner is asked to remove, and when: all at once, some, or part after part.

    known: k       a share k of the poisons is asked for; the others are unknown, and stay in the retain set
    requests: n    n parts of equal size are asked for one after the other, each with 1/n of the budget,
                   and each time of the model that the last request left

Corrective unlearning, in which part of what was corrupted is known, is that of Goel et al. 2024.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from marshtest.plumbing.errors import MarshtestError

AXES = ("known", "request")  # columns of rows, each only where its recipe has the key
Place: TypeAlias = tuple[
    tuple[str, float | str], ...
]  # further columns of a row, with their values
FEWEST = 2  # poisons of a part: of a single one no error could be told of the mean


class Design(Protocol):
    """The keys of a recipe that say what is asked for."""

    @property
    def known(self) -> tuple[float, ...]:
        """Shares of the poisons that unlearners are told of."""

    @property
    def requests(self) -> int:
        """The number of parts in which they are told of all."""


@dataclass(frozen=True)
class Request:
    """What was asked for by the time that a model was made.

    Attributes:
        known: share of the poisons that is asked for.
        number: of the request, from 1; 0 where nothing was asked for yet.
        of: how many requests there will be.
    """

    known: float = 1.0
    number: int = 1
    of: int = 1

    @property
    def whole(self) -> bool:
        """Whether all poisons have been asked for."""
        return self.known == 1 and self.number == self.of

    @property
    def key(self) -> dict[str, Any]:
        """What tells the request from the ordinary one, of all poisons at once; empty of that one."""
        known = {} if self.known == 1 else {"known": self.known}
        return known if self.of == 1 else {**known, "request": self.number, "requests": self.of}

    @property
    def before(self) -> "Request":
        """What had been asked for before this request."""
        return Request(0.0) if self.of == 1 else Request(self.known, self.number - 1, self.of)

    def count(self, poisons: int) -> int:
        """The number of poisons, out of so many, that have been asked for; first parts are the larger."""
        if self.of == 1:
            return round(self.known * poisons)
        size, more = divmod(poisons, self.of)
        return self.number * size + min(self.number, more)


ALL = Request()


def requests_of(recipe: Design) -> list[Request]:
    """The requests of a recipe, in their order."""
    numbers = range(1, recipe.requests + 1)
    return [Request(known, number, recipe.requests) for known in recipe.known for number in numbers]


def last_request(recipe: Design) -> Request:
    """The request by which all poisons have been asked for."""
    return Request(1.0, recipe.requests, recipe.requests)


def no_request(recipe: Design) -> Request:
    """The state before anything is asked for."""
    return Request(0.0, 0, recipe.requests)


def partial_requests(recipe: Design) -> list[Request]:
    """The requests by which some poisons have not been asked for."""
    return [request for request in requests_of(recipe) if not request.whole]


def axis_of(recipe: Design) -> str | None:
    """The column of rows that tells a recipe's requests apart; None where it has one ordinary request."""
    return "known" if tuple(recipe.known) != (1.0,) else "request" if recipe.requests > 1 else None


def place_of(recipe: Design, request: Request) -> Place:
    """The axis's column and value, of a row at a request."""
    values = {"known": request.known, "request": request.number}
    axis = axis_of(recipe)
    return () if axis is None else ((axis, values[axis]),)


def sizes_of(recipe: Design, poisons: int) -> Iterator[tuple[Request, int, int]]:
    """Each request, with the number of poisons that it asks for and the number never asked for."""
    for request in requests_of(recipe):
        asked = request.count(poisons)
        unknown = 0 if request.known == 1 else poisons - asked
        yield request, asked - (request.before.count(poisons) if request.of > 1 else 0), unknown


def refuse_small_parts(recipe: Design, share: float, poisons: int) -> None:
    """Raise MarshtestError where a part of the poisons, asked for or unknown, has fewer than two.

    Args:
        share: the poison budget.
        poisons: the number that it makes.
    """
    for request, asked, unknown in sizes_of(recipe, poisons):
        if request.of > 1 and asked < FEWEST:
            raise MarshtestError(
                f"requests: {request.of} parts of {poisons} poisons (poison budget {share:g}) leave fewer "
                f"than two in one. Give at most {poisons // FEWEST}, or raise poison_budgets."
            )
        if request.known < 1 and min(asked, unknown) < FEWEST:
            part = "known" if asked < FEWEST else "unknown"
            raise MarshtestError(
                f"known: {request.known:g} of {poisons} poisons (poison budget {share:g}) leaves "
                f"fewer than two {part}. Choose another share, or raise poison_budgets."
            )
