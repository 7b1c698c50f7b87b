"""What recipes share with recipes that are read from rows: bounds of their values, settings of verdicts."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import file_name

Name = Annotated[str, AfterValidator(file_name)]
Share = Annotated[float, Field(gt=0, le=1)]
Requests = Annotated[int, Field(ge=1, le=1000)]
Unit = Literal["compute", "epochs"]  # what compute budgets are shares of
# Bounded above because rows of others are read too, and a report goes through all seeds that they name.
Seeds = Annotated[int, Field(ge=1, le=100_000)]
FirstSeed = Annotated[int, Field(ge=0, le=10**12)]


class VerdictSettings(Settings):
    """What counts as removed, and how sure to be."""

    alpha: float = Field(0.05, gt=0, lt=1)  # error rate of each test, over all unlearners
    margin: float = Field(0.2, gt=0, lt=1)  # share of the initial effect that may be left
    accuracy: float = Field(0.05, gt=0, lt=1)  # that may be lost against full retraining
