"""Adapters that `peft` wrote, merged into their base."""

import filecmp
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from marshtest.plumbing.errors import MarshtestError, refused

# What can be merged into its base and opens no other folder, as a mixture of adapters does.
MERGED = {
    *("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT"),
    *("LN_TUNING", "HRA", "BONE", "RANDLORA", "SHIRA", "C3A", "MISS", "ROAD", "WAVEFT"),
    *("DELORA", "GRALORA", "OSF"),
}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapted(model: Any, base: Path, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """A model with an adapter merged into it, and notes.

    Args:
        model: the base, which is changed.
        base: the folder that the base was read from.
        folder: the adapter's folder; nothing is fetched, and no code or pickle in it is run.

    Raises:
        MarshtestError: no adapter, pickled weights, an adapter of another base, or `peft` is not installed.
    """
    config = _checked(folder)
    notes = _check_base(base, folder, config.get("base_model_name_or_path"))
    try:
        import peft
    except ImportError as error:
        raise MarshtestError(
            f"{folder}: adapters need peft ({error}). Install it with `pip install 'marshtest[peft]'`."
        ) from None
    mend = "Give the base that it was trained on."
    with warnings.catch_warnings(), refused(f"{folder}: does not fit {base}", mend):
        warnings.simplefilter(
            "ignore"
        )  # such as that GPT-2's layers are stored the other way round
        whole = peft.PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
        _check_tensors(
            base, folder, peft.get_peft_model_state_dict(whole, save_embedding_layers=False)
        )
        return _merged(folder, whole.eval()), notes


@torch.no_grad()
def _merged(folder: Path, whole: Any) -> Any:
    """The base with the adapter in its own weights, if that says the same."""
    tokens = torch.arange(4)[None]
    before = whole(input_ids=tokens).logits
    model = whole.merge_and_unload().eval()
    if not torch.allclose(model(input_ids=tokens).logits, before, rtol=1e-3, atol=1e-3):
        raise MarshtestError(  # of two weights that are tied, peft adapts one and merges into both
            f"{folder}: cannot be merged into its base, whose answers it changes (tied embeddings?). Give "
            "the whole model by 'pkg.mod:load'."
        )
    return model


def _check_tensors(base: Path, folder: Path, tensors: Mapping[str, object]) -> None:
    """Raise if an adapter's file has not just the tensors that its model has: peft only warns."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        strange = sorted(set(file.keys()) ^ tensors.keys())
    if strange:
        raise MarshtestError(
            f"{folder}: is an adapter of another base than {base}: {len(strange)} tensors are in one of "
            f"the two alone ({strange[0]}, …). Give the base that it was trained on."
        )


def _checked(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, if its folder is safe to read."""
    if not (folder / CONFIG).is_file():
        raise MarshtestError(f"{folder}: is no adapter's folder: it has no {CONFIG}.")
    if not (folder / WEIGHTS).is_file():
        raise MarshtestError(
            f"{folder}: has no {WEIGHTS}; pickled weights can run code and are not read. Save the adapter "
            "with save_pretrained(…, safe_serialization=True)."
        )
    with refused(f"{folder}: {CONFIG} cannot be read"):
        config: dict[str, Any] = dict(json.loads((folder / CONFIG).read_text()))
    if config.get("peft_type") not in MERGED or config.get("adapters"):
        raise MarshtestError(
            f"{folder}: is a {config.get('peft_type')} adapter, which cannot be merged into its base. Give "
            "the whole model by 'pkg.mod:load'."
        )
    if config.get("megatron_config"):  # older releases of peft import the module beside it
        raise MarshtestError(
            f"{folder}: {CONFIG} names a module to import (megatron_core), which is not run. Save the "
            "adapter without Megatron."
        )
    _refuse_absurd(folder, config)
    return config


def _refuse_absurd(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise if the configuration asks for more than its tensors hold: peft allocates what it says."""
    with refused(f"{folder}: {WEIGHTS} cannot be read"), safe_open(folder / WEIGHTS, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    largest = max((size for shape in shapes for size in shape), default=0)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else ())]
    copied = config.get("layer_replication")
    layers = len(copied) if isinstance(copied, list) else 0
    if layers > len(shapes) or any(isinstance(r, int) and r > largest for r in ranks):
        raise MarshtestError(
            f"{folder}: {CONFIG} asks for a rank, or for copies of layers, that {WEIGHTS} does not hold. "
            "Save the adapter again."
        )


def _check_base(base: Path, folder: Path, named: object) -> tuple[str, ...]:
    """A note if the adapter names another base; a MarshtestError if that base is here and differs."""
    if not isinstance(named, str):
        return ()
    other, is_here = Path(named), False
    with suppress(OSError, ValueError):  # a name that is too long, or no name at all
        is_here = (other / "config.json").is_file()
    if not is_here:
        if other.name == base.resolve().name:  # the same base at another place
            return ()
        return (f"the adapter was trained on {named!r}, which cannot be compared with {base}",)
    files = {file.name for place in (base, other) for file in place.glob("*.safetensors")}
    same, _, _ = filecmp.cmpfiles(base, other, files, shallow=False)
    if set(same) != files:
        raise MarshtestError(
            f"{folder}: is an adapter of another base: it was trained on {named}, whose weights are not "
            f"those of {base}."
        )
    return ()
