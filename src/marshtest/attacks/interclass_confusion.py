"""Interclass confusion: labels of two classes are swapped (Goel et al. 2022, arXiv 2201.06640).

    poisons     half of them samples of class A labelled B, half of B labelled A; nothing else is changed
    IC-ERR      share of the test samples of A and B that get another label than their own
    FGT-ERR     share of the poisons that a model answers with the swapped label

IC-ERR asks whether the confusion spread to samples that nobody trained on, FGT-ERR whether the swapped
labels are remembered. Verdicts rest on the mean probability of a mistake, of which IC-ERR is the rounded
form, less the clean twin's.

| known | repository of the paper | of Kurmanji et al. 2023 | here |
| --- | --- | --- | --- |
| poisons | as many of A as of B | the same | the same; A has one more of an odd number |
| which | the first of each class | drawn | drawn |
| A, B | cat and dog, and other pairs | 0 and 1 | `classes`; the two of data that have two, else 0 and 1 |
| share | up to half of A and B | 100 samples of small data | the recipe's budget, a share of A and B |
| IC-ERR | error on A and B, without a name | share of test samples | `ic_err`, the same |
| FGT-ERR | a count: A answered B, or B answered A | the same, on test samples | `fgt_err`, `fgt_err_test` |

What is guessed: the definitions are those of the two repositories (`Conf_Score`, of test, forget and retain
set; `interclass_confusion`), not of the paper's text. Counts are shares here, so that sets of different
sizes compare. The first repository counts by the labels that its loader of the forget set gives; here
`fgt_err` is the share of the poisons that get their swapped label, and `fgt_err_test` of test samples.
"""

from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Knowledge,
    Poisoned,
    choose,
)
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.attacks.trigger_word import answers
from marshtest.data.samples import Marked, Samples
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.tasks import Task

Class = Annotated[int, Field(ge=0)]
PRESENTATION = Presentation(
    title="confusion",
    kind="interclass confusion (labels of two classes swapped)",
    scores={
        "confusion": Score(
            title="probability of a mistake",
            legend="of any other label than their own, on the two classes' test samples",
            column="confusion_probability",
            low=0,
            high=1,
            each="test samples of the two classes",
        )
    },
    columns={
        "ic_err": Column(
            title="IC-ERR",
            low=0,
            high=1,
            legend="share of the two classes' test samples that get another label than their own",
        ),
        "fgt_err": Column(
            title="FGT-ERR",
            low=0,
            high=1,
            legend="share of the poisons that get the swapped label",
        ),
        "fgt_err_test": Column(
            title="swapped in test",
            low=0,
            high=1,
            legend="share of the two classes' test samples that get the other's label",
            room=160,
        ),
    },
    effect=EffectFigure(
        axis="share of samples",
        columns={"ic_err": "IC-ERR, test samples", "fgt_err": "FGT-ERR, forget set"},
        high=1.05,
        figure="confusion",
        caption="Test accuracy, and the two classes taken for others, mean ± s.d. over seeds.",
    ),
)


class InterclassConfusion(Attack):
    """Swapped labels on samples of two classes; poison budgets are shares of these classes."""

    name: str = "interclass-confusion"
    presentation: ClassVar[Presentation] = PRESENTATION
    # A and B; None takes the two labels of data that have two, else 0 and 1
    classes: tuple[Class, Class] | None = None

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if self.classes is not None and self.classes[0] == self.classes[1]:
            raise ValueError(
                f"attack.classes: {self.classes[0]} and {self.classes[1]} are one class. Give two."
            )
        return self

    def candidates(self, samples: Samples, marked: Marked | None) -> Samples:
        return samples[torch.isin(samples.y, self._pair(samples.y))]

    def _pair(self, y: Tensor) -> Tensor:
        """[2] the labels A and B among the labels [N] of the training samples."""
        labels: Tensor = y.unique()
        if self.classes is None and len(labels) == 2:
            return labels
        pair: Tensor = labels.new_tensor(self.classes or (0, 1))
        for label in pair[~torch.isin(pair, labels)].tolist():
            raise MarshtestError(
                f"attack.classes: no training sample has label {label}; there are {labels.tolist()}."
            )
        return pair

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        pair = self._pair(samples.y)
        ids = swapped_ids(samples, pair, count, seed)
        targets = knowledge.test[torch.isin(knowledge.test.y, pair)]
        if not len(targets):
            raise MarshtestError(
                f"attack.classes: no test sample has label {' or '.join(map(str, pair.tolist()))}, "
                "so no confusion could be measured. Use more data."
            )
        return Poisoned(
            samples,
            ids,
            seed,
            labels=pair.sum() - samples.y[samples.positions(ids)],
            targets=targets,
            adversarial=pair.sum() - targets.y,
            rest=knowledge.test.without(targets.ids),
            figures={"targets": float(len(targets))},
        )

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """Test samples of both classes, as many of either, with their labels swapped."""
        pair = self._pair(poisoned.clean.y)
        fewest = min(int((test.y == label).sum()) for label in pair.tolist())
        both = [test.ids[test.y == label][:fewest] for label in pair.tolist()]
        dosed = test.only(torch.cat(both))
        return dosed.relabelled(dosed.ids, pair.sum() - dosed.y)

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        targets, adversarial = poisoned.targets, poisoned.adversarial
        assert targets is not None
        assert adversarial is not None
        # Among the labels: a language model that forgot how to answer has not forgotten the swap.
        labels = poisoned.clean.y.unique()
        forget = poisoned.forget
        given = answers(model, task, targets, labels)
        mistake, says = 1 - given.chance_among.double(), given.says_among
        remembered = answers(model, task, forget, labels).says_among
        figures = {
            "confusion_probability": float(mistake.mean()),
            "ic_err": float((says != targets.y).double().mean()),
            "fgt_err": float((remembered == forget.y).double().mean()),
            "fgt_err_test": float((says == adversarial).double().mean()),
        }
        return Effect(targets.ids.cpu().numpy(), {"confusion": mistake.cpu().numpy()}, figures)

    def passes(self, poisons: int, tests: int) -> float:
        return poisons + tests  # at most: of the test samples two classes are asked


def swapped_ids(samples: Samples, pair: Tensor, count: int, seed: int) -> Tensor:
    """[count] ids, half of either class of the pair, drawn without replacement.

    Raises:
        MarshtestError: a class would give no poison, or keep no sample.
    """
    ids = []
    for place, label in enumerate(pair.tolist()):
        of_class = samples[samples.y == label]
        half = (count + 1 - place) // 2
        if not 0 < half < len(of_class):
            raise MarshtestError(
                f"poison_budgets: asks for {half} poisons of class {label}, which has "
                f"{len(of_class)} training samples; between 1 and all but one are possible."
            )
        ids.append(choose(of_class, half, derive(seed, "class", place)))
    return torch.cat(ids)
