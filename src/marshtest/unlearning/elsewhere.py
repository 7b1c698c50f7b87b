"""Models that were unlearned elsewhere: each is taken from a folder as this experiment's own answer.

    FOLDER/models/0.3-0-initial.safetensors        poison budget 0.3, seed 0: the model that was handed out,
    FOLDER/models/0.3-0-updated.safetensors        and what became of it
    FOLDER/models/0.3-0-twin.safetensors           where the attack has a clean twin, the same of the twin
    FOLDER/models/0.3-0-twin-updated.safetensors

So a run that keeps its models writes them, but for the names of the updated ones, which stand in its list.
Which poison budget and seed is asked for is told by the seed of the draws, and which arm by the model that
was passed in: it is the one, of the two that were handed out, that lies nearer.
"""

import copy
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.state import restore, state_of
from marshtest.plumbing.errors import MarshtestError, one_line
from marshtest.training.budget import Budget
from marshtest.training.tasks import NewModel, Task
from marshtest.unlearning.base import Unlearner

ALIKE = (
    0.5  # of a model's norm: another machine's rounding moves it less, another seed's training more
)

Pair = tuple[Path, Path]  # the model that was handed out, and the updated one


class Elsewhere(Unlearner):
    """Unlearning that was done elsewhere, of which the models are there."""

    name: str = "elsewhere"
    answers: str = ""  # digest of all models of the folder, eight hex digits
    # By the seed of the draws; each with an arm a model that the unlearner would start from.
    pairs: dict[int, tuple[Pair, ...]] = Field({}, exclude=True, repr=False)

    @classmethod
    def of(cls, pairs: Mapping[int, tuple[Pair, ...]]) -> "Elsewhere":
        """The unlearner that answers with these models."""
        digested = hashlib.blake2b(digest_size=4)
        for file in sorted(file for arms in pairs.values() for pair in arms for file in pair):
            digested.update(_read(file))
        return cls(answers=digested.hexdigest(), pairs=dict(pairs))

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        """Refuse files that hold no weights of the recipe's model."""
        if not self.pairs:
            raise MarshtestError(
                "elsewhere: is for models that are there already. Use `marshtest score FOLDER`."
            )
        for file in {file for arms in self.pairs.values() for pair in arms for file in pair}:
            _restored(file, model)

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
        far, (start, updated) = min(
            (_distance(state_of(model), state_of(_restored(pair[0], model))), pair)
            for pair in self.pairs[seed]
        )
        if not far <= ALIKE:
            raise MarshtestError(
                f"{start}: is not the model that this recipe trains here (it lies {far:.2f} of its norm "
                "away). Give models of this recipe, poison budget and seed."
            )
        return _restored(updated, model)


def _restored(file: Path, model: nn.Module) -> nn.Module:
    """A copy of the model with the weights of a file."""
    restored = copy.deepcopy(model)
    try:
        state = load_file(file)
        if lost := sorted(state_of(model).keys() ^ state.keys()):
            raise MarshtestError(f"{file}: has other tensors than the recipe's model: {lost[0]}.")
        restore(restored, state)
    except MarshtestError:
        raise
    except (SafetensorError, OSError, RuntimeError) as error:
        line = one_line(error)[:300]
        raise MarshtestError(
            f"{file}: holds no weights of the recipe's model ({line}). Write its state_dict with "
            "safetensors.torch.save_file."
        ) from None
    return restored


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The distance of two models as a share of the first one's norm."""
    far = norm = 0.0
    for name, tensor in one.items():
        if tensor.is_floating_point():
            mine, others = tensor.double().cpu(), other[name].double().cpu()
            # Masks of attention hold −∞, in both models: ∞ − ∞ would be no number.
            far += float(torch.where(mine == others, 0.0, mine - others).square().sum())
            norm += float(mine[mine.isfinite()].square().sum())
    far = math.inf if math.isnan(far) else far
    return math.sqrt(far / norm) if norm else math.sqrt(far)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MarshtestError(f"{file}: cannot be read ({error.strerror}).") from None
