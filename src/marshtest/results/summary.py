"""What rows say: means over seeds, what is left of the poison, and the verdicts that follow.

Everything here is drawn from rows; scores, shifts and examples lie beside them where a run wrote them.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marshtest.experiment.cells import (
    CELL,
    FURTHER,
    STATE,
    cell_columns,
    cells,
    further_columns,
    groups,
)
from marshtest.experiment.columns import KINDS, MEND, Kind, check_columns, kinds_of
from marshtest.experiment.prospects import prospects
from marshtest.experiment.recorded import Recorded
from marshtest.experiment.roles import Role
from marshtest.experiment.row_file import FILE, Rows, read_file, read_frame
from marshtest.experiment.states import ITSELF
from marshtest.metrics import membership_verdict
from marshtest.metrics.binomial import interval_of_share
from marshtest.metrics.dependence import NOTHING, Dependence
from marshtest.metrics.membership_columns import EVERY_FORM, column_of
from marshtest.metrics.presentation import Column, Score
from marshtest.metrics.shift_columns import Shift
from marshtest.metrics.trainings import Difference, error_of_mean, interval_over, usable
from marshtest.metrics.verdict import (
    Evidence,
    Rest,
    Verdict,
    families,
    paired_verdicts,
    rests_on,
    verdicts,
)
from marshtest.plumbing.errors import MarshtestError
from marshtest.results.kept_models import kept_models
from marshtest.results.line_to_beat import standings
from marshtest.results.requests import by_request, of_verdict
from marshtest.results.states import in_state, worst

if TYPE_CHECKING:  # rows are read without torch
    from torch import nn

GROUP = ["role", "entry", "unlearner", "hyperparameters", "budget"]  # pooled over seeds
Key = tuple[Any, ...]  # values of GROUP
Judged = tuple[tuple[Rest, ...], dict[Key, dict[str, Verdict]]]
HEADINGS = (  # of the summary's own columns
    *("model", "poison", "seeds", "accuracy", "cost", "usable", "spent", "trainings"),
    *("line to beat", "verdict"),
)
Titled = TypeVar("Titled", Column, Score)
CONTROLS: dict[str, str] = {
    Role.INITIAL: "initial model (no unlearning)",
    Role.RETRAINED: "retrained model",
    Role.REFERENCE: "second retrained model",
    Role.SHUFFLED: "model of shuffled poisons",
    Role.EXACT: "model retrained without the poisons asked for",
}


def read_rows(folder: str | Path) -> pd.DataFrame:
    """The rows of a finished run: one line a (poison budget, seed, unlearner, trial, budget).

    Raises:
        MarshtestError: the folder holds no finished run.
    """
    return read_file(folder).frame


@dataclass(frozen=True)
class Results:
    """Rows that can be compared: of one run, or of several that differ in seeds, unlearners or budgets.

    Attributes:
        folder: where they lie.
        recipe: what was run, as rows tell it; of several runs, all of it.
        rows: one line a model; columns as in docs/rows.md.
        scores: one line a poison and model; empty where the rows came without.
        runs: by hash of recipe, what each run says of itself (see marshtest.experiment.row_file).
        shifts: one line a layer and model; may be empty.
        examples: a few poisons, to look at; may be empty.
    """

    folder: Path
    recipe: Recorded
    rows: pd.DataFrame
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shifts: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        return f"Results({self.recipe.name!r}, {len(self.rows):,} rows in {str(self.folder)!r})"

    @classmethod
    def read(cls, source: str | Path) -> "Results":
        """Read a finished run from its folder, or rows of one recipe from a file.

        Raises:
            MarshtestError: it is none.
        """
        rows = read_file(source)
        if rows.kind != "recipe" or len(rows.runs) != 1:
            whose = "a hypothesis" if rows.kind != "recipe" else f"{len(rows.runs)} recipes"
            raise MarshtestError(f"{rows.path}: holds rows of {whose}, not of one recipe.")
        return cls.of(rows, next(iter(rows.runs)))

    @classmethod
    def of(cls, rows: Rows, recipe: str, folder: Path | None = None) -> "Results":
        """The rows of one recipe among those of a file.

        Args:
            recipe: its hash.
            folder: where scores, shifts and examples lie; default beside the rows, of a run.
        """
        about = rows.runs[recipe]
        parsed = Recorded.of(recipe, about, str(rows.path))
        frame = rows.frame[rows.frame["recipe"] == recipe].reset_index(drop=True)
        # The others are of other recipes in the file.
        others = [name for name in FURTHER if name not in further_columns(parsed)]
        frame = frame.drop(columns=others, errors="ignore")
        _refuse_unjudgeable(frame, f"{rows.path}: rows of recipe {recipe}")
        # The attack's own columns first: a pattern of ours may fit their names as well.
        kinds = kinds_of(parsed.attack.shown, parsed.columns) | KINDS
        check_columns(frame, _columns(parsed), f"{rows.path}: {parsed.attack.name} rows", kinds)
        _check_counts(frame, parsed, rows.path)
        # Only a run's own file has the tables beside it; what was merged or exported lies anywhere.
        if folder is None and rows.path.name == FILE:
            folder = rows.path.parent
        keys = cell_columns(frame)
        needed = {"scores": keys, "shifts": [*keys, *Shift._fields], "examples": []}
        tables = {name: _beside(folder, name, columns, kinds) for name, columns in needed.items()}
        results = cls(folder or rows.path.parent, parsed, frame, runs={recipe: about}, **tables)
        placed = results.placed(parsed)
        _refuse_unasked(placed.rows, f"{rows.path}: rows of recipe {recipe}")
        return placed

    def placed(self, recipe: Recorded) -> "Results":
        """The same as rows of `recipe`, each `entry` its place there: merged rows may have others'."""
        places: dict[tuple[str, str], int] = {}
        for place, trials in enumerate(recipe.unlearners):
            for trial in trials:
                values = json.dumps(trial.hyperparameters, sort_keys=True)  # as rows hold them
                places.setdefault((trial.name, values), place)

        def numbered(frame: pd.DataFrame) -> pd.DataFrame:
            if not len(frame):
                return frame
            trials = zip(frame["unlearner"], frame["hyperparameters"], strict=True)
            return frame.assign(entry=[places.get(trial, -1) for trial in trials])

        rows, scores, shifts = map(numbered, (self.rows, self.scores, self.shifts))
        return replace(self, recipe=recipe, rows=rows, scores=scores, shifts=shifts)

    @property
    def scores_shown(self) -> Mapping[str, Score]:
        """The scores that verdicts rest on, and what a report must know of each."""
        scores = self.recipe.attack.shown.scores
        return {name: titled_apart(name, score, self._titles) for name, score in scores.items()}

    @property
    def columns_shown(self) -> Mapping[str, Column]:
        """The rows' further columns that have a title, and what a report must know of each."""
        columns = {name: column for name, column in self.recipe.columns.items() if column.title}
        return {name: titled_apart(name, column, self._titles) for name, column in columns.items()}

    @cached_property
    def _titles(self) -> list[str]:
        """The headings of tables, those of every report first."""
        scores, columns = self.recipe.attack.shown.scores, self.recipe.columns
        titles = [score.title for score in scores.values()]
        return [*HEADINGS, *titles, *(column.title for column in columns.values())]

    @property
    def membership(self) -> Mapping[str, str]:
        """The forms of membership inference that models were asked by, and their titles."""
        columns = self.recipe.columns
        return {
            form: title for form, title in EVERY_FORM.items() if column_of(form, "left") in columns
        }

    @property
    def unit(self) -> str:
        """What a score is averaged over."""
        return "trainings" if self.recipe.attack.needs_twin else "poisons"

    @cached_property
    def poison_budgets(self) -> list[float]:
        """The poison budgets that there are rows of."""
        return sorted(self.rows["poison_budget"].unique().tolist())

    @cached_property
    def budgets(self) -> list[float]:
        """The compute budgets that there are rows of."""
        return sorted(self.rows.loc[self.rows["role"] == "updated", "budget"].unique().tolist())

    @property
    def budget(self) -> float:
        """The compute budget that figures of a single one show: the paper's 10 %, or else the largest."""
        return 0.1 if 0.1 in self.budgets else max(self.budgets, default=math.nan)

    @property
    def poison_budget(self) -> float:
        """The poison budget that figures of a single one show: the largest."""
        return self.poison_budgets[-1]

    @property
    def seeds(self) -> list[int]:
        """The seeds that there are rows of."""
        return sorted(self.rows["seed"].unique().tolist())

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One line a (poison budget, unlearner, budget): means over seeds, pooled scores, verdict.

        Of an entry with several trials only the one chosen on held-out data is here. Where the recipe has
        states, means and scores are those of the models themselves, and the verdict is that of the worst
        state, named in the column `decided_by`.
        """
        tables = [self._summarise(share) for share in self.poison_budgets]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def states(self) -> pd.DataFrame:
        """One line a line of `summary` and `state`, each with its own verdict; empty without states.

        The model itself, "", comes first.
        """
        if not self.recipe.states:
            return pd.DataFrame()
        tables = [
            self._lines(share, state).assign(state=state)
            for share in self.poison_budgets
            for state in self._asked
            if len(self.chosen(share, state))
        ]
        table = pd.concat(tables, ignore_index=True)
        # The states of a model one after the other, and models in the order of the summary.
        places = dict[tuple[Any, ...], int]()
        keys = table[["poison_budget", *GROUP]].itertuples(index=False, name=None)
        order = [places.setdefault(key, len(places)) for key in keys]
        return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)

    @property
    def _asked(self) -> tuple[str, ...]:
        """The states in which each model is judged, itself the first."""
        return (ITSELF, *self.recipe.states)

    @cached_property
    def moved(self) -> pd.DataFrame:
        """How far models moved: one line a (poison budget, unlearner, budget, layer), means over seeds.

        Columns are those of shifts.parquet and `travelled`, the distance as a share of the retrained
        model's, each with its deviation `_sd`. Empty where the rows came without shifts.
        """
        if not len(self.shifts):
            return pd.DataFrame()
        tables = []
        for share in self.poison_budgets:
            keys = ["poison_budget", "seed", *GROUP]
            lines = of_verdict(self.shifts).merge(self.chosen(share)[keys], on=keys)
            goal = lines.loc[lines["role"] == "retrained", ["seed", "layer", "l2"]]
            lines = lines.merge(goal, on=["seed", "layer"], suffixes=("", "_needed"))
            lines["travelled"] = lines["l2"] / lines.pop("l2_needed")
            cells = ["poison_budget", *GROUP, "layer", "parameters"]
            by_cell = lines.groupby(cells, sort=False)[[*Shift._fields[2:], "travelled"]]
            spread = by_cell.std(ddof=1).add_suffix("_sd")
            tables.append(by_cell.mean().join(spread).reset_index())
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def by_request(self) -> pd.DataFrame:
        """One line a summary's line and share known, or request (see marshtest.results.requests)."""
        return by_request(self)

    @property
    def models(self) -> pd.DataFrame:
        """One line a model file of a run with `keep_models=True` (see marshtest.results.kept_models)."""
        return kept_models(self.folder)

    def load_model(
        self, line: Mapping[str, Any] | pd.Series, factory: str | Callable[..., Any] | None = None
    ) -> "nn.Module":
        """The model of one line of `models`, in eval mode.

        Args:
            factory: builds a model of the user's own kind, as for marshtest.load_model.

        Raises:
            MarshtestError: the file is gone or corrupt, or its kind of model needs a factory.
        """
        from marshtest.models.checkpoint import load_model

        return load_model(line["path"], factory)

    @cached_property
    def gaps(self) -> list[str]:
        """What the recipes ask for and no row tells, in words; nothing is put in its place."""
        # Of all runs together: what one of them lacks, another may have.
        wanted = {cell: None for hash, run in self.runs.items() for cell in _cells(hash, run)}
        columns = cell_columns(self.rows)
        there = set(self.rows[columns].itertuples(index=False, name=None))
        missing: dict[tuple[Any, ...], list[int]] = {}
        for share, seed, *rest in wanted:
            if (share, seed, *rest) not in there:
                missing.setdefault((share, *rest), []).append(seed)
        of_cell = [column for column in columns if column != "seed"]
        known = set(self.rows[of_cell].itertuples(index=False, name=None))
        said = []
        for key, seeds in missing.items():
            share, role, unlearner, _, budget, *further = key
            place = dict(zip(columns[len(CELL) :], further, strict=True))
            what = CONTROLS.get(role, f"{unlearner} at compute budget {budget:g}")
            what += f" in state {state}" if (state := place.pop(STATE, ITSELF)) else ""
            axes = (f"{axis} {value:g}" for axis, value in place.items())
            where = ", ".join([f"poison budget {share:g}", *axes])
            if key in known:
                listed = ", ".join(map(str, seeds))
                said.append(f"{where}: {what}: seed{'s' * (len(seeds) > 1)} {listed} missing")
            else:
                said.append(f"{where}: there is no {what}")
        return said

    @cached_property
    def warnings(self) -> list[str]:
        """Why verdicts cannot be trusted, where the controls do not come out as they must."""
        said = []
        # Only attacks that are crafted have the column.
        stopped = self.rows.get("crafting_stopped", pd.Series(0.0, self.rows.index)) > 0
        for share, rows in self.rows[stopped].groupby("poison_budget", sort=False):
            said.append(
                f"Poison budget {share:g}: the attack's objective turned NaN in "
                f"{rows['seed'].nunique()} seeds, and the best poisons before were kept. Lower attack.lr."
            )
        for share, table in self.summary.groupby("poison_budget", sort=False):
            controls = table.set_index("role")["verdict"]
            absent = [role for role in ("initial", "retrained") if role not in controls]
            if absent:
                names = " and no ".join(CONTROLS[role] for role in absent)
                said.append(
                    f"Poison budget {share:g}: there is no {names} among the rows, so the test itself is "
                    "unchecked here. Add its rows."
                )
            elif controls["initial"] != "NOT REMOVED" or controls["retrained"] != "REMOVED":
                judged = table["role"].isin(["initial", "retrained"])
                needed = table.loc[judged, "needed"].max()
                more = ""
                if not pd.isna(needed):
                    more = f" For these two about {needed:,.0f} {self.unit} in all would do."
                said.append(
                    f"Poison budget {share:g}: too small for a verdict. The initial model came out "
                    f"{controls['initial']} (it must be NOT REMOVED) and the retrained model "
                    f"{controls['retrained']} (it must be REMOVED).{more} "
                    "Raise seeds or poison_budgets, or make the attack stronger."
                )
            said += [f"Poison budget {share:g}: {line}" for line in self._prospects(table)]
        return said

    def _prospects(self, table: pd.DataFrame) -> list[str]:
        """Answers that the numbers of poisons or trainings rule out."""
        initial = table[table["role"] == "initial"]
        if not len(initial):
            return []
        seeds, poisons = int(initial["seeds"].iloc[0]), float(initial["forget_size"].iloc[0])
        family = int((table["role"] == "updated").sum())
        return list(prospects(self.recipe, family, seeds, round(poisons)))

    def rests(self, share: float) -> tuple[Rest, ...]:
        """What verdicts of REMOVED rest on at a poison budget; nothing of effects without a null law."""
        return self._judged[share][0]

    def telling(self, share: float) -> list[str]:
        """The scores whose mean REMOVED rests on; empty where no mean shows the poison."""
        if self.recipe.attack.needs_twin:
            return list(self.scores_shown)
        return [score for score, effect in self.rests(share) if effect == "mean"]

    def chosen(self, share: float, state: str = ITSELF) -> pd.DataFrame:
        """Rows at one poison budget and in one state, of each entry and budget only the chosen trial."""
        every = of_verdict(self.rows[self.rows["poison_budget"] == share])
        # By the models themselves: one that was trained on has seen the held-out samples.
        rows = in_state(every, ITSELF)
        # By the mean over seeds: a choice in each seed would mix several trials in one line. The sort is
        # stable, so of equal ones the recipe's first wins.
        seen = rows.groupby(GROUP, sort=False)[["validation_accuracy", "forget_accuracy"]]
        # A seed that gave no model counts: a trial must not win by the seeds in which it worked.
        size = seen.size()
        most = size.groupby(level=["role", "entry", "budget"]).transform("max")
        means = seen.mean().where(seen.count().eq(most, axis=0))
        worth = pd.DataFrame({"worth": worth_of(means)})
        order = worth["worth"].fillna(-2.0).sort_values(ascending=False, kind="stable")
        best = order.reset_index().drop_duplicates(["role", "entry", "budget"])
        return in_state(every, state).merge(best[GROUP], on=GROUP, how="inner")

    def searched(self, share: float) -> pd.DataFrame:
        """What the searches cost: a line for each entry and budget of several trials.

        Columns `role`, `unlearner`, `entry`, `budget`; `hyperparameters` of the first; `trials`, their
        number; `spent`, the share of the training's compute that all of them took, mean over seeds.
        """
        rows = in_state(of_verdict(self.rows[self.rows["poison_budget"] == share]), ITSELF)
        rows = rows[rows["role"] == "updated"]
        keys = ["role", "unlearner", "entry", "budget"]
        spent = rows.groupby(GROUP, sort=False)["spent"].mean().reset_index()
        searches = spent.groupby(keys, sort=False).agg(
            hyperparameters=("hyperparameters", "first"),
            trials=("spent", "size"),
            spent=("spent", "sum"),
        )
        return searches[searches["trials"] > 1].reset_index()

    def scores_of(self, share: float, line: Mapping[Any, Any] | pd.Series) -> pd.DataFrame:
        """The scores of a line of `summary` or `states`; empty where the rows came without."""
        if not len(self.scores):
            return self.scores
        scores = of_verdict(self.scores[self.scores["poison_budget"] == share])
        scores = in_state(scores, line.get(STATE, ITSELF))
        for column in GROUP:
            scores = scores[scores[column] == line[column]]
        return scores

    def _summarise(self, share: float) -> pd.DataFrame:
        """The summary at one poison budget."""
        table, chosen = self._lines(share, ITSELF), self.chosen(share)
        if self.recipe.states:
            # The verdict's own columns anew: what is left stays what it is in the model itself.
            alpha, judged = self.recipe.verdict.alpha, self._judged[share][1].values()
            models = [worst(answers, alpha) for answers in judged]
            decided = pd.DataFrame([_of_verdict(verdict) for _, verdict in models])
            table[decided.columns] = decided
            table["decided_by"] = [state for state, _ in models]
        cells = chosen[chosen["role"] != "reference"].groupby(GROUP, sort=False)
        levels = self.recipe.verdict.model_dump(include={"alpha", "margin"})
        for form in self.membership:
            said = membership_verdict.judged(chosen, dict(iter(cells)), form, **levels)
            for name in said[0]:
                table[name] = [answer[name] for answer in said]
        accuracies = [rows.set_index("seed")["test_accuracy"] for _, rows in cells]
        return table.assign(standing=standings(table, accuracies, self.recipe.verdict.alpha))

    def _lines(self, share: float, state: str) -> pd.DataFrame:
        """One line a cell: its models in a state, with the state's own verdict."""
        # A reference has no line: it is there to be compared with, as the retrained model's twin.
        chosen, answers = self.chosen(share, state), self._judged[share][1]
        cells = chosen[chosen["role"] != "reference"].groupby(GROUP, sort=False)
        keys = list(cells.groups)
        numbers = ["test_accuracy", "forget_accuracy", "spent", "seconds", *self._averaged(chosen)]
        means, spreads = cells[numbers].mean(), cells[numbers].std(ddof=1).add_suffix("_sd")
        for name, column in self.recipe.columns.items():
            if column.interval != "seeds" and name in means:  # what its interval is about
                means[name] = [_pooled(rows, name, column)[0] for _, rows in cells]
        of_cells = [cells.size().rename("seeds"), cells["forget_size"].mean()]
        table = pd.concat([*of_cells, means, spreads], axis=1).loc[keys].reset_index()
        table.insert(len(GROUP), "poison_budget", share)
        itself = self.chosen(share)
        full = itself[itself["role"] == "retrained"].set_index("seed")["test_accuracy"]
        # Within seeds: either model may be missing in some.
        table["accuracy_cost"] = [
            (full - rows.set_index("seed")["test_accuracy"]).mean() for _, rows in cells
        ]
        lines = [self._line(rows, answers[key][state], full) for key, rows in cells]
        return pd.concat([table, pd.DataFrame(lines)], axis=1)

    def _line(self, rows: pd.DataFrame, verdict: Verdict, full: pd.Series) -> dict[str, Any]:
        """A summary line's scores, intervals and verdict.

        Args:
            rows: of one cell, one a seed.
            full: test accuracy of the retrained model, by seed.
        """
        settings, line = self.recipe.verdict, dict[str, Any]()
        for name, column in self.recipe.columns.items():
            line |= _interval(rows, name, column)
        evidence = self._evidence(rows)
        if isinstance(evidence, Difference):
            for name in self.scores_shown:
                line |= evidence.columns(name)
        else:
            for name, score in evidence.pooled.items():
                means = np.array([scores[name].value for scores in evidence.trainings.values()])
                line |= score.columns(name) | _over_trainings(name, score.value, means)
        reference = rows["role"].iloc[0] == "retrained" and not any(rows.get(STATE, ()))
        # Within seeds: how hard a seed's split is, both models share.
        cost = full.reindex(rows["seed"]).to_numpy() - rows["test_accuracy"].to_numpy()
        use = "yes" if reference else usable(cost, settings.accuracy, settings.alpha)
        note = "; ".join(sorted({note for note in rows["note"] if note}))
        # In the order that summary.csv has: the use stands behind the answer.
        answer = _of_verdict(verdict)
        return line | {"verdict": answer.pop("verdict"), "usable": use} | answer | {"note": note}

    def _evidence(self, rows: pd.DataFrame) -> "Evidence | Difference":
        """What the models of one cell show of the poison; its rows are one a seed."""
        attack = self.recipe.attack.shown
        if attack.needs_twin:
            (column,) = attack.reference_columns.values()
            left = (rows[column] - rows[f"twin_{column}"]).to_numpy(dtype=np.float64)
            return Difference(left, same=bool((rows["twin_same"] == 1).all()))
        fpr = float(attack.fpr)
        return Evidence(
            {
                int(line["seed"]): {name: Dependence.of(line, name, fpr) for name in attack.scores}
                for _, line in rows.iterrows()
            },
            attack.scores,
        )

    def _averaged(self, rows: pd.DataFrame) -> list[str]:
        """Columns of which a summary gives mean and deviation over seeds."""
        columns = [*self.recipe.attack.shown.reference_columns.values(), *self.recipe.columns]
        return [column for column in columns if column in rows]

    @cached_property
    def _judged(self) -> dict[float, Judged]:
        """What verdicts rest on, and the verdict of each cell and state, by poison budget."""
        return {share: self._judge(share) for share in self.poison_budgets}

    def _shown(self, share: float) -> "dict[Key, list[Any]]":
        """What the models of each cell show in each state, at one poison budget."""
        chosen = [self.chosen(share, state) for state in self._asked]
        seeds = chosen[0]["seed"].unique()
        by_state = [dict(list(rows.groupby(GROUP, sort=False))) for rows in chosen]
        return {
            key: [self._evidence(_aligned(of.get(key, rows.head(0)), seeds)) for of in by_state]
            for key, rows in by_state[0].items()
            if key[0] != "reference"
        }

    def _judge(self, share: float) -> Judged:
        """What verdicts rest on, and the verdicts: controls each alone, unlearners together."""
        evidence, states = self._shown(share), self._asked
        family = [key for key in evidence if key[0] == "updated"]
        levels: dict[str, Any] = self.recipe.verdict.model_dump(include={"alpha", "margin"})
        over: dict[str, Any] = levels | {"states": len(states)}
        initial = next((of[0] for key, of in evidence.items() if key[0] == "initial"), None)
        answers: dict[Key, dict[str, Verdict]] = {key: {} for key in evidence}
        if self.recipe.attack.needs_twin:
            # Without an initial model nobody knows what a share of its effect would be.
            nothing = Difference(np.full(self.chosen(share)["seed"].nunique(), np.nan))
            before = initial if isinstance(initial, Difference) else nothing
            rests: tuple[Rest, ...] = ()
            judge: Callable[..., list[Verdict]] = partial(paired_verdicts, before, **over)
        else:
            first = initial if isinstance(initial, Evidence) else Evidence({})
            # Decided once, by the initial model and the counts alone: no unlearner's scores may choose
            # the tests that it is judged by.
            rests = rests_on(first, family=max(1, len(family)), **levels)
            judge = partial(verdicts, first, rests=rests, **over)
        for keys in families(evidence, family):
            cells = [(key, state) for key in keys for state in states]
            judged = judge([one for key in keys for one in evidence[key]])
            for (key, state), verdict in zip(cells, judged, strict=True):
                answers[key][state] = verdict
        return rests, answers


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    """The columns of a summary on a verdict."""
    return {
        "verdict": verdict.answer,
        "removed_in": verdict.removed_in,
        "trainings": verdict.trainings,
        "p_removed": verdict.p_removed,
        "p_not_removed": verdict.p_not_removed,
        "needed": verdict.needed,
        "reasons": "; ".join(verdict.reasons),
    }


def _refuse_unjudgeable(frame: pd.DataFrame, where: str) -> None:
    """Raise where rows are of no model that can be judged, or of one model twice."""
    if frame.duplicated(cell_columns(frame)).any():
        raise MarshtestError(f"{where} stand there twice. Give rows as written.")
    if not len(frame[frame["role"] != "reference"]):
        raise MarshtestError(f"{where} are of no model but the reference. Give rows as written.")


def _refuse_unasked(rows: pd.DataFrame, where: str) -> None:
    """Raise where a model was updated by what no entry of the recipe says: no table would show it."""
    unasked = rows[(rows["role"] == "updated") & (rows["entry"] < 0)]
    if len(unasked):
        name, values = unasked[["unlearner", "hyperparameters"]].iloc[0]
        raise MarshtestError(
            f"{where}: unlearner {name!r} with {values} is in no entry of the recipe that stands in the "
            "file. Give rows as written."
        )


def _aligned(rows: pd.DataFrame, seeds: NDArray[Any]) -> pd.DataFrame:
    """One row a seed, in the order of `seeds`; all nan where there is none."""
    # A copy is of one piece: to put a column into rows of a hundred pieces, pandas warns of.
    return rows.set_index("seed").reindex(seeds).copy().reset_index()


def worth_of(means: pd.DataFrame) -> "pd.Series[float]":
    """What a search makes greatest: held-out accuracy, less what the forget set's exceeds it by.

    That excess is all a method can see of its own forgetting: a model that never trained on the forget set
    answers it no better than other data. The poison's effect is never looked at.

    Args:
        means: columns `validation_accuracy` and `forget_accuracy`, a line for each trial.
    """
    held_out, forget = means["validation_accuracy"], means["forget_accuracy"]
    return held_out - (forget - held_out).clip(lower=0)


def wider_error(line: Any, name: str) -> float:
    """The larger standard error of a score: given these models, or of trainings to come (≥ 2 seeds)."""
    # fmax and not max: of one seed the second is nan, and must not win.
    return float(np.fmax(line[f"{name}_error"], line.get(f"{name}_trainings_error", math.nan)))


def _over_trainings(name: str, value: float, means: NDArray[np.float64]) -> dict[str, float]:
    """Columns of a score's error between trainings, and the t interval of trainings to come.

    Args:
        name: of the score.
        value: pooled over all poisons.
        means: [S] of each training; nan where there is none.
    """
    defined = means[~np.isnan(means)]
    error = error_of_mean(defined)
    low, high = interval_over(len(defined), value, error)
    return {
        f"{name}_trainings": float(len(defined)),
        f"{name}_trainings_error": error,
        f"{name}_trainings_low": low,
        f"{name}_trainings_high": high,
    }


def _interval(rows: pd.DataFrame, name: str, column: Column) -> dict[str, float]:
    """The binomial 95 % interval of a share, over all seeds; nothing of what is no share."""
    if column.interval == "seeds" or name not in rows:
        return {}
    low, high = interval_of_share(*_pooled(rows, name, column), method=column.interval)
    return {f"{name}_low": low, f"{name}_high": high}


def _pooled(rows: pd.DataFrame, name: str, column: Column) -> tuple[float, float]:
    """A share over all seeds, and how many it is of."""
    # A seed without a share adds nothing to what it is of.
    n = (rows[column.count] if isinstance(column.count, str) else column.count) * rows[name].notna()
    total = float(n.sum())
    return float((rows[name] * n).sum() / total) if total else math.nan, total


def _beside(
    folder: Path | None, name: str, needed: Sequence[str], kinds: Mapping[str, Kind]
) -> pd.DataFrame:
    file = None if folder is None else folder / f"{name}.parquet"
    if file is None or not file.exists():
        return pd.DataFrame()
    table = read_frame(file)
    if len(table):
        check_columns(table, needed, str(file), kinds)
    return table


def titled_apart(name: str, of: Titled, titles: Sequence[str]) -> Titled:
    """The score or column, with its name in the title if another heading of the table is the same."""
    if titles.count(of.title) < 2:
        return of
    return of.model_copy(update={"title": f"{of.title} ({name})"})


def _columns(recipe: Recorded) -> Iterator[str]:
    """What verdicts and tables take from a row, beside what every row has."""
    shown = recipe.attack.shown
    yield from further_columns(recipe)
    for name in shown.null_scores:
        yield from NOTHING.columns(name)
    for reference in shown.reference_columns.values():
        yield from (reference, f"twin_{reference}", "twin_same")
    for name, column in recipe.columns.items():
        yield from (
            (name, column.count) if isinstance(column.count, str) and column.count else (name,)
        )


def _check_counts(rows: pd.DataFrame, recipe: Recorded, path: Path) -> None:
    """What tells a score stands together in a row, or is not there at all."""
    for name in recipe.attack.shown.null_scores:
        counts = [f"{name}_{count}" for count in ("poisons", "undefined", "cells", "tail")]
        missing = rows[counts].isna()
        broken = (missing.any(axis=1) & ~missing.all(axis=1)).to_numpy()
        if broken.any():
            row = int(broken.argmax())
            column = counts[int(missing.iloc[row].to_numpy().argmax())]
            raise MarshtestError(
                f"{path}: column {column!r} holds nothing in row {row}, but its other counts do. {MEND}"
            )


def _cells(hash: str, run: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The cells that a recipe asks for."""
    recipe = Recorded.of(hash, run, "recipe")
    for group in groups(recipe):
        yield from (cell.key for cell in cells(recipe, group))
