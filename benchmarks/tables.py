"""Which models of a table remember, at which dose: for docs/reproduce/audit-tables/doses.csv.

    python benchmarks/tables.py

The two sets and three kinds of model of docs/audit-tables.md, each fitted on the dosed table, and anew
without the dosed rows; each dose has a seed of its own. A minute on one core.
"""

import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples" / "tables"), str(ROOT / "docs" / "reproduce")]

import fitting  # noqa: E402
import sets  # noqa: E402
from walkthrough import DOSES  # noqa: E402

from marshtest import audit, dose  # noqa: E402

SETS = {"tumours": "diagnosis", "diabetes": "progressed"}
VARIANCES = (0.05, 0.32, 2.0)
HELD = ModuleType("held")  # the models, as "held:before" and "held:after"


def lines(
    name: str, label: str, variance: float, seed: int, folder: Path
) -> list[dict[str, object]]:
    source, out = folder / f"{name}.csv", folder / f"{name}-{variance:g}.csv"
    done = dose(source, out, label=label, fraction=0.5, variance=variance, seed=seed)
    table = pd.read_csv(out)
    retained = table.drop(index=pd.read_csv(done.forget_file)["row"] - 1)
    found = []
    for fit in (fitting.forest, fitting.boosted, fitting.network):
        before, after = (
            fit(part.drop(columns=label), part[label], number)
            for number, part in enumerate((table, retained))
        )
        HELD.before, HELD.after = lambda model=before: model, lambda model=after: model
        asked = audit(done.key, source, "held:before", "held:after", in_process=True, device="cpu")
        line: dict[str, object] = {"table": name, "variance": variance, "model": fit.__name__}
        for judged in asked.models:
            figures = judged.measured.figures
            line |= {
                f"{judged.role}_verdict": judged.verdict.answer,
                f"{judged.role}_accuracy": judged.measured.accuracy,
                f"{judged.role}_rank": figures["rank_dependence"],
                f"{judged.role}_error": figures["rank_error"],
                f"{judged.role}_epsilon": judged.epsilon,
            }
        print(line, flush=True)
        found.append(line | {"rows": len(table), "poisons": len(done.key.ids)})
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.modules["held"] = HELD
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        sets.main(str(folder / "tumours.csv"), str(folder / "diabetes.csv"))
        rows = [
            line
            for seed, ((name, label), variance) in enumerate(product(SETS.items(), VARIANCES))
            for line in lines(name, label, variance, seed, folder)
        ]
    DOSES.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).round(4).to_csv(DOSES, index=False)


if __name__ == "__main__":
    main()
