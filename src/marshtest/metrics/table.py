"""The metrics that a recipe can add to every model's row, by name; any of yours is 'pkg.mod:Class'."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, InstanceOf
from torch import nn

from marshtest.metrics.base import Metric, Question
from marshtest.metrics.membership import Membership
from marshtest.metrics.perplexity import Perplexity
from marshtest.metrics.presentation import Column, Name
from marshtest.plumbing.choice import Choices, StandIn

_ALL: tuple[type[Metric], ...] = (Membership, Perplexity)
METRICS: dict[str, type[Metric]] = {cls.model_fields["name"].default: cls for cls in _ALL}


class ForeignMetric(Metric, StandIn):
    """A user's metric "pkg.mod:Class" before it is imported."""

    columns: ClassVar[Mapping[str, Column]] = {}  # not known yet

    def imported(self) -> Metric:  # type: ignore[override]
        return CHOICES.imported(self.model_dump(), "metrics")

    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        raise AssertionError("a recipe is imported before it is run")


NEEDED = {"columns": Annotated[Mapping[Name, InstanceOf[Column]], Field(min_length=1)]}
CHOICES: Choices[Metric] = Choices("metric", Metric, METRICS, ForeignMetric.parse, NEEDED)


def parse_metric(value: Any) -> Metric:
    """The metric that a recipe names; see `Choices.parse`. A user's is imported by `imported`."""
    return CHOICES.parse(value, "metrics")
