"""A folder's model is given what the folder's own processor makes, and nothing else is trusted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boxes
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from marshtest.kit.hugging_face import open_folder, preprocessed
from marshtest.kit.model import FunctionModel
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.open_model import open_model
from marshtest.plumbing.errors import MarshtestError

CPU = torch.device("cpu")
KEY: Any = SimpleNamespace(
    noise=Noise(seed=0, variance=1, scaling=Scaling(), pixels=True), classes=4
)
SMALL = {"num_labels": 4, "image_size": 32}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 8,
    **SMALL,
}
CNN = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4, **SMALL}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
B0 = {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320, **SMALL}
VISION = {key: value for key, value in VIT.items() if key != "num_labels"}
LEVIT = {
    "hidden_sizes": [16, 16, 16],
    "num_attention_heads": [1, 1, 1],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "image_size": 32,
    "num_labels": 4,
}
MOBILE_VIT = {
    "hidden_sizes": [8, 8, 8],
    "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
    "num_attention_heads": 2,
    **SMALL,
}

# family, configuration, what its processor is told beyond its defaults
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("ViT", VIT, {"size": 32}),  # sizes were integers once
    "convnext": ("ConvNext", STAGES, {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "beit": ("Beit", VIT, {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "deit": ("DeiT", VIT, {"size": {"height": 36, "width": 36}, "crop_size": 32, "resample": 1}),
    "swin": ("Swin", {**SWIN, **SMALL}, {"size": {"height": 32, "width": 32}, "resample": 0}),
    "resnet": (
        "ResNet",
        {**CNN, "num_labels": 4},
        {"size": {"shortest_edge": 40}, "crop_pct": 1.0},
    ),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25, **SMALL}, {"do_normalize": False}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35, **SMALL}, {"crop_size": 96}),
    "efficientnet": (
        "EfficientNet",
        B0,
        {"size": {"height": 32, "width": 32}, "rescale_offset": True, "include_top": False},
    ),
    "levit": ("Levit", LEVIT, {"size": {"shortest_edge": 32}, "crop_size": 32}),
    "dinov2": ("Dinov2", VIT, {"size": {"shortest_edge": 40}, "crop_size": 32}),
    "siglip": (
        "Siglip",
        {"vision_config": VISION, "num_labels": 4},
        {"size": {"height": 32, "width": 32}},
    ),
    "mobilevit": ("MobileViT", MOBILE_VIT, {"size": 40, "crop_size": 32}),  # BGR
}


def save(folder: Path, family: str) -> None:
    """A classifier of random weights and its processor, as their authors' scripts save them."""
    name, config, told = FAMILIES[family]
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, f"{name}ForImageClassification")(settings)
    model.save_pretrained(folder)
    processor = {"resnet": "ConvNext", "dinov2": "Bit", "swin": "ViT"}.get(family, name)
    boxes.preprocessor(folder, image_processor_type=f"{processor}ImageProcessor", **told)


def photographs(count: int = 4) -> np.ndarray:
    """[N, 3, 30, 42] pictures, the last with strong noise: written as a dose would."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    parts = [
        np.asarray(p.resize((42, 30), box=(9 * i, 0, 400 + 9 * i, 300)))
        for i, p in enumerate(2 * pictures)
    ]
    x = np.stack(parts[:count]).transpose(0, 3, 1, 2)
    noise = (
        np.random.default_rng(0).normal(0, 60, x.shape)
        * (np.arange(count) > 2)[:, None, None, None]
    )
    return (x + noise).round().clip(0, 255).astype(np.uint8)


def own(folder: Path, x: np.ndarray) -> Tensor:
    """What a script of the folder's author would give its model."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in x]
    return processor(images=pictures, return_tensors="pt")["pixel_values"]  # type: ignore[no-any-return]


def opened(folder: Path, x: np.ndarray) -> FunctionModel:
    asked_model = open_model(str(folder), KEY, x, None, CPU)
    assert isinstance(asked_model, FunctionModel)
    return asked_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_given_what_its_own_processor_makes(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    x = photographs()
    asked_model = opened(tmp_path, x)
    wanted = own(tmp_path, x)
    given = torch.from_numpy(x).float()
    assert torch.equal(asked_model.inputs(given), wanted)
    assert torch.allclose(asked_model.inputs(given.requires_grad_()), wanted, atol=1e-5)
    assert not asked_model.notes


@pytest.mark.parametrize(
    "family", ["vit", "convnext", "swin", "efficientnet", "mobilevit", "dinov2"]
)
def test_the_gradient_is_the_slope_of_the_processor(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    x = photographs() // 2 + 60  # nothing is clipped
    asked_model = opened(tmp_path, x)
    given = torch.from_numpy(x).float().requires_grad_()
    torch.manual_seed(1)
    weight = torch.randn_like(own(tmp_path, x))
    smooth = torch.nn.functional.avg_pool2d(weight, 5, 1, 2)
    (gradient,) = torch.autograd.grad((asked_model.inputs(given) * smooth).sum(), given)
    steps = 25 * gradient.sign().int()  # whole levels, and many: rounding hardly matters
    ahead, behind = (own(tmp_path, (x + sign * steps.numpy()).astype(np.uint8)) for sign in (1, -1))
    slope = ((ahead - behind) / 2 * smooth).sum((1, 2, 3))
    expected = (gradient * steps).sum((1, 2, 3))
    assert torch.allclose(slope, expected, rtol=0.03)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image_std": [0.0, 0.0, 0.0]}, "its image processor does not take pictures"),
        ({"rescale_factor": 0.0}, "the same inputs of every picture"),
    ],
)
def test_a_processor_that_makes_nothing_of_pictures_is_refused(
    tmp_path: Path, values: dict[str, object], says: str
) -> None:
    save(tmp_path, "vit")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(MarshtestError, match=says):
        opened(tmp_path, photographs())


@pytest.mark.parametrize("content", ["[]", "null", ""])
def test_a_configuration_that_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    save(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(
        MarshtestError, match=r"preprocessor_config\.json: (holds no JSON|cannot be)"
    ):
        opened(tmp_path, photographs())


def test_a_processor_that_is_not_linear_leaves_the_rank_score(tmp_path: Path) -> None:
    save(tmp_path, "vit")
    folder = open_folder(tmp_path)
    processor = folder.processor

    def stretched(images: list[Image.Image], return_tensors: str) -> dict[str, Tensor]:
        x = processor(images=images, return_tensors=return_tensors)["pixel_values"]
        return {"pixel_values": x / x.abs().amax((1, 2, 3), keepdim=True)}

    object.__setattr__(folder, "processor", stretched)
    x = photographs()
    ((inputs, notes),) = preprocessed(folder, x)
    assert "no gradient and the rank score stands alone" in notes[0]
    asked_model = FunctionModel("m", folder.model, inputs, 4, CPU)
    assert asked_model.gradients(x, np.zeros(4, np.int64)) is None
    assert np.isfinite(asked_model.ask(x, np.zeros(4, np.int64))[0]).all()


@pytest.mark.parametrize("shape", ["file", "array", "channels last"])
def test_grey_pictures_are_given_as_the_processors_rgb(shape: str, tmp_path: Path) -> None:
    save(tmp_path, "vit")
    grey = photographs()[:, :1]
    x = {"file": grey, "array": grey[:, 0], "channels last": grey.transpose(0, 2, 3, 1)}[shape]
    asked_model = opened(tmp_path, x)
    wanted = own(tmp_path, grey.repeat(3, 1))
    assert torch.equal(asked_model.inputs(torch.from_numpy(x).float()), wanted)
    assert "grey pictures are given as RGB" in asked_model.notes[0]
    gradients = asked_model.gradients(x, np.zeros(4, np.int64))
    assert gradients is not None
    assert gradients.shape == (4, 30 * 42)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "processor_config.json"]
)
def test_code_in_a_folder_is_refused_and_nobody_is_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "vit")
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / name).touch()
    kind = {"config.json": "AutoConfig"}.get(name, "AutoImageProcessor")
    told = {"auto_map": {kind: "evil.Evil"}, "model_type": "evil"}
    inside = {"image_processor": told} if name == "processor_config.json" else told
    (tmp_path / name).write_text(
        json.dumps(json.loads((tmp_path / name).read_text() or "{}") | inside)
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(MarshtestError, match=rf"{name} asks for code in the folder"):
        opened(tmp_path, photographs())
    assert not ran.exists()


def test_weights_that_would_be_random_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "vit")
    weights = boxes.load_weights(tmp_path)
    boxes.save_weights(tmp_path, {k: v for k, v in weights.items() if "classifier" not in k})
    with pytest.raises(MarshtestError, match=r"lack 2 of the model's tensors \('classifier.bias"):
        opened(tmp_path, photographs())
    boxes.save_weights(tmp_path, weights | {"classifier.weight": torch.zeros(7, 16)})
    with pytest.raises(MarshtestError, match=r"cannot be loaded"):
        opened(tmp_path, photographs())
    boxes.save_weights(tmp_path, weights | {"another.weight": torch.zeros(7, 16)})
    assert "1 tensors of its weights are not used" in opened(tmp_path, photographs()).notes[0]


def test_pickled_shards_behind_an_index_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "vit")
    torch.save(boxes.load_weights(tmp_path), tmp_path / "weights.bin")
    names = dict.fromkeys(boxes.load_weights(tmp_path), "weights.bin")
    (tmp_path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MarshtestError, match="weights must be safetensors"):
        opened(tmp_path, photographs())


@pytest.mark.parametrize("place", [".w.safetensors", "../w.safetensors", "/w.safetensors"])
@pytest.mark.parametrize("twice", [False, True])
def test_weights_that_no_digest_of_the_folder_covers_are_refused(
    place: str, twice: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save(folder, "vit")
    names = dict.fromkeys(boxes.load_weights(folder), place)
    (folder / "model.safetensors").rename(folder / place.strip("/"))
    index = "other.safetensors.index.json" if twice else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    change(folder / "config.json", transformers_weights=index if twice else None)
    with pytest.raises(MarshtestError, match=r"hidden, or outside, where no digest"):
        opened(folder, photographs())


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_folder_names_no_kernel_to_be_fetched(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import hub_kernels

    save(tmp_path, "vit")
    x = photographs()
    expected = opened(tmp_path, x)
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *_, **__: pytest.fail("code is fetched"))
    change(tmp_path / "config.json", **{key: "somebody/kernel@branch"})
    pixels = own(tmp_path, x)
    answers = (one.function(pixels).logits for one in (expected, opened(tmp_path, x)))
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"problem_type": "regression"}, "holds a model for regression"),
        ({"model_type": "nothing"}, "cannot be loaded"),
        ({"architectures": ["ViTModel"]}, "holds a ViTModel; an image or sequence classifier"),
        (
            {"hidden_size": 2_000_000_000},
            "hidden_size = 2,000,000,000, more than its weights can hold",
        ),
        (
            {"num_hidden_layers": 30_000},
            "num_hidden_layers = 30,000, more than its weights can hold",
        ),
        (
            {"num_labels": 2_000_000_000},
            "num_labels = 2,000,000,000, more than its weights can hold",
        ),
        ({"hidden_size": 64}, "cannot be loaded"),
        ({"id2label": {"0": "cat", "1": "dog"}}, "cannot be loaded"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "cannot be loaded"),
    ],
)
def test_configurations_that_do_not_fit_are_one_line(
    values: dict[str, object], says: str, tmp_path: Path
) -> None:
    save(tmp_path, "vit")
    change(tmp_path / "config.json", **values)
    with pytest.raises(MarshtestError, match=says) as error:
        opened(tmp_path, photographs())
    assert "\n" not in str(error.value)


def test_an_adapter_without_its_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "vit")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(MarshtestError, match="Merge it into its model"):
        opened(tmp_path, photographs())
