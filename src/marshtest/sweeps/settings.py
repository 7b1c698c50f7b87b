"""A sweep's settings: a recipe, and values for some of its keys, each with each or side by side.

    name: sizes
    recipe: cifar10-small-gaussian            # shipped, a YAML file, or all of it in place
    change: {seeds: 2}                        # keys of the recipe, for all variants
    grid: {poison_budgets: [0.025, 0.05]}     # each value with each of the other keys'
    zip:                                      # values side by side, in lists as long as each other
      - {data.train: [2000, 4000], training.epochs: [80, 40]}
    resources: {train: {cpus: 1, gpus: 1}}    # what each job of a kind may use
    keep_models: false                        # store the scores of updated models, not the models

Read without torch, so that the state of a sweep is known at once.
"""

import copy
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from marshtest.data.hub import DATA_FOLDER_VARIABLE
from marshtest.plumbing.derived import hashed
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.yaml_files import (
    MORE,
    add_change,
    file_name,
    overriding,
    read_yaml,
    set_key,
    shipped,
    tell_changes,
)

Axes = dict[str, list[Any]]
Kind = Literal["features", "train", "craft", "unlearn", "score"]  # of jobs


class Resources(Settings):
    """What a job may use. If `cpus` is the same, rows are bit-identical across engines."""

    cpus: int | None = Field(None, ge=1)  # threads; by default the engine's share of the machine
    gpus: float = Field(0, ge=0)


@dataclass(frozen=True)
class Variant:
    """One combination of the axes' values, and the raw recipe that it makes."""

    axes: dict[str, Any]
    values: dict[str, Any]

    @property
    def label(self) -> str:
        """The axes' values in words, for people and folders; "" where there is one variant only."""
        return ",".join(f"{key}={value}" for key, value in self.axes.items())


def columns(variants: Sequence[Variant]) -> list[dict[str, str | int | float | None]]:
    """The axes of each variant as columns of rows, of one kind each.

    An axis with a list or a mapping, which a cell does not hold, or with texts beside numbers, is JSON.
    """
    kinds: dict[str, set[type]] = {}
    for variant in variants:
        for key, value in variant.axes.items():
            if value is not None:
                kind = float if type(value) is int else type(value)
                kinds.setdefault(key, set()).add(kind)
    plain = {key for key, of in kinds.items() if len(of) == 1 and of <= {str, float, bool}}
    return [
        {
            key: value if value is None or key in plain else json.dumps(value)
            for key, value in variant.axes.items()
        }
        for variant in variants
    ]


class Sweep(Settings):
    """A recipe over grids."""

    name: Annotated[str, AfterValidator(file_name)]
    description: str = ""
    recipe: str | dict[str, Any]
    change: dict[str, Any] = {}
    grid: Axes = {}
    zip: tuple[Axes, ...] = ()
    resources: dict[Kind, Resources] = {}
    keep_models: bool = True

    @model_validator(mode="after")
    def _axes_have_values(self) -> Self:
        places = [("grid", self.grid), *((f"zip.{i}", axes) for i, axes in enumerate(self.zip))]
        seen: set[str] = set()
        for place, axes in places:
            for key, values in axes.items():
                if not values:
                    raise ValueError(
                        f"{place}.{key}: holds no value. Give some, or leave the key out."
                    )
                if key == "known":  # as a column it is the rows' own
                    raise ValueError(
                        f"{place}.known: a recipe takes several shares itself. Give known=[…] without grid."
                    )
                if key in seen:
                    raise ValueError(f"{place}.{key}: is varied twice. Leave one out.")
                seen.add(key)
        for place, axes in places[1:]:
            if len({len(values) for values in axes.values()}) > 1:
                lengths = ", ".join(f"{key} {len(values)}" for key, values in axes.items())
                raise ValueError(f"{place}: values side by side must be as many ({lengths}).")
        return self

    @property
    def base(self) -> dict[str, Any]:
        """The raw recipe that is varied."""
        values = read_yaml(self.recipe, "recipes")
        for key, value in self.change.items():
            set_key(values, key, value)
        return values

    @property
    def id(self) -> str:
        """The name, and a hash of all that can change a row."""
        # `base` is what recipe and change come to, by whichever way it was asked for.
        beside = {"description", "recipe", "change", "resources", "name"}
        varied = self.model_dump(mode="json", exclude=beside)
        return f"{self.name}-{hashed([self.base, varied])[:8]}"

    @property
    def reads_files(self) -> bool:
        """Whether the sweep depends on the user's code or files, which may change behind its back."""
        copies = DATA_FOLDER_VARIABLE in os.environ
        return copies or _foreign([self.base, self.grid, self.zip])

    def variants(self) -> list[Variant]:
        """The combinations of the axes' values, the last axis fastest."""
        axes = [[{key: value} for value in values] for key, values in self.grid.items()]
        for zipped in self.zip:
            rows = zip(*zipped.values(), strict=True)
            axes.append([dict(zip(zipped, row, strict=True)) for row in rows])
        # Copies, of values too: no two variants may share a mapping in which a key is then set.
        base, variants = self.base, []
        tell_changes(base, self.change)
        for combination in itertools.product(*axes):
            recipe, point = copy.deepcopy(base), dict[str, Any]()
            for part in combination:
                point |= part
            for key, value in point.items():
                set_key(recipe, key, copy.deepcopy(value))
            variants.append(Variant(point, recipe))
        return variants


def read_sweep(source: str | Path | Mapping[str, Any], *overrides: str) -> Sweep:
    """Make a sweep.

    Args:
        source: name of a shipped sweep or recipe, path of a YAML file, or a mapping; a recipe is a sweep
            of one variant.
        overrides: "key.sub=value" of the recipe, for all variants; "grid.key.sub=[…]" sets an axis.

    Raises:
        MarshtestError: anything wrong with it, in one line.
    """
    kind = "recipes" if str(source) in shipped("recipes") else "sweeps"
    values = read_yaml(source, kind)
    if "recipe" not in values:
        values = {"name": values["name"], "recipe": values}
    for key, value in overriding(overrides).items():
        # The rest keeps its dots: an axis is called by a key of the recipe.
        section, _, rest = key.partition(".")
        if section == "grid" and rest:
            values.setdefault("grid", {})[rest] = value
        elif key == f"change.{MORE}":
            add_change(values.setdefault("change", {}), MORE, value)
        elif section in Sweep.model_fields.keys() - {"name", "description"}:
            set_key(values, key, value)
        else:
            add_change(values.setdefault("change", {}), key, value)
    return Sweep.parse(values, "")


def _is_file(values: Mapping[str, Any]) -> bool:
    """Whether a value names a file or folder: a copy of the data, a language model."""
    keys = {key.rpartition(".")[2]: value for key, value in values.items() if value}
    return "path" in keys or "source" in keys


def _foreign(value: Any) -> bool:
    if isinstance(value, Mapping):
        parts = (part for key, part in value.items() if key != "description")
        return "tensors" in value.values() or any(map(_foreign, parts)) or _is_file(value)
    if isinstance(value, list | tuple):
        return any(map(_foreign, value))
    # "pkg.mod:name"; a text that only looks like one costs a plan, one that was missed would give
    # rows of yesterday's code.
    return isinstance(value, str) and ":" in value
