"""The models by the names that recipes give them, a user's own among them, and how any is built."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from marshtest.models.answers import logits_in
from marshtest.models.base import ModelSettings
from marshtest.models.language import GPT2, Transformer
from marshtest.models.networks import MLP, ResNet18
from marshtest.models.sharded import SHARDED, Sharded
from marshtest.plumbing.errors import MarshtestError, first_line, unknown
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.identity import load_same
from marshtest.plumbing.imports import check_spec, load_object
from marshtest.plumbing.malloc import physical_memory
from marshtest.plumbing.seeds import seeded, switches_kept


class Factory(ModelSettings):
    """A user's factory "pkg.mod:fn", called as fn(input_shape, classes, **options)."""

    name: str
    source: str = ""  # eight hex digits of its source; empty before it is imported
    options: dict[str, Any] = {}

    def imported(self) -> Self:
        """The same settings with the digest of the factory; a MarshtestError if it is not as stored."""
        _, source = load_same(self.name, self.source, "model.name")
        return self.model_copy(update={"source": source})

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        factory = load_object(self.name, "model.name")
        with switches_kept(), foreign(f"model.name: {self.name}"):
            model = factory(input_shape, classes, **self.options)
        if not isinstance(model, nn.Module):
            raise MarshtestError(
                f"model.name: {self.name} returned {type(model).__name__}, not a torch.nn.Module."
            )
        return model


# The kinds of which all is known, and whose sizes a model file may choose; all others run a user's code or
# read a folder.
OWN = (MLP, ResNet18, GPT2)
_ALL: tuple[type[ModelSettings], ...] = (*OWN, Transformer)
MODELS = {cls.model_fields["name"].default: cls for cls in _ALL}


def parse_model(value: str | Mapping[str, Any] | ModelSettings) -> ModelSettings:
    """Settings of a model that a recipe gives as a name, or as a mapping of a name and options.

    Raises:
        MarshtestError: no such model, or an option that it does not have.
    """
    if isinstance(value, ModelSettings):
        return value
    if not isinstance(value, str | Mapping):
        raise MarshtestError(f"model: must be a name, or a mapping with a name. Got {value!r}.")
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.get("name", "mlp"))
    if name == SHARDED:
        return Sharded.parse({**values, "of": parse_model(values.get("of", "mlp"))}, "model")
    if ":" in name:
        check_spec(name, "model.name")
        if "options" in values:  # the long form, in which recipes are stored
            return Factory.parse(values, "model")
        options = {key: option for key, option in values.items() if key != "name"}
        return Factory.parse({"name": name, "options": options}, "model")
    if name not in MODELS:
        raise MarshtestError(
            f"model.name: {unknown('model', name, MODELS)} Or a factory of yours, 'pkg.mod:fn'."
        )
    return MODELS[name].parse(values, "model")


def build(
    settings: ModelSettings,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    *,
    tried: bool = False,
) -> nn.Module:
    """Build a model from a seed and try it on zeros; the global random state stays as it was.

    Args:
        tried: whether one of these settings was tried before, and building draws all its parameters.

    Raises:
        MarshtestError: the model does not turn [2, *input_shape] into logits [2, classes].
    """
    refuse_too_large(settings, input_shape, classes)
    with seeded(seed):
        model = settings.build(input_shape, classes)
        if tried:
            return model.eval()
        model.eval()  # or the zeros would enter BatchNorm's statistics
        try:
            with torch.no_grad():
                output = settings.answer(model, input_shape)
        except MarshtestError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # whatever a user's forward raises
            raise MarshtestError(
                f"model: {settings.name} cannot take inputs {list(input_shape)}: {first_line(error)}"
            ) from None
    logits = logits_in(output)
    if not settings.fits(tuple(logits.shape), input_shape, classes):
        raise MarshtestError(
            f"model: {settings.name} must turn [2, {', '.join(map(str, input_shape))}] into logits "
            f"[2, {classes}], or more than {classes}. Got {list(logits.shape)}."
        )
    return model


def outline(settings: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """One of our own models on the meta device, which takes no memory.

    Raises:
        MarshtestError: its sizes are larger than a tensor can be, or do not fit each other.
    """
    try:
        with torch.device("meta"):
            return settings.build(input_shape, classes)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, MarshtestError):
            raise
        raise MarshtestError(
            f"model: {settings.name} of these sizes cannot be built ({first_line(error)})."
        ) from None


def refuse_too_large(settings: ModelSettings, input_shape: tuple[int, ...], classes: int) -> None:
    """Raise MarshtestError if one of our own models is larger than this machine's memory."""
    if not isinstance(settings, OWN):
        return
    model, memory = outline(settings, input_shape, classes), physical_memory()
    needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if needed > memory:
        raise MarshtestError(
            f"model: {settings.name} of these sizes takes {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB. Choose a smaller one."
        )
