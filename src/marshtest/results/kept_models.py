"""The models that a run was asked to keep, `run(..., keep_models=True)`, to be looked at."""

from pathlib import Path

import pandas as pd

from marshtest.experiment.cells import CELL
from marshtest.experiment.columns import TEXT, check_columns
from marshtest.experiment.row_file import MODELS, read_frame
from marshtest.plumbing.errors import MarshtestError


def kept_models(folder: Path) -> pd.DataFrame:
    """The models of a run's folder, one line a file.

    Columns: `poison_budget`, `seed`, `role`, `unlearner`, `hyperparameters` (JSON) and `budget`, and where
    the recipe has it `known` or `request`, as in the rows; and `path` of the file. Roles are those of the
    rows, and `twin`: the clean twin of the initial model (unlearner `none`), and of each updated one.

    Raises:
        MarshtestError: the run kept no models.
    """
    if not (folder / MODELS).is_file():
        raise MarshtestError(
            f"{folder}: holds no models. Run its recipe with keep_models=True (--keep-models) into "
            "another folder."
        )
    models = read_frame(folder / MODELS)
    check_columns(models, [*CELL, "path"], str(folder / MODELS), {"path": TEXT})
    # The file's paths are relative, so that a folder can be moved; these are of use from anywhere.
    return models.assign(path=[str(folder / path) for path in models["path"]])
