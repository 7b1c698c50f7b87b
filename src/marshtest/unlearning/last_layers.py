"""EUk and CFk: only the last k layers (Goel et al. 2022; paper A.2.4, A.2.5).

    EUk:  reset the last k layers, retrain them on the retain set, all before them frozen
    CFk:  continue training the last k layers on the retain set, all before them frozen

"The last k layers" is read in several ways in the field. Ours is the original's: convolution and
linear layers count, norm layers go with theirs, and a transformer's block is one layer. On ResNet-18
k = 3 is the classifier and the last block, on GPT-2 the head and the last two blocks. What is frozen
keeps its BatchNorm statistics as well.
"""

import copy
from abc import ABC

from pydantic import Field
from torch import nn

from marshtest.budget import Budget
from marshtest.data import Samples
from marshtest.errors import MarshtestError
from marshtest.models import weight_layers
from marshtest.seeds import derive, seeded
from marshtest.tasks import Task
from marshtest.training import descend
from marshtest.unlearning.base import GradientUnlearner


class _LastLayers(GradientUnlearner, ABC):
    goes_on = True
    k: int = Field(3, ge=1)  # layers, counted from the output
    # lr: the paper tries 1e-3, 1e-4, 1e-5; its EUk retrains by whatever optimiser trained the model

    def check(self, model: nn.Module) -> None:
        count = len(weight_layers(model))
        if self.k > count:
            raise MarshtestError(
                f"unlearners.{self.name}.k: {self.k} is more than the model's {count} layers "
                "(convolution and linear modules, or blocks)."
            )

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        self.check(model)
        trained = copy.deepcopy(model)
        last = [module for layer in weight_layers(trained)[-self.k :] for module in layer]
        self.prepare(last, derive(seed, "reset"))
        free_only(trained, last)
        optimizer = self.optimizer_for(trained)
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for batch in budget.stream(task.batches(retain, self.batch_size, seed), epoch):
            descend(optimizer, task.loss(trained, batch).mean())
        for parameter, original in zip(trained.parameters(), model.parameters(), strict=True):
            parameter.requires_grad_(original.requires_grad)
        return trained

    def prepare(self, last: list[nn.Module], seed: int) -> None:
        """What happens to the last layers before they are trained."""


class EUk(_LastLayers):
    """EUk (Goel et al. 2022; paper A.2.4): reset and retrain the last k layers."""

    name: str = "euk"

    def prepare(self, last: list[nn.Module], seed: int) -> None:
        """Initialise them afresh, as their own modules do."""
        with seeded(seed):
            for module in last:
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
                elif type(module).__name__ == "Conv1D":  # transformers' linear layer
                    nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
                else:
                    raise MarshtestError(
                        f"unlearners.{self.name}: {type(module).__name__} has no "
                        "reset_parameters(), so it cannot be initialised afresh."
                    )


class CFk(_LastLayers):
    """CFk (Goel et al. 2022; paper A.2.5): go on training the last k layers only."""

    name: str = "cfk"


def free_only(model: nn.Module, modules: list[nn.Module]) -> None:
    """Freeze the model, parameters and BatchNorm statistics, all but the modules' own."""
    model.eval().requires_grad_(False)
    for module in modules:
        module.train()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
