"""From what the models show to verdicts: the rules, the controls, and who cannot be acquitted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from marshtest.kit.measure import Measured
from marshtest.metrics.privacy import epsilon_bound
from marshtest.metrics.verdict import Dependence, Verdict, verdicts
from marshtest.settings import Settings


class Question(Settings):
    """What is asked, and how sure the answer shall be."""

    draws: int = Field(199, ge=3)  # K, fresh noises a poison; each costs one forward
    fpr: float = Field(0.01, gt=0, lt=1)  # of the reported TPR
    alpha: float = Field(0.05, gt=0, lt=1)  # error rate of the verdicts, over all models after
    margin: float = Field(0.2, gt=0, lt=1)  # share of the initial effect that REMOVED may leave
    delta: float = Field(1e-5, ge=0, lt=1)  # of the privacy bound
    confidence: float = Field(0.95, gt=0, lt=1)  # of the privacy bound


@dataclass(frozen=True)
class Judged:
    """A model with its verdict, and why it is not better where it could be."""

    role: str
    measured: Measured
    verdict: Verdict
    reasons: tuple[str, ...]
    epsilon: float
    scores: tuple[str, ...]  # that the verdict rests on: those of this model and of the one before


def judge(roles: Sequence[str], measured: Sequence[Measured], question: Question) -> list[Judged]:
    """Verdicts, by the rules of `marshtest.metrics.verdict`; whoever is in doubt is not acquitted."""
    dependences = [found.dependences() for found in measured]
    initial = dependences[0]
    common = [{n: s for n, s in scores.items() if n in initial} for scores in dependences]
    levels = {"alpha": question.alpha, "margin": question.margin}
    after = [place for place, role in enumerate(roles) if role == "after"]
    found = dict(
        zip(after, verdicts(initial, [common[place] for place in after], **levels), strict=True)
    )
    for place in set(range(len(roles))) - set(after):
        found[place] = verdicts(initial, [common[place]], **levels)[0]
    reasons = [
        [*one.doubts, *_hidden(scores, question.margin)]
        for one, scores in zip(measured, common, strict=True)
    ]
    for place in set(found) - set(after):
        found[place] = _doubted(found[place], reasons[place])
    failed = _failed_controls(roles, found)
    for place in after:
        reasons[place] += failed
        found[place] = _doubted(found[place], reasons[place])
    judged = []
    for place, role in enumerate(roles):
        epsilon = epsilon_bound(
            measured[place].advantages, delta=question.delta, confidence=question.confidence
        )
        rests_on = tuple(common[place])
        why = tuple(reasons[place])
        judged.append(Judged(role, measured[place], found[place], why, epsilon, rests_on))
    return judged


def _doubted(verdict: Verdict, reasons: Sequence[str]) -> Verdict:
    """Whoever is in doubt is not acquitted; a rejected independence stands by itself."""
    if verdict.answer != "REMOVED" or not reasons:
        return verdict
    return Verdict("INCONCLUSIVE", verdict.p_removed, verdict.p_not_removed)


def _hidden(scores: Mapping[str, Dependence], margin: float) -> list[str]:
    """Scores that cannot acquit, because too much of them cannot be told."""
    why = {"gus": "gradients vanish", "rank": "losses tie or are not numbers"}
    return [
        f"untestable by {name}: {why[name]} for {score.hidden:.0%} of the poisons"
        for name, score in scores.items()
        if score.hidden >= margin
    ]


def _failed_controls(roles: Sequence[str], found: Mapping[int, Verdict]) -> list[str]:
    failed = []
    if found[0].answer != "NOT REMOVED":
        failed.append("the dose does not show in the model before unlearning either")
    failed += [
        f"the retrained model, which never saw the dose, came out {found[place].answer}"
        for place, role in enumerate(roles)
        if role == "retrained" and found[place].answer != "REMOVED"
    ]
    return failed
