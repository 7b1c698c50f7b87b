"""The state of a model: copied, stored, restored and compared.

A state_dict leaves out buffers that are not persistent, and a user's model may need those; so what is
stored here is `state_of` a model, and `restore` puts it back.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from marshtest.plumbing.errors import MarshtestError, refused


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state_dicts have the same names, with equal tensors under them."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def attributes_that_differ(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of attributes in which two models of one kind differ; parameters and buffers do not count."""
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
    """A deep copy of a model; a MarshtestError if it holds something that cannot be copied."""
    mend = "Unlearners start from copies: keep locks, open files and the like out of the module."
    with refused(f"model: {type(model).__name__} cannot be copied", mend):
        return copy.deepcopy(model)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model by name: its `state_dict`, and also the buffers with persistent=False.

    Raises:
        MarshtestError: a part of the state_dict, from `get_extra_state`, is no tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise MarshtestError(
                f"model: {type(model).__name__} has extra state that is no tensor ({name} is a "
                f"{type(value).__name__}), so it cannot be stored. Let get_extra_state return a tensor."
            )
    buffers = {name: module._buffers[leaf] for name, (module, leaf) in _passing(model).items()}
    return {**state, **{name: buffer for name, buffer in buffers.items() if buffer is not None}}


def restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state from `state_of` into a model, in place; a RuntimeError if that is of another kind."""
    passing = _passing(model)
    model.load_state_dict({name: value for name, value in state.items() if name not in passing})
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for name in passing.keys() & state.keys():
        # Replaced, not written into: in a fresh model the buffer may be None still, or of another shape.
        module, leaf = passing[name]
        module._buffers[leaf] = state[name].detach().clone().to(device)


def _passing(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The buffers with persistent=False by name: each one's module, and its name in the module."""
    # Duplicates stay, as in a state_dict: a module that is used twice has two names.
    return {
        f"{prefix}.{leaf}" if prefix else leaf: (module, leaf)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for leaf in getattr(module, "_non_persistent_buffers_set", ())
    }
