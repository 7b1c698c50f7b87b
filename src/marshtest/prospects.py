"""Which answers a recipe's numbers of poisons and trainings rule out, before anything is trained."""

from scipy.stats import norm

from marshtest.metrics.power import poisons_for, removal
from marshtest.metrics.trainings import trainings_to_reject, trainings_to_remove
from marshtest.metrics.verdict import POWER
from marshtest.recipe import Recipe


def prospects(recipe: Recipe, poisons: int, seeds: int, family: int) -> list[str]:
    """What cannot be answered, whatever the models show; one sentence each, empty if all can.

    Args:
        poisons: of one training.
        seeds: trainings.
        family: unlearners, each at each compute budget, that are judged together.
    """
    verdict = recipe.verdict
    level = verdict.alpha / max(1, family)
    if recipe.attack.compared:
        return _by_trainings(seeds, verdict.alpha, level, verdict.margin, family)
    draws = int(getattr(recipe.attack, "draws", 199))
    largest = (draws + 1) * norm.pdf(
        norm.isf(1 / (draws + 1))
    )  # mean score if every rank is the lowest
    needed = poisons_for(POWER, lambda n: removal(n, verdict.margin * largest, alpha=level))
    if poisons * seeds >= needed:
        return []
    return [
        f"{poisons * seeds:,} poisons in all are too few for REMOVED of {_models(family)}: even if the "
        f"model knew each by heart, {needed:,.0f} would be needed. Raise poison_budgets or seeds."
    ]


def _by_trainings(seeds: int, alpha: float, level: float, margin: float, family: int) -> list[str]:
    said = []
    if seeds < (least := trainings_to_reject(alpha)):
        said.append(
            f"{seeds} training{'s' * (seeds > 1)} can give no verdict at all: NOT REMOVED needs {least} at "
            f"least, and the initial model must come out so. Raise seeds."
        )
    if seeds < (least := trainings_to_remove(margin, level)):
        said.append(
            f"{seeds} training{'s' * (seeds > 1)} cannot give REMOVED for {_models(family)}: an attack "
            f"that works each time needs {least}, one that works in nine of ten "
            f"{trainings_to_remove(margin, level, 0.9)}. Raise seeds."
        )
    return said


def _models(family: int) -> str:
    return "one unlearner" if family <= 1 else f"{family} unlearners judged together"
