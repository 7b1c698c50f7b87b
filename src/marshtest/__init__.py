"""marshtest: does an unlearning algorithm really remove the training data it was asked to remove?"""

from marshtest.data import Dataset, Samples
from marshtest.errors import MarshtestError
from marshtest.gate import check_unlearner
from marshtest.recipe import Recipe, load_recipe
from marshtest.results import Results, read_rows
from marshtest.run import run

__all__ = [
    "Dataset",
    "MarshtestError",
    "Recipe",
    "Results",
    "Samples",
    "check_unlearner",
    "load_recipe",
    "read_rows",
    "run",
]
