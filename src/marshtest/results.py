"""What a finished run says: its rows, its scores, and the verdicts that follow from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy.stats import binomtest

from marshtest.errors import MarshtestError
from marshtest.metrics.shift import Shift
from marshtest.metrics.verdict import Dependence, Verdict, compared, dependences, verdicts
from marshtest.recipe import Recipe

GROUP = ["role", "entry", "unlearner", "hyperparameters", "budget"]  # pooled over seeds


def read_rows(folder: str | Path) -> pd.DataFrame:
    """The rows of a finished run: one line a (poison budget, seed, unlearner, trial, budget).

    Raises:
        MarshtestError: the folder holds no finished run.
    """
    return _read(Path(folder) / "rows.parquet")


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MarshtestError(f"{path.parent}: holds no finished run (no {path.name}).")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise MarshtestError(f"{path}: not a readable Parquet file ({error}).") from None


@dataclass(frozen=True)
class Results:
    """A finished run.

    Attributes:
        folder: where it lies.
        recipe: what was run.
        rows: one line a model; columns as in docs/rows.md.
        scores: one line a poison and model.
        about: versions, machine, time.
    """

    folder: Path
    recipe: Recipe
    rows: pd.DataFrame
    scores: pd.DataFrame
    about: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Read a finished run from its folder."""
        folder = Path(folder)
        rows, scores = read_rows(folder), _read(folder / "scores.parquet")
        recipe = Recipe.parse(yaml.safe_load((folder / "recipe.yaml").read_text()), str(folder))
        about = json.loads((folder / "run.json").read_text())
        return cls(folder, recipe, rows, scores, about)

    @cached_property
    def score_names(self) -> list[str]:
        """The scores that verdicts rest on."""
        attack = self.recipe.attack
        return [*attack.null_deviations(), *attack.compared]

    @property
    def unit(self) -> str:
        """What a score is averaged over."""
        return "seeds" if self.recipe.attack.compared else "poisons"

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One line a (poison budget, unlearner, budget): means over seeds, pooled scores, verdict.

        Of an entry with several trials only the one chosen on held-out data is here.
        """
        tables = [self._summarise(share) for share in self.recipe.poison_budgets]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def moved(self) -> pd.DataFrame:
        """How far models moved: one line a (poison budget, unlearner, budget, layer), means over seeds.

        Columns are those of shifts.parquet and `travelled`, the distance as a share of the retrained
        model's, each with its deviation `_sd`. Empty for a run of before such were measured.
        """
        file = self.folder / "shifts.parquet"
        if not file.exists():
            return pd.DataFrame()
        tables = []
        for share in self.recipe.poison_budgets:
            keys = ["poison_budget", "seed", *GROUP]
            lines = _read(file).merge(self.chosen(share)[keys], on=keys)
            goal = lines.loc[lines["role"] == "retrained", ["seed", "layer", "l2"]]
            lines = lines.merge(goal, on=["seed", "layer"], suffixes=("", "_needed"))
            lines["travelled"] = lines["l2"] / lines.pop("l2_needed")
            cells = ["poison_budget", *GROUP, "layer", "parameters"]
            by_cell = lines.groupby(cells, sort=False)[[*Shift._fields[2:], "travelled"]]
            spread = by_cell.std(ddof=1).add_suffix("_sd")
            tables.append(by_cell.mean().join(spread).reset_index())
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def warnings(self) -> list[str]:
        """Why verdicts cannot be trusted, where the controls do not come out as they must."""
        said = []
        stopped = self.rows.get("crafting_stopped", pd.Series(0.0, self.rows.index)) > 0
        for share, rows in self.rows[stopped].groupby("poison_budget", sort=False):
            said.append(
                f"Poison budget {share:g}: the attack's objective turned NaN in "
                f"{rows['seed'].nunique()} seeds, and the best poisons before were kept. Lower attack.lr."
            )
        for share, table in self.summary.groupby("poison_budget", sort=False):
            controls = table.set_index("role")["verdict"]
            if controls["initial"] != "NOT REMOVED" or controls["retrained"] != "REMOVED":
                judged = table["role"].isin(["initial", "retrained"])
                needed = table.loc[judged, "poisons_needed"].max()
                more = ""
                if not pd.isna(needed):
                    more = f" About {needed:,.0f} {self.unit} in all would do."
                said.append(
                    f"Poison budget {share:g}: too small for a verdict. No unlearning came out "
                    f"{controls['initial']} (must be NOT REMOVED) and full retraining "
                    f"{controls['retrained']} (must be REMOVED).{more} "
                    "Raise seeds, poison_budgets or the attack's strength."
                )
        return said

    def chosen(self, share: float) -> pd.DataFrame:
        """Rows at one poison budget, of each entry and budget only the chosen trial."""
        rows = self.rows[self.rows["poison_budget"] == share]
        pooled = pd.DataFrame(rows.groupby(GROUP, sort=False)["validation_accuracy"].mean())
        order = (
            pooled["validation_accuracy"].fillna(-1.0).sort_values(ascending=False, kind="stable")
        )
        best = order.reset_index().drop_duplicates(["role", "entry", "budget"])
        return rows.merge(best[GROUP], on=GROUP, how="inner")

    def _summarise(self, share: float) -> pd.DataFrame:
        chosen = self.chosen(share)
        chosen = chosen[chosen["role"] != "reference"]
        keys = [key for key, _ in chosen.groupby(GROUP, sort=False)]
        measured = {key: self._pooled(share, key) for key in keys}
        answers = self._answers(measured)
        reference = chosen.loc[chosen["role"] == "retrained", "test_accuracy"].mean()
        lines = []
        for key, rows in chosen.groupby(GROUP, sort=False):
            line: dict[str, Any] = dict(zip(GROUP, key, strict=True))
            size = rows["forget_size"].mean()
            line |= {"poison_budget": share, "forget_size": size, "seeds": len(rows)}
            for figure in ("test_accuracy", "forget_accuracy", "spent", "seconds", *_figures(rows)):
                line[figure] = rows[figure].mean()
                line[f"{figure}_sd"] = rows[figure].std(ddof=1) if len(rows) > 1 else float("nan")
            if (targets := getattr(self.recipe.attack, "targets", 0)) > 0:
                line |= _success(rows, targets)
            line["accuracy_cost"] = reference - line["test_accuracy"]
            for name, score in measured[key].items():
                line |= score.columns(name)
                line |= {
                    f"{name}_poisons": score.n,
                    f"{name}_undefined": score.undefined,
                    f"{name}_hidden": score.hidden,
                }
            verdict = answers[key]
            line |= {
                "verdict": verdict.answer,
                "p_removed": verdict.p_removed,
                "p_not_removed": verdict.p_not_removed,
                "poisons_needed": verdict.poisons_needed,
                "note": "; ".join(sorted({note for note in rows["note"] if note})),
            }
            lines.append(line)
        return pd.DataFrame(lines)

    def _pooled(self, share: float, key: tuple[Any, ...]) -> dict[str, Dependence]:
        """Dependence by each score: the poisons of all seeds pooled, or seeds against retraining."""
        at_share = self.scores[self.scores["poison_budget"] == share]
        scores = at_share
        for column, value in zip(GROUP, key, strict=True):
            scores = scores[scores[column] == value]
        if not self.recipe.attack.compared:
            by_name = {str(name): scores[name].to_numpy() for name in scores.columns}
            return dependences(by_name, self.recipe.attack.null_deviations())
        names = self.score_names
        means = scores.groupby("seed")[names].mean()
        of_reference = at_share[at_share["role"] == "reference"].groupby("seed")[names].mean()
        reference = of_reference.loc[means.index]
        return {n: compared(means[n].to_numpy(), reference[n].to_numpy()) for n in names}

    def _answers(
        self, measured: Mapping[tuple[Any, ...], Mapping[str, Dependence]]
    ) -> dict[tuple[Any, ...], Verdict]:
        """The controls are judged each alone, the unlearners as one family."""
        settings = self.recipe.verdict.model_dump()
        initial = next(scores for key, scores in measured.items() if key[0] == "initial")
        family = [key for key in measured if key[0] == "updated"]
        answers = dict(
            zip(
                family,
                verdicts(initial, [measured[key] for key in family], **settings),
                strict=True,
            )
        )
        for key in measured.keys() - family:
            answers[key] = verdicts(initial, [measured[key]], **settings)[0]
        return answers


def _success(rows: pd.DataFrame, targets: int) -> dict[str, float]:
    """Wilson's 95 % interval of the share of targets, of all seeds, that get the attacker's label."""
    measured = rows["target_success"].dropna()
    tried = len(measured) * targets
    if not tried:
        return {"target_success_low": float("nan"), "target_success_high": float("nan")}
    found = binomtest(round(measured.sum() * targets), tried).proportion_ci(method="wilson")
    return {"target_success_low": float(found.low), "target_success_high": float(found.high)}


def _figures(rows: pd.DataFrame) -> list[str]:
    return [column for column in rows.columns if column.startswith(("tpr", "target", "rest"))]
