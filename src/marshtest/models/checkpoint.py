"""Model files: safetensors that say how to build the model they hold.

A file may come from anybody. It therefore chooses neither what code is run nor what else is read.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from marshtest.models.base import ModelSettings
from marshtest.models.sharded import SHARDED
from marshtest.models.state import restore, state_of
from marshtest.models.table import MODELS, OWN, outline, parse_model, refuse_too_large
from marshtest.plumbing.errors import MarshtestError, refused
from marshtest.plumbing.imports import load_object
from marshtest.plumbing.seeds import seeded
from marshtest.plumbing.settings import Settings
from marshtest.plumbing.whole_files import write

UNREADABLE = (  # what a damaged or foreign file may raise
    *(SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError),
    OverflowError,
)
WRITE_IT = "Write it with marshtest.save_model."


def save_model(
    model: nn.Module,
    path: str | Path,
    settings: ModelSettings | str | Mapping[str, Any],
    input_shape: tuple[int, ...],
    classes: int,
) -> None:
    """Write a model as one safetensors file that says how to build it again.

    Args:
        model: the model; it may be on any device.
        path: the file to be written.
        settings: what a recipe says of the model: "pkg.mod:fn" for one that your factory builds, or a
            mapping with its name and options.
        input_shape: shape of one sample's x.
        classes: number of labels C.

    Raises:
        MarshtestError: the file cannot be written.
    """
    if not isinstance(settings, ModelSettings):
        settings = parse_model(settings)
    write(checkpoint(model, settings, input_shape, classes), Path(path))


def checkpoint(
    model: nn.Module, settings: ModelSettings, input_shape: tuple[int, ...], classes: int
) -> bytes:
    """The bytes that `save_model` writes."""
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state_of(model).items()}
    about = {
        "settings": settings.model_dump(),
        "input_shape": list(input_shape),
        "classes": classes,
    }
    # As text, the only metadata that safetensors holds; no pickle, which could run code.
    return save(tensors, {"marshtest": json.dumps(about)})


class About(Settings):
    """A checkpoint's metadata: how to build its model."""

    settings: dict[str, Any]
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    classes: int = Field(ge=1)


def load_model(
    path: str | Path, factory: str | Callable[..., nn.Module] | None = None
) -> nn.Module:
    """Load a model that `save_model` wrote; it is in eval mode, on the CPU.

    A file brings sizes and weights of our own kinds of model, and of all other kinds only weights.

    Args:
        path: the file.
        factory: builds a model of another kind: a function (input_shape, classes, **options) → model, or
            its name "pkg.mod:fn"; options are the numbers that the checkpoint was saved with.

    Raises:
        MarshtestError: there is no such file, it is no marshtest checkpoint or damaged, or its model is of
            a kind that needs a factory.
    """
    path = Path(path)
    if not path.is_file():
        raise MarshtestError(f"{path}: no such checkpoint. Give a file that save_model wrote.")
    unreadable = refused(f"{path}: not a readable marshtest checkpoint", WRITE_IT, UNREADABLE)
    # Seeded, since a new model draws its first weights.
    with unreadable, safe_open(str(path), "pt") as file, seeded(0):
        metadata = file.metadata() or {}
        # From the header: no tensor is read before all are known to fit.
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        about = About.parse(json.loads(metadata["marshtest"]), str(path))
        model = _rebuilt(about, shapes, factory, path)
        restore(model, {name: file.get_tensor(name) for name in shapes})
    return model.eval()


def _rebuilt(
    about: About,
    shapes: Mapping[str, list[int]],
    factory: str | Callable[..., nn.Module] | None,
    path: Path,
) -> nn.Module:
    """A model for tensors of these shapes, built from a checkpoint's metadata or by a factory."""
    if factory is not None:
        return _by_factory(about, factory, path)
    single = _member(about.settings)
    kind = MODELS.get(str(single.get("name", "mlp")))
    if kind not in OWN:
        raise MarshtestError(
            f"{path}: holds a model of kind {str(single.get('name'))[:100]!r}, and a file is not "
            "trusted to choose what is run or downloaded. Name the factory that builds it, if you trust "
            f"it: marshtest.load_model(path, factory='pkg.mod:fn'), or {path.name}@pkg.mod:fn as a model "
            "to test."
        )
    settings = parse_model(about.settings)
    # On the meta device first: sizes from a file could otherwise fill the memory before they are refused.
    expected = state_of(outline(settings, about.input_shape, about.classes))
    differing = [n for n, t in expected.items() if list(t.shape) != shapes.get(n)]
    differing += sorted(shapes.keys() - expected.keys())
    if differing:
        name = differing[0]
        needed = list(expected[name].shape) if name in expected else "none"
        raise MarshtestError(
            f"{path}: its tensors are not those of the {settings.name} that it says it holds ({name} is "
            f"{shapes.get(name, 'missing')}, expected {needed}). {WRITE_IT}"
        )
    refuse_too_large(settings, about.input_shape, about.classes)
    return settings.build(about.input_shape, about.classes)


def _member(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of an ensemble's members; of any other model its own."""
    of = settings.get("of")
    return of if settings.get("name") == SHARDED and isinstance(of, Mapping) else settings


def _is_number(value: Any) -> bool:
    """Whether an option is a number, a truth value, None, or a list of these; a text might name a file."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float)


def _by_factory(about: About, factory: str | Callable[..., nn.Module], path: Path) -> nn.Module:
    make = load_object(factory, str(path)) if isinstance(factory, str) else factory
    options = about.settings.get("options", {})
    texts = [key for key, value in options.items() if not _is_number(value)]
    if texts:
        raise MarshtestError(
            f"{path}: its option {texts[0]!r} is no number, and a file is not trusted to choose it. Bind "
            "it yourself: factory=functools.partial(fn, …)."
        )
    model = make(about.input_shape, about.classes, **options)
    if not isinstance(model, nn.Module):
        raise MarshtestError(
            f"{path}: {factory} returned {type(model).__name__}, not a torch.nn.Module."
        )
    return model
