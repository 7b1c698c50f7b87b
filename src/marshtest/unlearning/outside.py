"""Unlearning elsewhere, by a program, a service or by hand: models go out and come back as files.

    FOLDER/DIGEST/initial.safetensors    what the unlearner is given: the model,
    FOLDER/DIGEST/retain.safetensors     and both sets as x, y and ids
    FOLDER/DIGEST/forget.safetensors
    FOLDER/DIGEST/updated.safetensors    what somebody puts there

DIGEST is the digest of the model's weights, so an answer belongs to one model. An experiment with a clean
twin hands out both models, and the names of their folders do not tell which is which.
"""

import copy
import hashlib
from pathlib import Path
from typing import Self

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.data.sealed import Sealed
from marshtest.models.state import restore, state_of
from marshtest.plumbing.errors import MarshtestError, one_line
from marshtest.plumbing.whole_files import write
from marshtest.training.budget import Budget
from marshtest.training.tasks import Task
from marshtest.unlearning.base import Unlearner

UPDATED = "updated.safetensors"


class Outside(Unlearner):
    """Unlearning done elsewhere: the first run hands models out, and the next takes the answers in."""

    name: str = "outside"
    folder: str = Field(min_length=1)  # holds what is handed out, and the answers
    answers: str = ""  # digest of all answers in the folder, eight hex digits; not for you to give

    def imported(self) -> Self:
        """The same unlearner with the digest of the answers in its folder.

        Raises:
            MarshtestError: the answers are not those that the recipe was stored with.
        """
        # Without the digest, a run with new answers would be taken for one that is done already.
        files = sorted(Path(self.folder).glob(f"*/{UPDATED}"))
        digests = [f"{file.parent.name} {_digest(file.read_bytes())}" for file in files]
        answers = _digest("\n".join(digests).encode())[:8] if digests else ""
        if self.answers not in ("", answers):
            raise MarshtestError(
                f"unlearners.outside: the answers in {self.folder} are not those that this recipe was "
                "stored with. Leave out `answers` to take these."
            )
        return self.model_copy(update={"answers": answers})

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
        state = state_of(model)
        weights = b"".join(_bytes(state[name]) for name in sorted(state))
        place = Path(self.folder) / _digest(weights)
        if not (place / UPDATED).exists():
            _hand_out(place, model, retain, forget, task)
            raise MarshtestError(
                f"waits for {place / UPDATED}, the model after unlearning, made from the files "
                "beside it. Then run the same command again."
            )
        return _taken_back(place / UPDATED, model)


def _hand_out(place: Path, model: nn.Module, retain: Samples, forget: Samples, task: Task) -> None:
    if task.packed is None:
        raise MarshtestError(
            "outside: the task has no recipe whose models could be handed out (task.packed)."
        )
    sets = {"retain": retain, "forget": forget}
    for name, samples in sets.items():
        if isinstance(samples.x, Sealed):
            raise MarshtestError(
                f"outside: the {name} set's poison lies in the model's embeddings, and no file of texts "
                "holds it. Take another unlearner, or another attack."
            )
        tensors = {"x": samples.x, "y": samples.y, "ids": samples.ids}
        packed = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()})
        write(packed, place / f"{name}.safetensors")
    write(task.packed(model), place / "initial.safetensors")  # last: what it belongs to is there


def _taken_back(file: Path, model: nn.Module) -> nn.Module:
    updated = copy.deepcopy(model)
    try:
        restore(updated, load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise MarshtestError(
            f"{file}: holds no weights of this model ({one_line(error)[:300]}). Write its "
            "state_dict with safetensors.torch.save_file."
        ) from None
    return updated


def _bytes(tensor: Tensor) -> bytes:
    return save({"": tensor.detach().cpu().contiguous()})


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
