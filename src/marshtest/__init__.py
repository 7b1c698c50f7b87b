"""marshtest: does an unlearning algorithm really remove the training data it was asked to remove?"""

from marshtest.data import Dataset, Samples
from marshtest.errors import MarshtestError
from marshtest.gate import check_unlearner
from marshtest.kit.audit import Audit, audit
from marshtest.kit.calibration import Calibration, calibrate
from marshtest.kit.dose import dose
from marshtest.kit.noise import Scaling
from marshtest.models import load_model, save_model
from marshtest.recipe import Recipe, load_recipe
from marshtest.results import Results, read_rows
from marshtest.run import run
from marshtest.study import Study, study

__all__ = [
    "Audit",
    "Calibration",
    "Dataset",
    "MarshtestError",
    "Recipe",
    "Results",
    "Samples",
    "Scaling",
    "Study",
    "audit",
    "calibrate",
    "check_unlearner",
    "dose",
    "load_model",
    "load_recipe",
    "read_rows",
    "run",
    "save_model",
    "study",
]
