"""Perplexity of test texts: what a causal language model is good for, where its label word tells little."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from marshtest.data.samples import slices
from marshtest.metrics.base import Metric, Question
from marshtest.metrics.presentation import Column
from marshtest.training.tasks import Language


class Perplexity(Metric):
    """Perplexity of the test split; undefined of data that are no texts."""

    name: str = "perplexity"
    columns: ClassVar[Mapping[str, Column]] = {
        "perplexity": Column(
            title="perplexity",
            low=1,
            digits=1,
            legend="exp of the mean −log p of what the model has to say of test texts, by token",
        )
    }

    @torch.no_grad()
    def measure(self, model: nn.Module, question: Question) -> Mapping[str, float]:
        test, task = question.test, question.task.exact()
        if not isinstance(task, Language):
            return {"perplexity": math.nan}
        model.eval()
        nats = said = 0.0
        for rows in slices(len(test), task.scoring_batch(test)):
            batch = test[rows]
            nats += float(task.nats(task(model, batch), batch).sum())
            said += int(task.said(batch).sum())
        mean = nats / said
        # Beyond e⁷⁰⁰ no float holds it.
        return {"perplexity": math.inf if mean > 700 else math.exp(mean)}
