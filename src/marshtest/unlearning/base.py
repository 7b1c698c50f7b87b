"""The contract of an unlearner, and a user's callable that fulfils it."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.choice import Choice, Choices
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.identity import digest, load_same, name_of
from marshtest.training.budget import Budget
from marshtest.training.loop import OptimizerSettings
from marshtest.training.tasks import NewModel, Objective, Task

ARGUMENTS = ("model", "retain", "forget", "task", "budget", "seed")  # the last three by keyword


class Unlearner(Choice, ABC):
    """The hyper-parameters of a method, as an object that runs the method when it is called."""

    # What the package's own methods claim of themselves; of a user's class neither is believed.
    # True if the method is *anytime*: stopped at a smaller budget it gives exactly what a run with that
    # budget gives. It then draws from `budget.stream`, and reads nothing else of the budget.
    anytime: ClassVar[bool] = False
    # True if the method looks at the model passed in or at the forget set. A method that looks at neither
    # gives the same model in both arms of an experiment with a clean twin, and is run once.
    looks_back: ClassVar[bool] = True

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyper-parameters by name, as rows hold them."""
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
        """Unlearn the forget set.

        Args:
            model: the initial model, which must not be changed.
            retain: the samples to be kept.
            forget: the samples to be unlearned.
            task: gives losses and mini-batches, and the recipe's own training.
            budget: what the method may spend; it is open, and counts.
            seed: fixes what the method draws.

        Returns:
            The updated model, from which `forget` should be gone.
        """

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        """Refuse a model that the method cannot work on; this is called before any training.

        Args:
            model: an untrained model of the recipe.
            new_model: builds a fresh model of the recipe from a seed, as in `task.new_model`.

        Raises:
            MarshtestError: the method cannot work on this model.
        """

    def check_setting(self, training: OptimizerSettings, forget_share: float) -> None:
        """Refuse what the method cannot work with beside the model; called before any training.

        Args:
            training: how the initial model is going to be trained.
            forget_share: the forget set's share of the samples that it is trained on.

        Raises:
            MarshtestError: the method cannot work in this setting.
        """


class GradientUnlearner(OptimizerSettings, Unlearner, ABC):
    """An unlearner with the optimiser that the paper's share: SGD, momentum 0.9, decay 5e-4 (A.2.1)."""

    lr: float = Field(1e-3, gt=0)


def _own(**bounds: Any) -> Any:
    """A field for a setting of a method's own; where it is None no row, hash or key tells of it."""
    return Field(None, exclude_if=lambda value: value is None, **bounds)


class TrainingUnlearner(Unlearner, ABC):
    """An unlearner that trains as the recipe does; a setting that is None is the recipe's."""

    optimizer: Literal["sgd", "adamw"] | None = _own()
    lr: float | None = _own(gt=0)
    momentum: float | None = _own(ge=0, lt=1)
    weight_decay: float | None = _own(ge=0)
    batch_size: int | None = _own(ge=1)
    schedule: Literal["constant", "cosine", "linear"] | None = _own()
    warmup: float | None = _own(ge=0, lt=1)  # fraction of the training with a linearly rising rate

    def train(
        self,
        task: Task,
        samples: Samples,
        seed: int,
        budget: Budget,
        start: nn.Module | None = None,
        objective: Objective | None = None,
    ) -> nn.Module:
        """Train within the budget by the recipe's training and the settings of this method; see `Train`.

        Raises:
            MarshtestError: the task has no training.
        """
        if task.train is None:
            raise MarshtestError(
                f"{self.name}: the task has no training pipeline (task.train). Run it through a recipe."
            )
        settings = TrainingUnlearner.model_fields.keys() - Unlearner.model_fields.keys()
        own = {key: value for key, value in self if key in settings and value is not None}
        return task.train(samples, seed, budget, start=start, objective=objective, **own)

    def new_model(self, task: Task, seed: int) -> nn.Module:
        """A freshly initialised model.

        Raises:
            MarshtestError: the task builds none.
        """
        if task.new_model is None:
            raise MarshtestError(
                f"{self.name}: the task builds no fresh model (task.new_model). Run it through a recipe."
            )
        return task.new_model(seed)


class Custom(Unlearner):
    """A user's callable as an unlearner; the digest of its source is part of the configuration."""

    name: str  # "pkg.mod:name"
    source: str = ""  # eight hex digits; empty before the callable is imported
    options: dict[str, Any] = {}  # hyper-parameters, passed to the callable by keyword
    function: Any = Field(None, exclude=True, repr=False)  # None before the callable is imported

    @classmethod
    def wrap(cls, function: Any) -> "Custom":
        """An unlearner of a callable from Python, which need not be importable by its name."""
        source = digest(function, "unlearners")
        return cls(name=name_of(function), source=source, function=function)

    def imported(self) -> Unlearner:  # type: ignore[override]
        """The same unlearner with its callable; of a class of unlearners, an object with these options.

        Raises:
            MarshtestError: the callable cannot be imported, or has changed since the recipe was stored.
        """
        if self.function is not None:
            return self
        mend = "Give that callable: marshtest.run(…, unlearners=[…])."
        function, source = load_same(self.name, self.source, "unlearners", mend)
        if inspect.isclass(function) and issubclass(function, Unlearner):
            values = {"name": function, **self.options}
            return Choices[Unlearner]("unlearner", Unlearner, {}, Custom.parse).parse(
                values, f"unlearners.{self.name}"
            )
        return self.model_copy(update={"source": source, "function": function})

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        if inspect.isclass(self.function):
            raise MarshtestError(
                f"unlearners.{self.name}: it is a class. Extend marshtest.unlearning.Unlearner, "
                "or name an object of it."
            )
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # a built-in callable does not tell its parameters
            return
        parameters = signature.parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            names = [name for name in parameters if name not in ARGUMENTS]
            for key in self.options:
                if key not in names:
                    raise MarshtestError(
                        f"unlearners.{self.name}: {unknown('hyper-parameter', key, names)}"
                    )
        try:
            signature.bind(*ARGUMENTS[:3], **dict.fromkeys(ARGUMENTS[3:]), **self.options)
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
        updated: nn.Module = self.function(
            model, retain, forget, task=task, budget=budget, seed=seed, **self.options
        )
        return updated
