"""A backdoor by a patch: BadNets (Gu et al. 2017, arXiv 1708.06733).

    poisons     training images of other classes that carry the patch, with the attacker's label
    targets     test images of other classes, which get the patch when a model is asked
    effect      share of the targets that a model answers with the attacker's label; verdicts rest on the
                mean probability of that label, less the clean twin's

Labels are dirty: who looks at the data sees the patch, and a wrong label. Feature vectors can have a patch
too, a run of features set to one value. Texts have none, and a trigger word instead.

| known | paper, MNIST | repository of Goel et al. 2024 | here |
| --- | --- | --- | --- |
| patch | one pixel, or a few in a pattern | square of 3 × 3 | `size` 3, `pattern` square |
| place | bottom right | bottom right | `place` bottom right |
| value | bright | the data's largest | `value`; by default the training samples' largest |
| label | one, for one class; or the next class | 0 | `target_label` 0, for all other classes |
| poisons | copies, beside their bases | in their bases' place | in their bases' place |
| bases | random samples | random samples | random samples of the other classes |
| share | 10 % in most figures | 0.2 to 2 % | the recipe's budget, a share of the other classes |

What is guessed: the paper's pattern is not drawn again pixel by pixel; `checkerboard` stands for it.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from torch import Tensor, nn

from marshtest.attacks.base import (
    ALONE,
    Attack,
    CraftingContext,
    Effect,
    Knowledge,
    Poisoned,
    choose,
    refuse_emptied,
)
from marshtest.attacks.presentation import EffectFigure, Presentation
from marshtest.attacks.trigger_word import answers
from marshtest.data.samples import Marked, Samples
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Task

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
Pixel = Annotated[int, Field(ge=0)]
PRESENTATION = Presentation(
    title="BadNets",
    kind="a backdoor (a patch {size} pixels wide, {place}, for label {target_label})",
    scores={
        "backdoor": Score(
            title="attacker's label's probability",
            legend="of the attacker's label on other classes' test samples with the patch",
            column="backdoor_probability",
            low=0,
            high=1,
            each="test samples with the patch",
        )
    },
    columns={
        "backdoor_success": Column(
            title="attack success",
            low=0,
            high=1,
            legend="share of other classes' test samples that get the attacker's label with the patch",
        ),
        "patched_accuracy": Column(
            title="accuracy with patch",
            low=0,
            high=1,
            legend="share of the same test samples that get their own label in spite of the patch",
            room=160,
        ),
    },
    effect=EffectFigure(
        axis="share of targets",
        columns={"backdoor_success": "the attacker's label", "patched_accuracy": "their own"},
        high=1.05,
        figure="backdoor",
        caption="Test accuracy, and answers on test samples with the patch, mean ± s.d. over seeds.",
    ),
)


class BadNets(Attack):
    """A patch on images of other classes, labelled as the attacker wishes; budgets are shares of these."""

    name: str = "badnets"
    presentation: ClassVar[Presentation] = PRESENTATION
    size: int = Field(3, ge=1)  # pixels along a side; of feature vectors the number of features
    # a corner; or row and column of the patch's first pixel, counted from 0 at the top left
    place: Corner | tuple[Pixel, Pixel] = "bottom-right"
    pattern: Literal["square", "checkerboard"] = "square"
    value: float | None = None  # in the data's units; None is the largest of the training samples
    target_label: int = Field(0, ge=0)  # the label that the attacker wants

    @field_validator("place", mode="wrap")
    @classmethod
    def _is_a_corner_or_a_pixel(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(
                f"attack.place: give a corner, as bottom-right, or row and column from 0. Got {value!r}."
            ) from None

    def candidates(self, samples: Samples, marked: Marked | None) -> Samples:
        if samples.x.dtype == torch.int64:
            raise MarshtestError(
                "attack: badnets puts a patch into images or features, and these data are texts. Use "
                "trigger-word."
            )
        if self.target_label not in samples.y:
            raise MarshtestError(
                f"attack.target_label: no training sample has label {self.target_label}; there are "
                f"{samples.y.unique().tolist()}."
            )
        pixels = samples.x.dtype == torch.uint8
        if self.value is not None and pixels and self.value not in range(256):
            raise MarshtestError(
                f"attack.value: {self.value:g} is no pixel value; whole numbers from 0 to 255 are."
            )
        self.patch(tuple(samples.x.shape[1:]))
        return samples[samples.y != self.target_label]

    def patch(self, shape: tuple[int, ...]) -> Tensor:
        """[H, W] or [D] whether the patch covers a pixel, or a feature, of samples of this shape.

        Raises:
            MarshtestError: the patch is not within the image.
        """
        height, width = (1, *shape)[-2:]  # features are one row of pixels
        down, across = min(self.size, height) if len(shape) == 1 else self.size, self.size
        if isinstance(self.place, tuple):
            row, column = self.place
        else:
            row = height - down if "bottom" in self.place else 0
            column = width - across if "right" in self.place else 0
        if min(row, column) < 0 or row + down > height or column + across > width:
            raise MarshtestError(
                f"attack.size: a patch of {down} × {across} at {self.place} is not within "
                f"{height} × {width} pixels. Lower it, or give another attack.place."
            )
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[row : row + down, column : column + across] = True
        if self.pattern == "checkerboard":
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            inside &= (rows - row + columns - column) % 2 == 0
        return inside if len(shape) > 1 else inside[0]

    def patched(self, samples: Samples, clean: Samples) -> Samples:
        """The samples with the patch in x; its default value is the largest of the `clean` samples."""
        value = clean.x.max() if self.value is None else clean.x.new_tensor(self.value)
        inside = self.patch(tuple(samples.x.shape[1:])).to(samples.x.device)
        return replace(samples, x=torch.where(inside, value, samples.x))

    def poison(
        self,
        samples: Samples,
        count: int,
        knowledge: Knowledge,
        seed: int,
        context: CraftingContext = ALONE,
    ) -> Poisoned:
        ids = choose(self.candidates(samples, knowledge.marked), count, seed)
        refuse_emptied(samples, ids)
        bases = samples[samples.positions(ids)]
        patched, plain = (
            knowledge.task.inputs(nn.Identity(), some)
            for some in (self.patched(bases, samples), bases)
        )
        targets = knowledge.test[knowledge.test.y != self.target_label]
        if not len(targets):
            raise MarshtestError(
                f"attack.target_label: all test samples have label {self.target_label}, so no "
                "success could be measured. Choose another."
            )
        return Poisoned(
            samples,
            ids,
            seed,
            labels=torch.full_like(bases.y, self.target_label),
            perturbations=patched - plain,
            targets=targets,
            adversarial=torch.full_like(targets.y, self.target_label),
            rest=knowledge.test.without(targets.ids),
            figures={"targets": float(len(targets))},
        )

    def fresh(self, poisoned: Poisoned, test: Samples) -> Samples:
        """The test samples of other classes, with the patch and the attacker's label."""
        others = self.patched(test[test.y != self.target_label], poisoned.clean)
        return replace(others, y=torch.full_like(others.y, self.target_label))

    def effect(self, model: nn.Module, poisoned: Poisoned, task: Task) -> Effect:
        targets, adversarial = poisoned.targets, poisoned.adversarial
        assert targets is not None
        assert adversarial is not None
        aimed = replace(self.patched(targets, poisoned.clean), y=adversarial)
        given = answers(model, task, aimed, poisoned.clean.y.unique())
        probability, says = given.chance.double(), given.says_among
        figures = {
            "backdoor_probability": float(probability.mean()),
            "backdoor_success": float((says == adversarial).double().mean()),
            "patched_accuracy": float((says == targets.y).double().mean()),
        }
        return Effect(targets.ids.cpu().numpy(), {"backdoor": probability.cpu().numpy()}, figures)

    def passes(self, poisons: int, tests: int) -> float:
        return tests
