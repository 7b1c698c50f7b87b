"""Classifiers in Hugging Face folders, asked through the folder's own image processor."""

import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from marshtest.kit.inputs import channels_first, picture_shape
from marshtest.kit.layouts.base import Value
from marshtest.kit.model import Inputs, Way
from marshtest.kit.noise import LEVELS
from marshtest.kit.preprocessing import Process, differentiable
from marshtest.plumbing.errors import MarshtestError, first_line, refused

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SIZES = ("hidden_size", "intermediate_size", "num_labels", "vocab_size")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
SHARED = 16  # layers may have one tensor in common
TRIED = 8  # pictures that the gradient's copy of a processor must agree on


@dataclass(frozen=True)
class Folder:
    """A classifier in a folder."""

    path: Path
    model: nn.Module  # maps inputs to whatever the model answers with, in eval mode
    processor: Any  # the image processor; None where the folder has none, or for texts
    notes: tuple[str, ...]  # what a reader should know of the weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Let `transformers` say only errors, and draw no bars, inside; afterwards it is as it was."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(path: Path, model: bool = True) -> Iterator[dict[str, Any]]:
    """Give the options with which `transformers` reads a folder, and nothing but the folder, inside.

    Raises:
        MarshtestError: code of the folder's own, or damaged files; if a `model` is to be read, none there,
            or pickled weights.
    """
    if model and not (path / "config.json").is_file():
        raise MarshtestError(f"{path}: is no Hugging Face model folder: it has no config.json.")
    try:
        with _quiet():
            _refuse_code(path)
            if model:
                _refuse_unsafe(path)
            yield {"local_files_only": True, "trust_remote_code": False}
    except MarshtestError:
        raise
    except Exception as error:  # files of any sort may lie there
        raise MarshtestError(
            f"{path}: cannot be loaded ({type(error).__name__}: "
            f"{textwrap.shorten(first_line(error), 200)})."
        ) from None


def load_weights(
    path: Path, loader: Any, config: Any, attention: str = "eager", **options: Any
) -> tuple[Any, tuple[str, ...]]:
    """A folder's model in eval mode, by a class of `transformers`, and notes on its weights."""
    # A configuration that is given takes the attention from the argument, in all its parts; one that is
    # read here, from the folder, which could name a kernel: code that would be fetched and run.
    model, info = loader.from_pretrained(
        path,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
        **options,
    )
    return model.eval(), _weights_notes(path, info)


def open_folder(path: Path) -> Folder:
    """Load a classifier's folder; nothing is fetched, and no code or pickle in it is run.

    Raises:
        MarshtestError: no classifier, code of its own, pickled or missing weights, damaged files.
    """
    import transformers

    with reading(path) as safely:
        config = transformers.AutoConfig.from_pretrained(path, **safely)
        loader, keyword = _kind(path, config)
        model, notes = load_weights(path, loader, config, **safely)
        processor = None
        if keyword == "pixel_values" and any((path / name).is_file() for name in PROCESSORS):
            processor = transformers.AutoImageProcessor.from_pretrained(path, **safely)
    return Folder(path, _ByKeyword(model, keyword), processor, notes)


def _refuse_code(path: Path) -> None:
    """Raise if transformers would run code of the folder."""
    for name in ("config.json", "tokenizer_config.json", *PROCESSORS):
        if (path / name).is_file() and '"auto_map"' in json.dumps(_json(path / name)):
            raise MarshtestError(
                f"{path}: {name} asks for code in the folder (auto_map), which is not run. "
                "Export the model to a .pt2 file, or give 'pkg.mod:load'."
            )


def _refuse_unsafe(path: Path) -> None:
    """Raise if transformers would read a pickle, or need another folder."""
    if (path / "adapter_config.json").is_file():
        raise MarshtestError(
            f"{path}: holds an adapter. Merge it into its model and save that, or, for a language model, "
            f"give its base's folder with it, as BASE@{path}."
        )
    # Names of weight files inside the folder's own JSON may point at pickles, or out of the folder.
    named = _json(path / "config.json").get("transformers_weights")
    files = {named} if named else set()
    for index in {"model.safetensors.index.json", *files}:
        if index.endswith(".index.json") and _plain(index) and (path / index).is_file():
            files |= set(_json(path / index)["weight_map"].values())
    for file in sorted(files):
        if not _plain(file):
            raise MarshtestError(
                f"{path}: its weights are said to lie in {file!r}: hidden, or outside, where no digest of "
                "the folder covers them. Save the model again."
            )
    files = files or {p.name for p in path.glob("*.safetensors")}
    safe = (".safetensors", ".safetensors.index.json")
    if not files or not all(file.endswith(safe) for file in files):
        raise MarshtestError(
            f"{path}: weights must be safetensors; pickled ones can run code and are not read. "
            "Save the model with save_pretrained(…, safe_serialization=True)."
        )
    _refuse_absurd(path)


def _plain(name: str) -> bool:
    """Whether a name is of a file within its folder, hidden nowhere on the way."""
    parts = name.split("/")
    return all(part and part[0] != "." for part in parts) and not set(name) & set("\\:")


def _refuse_absurd(path: Path) -> None:
    """Raise if a size in the configuration is larger than the weights: it would be allocated first."""
    files = list(path.glob("*.safetensors"))
    size, tensors = sum(file.stat().st_size for file in files), sum(map(_tensors, files))
    config = _json(path / "config.json")
    most = dict.fromkeys(SIZES, (size, f"{size:,} bytes"))
    most |= dict.fromkeys(LAYERS, (SHARED * tensors, f"{tensors:,} tensors"))
    for name, (allowed, held) in most.items():
        if isinstance(value := config.get(name), int) and value > allowed:
            raise MarshtestError(
                f"{path}: config.json says {name} = {value:,}, more than its weights can hold "
                f"({held}). Save the model again."
            )


def _tensors(file: Path) -> int:
    """How many tensors a file of weights holds."""
    with safe_open(file, "pt") as weights:
        return len(weights.keys())


def _json(path: Path) -> dict[str, Any]:
    with refused(f"{path}: cannot be read"):
        content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise MarshtestError(f"{path}: holds no JSON object.")
    return content


def _kind(path: Path, config: Any) -> tuple[Any, str]:
    """The class of transformers that loads the model, and the keyword of its inputs."""
    import transformers

    kind = (config.architectures or ["?"])[0]
    if getattr(config, "problem_type", None) == "regression":
        raise MarshtestError(f"{path}: holds a model for regression; a classifier is needed.")
    if "ForSequenceClassification" in kind:
        return transformers.AutoModelForSequenceClassification, "inputs_embeds"
    if "ForImageClassification" in kind:  # …WithTeacher too
        return transformers.AutoModelForImageClassification, "pixel_values"
    raise MarshtestError(f"{path}: holds a {kind}; an image or sequence classifier is needed.")


def _weights_notes(path: Path, info: dict[str, Any]) -> tuple[str, ...]:
    """A note on weights that the model does not use; a MarshtestError if some are missing."""
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would draw them at random, with a warning
        raise MarshtestError(
            f"{path}: its weights lack {len(missing)} of the model's tensors ({missing[0]!r:.60}, …). "
            "Save the whole model."
        )
    unused = sorted(info["unexpected_keys"])
    if not unused:
        return ()
    return (
        f"{len(unused)} tensors of its weights are not used by its model ({unused[0]!r:.60}, …)",
    )


class _ByKeyword(nn.Module):
    """A model of transformers as a function of one tensor: pixels, or token embeddings [B, T, D]."""

    def __init__(self, model: nn.Module, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Tensor) -> Any:
        return self.model(**{self.keyword: x})


def preprocessed(folder: Folder, samples: Value) -> Iterator[Way]:
    """The ways to give samples [M, ...] uint8 to a folder's processor: as they are, then grey ones as RGB.

    Raises:
        MarshtestError: samples are no pictures, or the processor does not take them.
    """
    channels = picture_shape(samples.shape[1:])[0]
    if not channels:
        raise MarshtestError(
            f"{folder.path}: its image processor takes pictures of 1 or 3 channels. Samples are "
            f"{list(samples.shape[1:])}; give --scaling to go without the processor."
        )
    first, grey = channels_first(torch.from_numpy(samples[:TRIED])), channels == 1
    for repeated in (False, True) if grey else (False,):
        process = _processor(folder, repeated)
        notes = ["grey pictures are given as RGB, as its processor or model wants"] * repeated
        try:
            exact = differentiable(process, first)
        except MarshtestError:
            if grey and not repeated:
                continue
            raise
        if exact is None:
            notes.append(
                "its image processor is no linear map of the pixels, so there is no gradient and "
                "the rank score stands alone"
            )
        yield _on_samples(exact or process), tuple(notes)


def _on_samples(process: Process) -> Inputs:
    return lambda x: process(channels_first(x))


def _processor(folder: Folder, repeated: bool) -> Process:
    """The folder's own processor of pictures [B, C, H, W], grey ones repeated as RGB; no gradient."""

    def process_pictures(pixels: Tensor) -> Tensor:
        arrays = pixels[:, 0] if pixels.shape[1] == 1 else pixels.movedim(1, -1)
        pictures = [Image.fromarray(np.ascontiguousarray(array)) for array in arrays.numpy()]
        pictures = [picture.convert("RGB") for picture in pictures] if repeated else pictures
        inputs = folder.processor(images=pictures, return_tensors="pt")
        if set(inputs) != {"pixel_values"} or inputs["pixel_values"].dim() != 4:
            raise ValueError(f"it makes {', '.join(inputs)} instead of one picture from each")
        return inputs["pixel_values"].float()  # type: ignore[no-any-return]

    def process(x: Tensor) -> Tensor:
        pixels = x.detach().cpu().round().clamp(0, LEVELS - 1).to(torch.uint8)
        fault = f"{folder.path}: its image processor does not take pictures {list(x.shape[1:])}"
        # Pillow and NumPy, of which processors are made, work outside Python's lock.
        with refused(fault), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            inputs = torch.cat(list(pool.map(process_pictures, pixels.split(32))))
            if not inputs.numel() or not inputs.isfinite().all():
                raise ValueError("it makes inputs that are empty or not finite")
            return inputs.to(x.device)

    return process
