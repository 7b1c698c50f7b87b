"""Which answers a recipe's numbers of poisons and trainings allow: said before anything is trained."""

from collections.abc import Iterator
from statistics import NormalDist

from scipy.special import ndtri

from marshtest.experiment.cells import Design
from marshtest.metrics.power import poisons_for, removal
from marshtest.metrics.trainings import trainings_to_reject, trainings_to_remove
from marshtest.metrics.verdict import POWER

WORKS = 0.9  # share of the trainings in which an attack may be expected to work


def family_of(recipe: Design) -> int:
    """Unlearners, each at each compute budget, that are judged together."""
    return len(recipe.unlearners) * len(recipe.budgets)


def needs(recipe: Design, family: int) -> str:
    """What verdicts need, in words.

    Args:
        family: unlearners that are judged together.
    """
    if not recipe.attack.shown.needs_twin:
        least = _poisons(recipe, family)
        if least is None:
            return f"`marshtest plan` tells how many poisons REMOVED of {_models(family)} needs."
        return (
            f"REMOVED of {_models(family)} needs {least:,} poisons over all seeds if a "
            "model knows each by heart, and more if it does not: `marshtest plan` tells how many."
        )
    reject, sure, likely = _trainings(recipe, family)
    return (
        f"NOT REMOVED needs {reject} trainings (seeds); REMOVED of {_models(family)} needs {sure}, or "
        f"{likely} if the attack works in {WORKS:.0%} of them. Each unlearner runs twice: on the initial "
        "model, and on its clean twin."
    )


def prospects(recipe: Design, family: int, seeds: int, poisons: int | None) -> Iterator[str]:
    """What cannot be answered, whatever the models show; one sentence each.

    Args:
        family: unlearners that are judged together.
        seeds: trainings.
        poisons: of one training; None if that is not known yet.
    """
    if recipe.attack.shown.needs_twin:
        reject, sure, _ = _trainings(recipe, family)
        if seeds < reject:
            yield f"{_count(seeds)} can give no verdict: NOT REMOVED needs {reject} at least. Raise seeds."
        elif seeds < sure:
            # One that looks at nothing of before ends with its twin's very parameters: no test is needed.
            yield (
                f"{_count(seeds)} cannot give REMOVED of {_models(family)}, but for one that never looks "
                f"at the poisoned model: it needs {sure}. Raise seeds."
            )
        return
    needed = _poisons(recipe, family)
    if poisons is not None and needed is not None and poisons * seeds < needed:
        yield (
            f"{poisons * seeds:,} poisons in all are few for REMOVED of {_models(family)}: even if the "
            f"model knew each by heart, the rank score would need {needed:,} for a power of {POWER:g}. "
            "Raise poison_budgets or seeds."
        )


def _trainings(recipe: Design, family: int) -> tuple[int, int, int]:
    """Trainings for NOT REMOVED; for REMOVED if the attack always works; and if it works as WORKS says."""
    alpha, margin = recipe.verdict.alpha, recipe.verdict.margin
    level = alpha / max(1, family)  # Holm's first step: nobody knows yet who comes first
    sure, likely = (trainings_to_remove(margin, level, works) for works in (1.0, WORKS))
    return trainings_to_reject(alpha), sure, likely


def _poisons(recipe: Design, family: int) -> int | None:
    """Poisons for REMOVED if the initial model ranks each first; None where no draws bound the score."""
    if recipe.attack.shown.draws is None:
        return None
    level = recipe.verdict.alpha / max(1, family)
    return poisons_by_heart(int(recipe.attack.shown.draws), recipe.verdict.margin, level)


def poisons_by_heart(draws: int, margin: float, level: float) -> int:
    """Poisons for REMOVED by the rank score if the initial model knows each by heart, with power 0.9.

    Args:
        draws: fresh noises that a poison is ranked among.
        margin: share of the initial effect that may be left.
        level: of the test, which several unlearners share.
    """
    # The mean score then, E[x | x beyond Φ⁻¹(1 − 1/(K + 1))]: within its rank, a score is drawn.
    largest = (draws + 1) * NormalDist().pdf(ndtri(1 / (draws + 1)))
    return int(poisons_for(POWER, lambda n: removal(n, margin * largest, alpha=level)))


def _count(seeds: int) -> str:
    return f"{seeds} training{'s' * (seeds != 1)}"


def _models(family: int) -> str:
    return f"{family} unlearners judged together" if family > 1 else "one unlearner"
