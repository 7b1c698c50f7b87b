"""All unlearners on all attacks, and the search for one that beats tuned retraining (docs/rivals.md)."""

import json

import pandas as pd
from experiments import HOW, RIVALS, SUITES, TRIALS, Cell, missing, results, there

from marshtest.experiment.recorded import Recorded
from marshtest.reporting.tables import NAMES, as_markdown, label, plus_minus
from marshtest.results.leaderboard import CONTROLS
from marshtest.results.line_to_beat import TUNED
from marshtest.results.naming import choice, differing, marks, settings
from marshtest.results.summary import Results


def cells_of(experiment: str) -> dict[str, Cell]:
    """The cells of an experiment at its largest poison budget, by the title of the model."""
    of = results(experiment)
    table = of.summary[of.summary["poison_budget"] == of.poison_budget]
    lines = table[(table["role"] != "updated") | (table["budget"] == of.budget)]
    initial = table[table["role"] == "initial"].iloc[0]
    names = list(of.scores_shown)
    return {
        _title(line, of): Cell(experiment, line, initial, names) for _, line in lines.iterrows()
    }


def _title(line: pd.Series, of: Results) -> str:
    """A model's name, and what tells it from others of its name in its own experiment."""
    name = str(line["unlearner"])
    if line["role"] != "updated":
        return label(line, of.recipe)
    return NAMES.get(name, name.rpartition(":")[2]) + marks(line, differing(of.recipe.unlearners))


def _short(of: Cell) -> str:
    """A cell in a few words."""
    lost = {"yes": "", "no": ", not usable"}.get(of.line["usable"], ", usable or not: unclear")
    # Below 0 the effect has turned round.
    left = f", {_left(of):z.0%} left" if of.has_effect else ""
    accuracy = plus_minus(of.line["test_accuracy"], of.line["test_accuracy_sd"], 3)
    return f"{of.verdict}{left}, {accuracy}{lost}"


def _left(of: Cell) -> float:
    """The share of the initial effect that is left, by the score that shows most of it to begin with."""

    def clearness(name: str) -> float:
        return float(of.initial[f"{name}_dependence"] / of.initial[f"{name}_error"])

    name = max(of.names, key=clearness) if len(of.names) > 1 else of.names[0]
    return of.share(name)


def rivals() -> str:
    """Every method on every attack: verdict, what is left of the effect, accuracy."""
    return _by_method(RIVALS)


def on_suites() -> str:
    """The same of the suites, where every method has one setting."""
    return _by_method(SUITES)


def candidates() -> str:
    """Every trial of the search for a method that beats tuned retraining."""
    return _by_method(TRIALS)


def _by_method(titles: dict[str, str]) -> str:
    """Methods by experiments, and the commands that give the rows."""
    chosen = list(filter(there, titles))
    columns = {name: cells_of(name) for name in chosen}
    methods = dict.fromkeys(title for cells in columns.values() for title in cells)
    lines = [{"": "seeds"} | {titles[name]: str(len(results(name).seeds)) for name in chosen}]
    for method in methods:
        of = {titles[name]: cells.get(method) for name, cells in columns.items()}
        lines.append({"": method} | {k: _short(cell) if cell else "" for k, cell in of.items()})
    table = as_markdown(pd.DataFrame(lines)) if chosen else ""
    commands = "\n".join(f"- {titles[name]}: `{HOW[name]}`" for name in chosen)
    small = [
        titles[name]
        for name, cells in columns.items()
        if cells[CONTROLS["retrained"]].verdict != "REMOVED"
    ]
    too_small = (
        f"Full retraining itself is not shown to be REMOVED on {' and '.join(small)}: there the trainings "
        "are too few to show it of so many methods, and INCONCLUSIVE says no more than that."
        if small
        else ""
    )
    return "\n\n".join(filter(None, [table, too_small, commands, missing(titles)]))


def chosen_settings() -> str:
    """What the rule of every search chose, by method and experiment."""
    lines: dict[str, dict[str, str]] = {}
    for name in filter(there, RIVALS):
        for title, of in cells_of(name).items():
            recipe = results(name).recipe
            if told := choice(of.line, recipe):
                ends = "".join(f", {key} at an end" for key in _at_ends(of.line, recipe))
                lines.setdefault(title, {"": title})[RIVALS[name]] = told + ends
    return as_markdown(pd.DataFrame(lines.values()).fillna("")) if lines else ""


def _at_ends(line: pd.Series, recipe: Recorded) -> list[str]:
    """The numbers that a search chose at an end of three or more that it tried."""
    tried = [settings(trial.hyperparameters) for trial in recipe.unlearners[int(line["entry"])]]
    own = settings(json.loads(line["hyperparameters"]))
    found = []
    for key, value in own.items():
        values = sorted({one[key] for one in tried if isinstance(one[key], int | float)})
        if len(values) > 2 and value in (values[0], values[-1]):
            found.append(key)
    return found


def answer() -> str:
    """Which methods removed the poison wherever that was settled, in sentences."""
    unfailing = _unfailing(_verdicts(RIVALS))
    failing = [
        f"{title} ({SUITES[name]})"
        for name in filter(there, SUITES)
        for title, of in cells_of(name).items()
        if title in unfailing and of.verdict == "NOT REMOVED"
    ]
    parts = [_answer(RIVALS)]
    if failing:
        parts.append(f"On more poisons, by one setting each, NOT REMOVED: {', '.join(failing)}.")
    return " ".join(parts)


def answer_on_suites() -> str:
    """The same of the suites."""
    return _answer(SUITES)


def _answer(titles: dict[str, str]) -> str:
    """Which methods removed the poison in all of these experiments that have rows."""
    chosen = list(filter(there, titles))
    if not chosen:
        return missing(titles)
    verdicts = _verdicts(titles)
    everywhere = [title for title, of in verdicts.items() if set(of) == {("REMOVED", "yes")}]
    best = " and ".join(everywhere) or "none"
    parts = [
        f"{len(verdicts)} methods were tried on {len(chosen)} poisons each. Everywhere REMOVED and still "
        f"usable: {best}."
    ]
    if open_ones := [title for title in _unfailing(verdicts) if title not in everywhere]:
        parts.append(
            f"Not all is settled, but nothing speaks against {' and '.join(open_ones)}: nowhere NOT "
            "REMOVED, and nowhere surely too inaccurate to be usable."
        )
    unusable = {
        title: [titles[name] for name, (_, use) in zip(chosen, of, strict=True) if use == "no"]
        for title, of in verdicts.items()
        if "NOT REMOVED" not in {verdict for verdict, _ in of}
    }
    told = [f"{title} (on {' and on '.join(on)})" for title, on in unusable.items() if on]
    if told:
        parts.append(
            f"Never NOT REMOVED, but somewhere surely too inaccurate to be usable: {'; '.join(told)}."
        )
    return " ".join(parts)


def _verdicts(titles: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """By method that was tried in each of these experiments, its verdict and whether it stayed usable."""
    chosen = list(filter(there, titles))
    found: dict[str, list[tuple[str, str]]] = {}
    for name in chosen:
        for title, of in cells_of(name).items():
            if of.line["role"] == "updated":
                found.setdefault(title, []).append((of.verdict, of.line["usable"]))
    return {title: of for title, of in found.items() if len(of) == len(chosen)}


def _unfailing(verdicts: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Those that are nowhere NOT REMOVED, and nowhere shown to be unusable."""
    return [
        title
        for title, of in verdicts.items()
        if all(verdict != "NOT REMOVED" and usable != "no" for verdict, usable in of)
    ]


def beaten() -> str:
    """Trials that beat tuned retraining, and by how much accuracy, in sentences."""
    told = []
    for name in filter(there, TRIALS):
        cells = cells_of(name)
        (line,) = [of.line for of in cells.values() if of.line["unlearner"] == TUNED]
        better = [
            f"{title} ({of.line['test_accuracy'] - line['test_accuracy']:+.3f})"
            for title, of in cells.items()
            if of.line["standing"] == "beats"
        ]
        told.append(f"- {TRIALS[name]}: {', '.join(better) or 'none'}")
    return "\n".join(told)
