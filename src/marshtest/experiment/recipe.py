"""A recipe: everything that determines a run, in YAML, validated, named by the hash of its values."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from marshtest.attacks import Attack, ForeignAttack, parse_attack
from marshtest.data.load import LOADERS
from marshtest.data.texts import TEXTS
from marshtest.experiment.features import FeatureSettings
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.recipe_parts import (
    FirstSeed,
    Name,
    Requests,
    Seeds,
    Share,
    Unit,
    VerdictSettings,
)
from marshtest.experiment.states import parse_states, passes_of
from marshtest.metrics.base import Metric
from marshtest.metrics.repeats_columns import FEWEST
from marshtest.metrics.table import parse_metric
from marshtest.models.base import ModelSettings
from marshtest.models.table import parse_model
from marshtest.plumbing.derived import hashed
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.identity import load_same
from marshtest.plumbing.imports import check_spec, is_spec
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import NAME_OR_PATH, read_yaml
from marshtest.training.loop import Training
from marshtest.unlearning import Custom, Unlearner, parse_trials


def _many(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else (given,)


def _entries(given: Any) -> Any:
    if not isinstance(given, list | tuple):
        raise MarshtestError(f"unlearners: a list of unlearners is needed. Got {given!r}.")
    return tuple(parse_trials(entry) for entry in given)


def _named(given: Any) -> Any:
    """The values of data settings, of which a name alone, or what `data=…` gives, may stand for all."""
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or NAME_OR_PATH not in values:
        return values
    # A name of ours wins over a path that is called alike, or the working folder would decide which
    # data a command means.
    short = str(values[NAME_OR_PATH])
    named = short in {*LOADERS, *TEXTS} or is_spec(short)
    rest = {key: value for key, value in values.items() if key != NAME_OR_PATH}
    return rest | {"name" if named else "path": short}


class DataSettings(Settings):
    """Which data, and how much of it."""

    name: str = "digits"
    path: str | None = None  # a local copy; see marshtest.data.load.load
    train: int | None = Field(None, ge=2)  # keep the first so many rows
    test: int | None = Field(None, ge=1)
    features: FeatureSettings | None = None  # take a network's features for the samples
    length: int = Field(128, ge=2)  # tokens of a text that are kept
    validation: float = Field(0.0, ge=0, lt=1)  # share of train held out to choose rates by

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return _named(given)

    def imported(self) -> "DataSettings":
        """The same, ready to be loaded; only a callable of the user's is imported."""
        return self


class ForeignData(DataSettings):
    """A user's callable "pkg.mod:load", called as load(**options), that returns a `Dataset`."""

    source: str = ""  # eight hex digits of what it does; none before it is imported
    options: dict[str, Any] = {}

    def imported(self) -> "ForeignData":
        _, source = load_same(self.name, self.source, "data.name")
        return self.model_copy(update={"source": source})


def parse_data(given: Any) -> Any:
    """Settings of data that ship, or of a user's callable; nothing is imported."""
    if isinstance(given, DataSettings):
        return given
    values = _named(given)
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str) or ":" not in name:
        return DataSettings.parse(values, "data") if isinstance(values, Mapping) else values
    check_spec(name, "data.name")
    if "options" in values:  # in full, as recipes are stored
        return ForeignData.parse(values, "data")
    options = {key: values[key] for key in values.keys() - ForeignData.model_fields}
    fields = {key: values[key] for key in values.keys() - options}
    return ForeignData.parse({**fields, "options": options}, "data")


def _metrics(given: Any) -> Any:
    if not isinstance(given, list | tuple):
        raise MarshtestError(f"metrics: a list of metrics is needed. Got {given!r}.")
    metrics = tuple(parse_metric(entry) for entry in given)
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise MarshtestError(f"metrics: {name} is given twice. Leave one out.")
    return metrics


class Named(Settings):
    """What a YAML file describes in full, named by the hash of its values."""

    name: Name
    description: str = ""

    @property
    def hash(self) -> str:
        """Eight hex digits of the canonical JSON of all values that can change a result."""
        # Another name, or the same data in another place, changes no row.
        beside: dict[str, Any] = {"name": True, "description": True, "data": {"path": True}}
        return hashed(self.model_dump(mode="json", exclude=beside))[:8]

    def to_yaml(self) -> str:
        """The YAML of all values, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Recipe(Named):
    """One experiment: the four steps of paper §4.4 for every seed, poison budget and unlearner.

    `poison_budgets` are shares of the training samples, `budgets` of the initial training's compute; with
    `budget_unit: epochs` of its epochs, each one then of the method's own training set. An entry of
    `unlearners` is one unlearner, or the trials of a search among which held-out data choose.
    """

    data: Annotated[SerializeAsAny[DataSettings], BeforeValidator(parse_data)] = DataSettings()
    model: Annotated[SerializeAsAny[ModelSettings], BeforeValidator(parse_model)]
    training: Training  # of the initial and of the retrained model
    attack: Annotated[SerializeAsAny[Attack], BeforeValidator(parse_attack)]
    poison_budgets: Annotated[tuple[Share, ...], BeforeValidator(_many), Field(min_length=1)]
    unlearners: Annotated[
        tuple[tuple[SerializeAsAny[Unlearner], ...], ...], BeforeValidator(_entries)
    ]
    budgets: Annotated[tuple[Share, ...], BeforeValidator(_many), Field(min_length=1)]
    budget_unit: Unit = "compute"
    seeds: Seeds = 1  # repetitions of all of it
    first_seed: FirstSeed = 0
    reference: bool = False  # train a second retrained model even where no clean twin needs one
    verdict: VerdictSettings = VerdictSettings()
    # further pairs of models a seed with one forget set, for U-LiRA and KLoM; 0 for none
    repeats: Annotated[int, Field(ge=0, exclude_if=lambda repeats: not repeats)] = 0
    metrics: Annotated[
        tuple[SerializeAsAny[Metric], ...],
        BeforeValidator(_metrics),
        Field(exclude_if=lambda metrics: not metrics),  # hashes are older than the field
    ] = ()  # further measures of every model
    # Shares of the poisons that an unlearner is told of, and parts in which it is told of all.
    known: Annotated[
        tuple[Share, ...],
        BeforeValidator(_many),
        Field(min_length=1, exclude_if=lambda known: known == (1.0,)),
    ] = (1.0,)
    requests: Annotated[Requests, Field(exclude_if=lambda requests: requests == 1)] = 1
    # After-care: states of every model in which it is measured again (marshtest.experiment.states).
    states: Annotated[
        tuple[str, ...], BeforeValidator(parse_states), Field(exclude_if=lambda states: not states)
    ] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # A GPU gives the same bits each time, more slowly; a CPU does so anyway.
    deterministic: Annotated[bool, Field(exclude_if=lambda deterministic: not deterministic)] = (
        False
    )

    # On a GPU the attack's effect is measured in TF32: several times as fast, and rounded to 10 bits.
    tf32: Annotated[bool, Field(exclude_if=lambda tf32: not tf32)] = False

    def imported(self) -> Self:
        """The same with the user's callables that it names, each told from others by what it does.

        Reading a recipe imports nothing; running one runs what it names.

        Raises:
            MarshtestError: one cannot be imported, or is not the one that the recipe was stored with.
        """
        data = self.data
        if data.features is not None:
            network = data.features.model.imported()
            features = data.features.model_copy(update={"model": network})
            data = data.model_copy(update={"features": features})
        unlearners = [[trial.imported() for trial in trials] for trials in self.unlearners]
        parts = {
            "data": data.imported(),
            "model": self.model.imported(),
            "attack": self.attack.imported(),
            "unlearners": unlearners,
            "metrics": [metric.imported() for metric in self.metrics],
        }
        # Parsed and not copied: what validators leave open before the import, they look at now.
        return self.parse({**dict(self), **parts}, "")

    @model_validator(mode="after")
    def _something_is_retained(self) -> Self:
        if isinstance(self.attack, ForeignAttack):  # asked again once it is imported
            return self
        if 1 in self.poison_budgets and trigger_of(self.attack) is None:
            raise ValueError("poison_budgets: 1 leaves no sample to retain. Lower it.")
        return self

    @model_validator(mode="after")
    def _nothing_is_asked_twice(self) -> Self:
        trials = [(t.name, t.hyperparameters) for entry in self.unlearners for t in entry]
        lists: dict[str, Sequence[Any]] = {
            "unlearners": trials,
            "budgets": self.budgets,
            "poison_budgets": self.poison_budgets,
            "known": self.known,
        }
        # Two equal entries would be one cell with two rows, which no reader could tell apart.
        for key, values in lists.items():
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            if twice:
                name = twice[0][0] if key == "unlearners" else twice[0]
                raise ValueError(
                    f"{key}: {name} is given twice with the same values. Leave one out."
                )
        return self

    @model_validator(mode="after")
    def _asked_in_one_way(self) -> Self:
        keys = {
            "known": self.known != (1.0,),
            "requests": self.requests > 1,
            "repeats": self.repeats > 0,
        }
        given = [key for key, is_given in keys.items() if is_given]
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}: does not go with {given[1]}. Leave out {given[0]} or {given[1]}."
            )
        # Their answers are found by the model alone, which is the same for every share; those from
        # elsewhere by the draws of one pair of models.
        once = {"elsewhere", "outside"} if "known" in given else {"elsewhere"}
        for name in (trial.name for entry in self.unlearners for trial in entry):
            if given and name in once:
                raise ValueError(
                    f"{given[0]}: {name} answers one request a model. Leave out {given[0]}, or it."
                )
        return self

    @model_validator(mode="after")
    def _training_on_needs_validation(self) -> Self:
        trained_on = [state for state in self.states if passes_of(state)]
        if trained_on and not self.data.validation:
            raise ValueError(
                f"states: {trained_on[0]} needs training samples that are held out, and there are none. "
                "Set data.validation, for example to 0.1."
            )
        return self

    @model_validator(mode="after")
    def _repeats_are_enough(self) -> Self:
        if 0 < self.repeats < FEWEST:
            raise ValueError(
                f"repeats: U-LiRA fits a Gaussian to each sample's answers and needs {FEWEST} or more. "
                f"Got {self.repeats}."
            )
        return self

    @model_validator(mode="after")
    def _metrics_have_a_reference(self) -> Self:
        comparing = [metric.name for metric in self.metrics if metric.compares]
        # A user's attack says whether it needs a twin once it is imported.
        if isinstance(self.attack, ForeignAttack) or self.reference or self.attack.needs_twin:
            return self
        if comparing:
            raise ValueError(
                f"metrics.{comparing[0]}: compares with a second retrained model, which this recipe does "
                "not train. Set reference: true."
            )
        return self

    @model_validator(mode="after")
    def _searches_need_validation(self) -> Self:
        searched = [trials[0].name for trials in self.unlearners if len(trials) > 1]
        if searched and not self.data.validation:
            raise ValueError(
                f"unlearners: {searched[0]} is given several values to choose from, and the choice "
                "is made on held-out training data. Set data.validation, for example to 0.02."
            )
        return self


def load_recipe(
    source: str | Path | Mapping[str, Any],
    *overrides: str,
    unlearners: Sequence[str | Callable[..., Any]] = (),
    imports: bool = True,
) -> Recipe:
    """Make a recipe, and import the user's callables that it names.

    Args:
        source: name of a shipped recipe, path of a YAML file, or a mapping.
        overrides: "key.sub=value", the value in YAML. A section's name alone is short for its
            `name`, and for `data` also for its `path`.
        unlearners: further unlearners beside the recipe's own, callables included; one that a stored
            recipe names takes its place there.
        imports: whether to import them; without, the recipe can be looked at, not run.

    Raises:
        MarshtestError: anything wrong with it, in one line.
    """
    if overrides and not isinstance(overrides[0], str):  # a list of them, as in version 0.1
        message = (
            "load_recipe takes overrides one by one, as run does: load_recipe(source, *overrides)."
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        (overrides,) = overrides
    values = read_yaml(source, "recipes", *overrides)
    recipe = Recipe.parse(values, "")
    if unlearners:
        entries = _with(recipe.unlearners, [parse_trials(given) for given in unlearners])
        recipe = recipe.parse({**dict(recipe), "unlearners": entries}, "")
    return recipe.imported() if imports else recipe


Entries = Sequence[tuple[Unlearner, ...]]


def _with(entries: Entries, given: Entries) -> Entries:
    """Entries with further ones: a callable in the place of the one that was stored, or at the end."""
    # By name and by what the code does: under an old name, new code is another unlearner.
    places = {(t.name, t.source): i for i, (t,) in enumerate(given) if isinstance(t, Custom)}
    taken: set[int] = set()

    def with_code(trial: Unlearner) -> Unlearner:
        place = places.get((trial.name, trial.source)) if isinstance(trial, Custom) else None
        if place is None:
            return trial
        taken.add(place)
        # The recipe's options stay: the callable was given without any.
        return given[place][0].model_copy(update={"options": trial.options})  # type: ignore[attr-defined]

    stored = [tuple(map(with_code, trials)) for trials in entries]
    return [*stored, *(trials for i, trials in enumerate(given) if i not in taken)]
