"""What a recipe says of its verdicts."""

from pydantic import Field

from marshtest.plumbing.settings import Settings


class VerdictSettings(Settings):
    """What counts as removed, and how sure to be."""

    alpha: float = Field(0.05, gt=0, lt=1)  # error rate of each test, over all unlearners
    margin: float = Field(0.2, gt=0, lt=1)  # share of the initial effect that may be left
    accuracy: float = Field(0.05, gt=0, lt=1)  # that may be lost against full retraining
