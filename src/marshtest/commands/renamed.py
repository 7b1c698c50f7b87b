"""Public functions under their names of version 0.1; each warns, and goes with the next version."""

import warnings
from typing import Any

from marshtest.reporting.write import report
from marshtest.results.merging import Merged


def report_rows(*sources: Any, out: Any) -> Merged:
    """Draw a report by the old name of `marshtest.report`."""
    message = "marshtest.report_rows is now marshtest.report; the old name will go."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return report(*sources, out=out)
