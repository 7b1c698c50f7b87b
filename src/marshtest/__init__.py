"""marshtest: does an unlearning algorithm really remove the training data it was asked to remove?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marshtest.comparison import compare
    from marshtest.data import Dataset, Samples
    from marshtest.driving import Swept, sweep
    from marshtest.errors import MarshtestError
    from marshtest.gate import check_unlearner
    from marshtest.hypotheses.studied import Study
    from marshtest.kit.audit import Audit, audit
    from marshtest.kit.calibration import Calibration, calibrate
    from marshtest.kit.dose import dose
    from marshtest.kit.noise import Scaling
    from marshtest.models import load_model, save_model
    from marshtest.ranking import leaderboard
    from marshtest.recipe import Recipe, load_recipe
    from marshtest.report import report_rows
    from marshtest.results import Results, read_rows
    from marshtest.runs import run
    from marshtest.studies import study

_PLACES = {  # each is imported when it is asked for, so that `marshtest status` need not wait for torch
    "comparison": ("compare",),
    "data": ("Dataset", "Samples"),
    "driving": ("Swept", "sweep"),
    "errors": ("MarshtestError",),
    "gate": ("check_unlearner",),
    "hypotheses.studied": ("Study",),
    "kit.audit": ("Audit", "audit"),
    "kit.calibration": ("Calibration", "calibrate"),
    "kit.dose": ("dose",),
    "kit.noise": ("Scaling",),
    "models": ("load_model", "save_model"),
    "ranking": ("leaderboard",),
    "recipe": ("Recipe", "load_recipe"),
    "report": ("report_rows",),
    "results": ("Results", "read_rows"),
    "runs": ("run",),
    "studies": ("study",),
}
_HOMES = {name: f"{__name__}.{place}" for place, names in _PLACES.items() for name in names}

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
    "Swept",
    "audit",
    "calibrate",
    "check_unlearner",
    "compare",
    "dose",
    "leaderboard",
    "load_model",
    "load_recipe",
    "read_rows",
    "report_rows",
    "run",
    "save_model",
    "study",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
