"""What a report must know of scores and of columns of rows, without torch: it is stored beside the rows."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from marshtest.plumbing.settings import Settings

# Names of a report's own columns, and of those that every row has.
TAKEN = {
    *("recipe", "data", "model", "attack", "poison_budget", "forget_size", "seed", "seeds", "role"),
    *("entry", "unlearner", "hyperparameters", "budget", "spent", "seconds", "epochs", "note"),
    *("test_accuracy", "forget_accuracy", "validation_accuracy", "accuracy_cost", "chance"),
    *("precision", "device", "verdict", "usable", "needed", "reasons", "removed_in", "trainings"),
    *("p_removed", "p_not_removed", "twin_same", "id", "label", "name", "order", "control", "left"),
}


def _free(name: str) -> str:
    if name in TAKEN:
        raise ValueError(f"{name}: is the name of a column that every row has. Take another.")
    return name


Name = Annotated[
    str, StringConstraints(pattern="^[a-z][a-z0-9_]*$", max_length=60), AfterValidator(_free)
]
# Shown in tables, figures and the page: "$" would begin a formula, and a line break a line.
Text = Annotated[str, StringConstraints(pattern=r"^[^$\x00-\x1f\x7f]*$", max_length=1000)]
Title = Annotated[Text, Field(max_length=60)]  # of one line beside others, or of an axis


def _with_a_range(shown: Any) -> Any:
    if shown.low is not None and shown.high is not None and shown.low >= shown.high:
        bounds = f"low {shown.low:g} is not below high {shown.high:g}"
        raise ValueError(f"{shown.title}: {bounds}. Swap them.")
    return shown


class Column(Settings):
    """A column of rows that tables and figures show."""

    # heads a table's column and names a figure's axis; "" for a column that is not shown
    title: Title
    low: float | None = None  # the least value that the column can hold; None if there is no bound
    high: float | None = None  # the largest value; None if there is no bound
    digits: int = Field(3, ge=0, le=9)  # decimals in tables
    legend: Text = ""  # what the values are, in a clause that follows the title and a colon
    # how seeds are pooled: mean ± s.d. over seeds; or, of a share, the mean with the binomial 95 %
    # interval over all seeds, exact (Clopper and Pearson) or Wilson's
    interval: Literal["seeds", "exact", "wilson"] = "seeds"
    # what the column is a share of, for a binomial interval: the name of a row's column, or a number a
    # seed; in an attack's own presentation also the name of one of its options
    count: str | int = ""
    # characters that a terminal must have in a line for tables on it to show the column; files and pages
    # have it always
    room: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _a_share_is_of_something(self) -> Self:
        if self.interval != "seeds" and not self.count:
            raise ValueError(f"{self.title}: a binomial interval needs a count. Say of what.")
        return self

    _low_is_below_high = model_validator(mode="after")(_with_a_range)


class Score(Settings):
    """A score of what is left of the poison in a model."""

    title: Title  # heads a table's column and names a figure's axis
    legend: Text = ""  # what the score is, in a clause that follows the title and a colon
    # the row's column that is compared with that of a clean twin, where the score's law under the null
    # is unknown. None says that each poison's score is N(0, 1) by itself, where the model does not
    # depend on the poison
    column: Name | None = None
    low: float | None = None  # the beginning of its histogram; None draws no histogram
    high: float | None = None  # the end
    each: Text = "poisons"  # what has one score each, in the plural
    hidden: Text = "the score is undefined, or tied,"  # why it says nothing of some poisons
    fresh: Name | Literal[""] = ""  # the column of fresh scores, for Figures 6 and 7; "" for none
    symbol: Text = "I"  # the score's letter in those figures

    @property
    def room(self) -> int:
        """Characters that a terminal must have for tables to show the score: verdicts rest on it."""
        return 0

    _low_is_below_high = model_validator(mode="after")(_with_a_range)
