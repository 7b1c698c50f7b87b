"""Verdicts from what the models show, by the rules and the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from marshtest.kit.measure import Measured
from marshtest.kit.model import Kind
from marshtest.kit.privacy import Bounds, bounds
from marshtest.metrics.trainings import usable
from marshtest.metrics.verdict import (
    Evidence,
    Rest,
    Verdict,
    families,
    rests_on,
    untestable,
    verdicts,
)
from marshtest.plumbing.settings import Settings


class Question(Settings):
    """The question that an audit asks, and the error rates of its answer."""

    # K, fresh noises a poison; each costs one forward pass
    draws: int = Field(199, ge=3, le=10_000)
    # what the models answer with: numbers that tell how wrong they are, or labels alone
    answers: Kind = "losses"
    fpr: float = Field(0.01, gt=0, lt=1)  # false positive rate at which the TPR is reported
    alpha: float = Field(0.05, gt=0, lt=1)  # error rate of the verdicts, over all models after
    margin: float = Field(0.2, gt=0, lt=1)  # part of the initial effect that REMOVED may leave
    accuracy: float = Field(
        0.05, gt=0, lt=1
    )  # accuracy, or log perplexity, a usable model may lose
    delta: float = Field(1e-5, ge=0, lt=1)  # δ of the privacy bound
    confidence: float = Field(0.95, gt=0, lt=1)  # confidence of the privacy bound

    def privacy_of(self, measured: Measured) -> Bounds:
        """Lower bounds of ε that the guesses by a model's losses prove."""
        games = measured.advantages, measured.among
        return bounds(*games, delta=self.delta, confidence=self.confidence)


@dataclass(frozen=True)
class Judged:
    """A model with its verdict, and what speaks against a better one."""

    role: str  # before, after or retrained
    measured: Measured
    verdict: Verdict
    reasons: tuple[str, ...]  # what takes REMOVED away, or speaks against it
    privacy: Bounds  # lower bounds of the privacy parameter ε
    scores: tuple[str, ...]  # those of this model and the one before: the verdict rests on them
    usable: str  # whether accuracy is close to that of the model retrained, or else before

    @property
    def epsilon(self) -> float:
        """The largest lower bound of ε that holds for any mechanism, of a replacement."""
        return self.privacy.largest


def judge(roles: Sequence[str], measured: Sequence[Measured], question: Question) -> list[Judged]:
    """Verdicts by the rules of `marshtest.metrics.verdict`; a model in doubt is not acquitted.

    Each model has a role, before (the first), after or retrained.
    """
    before = measured[0]
    measured = [before, *(one.after(before) for one in measured[1:])]
    names = before.dependences()
    evidence = [one.evidence(names) for one in measured]
    after = [place for place, role in enumerate(roles) if role == "after"]
    answers = _verdicts(evidence, after, question)
    reasons = [
        [*one.doubts, *one.controls.unlike(before.controls), *untestable(shown, question.margin)]
        for one, shown in zip(measured, evidence, strict=True)
    ]
    for place in set(answers) - set(after):
        answers[place] = _doubted(answers[place], reasons[place])
    # The models after come last: they are acquitted only if the others came out as they must.
    failed = _failed_controls(roles, answers, before.doubts)
    for place in after:
        reasons[place] += failed
        answers[place] = _doubted(answers[place], reasons[place])
    goal = measured[roles.index("retrained")] if "retrained" in roles else before
    return [
        Judged(
            role=role,
            measured=measured[place],
            verdict=answers[place],
            # A model before unlearning is to be NOT REMOVED, so nothing speaks against that.
            reasons=tuple(
                dict.fromkeys([*reasons[place], *answers[place].reasons * (role != "before")])
            ),
            privacy=question.privacy_of(measured[place]),
            scores=tuple(evidence[place].pooled),
            usable=_usable(goal, measured[place], question),
        )
        for place, role in enumerate(roles)
    ]


def _verdicts(
    evidence: Sequence[Evidence], after: Sequence[int], question: Question
) -> dict[int, Verdict]:
    """The verdict on each model, by place; those after unlearning share one error rate."""
    levels: dict[str, Any] = {"alpha": question.alpha, "margin": question.margin}
    rests = rests_of(evidence[0], len(after), question)
    answers: dict[int, Verdict] = {}
    for places in families(range(len(evidence)), after):
        shown = [evidence[place] for place in places]
        answers |= zip(places, verdicts(evidence[0], shown, rests=rests, **levels), strict=True)
    return answers


def rests_of(before: Evidence, after: int, question: Question) -> tuple[Rest, ...]:
    """What REMOVED rests on, by what the model before unlearning shows.

    Args:
        after: number of models after unlearning, which share one error rate.
    """
    return rests_on(before, family=max(1, after), alpha=question.alpha, margin=question.margin)


def _usable(goal: Measured, one: Measured, question: Question) -> str:
    """Whether accuracy, or log perplexity, is kept, by paired differences over the samples."""
    if goal.utility is None or one.utility is None:  # a black box does not tell whether it is right
        return "unknown"
    return usable(goal.utility - one.utility, question.accuracy, question.alpha)


def _doubted(verdict: Verdict, reasons: Sequence[str]) -> Verdict:
    """REMOVED becomes INCONCLUSIVE if there are reasons; NOT REMOVED stands by itself."""
    if verdict.answer != "REMOVED" or not reasons:
        return verdict
    return replace(verdict, answer="INCONCLUSIVE")


def _failed_controls(
    roles: Sequence[str], answers: Mapping[int, Verdict], doubts: Sequence[str]
) -> list[str]:
    """Reasons against any REMOVED: the models before and retrained that came out as they must not."""
    failed = [f"the model before unlearning: {doubt}" for doubt in doubts]
    if answers[0].answer != "NOT REMOVED":
        failed.append("the dose does not show in the model before unlearning either")
    failed += [
        f"the retrained model, which never saw the dose, came out {answers[place].answer}"
        for place, role in enumerate(roles)
        if role == "retrained" and answers[place].answer != "REMOVED"
    ]
    return failed
