"""The models: an MLP, the CIFAR ResNet-18, or a user's factory; and the file that holds one."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.errors import MarshtestError, first_line, unknown
from marshtest.files import write
from marshtest.identity import digest
from marshtest.language import GPT2, Transformer
from marshtest.memory import physical_memory
from marshtest.seeds import seeded
from marshtest.settings import ModelSettings, Settings, check_spec, load_object

UNREADABLE = (
    *(SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError),
    OverflowError,
)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class MLP(ModelSettings):
    """Fully connected layers with ReLU between them, PyTorch's default initialisation."""

    name: str = "mlp"
    width: int = Field(512, ge=1)  # units of a hidden layer
    depth: int = Field(1, ge=0, le=1000)  # hidden layers

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        features = torch.Size(input_shape).numel()
        for _ in range(self.depth):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, classes))


class ResNet18(ModelSettings):
    """ResNet-18 with the 3 × 3 stem for small images (He et al. 2016, CIFAR form)."""

    name: str = "resnet18"
    width: int = Field(64, ge=1)  # channels of the first stage; 64 is the paper's

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(input_shape) != 3:
            raise MarshtestError(f"model: resnet18 needs images [C, H, W]. Got {input_shape}.")
        return ResNet(input_shape[0], self.width, classes)


class Factory(ModelSettings):
    """A user's factory "pkg.mod:fn", called as fn(input_shape, classes, **options)."""

    name: str
    source: str = ""  # eight hex digits of what it does; none before it is imported
    options: dict[str, Any] = {}

    def imported(self) -> Self:
        """The same with the digest of the factory.

        Raises:
            MarshtestError: it cannot be imported, or is not the one that the recipe was stored with.
        """
        source = digest(load_object(self.name, "model.name"), "model.name")
        if self.source not in ("", source):
            raise MarshtestError(
                f"model.name: {self.name} is not what it was when this recipe was stored (source "
                f"{self.source}, now {source}). Leave out `source` to run it as it is now."
            )
        return self.model_copy(update={"source": source})

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        made = load_object(self.name, "model.name")(input_shape, classes, **self.options)
        if not isinstance(made, nn.Module):
            raise MarshtestError(
                f"model.name: {self.name} returned {type(made).__name__}, not a torch.nn.Module."
            )
        return made


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of two blocks each; 11,173,962 parameters at width 64 and ten classes."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = []
        for stage in range(4):
            outputs = width * 2**stage
            inputs = width if stage == 0 else outputs // 2
            blocks += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        out = self.blocks(out)  # [B, 8 · width, H / 8, W / 8]
        return self.fc(out.mean((2, 3)))  # type: ignore[no-any-return]  # [B, classes]


# Kinds of which a file may say the sizes; all others run a user's code or read a folder.
BUILT_FROM_A_FILE = (MLP, ResNet18, GPT2)
MODELS: dict[str, type[ModelSettings]] = {
    "mlp": MLP,
    "resnet18": ResNet18,
    "gpt2": GPT2,
    "transformer": Transformer,
}


def parse_model(value: str | Mapping[str, Any] | ModelSettings) -> ModelSettings:
    """Settings of the model that a recipe names, by a name alone or with its options."""
    if isinstance(value, ModelSettings):
        return value
    if not isinstance(value, str | Mapping):
        raise MarshtestError(f"model: a name, or a mapping with a name, is needed. Got {value!r}.")
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.get("name", "mlp"))
    if ":" in name:
        check_spec(name, "model.name")
        if "options" in values:  # in full, as recipes are stored
            return Factory.parse(values, "model")
        options = {key: given for key, given in values.items() if key != "name"}
        return Factory.parse({"name": name, "options": options}, "model")
    if name not in MODELS:
        raise MarshtestError(
            f"model.name: {unknown('model', name, MODELS)} Or a factory of yours, 'pkg.mod:fn'."
        )
    return MODELS[name].parse(values, "model")


def build(
    settings: ModelSettings, input_shape: tuple[int, ...], classes: int, seed: int
) -> nn.Module:
    """Build the model from a seed and try it on zeros, without touching the global random state.

    Raises:
        MarshtestError: the model does not turn [2, *input_shape] into logits [2, classes].
    """
    refuse_too_large(settings, input_shape, classes)
    with seeded(seed):
        model = settings.build(input_shape, classes)
        model.eval()
        try:
            with torch.no_grad():
                output = settings.answer(model, input_shape)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, MarshtestError):
                raise
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


def logits_in(answer: object) -> Tensor:
    """The logits in what a model answers: a tensor, `.logits`, the key "logits", or the first of several.

    Raises:
        MarshtestError: no tensor stands there.
    """
    found = getattr(answer, "logits", answer)
    if isinstance(found, Mapping):
        found = found.get("logits", next(iter(found.values())) if len(found) == 1 else found)
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, Tensor):
        return found
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


def outline(settings: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """One of our own models without its values, which takes no memory.

    Raises:
        MarshtestError: its sizes are beyond what a tensor can have, or do not fit each other.
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
    """Raise MarshtestError where one of our own models is larger than this machine's memory."""
    if not isinstance(settings, BUILT_FROM_A_FILE):
        return
    model, memory = outline(settings, input_shape, classes), physical_memory()
    needed = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if needed > memory:
        raise MarshtestError(
            f"model: {settings.name} of these sizes takes {needed / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB. Choose a smaller one."
        )


def weight_layers(model: nn.Module) -> list[list[nn.Module]]:
    """The model's layers in the order of registration, each a weight module and what goes with it.

    Convolutions of any dimension, transposed ones among them, and linear, bilinear and recurrent modules
    count, parametrised or not (Goel et al. 2022 count convolution and linear layers, and norm layers with
    theirs). A norm layer, or any other module that holds parameters of its own, goes with the weight
    module before it; one that has weight modules within, such as `nn.MultiheadAttention`, with the first
    of these. One layer each are a transformer's block, an entry of an `nn.ModuleList` with weights in it,
    and a layer with an adapter, which has its `base_layer` within, as PEFT's LoRA has. Embeddings are no
    layers, nor are parameters of the whole model's own; nor is an output head that is tied to an
    embedding: it could not be reset or trained without the other.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    blocks = _blocks(model)
    layers: list[list[nn.Module]] = []
    ahead: list[nn.Module] = []  # owners of parameters whose weight modules are still to come
    current: nn.Module | None = None
    for module in model.modules():
        block = blocks.get(module)
        owns = any(True for _ in module.parameters(recurse=False))
        if block is not None and block is not current:
            current = block
            layers.append([])
        elif block is None and _is_weight(module):
            if id(getattr(module, "weight", None)) in embeddings:
                continue
            layers.append([module, *ahead])  # the weight module is its layer's first
            ahead = []
            continue
        elif block is None and owns and module is not model and _holds_weight(module):
            ahead.append(module)
            continue
        if layers and (owns or _is_weight(module)):
            layers[-1].append(module)
    return layers


def _blocks(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Of each module within a block, the outermost block."""
    blocks: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        entries = [module] if hasattr(module, "base_layer") else []
        for entry in module if isinstance(module, nn.ModuleList) else entries:
            if _holds_weight(entry):
                blocks = {**dict.fromkeys(entry.modules(), entry), **blocks}
    return blocks


def _holds_weight(module: nn.Module) -> bool:
    return any(_is_weight(within) for within in module.modules())


def _is_weight(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
    return isinstance(module, kinds) or (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # transformers' linear layer
    )


def save_model(
    model: nn.Module,
    path: str | Path,
    settings: ModelSettings | str | Mapping[str, Any],
    input_shape: tuple[int, ...],
    classes: int,
) -> None:
    """Write a model as one safetensors file that says how to build it again.

    Args:
        settings: what a recipe says of the model: "pkg.mod:fn" for one that your factory builds, or a
            mapping with its name and options.
        input_shape: of one sample's x.
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
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state_of(model).items()}
    about = {
        "settings": settings.model_dump(),
        "input_shape": list(input_shape),
        "classes": classes,
    }
    return save(tensors, {"marshtest": json.dumps(about)})


class About(Settings):
    """What a checkpoint says of its model."""

    settings: dict[str, Any]
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    classes: int = Field(ge=1)


def load_model(
    path: str | Path, factory: str | Callable[..., nn.Module] | None = None
) -> nn.Module:
    """The model that `save_model` wrote, in eval mode.

    A file chooses neither what is run nor what else is read: it brings sizes and weights of our own
    kinds of model, and of all others only weights.

    Args:
        factory: builds a model of another kind: a function (input_shape, classes, **options) → model, or
            its name "pkg.mod:fn"; options are the numbers that the checkpoint was saved with.

    Raises:
        MarshtestError: no such file, not one of ours, corrupt, or of a kind that needs a factory.
    """
    path = Path(path)
    if not path.is_file():
        raise MarshtestError(f"{path}: no such checkpoint.")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            about = About.parse(json.loads(metadata["marshtest"]), str(path))
            model = _rebuilt(about, shapes, factory, path)
            restore(model, {name: file.get_tensor(name) for name in shapes})
    except UNREADABLE as error:
        if isinstance(error, MarshtestError):
            raise
        raise MarshtestError(
            f"{path}: not a readable marshtest checkpoint ({type(error).__name__}: {first_line(error)}). "
            "Write it with marshtest.save_model."
        ) from None
    return model.eval()


def _rebuilt(
    about: About,
    shapes: Mapping[str, list[int]],
    factory: str | Callable[..., nn.Module] | None,
    path: Path,
) -> nn.Module:
    """A model for tensors of these shapes."""
    if factory is not None:
        return _by_factory(about, factory, path)
    kind = MODELS.get(str(about.settings.get("name", "mlp")))
    if kind not in BUILT_FROM_A_FILE:
        raise MarshtestError(
            f"{path}: holds a model of kind {str(about.settings.get('name'))[:100]!r}, and a file is not "
            "trusted to choose what is run or downloaded. Name the factory that builds it, if you trust "
            f"it: marshtest.load_model(path, factory='pkg.mod:fn'), or {path.name}@pkg.mod:fn as a model "
            "to test."
        )
    settings = parse_model(about.settings)
    expected = state_of(outline(settings, about.input_shape, about.classes))
    differing = [n for n, t in expected.items() if list(t.shape) != shapes.get(n)]
    if differing or shapes.keys() - expected.keys():
        name = (differing or sorted(shapes.keys() - expected.keys()))[0]
        given, needed = (
            shapes.get(name, "missing"),
            list(expected[name].shape) if differing else "none",
        )
        raise MarshtestError(
            f"{path}: its tensors are not those of the {settings.name} that it says it holds ({name} is "
            f"{given}, expected {needed}). Write it with marshtest.save_model."
        )
    refuse_too_large(settings, about.input_shape, about.classes)
    return settings.build(about.input_shape, about.classes)


def _is_number(value: Any) -> bool:
    """Whether an option is a number, a truth value, nothing, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float)


def _by_factory(about: About, factory: str | Callable[..., nn.Module], path: Path) -> nn.Module:
    make = load_object(factory, str(path)) if isinstance(factory, str) else factory
    given = about.settings.get("options", {})
    texts = [key for key, value in given.items() if not _is_number(value)]
    if texts:
        raise MarshtestError(
            f"{path}: its option {texts[0]!r} is no number, and a file is not trusted to choose it. Bind "
            "it yourself: factory=functools.partial(fn, …)."
        )
    made = make(about.input_shape, about.classes, **given)
    if not isinstance(made, nn.Module):
        raise MarshtestError(
            f"{path}: {factory} returned {type(made).__name__}, not a torch.nn.Module."
        )
    return made
