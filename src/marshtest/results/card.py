"""The card of one unlearner: what a suite's recipes say of it, and where it stands among the known.

The newcomer is judged alone, by rows of its own: its own initial and retrained models, and no correction
for unlearners that it is compared with. Ranks are those of the leaderboard, attack by attack and over all
of them, among the known unlearners whose rows can be compared. Those that were run in another place, which
is another copy of the data, precision or kind of device, are measured by the models there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.experiment.states import ITSELF
from marshtest.metrics.membership_columns import column_of
from marshtest.metrics.verdict import ANSWERS
from marshtest.results.leaderboard import CONTROLS, leaderboard_of, telling
from marshtest.results.line_to_beat import LINE, TUNED, line_to_beat, standings
from marshtest.results.merging import CONTENT, PLACE, differences, setting, together
from marshtest.results.summary import GROUP, Results

FORMAT = 1  # of card.json
ELSEWHERE = "elsewhere"  # the name of what was unlearned outside, at a cost that nobody measured
USES = ("no", "unclear", "yes")  # the worst first


@dataclass(frozen=True)
class Line:
    """What one attack says.

    Attributes:
        recipe: its name.
        attack: its title.
        poison_budget: share of the candidates that were poisoned.
        seeds: trainings.
        verdict: the worst of the updated model and of its states after care.
        left, left_error: share of the initial effect that is left, and its standard error; below 0 where it
            is turned round, nan where the initial model shows no effect.
        accuracy, accuracy_sd: on the test set, over seeds.
        cost: accuracy lost against full retraining.
        usable: whether the cost is surely small: "yes", "no" or "unclear".
        spent: share of the training's compute; nan where nobody measured it.
        rank, ranked: place among so many, by what is left or accuracy lost, whichever is more; None
            without known unlearners.
        standing: to tuned retraining; "" where it is not among the known, or these were run elsewhere.
        margin: share of the effect that REMOVED may leave.
        reasons: what speaks against REMOVED; and what was odd.
        known: size of the share left by each of the known.
        membership: whether it passes each attack of membership inference, by the attack's title.
        after_care: verdict of each state after care, by its name.
    """

    recipe: str
    attack: str
    poison_budget: float
    seeds: int
    verdict: str
    left: float
    left_error: float
    accuracy: float
    accuracy_sd: float
    cost: float
    usable: str
    spent: float
    rank: int | None
    ranked: int
    standing: str
    margin: float
    reasons: str
    known: Mapping[str, float] = field(default_factory=dict)
    membership: Mapping[str, str] = field(default_factory=dict)
    after_care: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What a suite says of one unlearner.

    Attributes:
        unlearner: its name, or the folder of its models.
        hyperparameters: by recipe.
        suite: its name.
        lines: one an attack (and poison budget).
        rank, ranked: place among so many over all attacks; None without known unlearners.
        said: what is lacking, and why.
        folder: where the card and the newcomer's rows were written.
    """

    unlearner: str
    hyperparameters: Mapping[str, str]
    suite: str
    lines: Sequence[Line]
    rank: int | None
    ranked: int
    said: Sequence[str] = ()
    folder: Path = Path()

    @property
    def verdict(self) -> str:
        """The worst verdict of all attacks."""
        return _worst((line.verdict for line in self.lines), ANSWERS)

    @property
    def usable(self) -> str:
        """The worst use of all attacks."""
        return _worst((line.usable for line in self.lines), USES)

    @property
    def agrees(self) -> bool:
        """Whether all attacks say the same."""
        return len({line.verdict for line in self.lines}) == 1

    @property
    def headline(self) -> str:
        """The whole card in a sentence, the worst first."""
        total = len(self.lines)
        counts = [f"usable in {sum(line.usable == 'yes' for line in self.lines)} of {total}"]
        if self.agrees:
            answer = f"{self.verdict} in {f'all {total} attacks' if total > 1 else 'one attack'}"
        else:
            worst = [line.attack for line in self.lines if line.verdict == self.verdict]
            answer = f"{self.verdict} at worst ({', '.join(dict.fromkeys(worst))})"
            removed = sum(line.verdict == "REMOVED" for line in self.lines)
            counts = [f"removed in {removed} of {total} attacks", *counts]
        if self.rank is not None:
            counts.append(f"rank {self.rank} of {self.ranked}")
        if (against := self._against()) is not None:
            counts.append(against)
        return f"{self.unlearner}: {answer}; {', '.join(counts)}."

    def _against(self) -> str | None:
        """How the unlearner stands to tuned retraining over all attacks; None where nothing tells."""
        words = [line.standing for line in self.lines if line.standing]
        if not words:
            return None
        if set(words) == {LINE}:
            return "the line to beat itself"
        counts = [f"{word} {words.count(word)}" for word in ("beats", "ties", "loses", "unclear")]
        shown = [count for count in counts if not count.endswith(" 0")]
        return f"against tuned retraining: {', '.join(shown)}"

    def as_json(self) -> dict[str, Any]:
        """The values of card.json; what is undefined is None."""
        values = {"format": FORMAT, "headline": self.headline, "verdict": self.verdict}
        fields = {name: value for name, value in asdict(self).items() if name != "folder"}
        plain: dict[str, Any] = _plain({**values, "usable": self.usable, **fields})
        return plain


def card_of(
    unlearner: str,
    suite: str,
    scored: Sequence[tuple[Results, Results | None]],
    said: Sequence[str],
) -> Card:
    """The card of what was scored.

    Args:
        unlearner: how the card calls it.
        scored: of each recipe the newcomer's rows, and those of the known if there are any.
        said: what is lacking already.
    """
    lines: list[Line] = []
    compared, said = [], list(said)
    for own, known in scored:
        name = _name(own)
        places, remark = _among(own, known, name, suite)
        of_recipe = [_line(own, places, share, name) for share in own.poison_budgets]
        if all(line.rank is None for line in of_recipe) and (len(places) > 1 or not remark):
            remark = (
                "no ranks, as an initial model shows no effect, nobody else is known at these budgets, or "
                "there was no model in some training"
            )
        if remark:
            said.append(f"{own.recipe.name}: {remark}.")
        compared.append(places)
        lines += of_recipe
    names = [_name(own) for own, _ in scored]
    ranks = _place(leaderboard_of(compared), names[0])
    values = {own.recipe.name: own.recipe.unlearners[0][0].hyperparameters for own, _ in scored}
    told = {recipe: _told(of) for recipe, of in values.items()}
    return Card(unlearner, told, suite, lines, *ranks, tuple(said))


def _told(values: Mapping[str, Any]) -> str:
    """Hyper-parameters in words; those of a user's callable stand among its options."""
    flat = {**values, **values.get("options", {})}
    return ", ".join(f"{k}={v}" for k, v in flat.items() if k not in ("options", "source"))


def _name(own: Results) -> str:
    """The newcomer, as rows call it."""
    return own.recipe.unlearners[0][0].name


def _among(own: Results, known: Results | None, name: str, suite: str) -> tuple[list[Results], str]:
    """The newcomer's rows and those of the known, by place, its own first; and what is to be said."""
    if known is None:
        file = f"the suite's file ({suite}/{own.recipe.name}.parquet)"
        return [own], f"no ranks, as no rows of known unlearners lie beside {file}"
    differing = differences(setting(known), setting(own))
    if not differing.keys() <= PLACE:
        told = "; ".join(f"{key} is {b}, not {a}" for key, (a, b) in list(differing.items())[:3])
        return [own], f"no ranks, as the known were run in another setting ({told})"
    rows = known.rows
    # Under its own name the newcomer stands for itself.
    updated = (rows["role"] == "updated") & (rows["unlearner"] != name)
    updated &= rows["poison_budget"].isin(own.poison_budgets) & rows["budget"].isin(own.budgets)
    others = [trials for trials in known.recipe.unlearners if trials[0].name != name]
    recipe = known.recipe.model_copy(update={"unlearners": tuple(others)})
    if not differing:
        # Controls stay the newcomer's: another machine's differ in their last digits.
        return [together(own, replace(known, rows=rows[updated], recipe=recipe))], ""
    there = updated | (rows["role"] != "updated")
    return [own, replace(known, rows=rows[there]).placed(recipe)], _elsewhere(differing)


def _elsewhere(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """What is to be said of known unlearners that were run in another place."""
    told = [f"with {key} {there}" for key, (there, _) in differing.items() if key != CONTENT]
    if CONTENT in differing:
        told.insert(0, "on another copy of the data")
    return (
        f"the known were run {' and '.join(told)}: each side's shares are of its own effect, and nothing "
        "is said against tuned retraining"
    )


def _line(own: Results, places: Sequence[Results], share: float, name: str) -> Line:
    summary = own.summary
    lines = summary[(summary["role"] == "updated") & (summary["poison_budget"] == share)]
    lines = lines[lines["budget"] == own.budget]
    line = lines.iloc[0].copy()
    if name == ELSEWHERE:
        line["spent"] = math.nan
    board = leaderboard_of([[_at(results, share) for results in places]])
    shares = {str(of["unlearner"]): of for of in board.to_dict("records")}
    found = shares.get(name, {"left": math.nan, "left_error": math.nan})
    others = shares.keys() - {name, *CONTROLS.values()}
    rank, ranked = _place(board, name)
    return Line(
        recipe=own.recipe.name,
        attack=own.recipe.attack.shown.title,
        poison_budget=share,
        seeds=int(line["seeds"]),
        verdict=str(line["verdict"]),
        left=_signed(float(found["left"]), places, share, line),
        left_error=float(found["left_error"]),
        accuracy=float(line["test_accuracy"]),
        accuracy_sd=float(line["test_accuracy_sd"]),
        cost=float(line["accuracy_cost"]),
        usable=str(line["usable"]),
        spent=float(line["spent"]),
        rank=rank,
        ranked=ranked,
        standing=_standing(line, own, places, share),
        margin=own.recipe.verdict.margin,
        reasons="; ".join(filter(None, (str(line["reasons"]), str(line["note"])))),
        known={other: float(shares[other]["left"]) for other in sorted(others)},
        membership=_membership(own, line),
        after_care=_after_care(own, share),
    )


def _signed(left: float, places: Sequence[Results], share: float, line: pd.Series) -> float:
    """The size of what is left with the sign of the score that shows most."""
    if math.isnan(left):
        return left
    table = places[0].summary
    table = table[(table["role"] == "initial") & (table["poison_budget"] == share)]
    columns = [f"{name}_dependence" for name in telling(places, share)]
    shares = [line[column] / table[column].iloc[0] for column in columns]
    return math.copysign(left, max(shares, key=abs))


def _at(results: Results, share: float) -> Results:
    """The results at one poison budget."""
    if results.poison_budgets == [share]:  # what is summarised already
        return results
    return replace(results, rows=results.rows[results.rows["poison_budget"] == share])


def _membership(own: Results, line: pd.Series) -> dict[str, str]:
    """The answer by each attack of membership inference that rows tell of, by its title."""
    answers = {title: column_of(form, "verdict") for form, title in own.membership.items()}
    return {title: str(line[column]) for title, column in answers.items()}


def _after_care(own: Results, share: float) -> dict[str, str]:
    """The verdict in each state after care, where rows tell of any."""
    if not own.recipe.states:
        return {}
    lines = own.states
    lines = lines[(lines["role"] == "updated") & (lines["poison_budget"] == share)]
    lines = lines[(lines["budget"] == own.budget) & (lines["state"] != ITSELF)]
    return dict(zip(lines["state"], lines["verdict"], strict=True))


def _place(board: pd.DataFrame, name: str) -> tuple[int | None, int]:
    """The newcomer's rank, and among how many; none where it is alone."""
    ranked = board[board["rank"].notna()] if len(board) else board
    own = ranked[ranked["unlearner"] == name] if len(ranked) else ranked
    return (int(own["rank"].iloc[0]), len(ranked)) if len(own) and len(ranked) > 1 else (None, 0)


def _standing(own_line: pd.Series, own: Results, places: Sequence[Results], share: float) -> str:
    """How the newcomer stands to tuned retraining, tested by itself; "" without that line."""
    if len(places) > 1:  # trainings are paired by seed, which elsewhere is another training
        return ""
    (both,) = places
    table = both.summary
    table = table[(table["poison_budget"] == share) & (table["budget"] == own.budget)]
    line = line_to_beat(table)
    if line is None or line["unlearner"] != TUNED:
        return ""
    if own_line["unlearner"] == TUNED:
        return LINE
    pair = pd.DataFrame([line, own_line]).reset_index(drop=True)
    accuracies = [_accuracies(both, line), _accuracies(own, own_line)]
    return standings(pair, accuracies, own.recipe.verdict.alpha)[1]


def _accuracies(results: Results, line: pd.Series) -> "pd.Series[float]":
    """Accuracy on the test set of a summary's line, by seed."""
    rows = results.chosen(float(line["poison_budget"]))
    for column in GROUP:
        rows = rows[rows[column] == line[column]]
    return rows.set_index("seed")["test_accuracy"]


def _worst(words: Iterator[str] | Sequence[str], order: Sequence[str]) -> str:
    there = set(words)
    return next((word for word in order if word in there), "–")


def _plain(value: Any) -> Any:
    """The value for JSON, which knows no nan."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
