"""From what the models show to verdicts: the rules, the controls, and who cannot be acquitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from marshtest.kit.controls import unlike
from marshtest.kit.measure import Measured
from marshtest.metrics.privacy import epsilon_bound
from marshtest.metrics.trainings import usable
from marshtest.metrics.verdict import Verdict, rests_on, untestable, verdicts
from marshtest.plumbing.settings import Settings


class Question(Settings):
    """What is asked, and how sure the answer shall be."""

    draws: int = Field(199, ge=3)  # K, fresh noises a poison; each costs one forward
    fpr: float = Field(0.01, gt=0, lt=1)  # of the reported TPR
    alpha: float = Field(0.05, gt=0, lt=1)  # error rate of the verdicts, over all models after
    margin: float = Field(0.2, gt=0, lt=1)  # share of the initial effect that REMOVED may leave
    accuracy: float = Field(0.05, gt=0, lt=1)  # that a usable model may lose
    delta: float = Field(1e-5, ge=0, lt=1)  # of the privacy bound
    confidence: float = Field(0.95, gt=0, lt=1)  # of the privacy bound


@dataclass(frozen=True)
class Judged:
    """A model with its verdict, and why it is not better where it could be.

    Attributes:
        role: before, after or retrained.
        measured: what the model shows.
        verdict: of the model.
        reasons: what takes REMOVED away, or speaks against it.
        epsilon: lower bound of the privacy parameter.
        scores: those of this model and of the one before, which the tests are on.
        usable: whether accuracy on the base points is within the margin of the model to compare with.
    """

    role: str
    measured: Measured
    verdict: Verdict
    reasons: tuple[str, ...]
    epsilon: float
    scores: tuple[str, ...]
    usable: str


def judge(roles: Sequence[str], measured: Sequence[Measured], question: Question) -> list[Judged]:
    """Verdicts, by the rules of `marshtest.metrics.verdict`; whoever is in doubt is not acquitted."""
    names = measured[0].dependences()
    shown = [one.evidence(names) for one in measured]
    after = [place for place, role in enumerate(roles) if role == "after"]
    levels = {"alpha": question.alpha, "margin": question.margin}
    rests = rests_on(shown[0], family=max(1, len(after)), **levels)
    found: dict[int, Verdict] = {}
    for places in (after, *([place] for place in range(len(roles)) if place not in after)):
        own = [shown[place] for place in places]
        found |= zip(places, verdicts(shown[0], own, rests=rests, **levels), strict=True)
    reasons = [
        [*one.doubts, *unlike(measured[0].controls, one.controls), *untestable(of, question.margin)]
        for one, of in zip(measured, shown, strict=True)
    ]
    for place in set(found) - set(after):
        found[place] = _doubted(found[place], reasons[place])
    failed = _failed_controls(roles, found, measured[0].doubts)
    for place in after:
        reasons[place] += failed
        found[place] = _doubted(found[place], reasons[place])
    goal = measured[roles.index("retrained")] if "retrained" in roles else measured[0]
    judged = []
    for place, role in enumerate(roles):
        epsilon = epsilon_bound(
            measured[place].advantages, delta=question.delta, confidence=question.confidence
        )
        said = found[place].reasons if role != "before" else ()
        why = tuple(dict.fromkeys((*reasons[place], *said)))
        rests_by, usable = tuple(shown[place].pooled), _usable(goal, measured[place], question)
        judged.append(Judged(role, measured[place], found[place], why, epsilon, rests_by, usable))
    return judged


def _usable(goal: Measured, one: Measured, question: Question) -> str:
    """By the paired differences over the base points; unknown where a black box does not tell."""
    if goal.right is None or one.right is None:
        return "unknown"
    cost = goal.right.astype(float) - one.right.astype(float)
    return usable(cost, question.accuracy, question.alpha)


def _doubted(verdict: Verdict, reasons: Sequence[str]) -> Verdict:
    """Whoever is in doubt is not acquitted; a rejected independence stands by itself."""
    if verdict.answer != "REMOVED" or not reasons:
        return verdict
    return replace(verdict, answer="INCONCLUSIVE")


def _failed_controls(
    roles: Sequence[str], found: Mapping[int, Verdict], doubts: Sequence[str]
) -> list[str]:
    failed = [f"the model before unlearning: {doubt}" for doubt in doubts]
    if found[0].answer != "NOT REMOVED":
        failed.append("the dose does not show in the model before unlearning either")
    failed += [
        f"the retrained model, which never saw the dose, came out {found[place].answer}"
        for place, role in enumerate(roles)
        if role == "retrained" and found[place].answer != "REMOVED"
    ]
    return failed
