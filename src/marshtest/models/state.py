"""The state of a model: copied, stored, restored and compared."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.seeds import seeded


def logits_in(answer: object) -> Tensor:
    """The logits in what a model answers: a tensor or array, `.logits`, "logits", or the first of several.

    Raises:
        MarshtestError: neither a tensor nor an array stands there.
    """
    found = getattr(answer, "logits", answer)
    if isinstance(found, Mapping):
        found = found.get("logits", next(iter(found.values())) if len(found) == 1 else found)
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, Tensor):
        return found
    if hasattr(found, "__array__"):  # NumPy's, or what other frameworks answer with
        return torch.from_numpy(np.array(found))
    what = f"a dict of {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
    raise MarshtestError(
        f"model: answers with {what or type(found).__name__}, in which no logits are found. Let forward "
        'return them as a tensor, first in a tuple, or under the key "logits".'
    )


def takes_channels_last(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a model of images does the same on images and weights laid out channels last.

    Code that goes by a tensor's memory, as `.view(B, -1)` behind a convolution, does not.
    """
    if len(input_shape) != 3:
        return False
    last = {"memory_format": torch.channels_last}
    with seeded(0):
        x, plain, moved = torch.randn(2, *input_shape), copied(model), copied(model)
        try:
            moved.to(**last)  # type: ignore[call-overload]
            for training in (True, False):
                one, other = (
                    logits_in(of.train(training)(images))
                    for of, images in (
                        (plain, x.clone()),
                        (moved, x.clone(**last)),
                    )
                )
                other.sum().backward()
            return torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
        except (RuntimeError, TypeError, ValueError):
            return False


def attributes_that_differ(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of what two models of one make hold beside parameters and buffers, and differ in."""
    pairs = zip(one.named_modules(), other.modules(), strict=False)
    return [
        f"{prefix}.{name}" if prefix else name
        for (prefix, module), counterpart in pairs
        for name, value in vars(module).items()
        if name[0] != "_" and name != "training" and _differs(value, vars(counterpart).get(name))
    ]


def _differs(value: object, other: object) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(other, Tensor) or not torch.equal(value, other)
    return isinstance(value, bool | int | float | str) and value != other


def copied(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        MarshtestError: it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever __deepcopy__ of a user's objects raises
        raise MarshtestError(
            f"model: {type(model).__name__} cannot be copied "
            f"({type(error).__name__}: {first_line(error)}). Unlearners start from copies: "
            "keep locks, files and the like out of the module."
        ) from None


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model: its `state_dict`, and the buffers that it leaves out (persistent=False).

    Raises:
        MarshtestError: some extra state is no tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise MarshtestError(
                f"model: {type(model).__name__} has extra state that is no tensor ({name} is a "
                f"{type(value).__name__}), so it cannot be stored. Let get_extra_state return a tensor."
            )
    beside = {name: module._buffers[leaf] for name, (module, leaf) in _beside(model).items()}
    return {**state, **{name: buffer for name, buffer in beside.items() if buffer is not None}}


def restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `state_of` gave, in place.

    Raises:
        RuntimeError: it is another model's.
    """
    beside = _beside(model)
    model.load_state_dict({name: value for name, value in state.items() if name not in beside})
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for name in beside.keys() & state.keys():
        module, leaf = beside[name]
        module._buffers[leaf] = state[name].detach().clone().to(device)


def _beside(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The buffers that are no part of the state_dict, each with its module and its name there."""
    return {
        f"{prefix}.{leaf}" if prefix else leaf: (module, leaf)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for leaf in getattr(module, "_non_persistent_buffers_set", ())
    }
