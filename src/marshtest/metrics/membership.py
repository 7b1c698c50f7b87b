"""Membership inference on the forget set: what earlier evaluations of unlearning ask.

Members are the poisons, as the initial model was trained on them. Non-members are test samples with poison
of the same law; where the attack has no such law, plain test samples, and then only the comparison with
retraining means anything. Two attacks:

    margin    φ(x) = log p(y | x, θ) / (1 − p(y | x, θ))          (Yeom et al. 2018, by the logit margin)
    RMIA      r(x) = p(y | x, θ) / p(x),   p(x) = ½ [(1 + a) p_out(x) + 1 − a]
              score(x) = share of the non-members z with r(x) / r(z) ≥ γ
                                        (Zarifzadeh, Liu and Shokri 2024, arXiv 2312.03262, offline form)

p_out is the answer of a second retrained model, and of the first where the second is asked about. The same
reference serves the initial, the retrained and every updated model, so they are asked one question. All
models answer the same samples once, for both attacks.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import logits_of, margin_loss
from marshtest.metrics.base import Beside, Metric, Question
from marshtest.metrics.membership_columns import COLUMNS, FORMS, RATES, column_of
from marshtest.metrics.presentation import Column
from marshtest.metrics.roc import Floats, placements, tpr_at_fpr, variance_of_mean
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Task

COMPARED = (
    "initial",
    "retrained",
    "reference",
)  # roles of the models that others are compared with
Pair = tuple[Floats, Floats]  # values of the members [P] and of the non-members [N]


class Membership(Metric):
    """Whether membership inference tells the forget set from samples that no model was trained on."""

    name: str = "membership"
    columns: ClassVar[Mapping[str, Column]] = COLUMNS
    compares: ClassVar[bool] = True
    gamma: float = Field(2.0, ge=1)  # γ of RMIA, which the paper leaves at 2
    a: float = Field(0.3, ge=0, le=1)  # a of RMIA's offline form; the paper's for CIFAR-10

    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        beside = question.beside
        if beside is None:
            raise MarshtestError(
                "metrics.membership: needs the retrained models beside. Ask it in a recipe."
            )
        initial, retrained, reference = (_remembered(role, question, beside) for role in COMPARED)
        same = {id(beside.initial): initial, id(beside.retrained): retrained}
        asked = same.get(id(model)) or _ask(model, question, beside)
        out = retrained if question.role == "reference" else reference
        scored = {
            "margin": [asked, initial, retrained],
            "rmia": [
                self.rmia(*pair)
                for pair in ((asked, out), (initial, reference), (retrained, reference))
            ],
        }
        members, others = asked
        columns = {
            "mia_members": float(len(members)),
            "mia_others": float(len(others)),
            "mia_dosed": float(beside.dosed),
        }
        for form in FORMS:
            columns |= compared(form, *scored[form])
        return columns

    def rmia(self, margins: Pair, out: Pair) -> Pair:
        """RMIA's scores from the logit margins of a model and of the reference."""
        members, others = (
            self._log_ratio(here, there) for here, there in zip(margins, out, strict=True)
        )
        ratios = np.sort(others)
        shares = [
            np.searchsorted(ratios, ratio - np.log(self.gamma), "right") / len(ratios)
            for ratio in (members, others)
        ]
        scores = [
            np.where(np.isnan(ratio), np.nan, share)
            for ratio, share in zip((members, others), shares, strict=True)
        ]
        return scores[0], scores[1]

    def _log_ratio(self, margins: Floats, out: Floats) -> Floats:
        """Log r(x) of margins [B] of a model and of the reference."""
        marginal = ((1 + self.a) * _probability(out) + 1 - self.a) / 2
        # In logarithms: p itself vanishes where a model is sure of another label.
        return -np.logaddexp(0, -margins) - np.log(np.maximum(marginal, 1e-300))


def compared(form: str, asked: Pair, initial: Pair, retrained: Pair) -> dict[str, float]:
    """A form's columns from the scores of a model, of the initial and of the retrained one."""
    v, v0, v_out = (placements(*scores) for scores in (asked, initial, retrained))
    left = [here - there for here, there in zip(v, v_out, strict=True)]
    lead = [here - there for here, there in zip(v0, v_out, strict=True)]
    error = sum(variance_of_mean(part) for part in v) ** 0.5
    values = {"auc": float(v[0].mean()), "auc_error": error, "left": float(left[0].mean())}
    for kind, (of_left, of_lead) in zip(("", "shared_"), zip(left, lead, strict=True), strict=True):
        values[f"{kind}variance"] = variance_of_mean(of_left)
        values[f"{kind}covariance"] = variance_of_mean(of_left, of_lead)
    values |= {f"tpr_{ending}": tpr_at_fpr(*asked, fpr) for ending, fpr in RATES.items()}
    return {column_of(form, name): value for name, value in values.items()}


def margins_of(model: nn.Module, task: Task, samples: Samples) -> Floats:
    """[N] logit margins φ of the samples' labels, in float64."""
    losses = [margin_loss(logits, batch.y) for batch, logits in logits_of(model, task, samples)]
    margins: NDArray[np.float64] = -torch.cat(losses).cpu().numpy()
    return margins


def _ask(model: nn.Module, question: Question, beside: Beside) -> Pair:
    """The margins of members and non-members."""
    parts = (question.forget, beside.fresh)
    members, others = (margins_of(model, question.task, samples) for samples in parts)
    return members, others


def _remembered(role: str, question: Question, beside: Beside) -> Pair:
    """The margins by a model that all others are compared with: asked once."""
    if role not in beside.remembered:
        beside.remembered[role] = _ask(getattr(beside, role), question, beside)
    answer: Pair = beside.remembered[role]
    return answer


def _probability(margins: Floats) -> Floats:
    """p(y | x) of logit margins."""
    return np.exp(-np.logaddexp(0, -margins))
