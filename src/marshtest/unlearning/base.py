"""The contract of an unlearner."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.identity import digest, load_same, name_of
from marshtest.plumbing.settings import Settings
from marshtest.training.budget import Budget
from marshtest.training.loop import OptimizerSettings
from marshtest.training.tasks import NewModel, Task

HANDED = ("model", "retain", "forget", "task", "budget", "seed")  # the last three by keyword


class Unlearner(Settings, ABC):
    """A method's hyper-parameters; calling it runs the method."""

    name: str
    # Whether a run under a smaller budget is the beginning of one under a larger: the method draws from
    # `budget.stream` and looks at nothing else of the budget.
    anytime: ClassVar[bool] = False
    # Whether the method looks at the model passed in or at the forget set. One that does not gives the same
    # model in both arms of an experiment with a clean twin, and runs once.
    looks_back: ClassVar[bool] = True

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All but its name, as rows tell them."""
        return self.model_dump(mode="json", exclude={"name"})

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        """A model from which `forget` should be gone. The model passed in is not changed."""

    def imported(self) -> Self:
        """The same, ready to be called; only a callable of the user's is imported."""
        return self

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        """Raise MarshtestError where the method cannot work on this model; before any training.

        Args:
            new_model: builds a fresh one of its kind from a seed, as in `task.new_model`.
        """


class GradientUnlearner(OptimizerSettings, Unlearner, ABC):
    """With the optimiser that the paper's unlearners share: SGD, momentum 0.9, decay 5e-4 (A.2.1)."""

    lr: float = Field(1e-3, gt=0)


class Custom(Unlearner):
    """A user's callable; the digest of what it does is part of the configuration."""

    name: str  # "pkg.mod:name"
    source: str = ""  # eight hex digits; none before the callable is imported
    options: dict[str, Any] = {}  # passed on to the callable by keyword
    function: Any = Field(None, exclude=True, repr=False)  # None before it is imported

    @classmethod
    def wrap(cls, function: Any) -> "Custom":
        """A callable given in Python; it need not be importable."""
        source = digest(function, "unlearners")
        return cls(name=name_of(function), source=source, function=function)

    def imported(self) -> Self:
        """The same with its callable.

        Raises:
            MarshtestError: it cannot be imported, or is not the one that the recipe was stored with.
        """
        if self.function is not None:
            return self
        mend = "Give that callable: marshtest.run(…, unlearners=[…])."
        function, source = load_same(self.name, self.source, "unlearners", mend)
        return self.model_copy(update={"source": source, "function": function})

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        if inspect.isclass(self.function):
            raise MarshtestError(
                f"unlearners.{self.name}: it is a class. Name an object of it that can be called."
            )
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # a built-in one does not tell
            return
        known = signature.parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
            own = [name for name in signature.parameters if name not in HANDED]
            for key in self.options:
                if key not in own:
                    raise MarshtestError(
                        f"unlearners.{self.name}: {unknown('hyper-parameter', key, own)}"
                    )
        try:
            signature.bind(*HANDED[:3], **dict.fromkeys(HANDED[3:]), **self.options)
        except TypeError as error:
            raise MarshtestError(
                f"unlearners.{self.name}: it is called as (model, retain, forget, *, task, budget, seed) "
                f"and its hyper-parameters, and does not take that: {error}."
            ) from None

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        made: nn.Module = self.function(
            model, retain, forget, task=task, budget=budget, seed=seed, **self.options
        )
        return made
