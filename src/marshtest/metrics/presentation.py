"""What a report must know of a row's column, without torch: it is stored beside the rows."""

from marshtest.plumbing.settings import Settings


class Column(Settings):
    """A column of rows that tables and figures show.

    Attributes:
        title: heads a table's column and names a figure's axis.
        low: the least value that the column can hold; None where there is none.
        high: the largest.
    """

    title: str
    low: float | None = None
    high: float | None = None
