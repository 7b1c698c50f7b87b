"""The ways into a model that is not ours.

    weights.safetensors      our checkpoint                 both scores
    weights.safetensors@pkg.mod:fn  the same, of a model that your factory builds
    model.pt2                a torch.export program         both scores
    folder/                  a Hugging Face classifier      both scores
    pkg.mod:load             load() → inputs to logits      both scores; rank score alone if no gradient
    cmd:COMMAND              a program, by files            rank score
    box:pkg.mod:function     a callable, by files           rank score

A command has {inputs} and {outputs} where the two paths go.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.errors import MarshtestError, first_line
from marshtest.kit.black_box import BlackBox, command_call, function_call
from marshtest.kit.door import Door, Inputs, Program
from marshtest.kit.key import Key
from marshtest.kit.noise import Scaling
from marshtest.models import load_model
from marshtest.settings import load_object


def open_door(
    spec: str, key: Key, shape: tuple[int, ...], scaling: Scaling | None, device: torch.device
) -> Door:
    """Open a model.

    Args:
        spec: one of the forms in the module's text.
        key: tells the number of classes and, unless given, the scaling.
        shape: of a sample in the file.
        scaling: how values become this model's inputs; by default a Hugging Face folder's own
            preprocessor, and the key's scaling for all others.

    Raises:
        MarshtestError: no such model, or one that cannot be read.
    """
    inputs = scaled(scaling or key.noise.scaling, key.noise.pixels, shape)
    kind, _, rest = spec.partition(":")
    path = Path(spec)
    if kind == "cmd":
        return BlackBox(spec, command_call(spec, rest), inputs, key.classes)
    if kind == "box":
        return BlackBox(spec, function_call(spec, load_object(rest, spec)), inputs, key.classes)
    batch: int | None = None
    function: Callable[[Tensor], Any]
    if path.is_dir():
        function, own = _hugging_face(path)
        if own is not None and scaling is None and key.noise.pixels:
            inputs = own
        function = function.to(device)
    elif path.suffix == ".pt2":
        function, batch = _exported(path, device)
    elif path.suffix == ".safetensors" or ".safetensors@" in spec:
        file, at, factory = spec.partition(".safetensors@")
        function = load_model(f"{file}.safetensors" if at else path, factory or None).to(device)
    elif ":" in spec:
        function = _loaded(spec, device)
    else:
        raise MarshtestError(
            f"{spec}: no such model. Give a .safetensors checkpoint, a .pt2 program, a Hugging Face "
            "folder, 'pkg.mod:load', 'box:pkg.mod:function' or 'cmd:COMMAND {inputs} {outputs}'."
        )
    return Program(spec, function, inputs, key.classes, device, batch)


def scaled(scaling: Scaling, pixels: bool, shape: tuple[int, ...]) -> Inputs:
    """The map from values of the file to model inputs."""
    mean = torch.from_numpy(scaling.along(scaling.mean, shape)).float()
    std = torch.from_numpy(scaling.along(scaling.std, shape)).float()

    def inputs(x: Tensor) -> Tensor:
        x = ((x / 255 if pixels else x) - mean.to(x.device)) / std.to(x.device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return inputs


def _loaded(spec: str, device: torch.device) -> Callable[[Tensor], Any]:
    try:
        function = load_object(spec, spec)()
    except MarshtestError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise MarshtestError(
            f"{spec}: raised {type(error).__name__} ({first_line(error)})."
        ) from None
    if not callable(function):
        raise MarshtestError(
            f"{spec}: must return a function from inputs to logits. Got {type(function).__name__}."
        )
    return function.to(device).eval() if isinstance(function, nn.Module) else function


def _exported(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Any], int | None]:
    """The program, and its batch size where that is fixed."""
    if not path.is_file():
        raise MarshtestError(f"{path}: no such file.")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs a traceback of what it raises
    try:
        program = torch.export.load(path)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        (name,) = program.graph_signature.user_inputs
        (node,) = (node for node in program.graph.nodes if node.name == name)
        batch = node.meta["val"].shape[0]
        return program.module(), batch if isinstance(batch, int) else None
    except Exception as error:  # zip, JSON, schema: anything may be broken in it
        raise MarshtestError(
            f"{path}: not a readable torch.export program of one input "
            f"({type(error).__name__}: {first_line(error)})."
        ) from None
    finally:
        logger.setLevel(level)


def _hugging_face(path: Path) -> tuple[nn.Module, Inputs | None]:
    """The classifier, and the map to its inputs where the folder says it."""
    import transformers

    if not (path / "config.json").is_file():
        raise MarshtestError(f"{path}: is no Hugging Face model folder (no config.json).")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        kind = (config.architectures or ["?"])[0]
        sequences = kind.endswith("ForSequenceClassification")
        if not sequences and not kind.endswith("ForImageClassification"):
            raise MarshtestError(
                f"{path}: holds a {kind}; an image or sequence classifier is needed."
            )
        loader = (
            transformers.AutoModelForSequenceClassification
            if sequences
            else transformers.AutoModelForImageClassification
        )
        model: nn.Module = loader.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        preprocessor = path / "preprocessor_config.json"
        told = json.loads(preprocessor.read_text()) if preprocessor.is_file() else None
        own = None if told is None or sequences else _preprocessed(told)
    except MarshtestError:
        raise
    except Exception as error:  # files of any sort may lie there
        raise MarshtestError(
            f"{path}: cannot be loaded ({type(error).__name__}: {first_line(error)}). "
            "Weights must be safetensors."
        ) from None
    return _Embedded(model) if sequences else model, own


class _Embedded(nn.Module):
    """A sequence classifier asked with token embeddings [B, T, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor) -> Any:
        return self.model(inputs_embeds=embeddings)


def _preprocessed(own: dict[str, Any]) -> Inputs:
    """What the folder's image processor does, as a differentiable function of pixels [B, C, H, W]."""
    factor = own.get("rescale_factor", 1 / 255) if own.get("do_rescale", True) else 1.0
    normalised = own.get("do_normalize", True)
    mean = torch.tensor(own.get("image_mean", 0.0) if normalised else 0.0).view(-1, 1, 1)
    std = torch.tensor(own.get("image_std", 1.0) if normalised else 1.0).view(-1, 1, 1)
    size = own.get("size", {}) if own.get("do_resize", False) else {}
    crop = own.get("crop_size", {}) if own.get("do_center_crop", False) else {}
    mode = "bicubic" if own.get("resample") == 3 else "bilinear"

    def inputs(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        grown = size["shortest_edge"] / min(height, width) if "shortest_edge" in size else 1.0
        target = (
            size.get("height", round(grown * height)),
            size.get("width", round(grown * width)),
        )
        if target != (height, width):
            x = F.interpolate(x, target, mode=mode, antialias=True, align_corners=False)
        if crop:
            top, left = (target[0] - crop["height"]) // 2, (target[1] - crop["width"]) // 2
            x = x[..., top : top + crop["height"], left : left + crop["width"]]
        return (x * factor - mean.to(x.device)) / std.to(x.device)

    return inputs
