"""An unfinished training, set aside between epochs, so that one that is stopped goes on from there.

What is kept are the model, the optimiser's state and torch's generators, from which dropout draws. Order
and augmentation of the samples are drawn again up to there, which takes little of a training's time. On a
CPU the model at the end is bit for bit that of a training that nobody stopped.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from marshtest.models.state import restore, state_of

EVERY = 300.0  # seconds from one state that is kept to the next, or an epoch if that takes longer
MODEL, OPTIMIZER, GENERATOR = "model.", "optimizer.", "generator."

State = dict[str, Tensor]


class Done(NamedTuple):
    """How far a training is: its finished epochs, and the seconds that they took."""

    epochs: int = 0
    seconds: float = 0.0


class Aside(NamedTuple):
    """A place for the state of one training.

    Attributes:
        read: gives the state that an earlier attempt left, if there is one.
        write: keeps a state in the place of the one before.
    """

    read: Callable[[], State | None]
    write: Callable[[State], None]


class Halfway:
    """A training whose state is set aside now and then.

    Args:
        aside: where; None for nowhere.
        model: as initialised.
        optimizer: before its first step.
        made: how the model is computed, as its precision and device; what was made otherwise is left.
    """

    def __init__(
        self, aside: Aside | None, model: nn.Module, optimizer: torch.optim.Optimizer, made: str
    ) -> None:
        self._aside, self._model, self._optimizer = aside, model, optimizer
        self._done = f"done.{made}"
        self._latest = time.monotonic()

    def resume(self) -> Done:
        """Put what an earlier attempt left into the model, the optimiser and torch's generators."""
        state = self._aside.read() if self._aside else None
        if state is None or self._done not in state:
            return Done()
        restore(self._model, _under(state, MODEL))
        parameters = self._optimizer.param_groups[0]["params"]
        values: dict[int, State] = {}
        for name, tensor in _under(state, OPTIMIZER).items():
            place, key = name.split(".", 1)
            values.setdefault(int(place), {})[key] = _laid_out(tensor, parameters[int(place)])
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": values, "param_groups": groups})
        _set_generators(_under(state, GENERATOR))
        epochs, seconds = state[self._done].tolist()
        return Done(int(epochs), seconds)

    def keep(self, done: Done) -> None:
        """Set the state after an epoch aside, if the latest was long ago."""
        if self._aside is None or time.monotonic() - self._latest < EVERY:
            return
        state = {MODEL + name: tensor for name, tensor in state_of(self._model).items()}
        for place, values in self._optimizer.state_dict()["state"].items():
            # Without momentum SGD's is None.
            held = {key: value for key, value in values.items() if isinstance(value, Tensor)}
            state |= {f"{OPTIMIZER}{place}.{key}": value for key, value in held.items()}
        state |= {GENERATOR + device: drawn for device, drawn in _generators().items()}
        self._aside.write({**state, self._done: torch.tensor(done, dtype=torch.float64)})
        self._latest = time.monotonic()


def _under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """An optimiser's tensor in the memory layout of its parameter, which fused steps rely on."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.dim() == parameter.dim() else tensor


def _generators() -> State:
    """The state of the CPU's generator, and of the GPU's where one is in use."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def _set_generators(state: State) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
