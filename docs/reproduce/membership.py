"""Poison beside membership inference, unlearner by unlearner (docs/membership.md)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import pandas as pd
from experiments import HOW, REPEATED, Cell, missing, results, there

from marshtest.metrics.membership_columns import EVERY_FORM, column_of
from marshtest.metrics.membership_columns import REPEATED as REPEATED_FORMS
from marshtest.metrics.membership_verdict import FAILS, PASSES
from marshtest.reporting.tables import NAMES, as_markdown, number
from marshtest.results.suite import Suite, read_suite
from marshtest.results.summary import Results

SUITE, IMAGES, TEXTS = map(read_suite, ("digits", "images", "texts"))
DATA = {IMAGES.name: "CIFAR-10", TEXTS.name: "IMDb"}  # of recipes that are not on digits
ATTACKS = {  # the recipe of an attack, and the run that repeats it for U-LiRA and KLoM
    **{f"digits-{attack}": f"repeats-digits-{attack}" for attack in REPEATED},
    "imdb-tiny-trigger": "",
}


@dataclass(frozen=True)
class Judged:
    """An unlearner on an attack: a line by the poison, and one by each form of membership inference."""

    name: str
    poison: Cell
    forms: dict[str, pd.Series]

    def answer(self, form: str) -> str:
        """What a form says of the unlearner; "" where it was not asked."""
        return str(self.forms[form][column_of(form, "verdict")]) if form in self.forms else ""

    def shown(self, form: str) -> str:
        """A form's AUC, or KLoM's mean, over seeds, and what it says."""
        if form not in self.forms:
            return ""
        line = self.forms[form]
        value = column_of(form, "mean" if form == "klom" else "auc")
        spread = f"{number(line[value], 2)}±{number(line[f'{value}_sd'], 2)}"
        return f"{spread} {self.answer(form)}"


def alone(of: Results, name: str) -> pd.DataFrame:
    """The summary of an unlearner judged by itself, as on its card."""
    rows = of.rows[(of.rows["role"] != "updated") | (of.rows["unlearner"] == name)]
    entries = tuple(trials for trials in of.recipe.unlearners if trials[0].name == name)
    recipe = of.recipe.model_copy(update={"unlearners": entries})
    return replace(of, rows=rows.reset_index(drop=True), recipe=recipe).summary


@cache
def _rows(recipe: str) -> Results | None:
    """The rows of an attack that tell of membership: the suite's, or those of an experiment here."""
    for suite in (SUITE, IMAGES, TEXTS):
        if recipe in suite.recipes and (known := suite.known(recipe)):
            return known
    return results(recipe) if there(recipe) and results(recipe).membership else None


@cache
def judged(recipe: str) -> list[Judged]:
    """All unlearners of an attack's rows."""
    known = _rows(recipe)
    if known is None or not known.membership:
        return []
    again = ATTACKS.get(recipe)
    repeated = results(again) if again and there(again) else None
    found = []
    for trials in known.recipe.unlearners:
        table = alone(known, trials[0].name)
        line, initial = _only(table, "updated"), _only(table, "initial")
        poison = Cell(recipe, line, initial, known.telling(known.poison_budget))
        forms = dict.fromkeys(known.membership, line)
        if repeated is not None:
            of_pairs = _only(alone(repeated, trials[0].name), "updated")
            forms |= dict.fromkeys(REPEATED_FORMS, of_pairs)
        found.append(Judged(trials[0].name, poison, forms))
    return found


def _only(table: pd.DataFrame, role: str) -> pd.Series:
    """The line of a role."""
    return table[table["role"] == role].iloc[0]


def _title(recipe: str) -> str:
    """An attack; where it is not on digits, with its data and seeds."""
    known = _rows(recipe)
    for suite in (IMAGES, TEXTS):
        if known is not None and recipe in suite.recipes:
            return f"{_attack(recipe)}, {DATA[suite.name]}, {len(known.seeds)} seeds"
    return _attack(recipe)


def _attack(recipe: str) -> str:
    known = _rows(recipe)
    return recipe if known is None else str(known.recipe.attack.shown.title)


def passes() -> str:
    """A table an attack: what is left of the poison, and what each form of membership inference says."""
    absent = missing(name for name in ATTACKS.values() if name and not there(name))
    return "\n\n".join(filter(None, [*map(_table, ATTACKS), absent]))


def on_images() -> str:
    """The same of CIFAR-10, as far as the suite's rows go."""
    return _beyond(IMAGES)


def on_reviews() -> str:
    """The same of IMDb, but for the poison that stands among those of digits."""
    return _beyond(TEXTS)


def _beyond(suite: Suite) -> str:
    """The tables of a suite's recipes that are not among ATTACKS."""
    names = [name for name in suite.recipes if name not in ATTACKS]
    tables = [*filter(None, map(_table, names))]
    if tables:
        tables = ["Who passes with poison left in the model:", deceived(names), *tables]
    absent = [HOW[of] for name in names if not there(of := f"{suite.name}/{name}")]
    rest = f"No rows of {', '.join(f'`{how}`' for how in absent)}." if absent else ""
    return "\n\n".join(filter(None, [*tables, rest]))


def _table(recipe: str) -> str:
    """The table of an attack; "" where no rows tell of membership."""
    lines = [
        {
            "": NAMES.get(of.name, of.name),
            "poison": of.poison.verdict,
            "left": f"{of.poison.left:z.0%}",
            **{title: of.shown(form) for form, title in EVERY_FORM.items()},
        }
        for of in judged(recipe)
    ]
    if not lines:
        return ""
    return f"### {_title(recipe)}\n\n{as_markdown(pd.DataFrame(lines).fillna(''))}"


def counted() -> str:
    """How often each form passes what the poison convicts, and fails what the poison acquits."""
    lines = []
    for form, title in EVERY_FORM.items():
        pairs = Counter(_pairs(form))
        if not pairs:
            continue
        verdicts = ("NOT REMOVED", "INCONCLUSIVE", "REMOVED")
        told = {verdict: _told(pairs, verdict) for verdict in verdicts}
        lines.append({"": title, **told})
    return as_markdown(pd.DataFrame(lines))


def deceived(recipes: Iterable[str] = ATTACKS) -> str:
    """Who passes a form of membership inference with poison left, form by form."""
    lines = []
    names = list(recipes)
    for form, title in EVERY_FORM.items():
        found = [
            f"{NAMES.get(of.name, of.name)} ({_attack(recipe)}, {of.poison.left:z.0%} left)"
            for recipe in names
            for of in judged(recipe)
            if of.answer(form) == PASSES and of.poison.verdict == "NOT REMOVED"
        ]
        if any(of.answer(form) for recipe in names for of in judged(recipe)):
            lines.append(f"- {title}: {', '.join(found) or 'none'}")
    return "\n".join(lines)


def came_back() -> str:
    """Whose verdict in the suite is that of a state after care, and which."""
    found = [
        f"- {NAMES.get(of.name, of.name)} ({_attack(recipe)}): {of.poison.verdict} in {state}"
        for recipe in ATTACKS
        for of in judged(recipe)
        if (state := str(of.poison.line.get("decided_by", "")))
    ]
    return "\n".join(found) or "None."


def _told(pairs: Counter[tuple[str, str]], verdict: str) -> str:
    """Of the pairs of a method and an attack with this verdict: passed, failed, of how many."""
    of = sum(count for (answer, _), count in pairs.items() if answer == verdict)
    return f"{pairs[verdict, PASSES]} pass, {pairs[verdict, FAILS]} fail, of {of}"


def _pairs(form: str) -> Iterator[tuple[str, str]]:
    """The poison's verdict and the form's answer of each method on each attack."""
    for recipe in ATTACKS:
        for of in judged(recipe):
            if answer := of.answer(form):
                yield of.poison.verdict, answer


def how() -> str:
    """The commands of the repeated runs."""
    return "\n".join(f"- `{HOW[name]}`" for name in ATTACKS.values() if name and there(name))
