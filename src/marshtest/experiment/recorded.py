"""A recipe as rows tell it: to be read, not run, so neither torch nor anybody's code is needed for it."""

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from marshtest.attacks.presentation import Presentation, refuse_taken
from marshtest.experiment.recipe_parts import (
    FirstSeed,
    Name,
    Requests,
    Seeds,
    Share,
    Unit,
    VerdictSettings,
)
from marshtest.metrics.presentation import Column
from marshtest.metrics.presentation import Name as ColumnName
from marshtest.plumbing.errors import MarshtestError, placed
from marshtest.plumbing.settings import Settings


class _Part(Settings):
    """A part of a recipe; the values that nobody here asks for are kept as they are."""

    # Rows outlive versions: what a later recipe says more, and no report asks for, is no fault.
    model_config = ConfigDict(extra="allow")


class RecordedNamed(_Part):
    """Data, a model or an unlearner, with its values."""

    name: str

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The values without the name, as rows tell them."""
        return dict(self.model_extra or {})


class RecordedTraining(_Part):
    """The training of the initial and of the retrained model."""

    epochs: int | float = Field(gt=0)


class RecordedAttack(RecordedNamed):
    """An attack: its name, its options, and what a report must know of it."""

    shown: Presentation = Field(exclude=True)

    @property
    def needs_twin(self) -> bool:
        """Whether the effect has no known null law, and is compared with that of a clean twin."""
        return self.shown.needs_twin

    @property
    def has_control(self) -> bool:
        """Whether a model was trained on shuffled poisons."""
        return bool(self.shown.shuffled)


class Recorded(_Part):
    """A recipe that was read from rows; fields are those of marshtest.experiment.recipe.Recipe.

    Attributes:
        hash: of the recipe.
        metric_columns: the rows' columns that metrics beside the attack's measured.
    """

    name: Name
    description: str = ""
    data: RecordedNamed
    model: RecordedNamed
    training: RecordedTraining
    attack: RecordedAttack
    poison_budgets: tuple[Share, ...] = Field(min_length=1)
    unlearners: tuple[Annotated[tuple[RecordedNamed, ...], Field(min_length=1)], ...]
    budgets: tuple[Share, ...] = Field(min_length=1)
    budget_unit: Unit = "compute"
    seeds: Seeds = 1
    first_seed: FirstSeed = 0
    reference: bool = False
    states: tuple[str, ...] = Field((), exclude_if=lambda states: not states)
    verdict: VerdictSettings = VerdictSettings()
    known: tuple[Share, ...] = Field((1.0,), min_length=1, exclude_if=lambda known: known == (1.0,))
    requests: Requests = Field(1, exclude_if=lambda requests: requests == 1)
    hash: str = Field("", exclude=True)
    metric_columns: dict[ColumnName, Column] = Field({}, exclude=True)

    @classmethod
    def of(cls, hash: str, run: Mapping[str, Any], where: str) -> Self:
        """The recipe of a run, from what its rows say of it.

        Args:
            hash: of the recipe.
            run: its `values`; its `presentation` and `metrics`, if it has any.
            where: how a complaint begins.

        Raises:
            MarshtestError: a value is not as a recipe has it, or nothing tells how to present the attack.
        """
        values = dict(run["values"])
        attack = values.get("attack")
        if isinstance(attack, Mapping):
            shown = _presentation(attack, run.get("presentation"), where)
            values["attack"] = {**attack, "shown": shown}
        beside = {"hash": hash, "metric_columns": run.get("metrics") or {}}
        return cls.parse({**values, **beside}, f"{where}: recipe")

    @model_validator(mode="after")
    def _columns_are_apart(self) -> Self:
        shown = self.attack.shown
        refuse_taken(shown.scores, self.metric_columns, "metrics")
        if twice := shown.columns.keys() & self.metric_columns.keys():
            raise ValueError(
                f"metrics: {min(twice)!r} is a column of the attack's. Take another name."
            )
        return self

    @property
    def columns(self) -> dict[str, Column]:
        """The rows' further columns that a report shows: the attack's, then the metrics'."""
        return {**self.attack.shown.columns, **self.metric_columns}


def _presentation(attack: Mapping[str, Any], given: Any, where: str) -> Presentation:
    """What the rows say of the attack; of one that ships with the package, what its class says.

    Raises:
        MarshtestError: neither says anything, or something else than a presentation.
    """
    name = str(attack.get("name"))
    with placed(f"{where}: attack {name}"):
        if given is not None:
            return Presentation.parse(given, "presentation").filled(attack)
        table = import_module("marshtest.attacks.table")  # with torch, for rows that came without
        if name in table.ATTACKS:
            shown: Presentation = table.parse_attack(attack, "attack").shown
            return shown
    raise MarshtestError(
        f"{where}: nothing tells how rows of attack {name!r} are presented. Give rows that this version of "
        "marshtest wrote: run the recipe again."
    )
