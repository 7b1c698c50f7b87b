"""A sweep as it will go: its variants as recipes, the rows to be and the jobs that make them."""

from collections.abc import Sequence
from dataclasses import dataclass

from marshtest.experiment.cells import groups
from marshtest.experiment.recipe import ForeignData, load_recipe
from marshtest.experiment.recipe_data import content
from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps.jobs import Job, jobs, lines
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import Cell, Entry, Ledger, made_by
from marshtest.sweeps.run_folder import describe
from marshtest.sweeps.settings import Sweep, Variant, refuse_equal


@dataclass(frozen=True)
class Planned:
    """A sweep's variants as recipes, and the jobs that they come to; what they share is there once."""

    sweep: Sweep
    variants: Sequence[Variant]
    keys: Sequence[Keys]
    jobs: Sequence[Job]
    cells: Sequence[Cell]

    @property
    def unshared(self) -> int:
        """How many jobs there would be if each variant, model and budget stood alone."""
        alone = 0
        for keys in self.keys:
            for job in jobs(keys, keep_models=False):
                alone += len(job.budgets) or 1
        return alone

    def ledger(self) -> Ledger:
        """As it stands in the store."""
        return Ledger(
            self.sweep.id,
            made_by(),
            [variant.axes for variant in self.variants],
            [keys.recipe.hash for keys in self.keys],
            {keys.recipe.hash: describe(keys.recipe, keys.content) for keys in self.keys},
            self.cells,
            [Entry(job.kind, job.label, job.makes, job.needs) for job in self.jobs],
        )


def plan_sweep(sweep: Sweep, *, imports: bool = True) -> Planned:
    """Variants, cells and jobs of a sweep; nothing is loaded or trained.

    Args:
        imports: whether to import the user's callables that it names; without, it can be looked at.

    Raises:
        MarshtestError: a variant is no sound recipe, or two variants differ in nothing.
    """
    variants = sweep.variants()
    keys = [_keys(variant, imports) for variant in variants]
    cells: list[Cell] = []
    sets: list[frozenset[str]] = []
    for number, of in enumerate(keys):
        found = [line for group in groups(of.recipe) for line in lines(of, group)]
        cells += [Cell(line.key, number, line.entry) for line in found]
        sets.append(frozenset(line.key for line in found))
    refuse_equal([variant.label for variant in variants], sets)
    known: set[str] = set()
    found_jobs = []
    for of in keys:
        for job in jobs(of, keep_models=sweep.keep_models):
            if not known.issuperset(job.makes):
                found_jobs.append(job)
                known.update(job.makes)
    return Planned(sweep, variants, keys, found_jobs, cells)


def _keys(variant: Variant, imports: bool) -> Keys:
    try:
        recipe = load_recipe(variant.values, imports=imports)
    except MarshtestError as error:
        if not variant.axes:
            raise
        raise MarshtestError(f"grid, at {variant.label}: {error}") from None
    foreign = isinstance(recipe.data, ForeignData)
    return Keys(recipe, None if foreign and not imports else content(recipe.data, None))
