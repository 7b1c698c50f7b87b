"""A sweep as it will go: its variants as recipes, the rows to be and the jobs that make them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from marshtest.attacks import ForeignAttack
from marshtest.experiment.cells import cells, groups
from marshtest.experiment.recipe import ForeignData, load_recipe
from marshtest.experiment.recipe_data import content
from marshtest.models.table import Factory
from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps.jobs import Job, distinct, jobs
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import Ledger, PlannedCell, PlannedJob, made_by
from marshtest.sweeps.run_folder import describe
from marshtest.sweeps.settings import Sweep, Variant, columns


@dataclass(frozen=True)
class Planned:
    """A sweep's variants as recipes, their rows, and the jobs; what variants share is there once."""

    sweep: Sweep
    variants: Sequence[Variant]
    keys: Sequence[Keys]
    jobs: Sequence[Job]
    cells: Sequence[PlannedCell]

    @property
    def unshared(self) -> int:
        """How many jobs there would be if each variant, model and budget stood alone."""
        every = (job for keys in self.keys for job in jobs(keys, keep_models=False))
        return sum(len(job.models) or 1 for job in every)

    @property
    def foreign_part(self) -> str | None:
        """The name of a user's callable that makes a model, poisons or data of it, if one does."""
        recipes = [keys.recipe for keys in self.keys]
        networks = [recipe.data.features.model for recipe in recipes if recipe.data.features]
        parts = [part for recipe in recipes for part in (recipe.model, recipe.attack, recipe.data)]
        foreign = (Factory, ForeignAttack, ForeignData)
        return next((p.name for p in (*parts, *networks) if isinstance(p, foreign)), None)

    def ledger(self) -> Ledger:
        """What the store keeps of the plan."""
        return Ledger(
            self.sweep.id,
            made_by(),
            columns(self.variants),
            [keys.recipe.hash for keys in self.keys],
            {keys.recipe.hash: describe(keys.recipe, keys.content) for keys in self.keys},
            self.cells,
            [PlannedJob(job.kind, job.label, job.makes, job.needs) for job in self.jobs],
        )


def plan_sweep(sweep: Sweep, *, imports: bool = True) -> Planned:
    """Variants, cells and jobs of a sweep; nothing is loaded or trained.

    Args:
        imports: whether to import the user's callables that it names; without, it can be looked at.

    Raises:
        MarshtestError: a variant is no sound recipe, or two variants differ in nothing.
    """
    variants = sweep.variants()
    recipes = [_keys(variant, imports) for variant in variants]
    rows = [
        [
            PlannedCell(keys.row(cell), number, cell.entry, dict(cell.place))
            for group in groups(keys.recipe)
            for cell in cells(keys.recipe, group)
        ]
        for number, keys in enumerate(recipes)
    ]
    first: dict[frozenset[str], str] = {}  # the variant of these scores
    of_recipe: dict[str, str] = {}
    for variant, keys, of_variant in zip(variants, recipes, rows, strict=True):
        scores, label = frozenset(cell.key for cell in of_variant), variant.label or "the recipe"
        other = of_recipe.setdefault(keys.recipe.hash, label)
        if other != label and scores not in first:  # rows would be of one recipe
            raise MarshtestError(
                f"grid: {label} and {other} differ in the copy of the data alone. Sweep each by itself, "
                "with an --out of its own."
            )
        if scores in first:
            raise MarshtestError(
                f"grid: the cells of {label} and of {first[scores]} differ in nothing. Leave one out."
            )
        first[scores] = label
    todo = distinct(recipes, keep_models=sweep.keep_models)
    return Planned(sweep, variants, recipes, todo, list(itertools.chain(*rows)))


def _keys(variant: Variant, imports: bool) -> Keys:
    try:
        recipe = load_recipe(variant.values, imports=imports)
    except MarshtestError as error:
        if not variant.axes:
            raise
        raise MarshtestError(f"grid, at {variant.label}: {error}") from None
    # A digest takes a load, and that would run the user's code.
    foreign = isinstance(recipe.data, ForeignData)
    return Keys(recipe, None if foreign and not imports else content(recipe.data, None))
