"""EUk and CFk: unlearning in the last k layers only (Goel et al. 2022; paper A.2.4, A.2.5).

    EUk:  reset the last k layers, retrain them on the retain set, all layers before them frozen
    CFk:  continue training the last k layers on the retain set, all layers before them frozen

"The last k layers" is read in several ways in the field. Here it is read as in the original: convolution
and linear layers count, norm layers go with the layer before them, and a transformer's block is one layer
(`models.layers.weight_layers` has the whole rule). On ResNet-18 k = 3 is the classifier and the last
block, on GPT-2 the head and the last two blocks. Frozen layers keep their BatchNorm statistics as well.

Parameters that the model's own training leaves frozen, such as the base of a LoRA layer, stay as they were
within the last k layers too: they are neither reset nor trained.

A module is reset by its own `reset_parameters()`. If that does not draw all of its parameters (weight
norm, attention, a user's layer), or if a part of the layer is frozen (an adapter starts as its factory
starts it, not as a linear layer does), it takes the values of a freshly built model. The factory of a
pretrained model gives the same values each time; such a model is refused before any training.
"""

import copy
import itertools
from abc import ABC
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from marshtest.data.samples import Samples
from marshtest.models.layers import weight_layers
from marshtest.models.sharded import Ensemble
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import NewModel, Task
from marshtest.unlearning.base import GradientUnlearner

Layers = list[list[nn.Module]]


class _LastLayers(GradientUnlearner, ABC):
    """Training of the last k layers, with all before them frozen."""

    anytime = True
    k: int = Field(3, ge=1)  # layers, counted from the output
    # lr: the paper tries 1e-3, 1e-4, 1e-5; its EUk retrains with the optimiser that trained the model

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        if isinstance(model, Ensemble):
            raise MarshtestError(
                f"unlearners.{self.name}: no layer of an ensemble is its last. Leave out "
                "training.shards, or the method."
            )
        layers = weight_layers(model)
        if self.k > len(layers):
            raise MarshtestError(
                f"unlearners.{self.name}.k: {self.k} is more than the model's {len(layers)} layers "
                "(convolution and linear modules, or blocks). Lower k."
            )
        before, last = (
            {p for layer in part for module in layer for p in module.parameters(recurse=False)}
            for part in (layers[: -self.k], layers[-self.k :])
        )
        if before & last:
            raise MarshtestError(
                f"unlearners.{self.name}.k: the model's last {self.k} layers share weights with earlier "
                "ones, which are to stay. Raise k, or leave the method out."
            )
        if not any(trainable(module) for layer in layers[-self.k :] for module in layer):
            raise MarshtestError(
                f"unlearners.{self.name}.k: the model's last {self.k} layers are frozen, so nothing "
                "would be trained. Raise k."
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
        _LastLayers.check(self, model)  # not self.check: EUk's builds models, as `prepare` will
        trained = copy.deepcopy(model)
        last = weight_layers(trained)[-self.k :]
        self.prepare(trained, last, task.new_model, derive(seed, "reset"))
        free_only(trained, last)
        optimizer = self.optimizer_for(trained)
        epoch = task.batches_per_epoch(retain, self.batch_size)
        for batch in budget.stream(task.batches(retain, self.batch_size, seed), epoch):
            descend(optimizer, task.loss(trained, batch).mean())
        # Frozen for this method only: what is asked for afterwards, such as further training, is not.
        for parameter, original in zip(trained.parameters(), model.parameters(), strict=True):
            parameter.requires_grad_(original.requires_grad)
        return trained

    def prepare(
        self, model: nn.Module, last: Layers, new_model: NewModel | None, seed: int
    ) -> None:
        """Change the last layers before they are trained; CFk changes nothing."""


class EUk(_LastLayers):
    """EUk (Goel et al. 2022; paper A.2.4): reset and retrain the last k layers."""

    name: str = "euk"

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        super().check(model)
        built_anew(model, weight_layers(model)[-self.k :], new_model, 0)

    def prepare(
        self, model: nn.Module, last: Layers, new_model: NewModel | None, seed: int
    ) -> None:
        """Initialise afresh all parameters of the last layers that are not frozen."""
        twins = built_anew(model, last, new_model, seed)
        with seeded(seed):
            for module in (module for layer in last for module in layer):
                if module in twins:
                    copy_values(twins[module], module)
                elif trainable(module):
                    reset(module)
        for module in _bare_behind(model, last):
            if isinstance(module, _NormBase):
                module.reset_running_stats()


class CFk(_LastLayers):
    """CFk (Goel et al. 2022; paper A.2.5): go on training the last k layers only."""

    name: str = "cfk"


def trainable(module: nn.Module) -> bool:
    """Whether the module has a parameter of its own that is not frozen."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def free_only(model: nn.Module, layers: Layers) -> None:
    """Freeze the model's parameters and BatchNorm statistics, but for unfrozen ones of the layers.

    What holds no parameters between these layers, and behind them, works as in the initial training, such
    as dropout and BatchNorm without a scale.
    """
    modules = [module for layer in layers for module in layer]
    # Read before eval() and requires_grad_(False) below overwrite what it is read from.
    modes = {module: any(p.requires_grad for p in module.parameters()) for module in modules}
    modes |= dict.fromkeys(_bare_behind(model, layers), True)
    free = [p for m in modules for p in m.parameters(recurse=False) if p.requires_grad]
    model.eval().requires_grad_(False)
    for module, training in modes.items():
        module.train(training)
    for parameter in free:
        parameter.requires_grad_(True)


def _bare_behind(model: nn.Module, layers: Layers) -> Iterator[nn.Module]:
    """The modules without parameters behind the first of the layers' that has one which is not frozen."""
    ours = {module for layer in layers for module in layer}
    free = {module for module in ours if any(p.requires_grad for p in module.parameters())}
    behind = itertools.dropwhile(lambda module: module not in free, model.modules())
    return (module for module in behind if next(module.parameters(), None) is None)


def reset(module: nn.Module) -> None:
    """Initialise a module afresh, by the rule of its kind."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.to("cpu")  # so that all devices draw alike
    if type(module).__name__ == "Conv1D":  # transformers' linear layer
        nn.init.normal_(module.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    else:
        module.reset_parameters()  # type: ignore[operator]
    module.to(device)


@torch.no_grad()
def _resets(module: nn.Module) -> bool:
    """Whether `reset` draws every parameter of the module; a parameter left out would stay trained."""
    if type(module).__name__ == "Conv1D":
        return True
    if not hasattr(module, "reset_parameters") or hasattr(module, "parametrizations"):
        return False
    trial = copy.deepcopy(module)
    for parameter in trial.parameters(recurse=False):
        parameter.fill_(torch.nan)  # stays where reset does not draw
    with seeded(0):
        reset(trial)
    return all(bool(p.isfinite().all()) for p in trial.parameters(recurse=False))


def built_anew(
    model: nn.Module, layers: Layers, new_model: NewModel | None, seed: int
) -> dict[nn.Module, nn.Module]:
    """The counterpart in a freshly built model of each module that `reset` cannot initialise.

    Raises:
        MarshtestError: there is no such counterpart, or its values are the same whatever the seed.
    """
    modules = [module for layer in layers for module in _not_reset(layer)]
    if not modules:
        return {}
    names = {module: name for name, module in model.named_modules()}
    if new_model is None:
        raise _cannot(
            names[modules[0]], modules[0], "the task builds no fresh model (task.new_model)"
        )
    # Two seeds tell values that are drawn from values that are loaded.
    fresh, other = (dict(new_model(s).named_modules()) for s in (seed, derive(seed, "other")))
    for module in modules:
        name = names[module]
        if name not in fresh or _shapes(fresh[name]) != _shapes(module):
            raise _cannot(name, module, "a freshly built model has no such module")
        if not _drawn(module, fresh[name], other[name]):
            raise _cannot(name, module, "a freshly built model has pretrained values there")
    return {module: fresh[names[module]] for module in modules}


def _not_reset(layer: list[nn.Module]) -> list[nn.Module]:
    """The unfrozen modules of a layer that must start as the model's factory starts them."""
    parameters = [parameter for module in layer for parameter in module.parameters(recurse=False)]
    adapted = not all(parameter.requires_grad for parameter in parameters)
    return [module for module in layer if trainable(module) and (adapted or not _resets(module))]


def _cannot(name: str, module: nn.Module, reason: str) -> MarshtestError:
    return MarshtestError(
        f"unlearners.euk: {name} ({type(module).__name__}) cannot be initialised afresh: its "
        f"reset_parameters() does not draw all of it, and {reason}. Lower k, or leave EUk out."
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in module.named_parameters(recurse=False)}


def _drawn(module: nn.Module, one: nn.Module, other: nn.Module) -> bool:
    """Whether each unfrozen parameter differs between two seeds, or is constant, as a bias at zero is."""
    pairs = zip(one.parameters(recurse=False), other.parameters(recurse=False), strict=True)
    return all(
        not torch.equal(a, b) or bool((a == a.flatten()[0]).all())
        for (a, b), parameter in zip(pairs, module.parameters(recurse=False), strict=True)
        if parameter.requires_grad
    )


@torch.no_grad()
def copy_values(source: nn.Module, module: nn.Module) -> None:
    """Copy the unfrozen parameters and the buffers of a module, and of its parametrisations."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            parameter.copy_(getattr(source, name))
    for name, buffer in module.named_buffers(recurse=False):
        buffer.copy_(getattr(source, name))
    for name, child in module.named_children():
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            copy_values(getattr(source, name), child)  # spectral norm's vectors
