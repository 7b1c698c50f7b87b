"""Models and black boxes that the tests name as "boxes:function"."""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

CONFIG = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 4,
}


def vit(input_shape: tuple[int, ...] = (3, 8, 8), classes: int = 4) -> nn.Module:
    """A small vision transformer with weights of seed 0, the logits alone."""
    return Logits(hugging_face_vit())


def hugging_face_vit() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG))
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model.eval()


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def numpy_model():  # type: ignore[no-untyped-def]
    model = vit()

    def ask(x: Tensor) -> np.ndarray:
        with torch.no_grad():
            return model(x).numpy()

    return ask


def plain_numpy():  # type: ignore[no-untyped-def]
    """As JAX or TensorFlow would be wrapped: it has no use for a tensor that wants a gradient."""
    model = vit()
    return lambda x: model(torch.from_numpy(x.numpy())).detach().numpy()


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        raise RuntimeError("no derivative is implemented")


def one_way():  # type: ignore[no-untyped-def]
    model = vit()
    return lambda x: model(OneWay.apply(x))


def answer(inputs: Path, outputs: Path, kind: str) -> None:
    with np.load(inputs) as asked, torch.no_grad():
        logits = vit()(torch.from_numpy(asked["x"])).double()
        y = torch.from_numpy(asked["y"])
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True)
    found = {"logits": logits, "probabilities": logits.softmax(1), "losses": (others - own)[:, 0]}[
        kind
    ]
    np.save(outputs, found.numpy())


def logits(inputs: Path, outputs: Path) -> None:
    answer(inputs, outputs, "logits")


def probabilities(inputs: Path, outputs: Path) -> None:
    answer(inputs, outputs, "probabilities")


def losses(inputs: Path, outputs: Path) -> None:
    answer(inputs, outputs, "losses")


def too_few(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.zeros(3))


def not_numbers(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.full(len(np.load(inputs)["y"]), np.nan))


def words(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.array(["cat"] * len(np.load(inputs)["y"])))


def nothing(inputs: Path, outputs: Path) -> None:
    pass


def junk(inputs: Path, outputs: Path) -> None:
    outputs.write_text("not an array")


def dies(inputs: Path, outputs: Path) -> None:
    raise RuntimeError("out of memory")


def preprocessor(folder: Path, **values: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def load_weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


class Answering(nn.Module):
    """The transformer's logits in another wrapping."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.model = how, vit()

    def forward(self, x: Tensor) -> object:
        if self.how == "in place":
            return self.model(x.sub_(1.0).add_(1.0))
        if self.how == "view":  # wants contiguous inputs
            x = x.view(len(x), -1).view(x.shape)
        logits = self.model(x)
        masked = torch.cat([logits, torch.full_like(logits[:, :2], -torch.inf)], 1)
        return {
            "view": logits,
            "dict": {"loss": None, "logits": logits},
            "one entry": {"scores": logits},
            "tuple": (logits, x),
            "list": [logits, [x]],
            "model output": ImageClassifierOutput(logits=logits, hidden_states=(x,)),
            "masked": masked,
        }[self.how]


def answering(how: str) -> nn.Module:
    return Answering(how).eval()


def in_dict() -> nn.Module:
    return answering("dict")


def in_one_entry() -> nn.Module:
    return answering("one entry")


def in_tuple() -> nn.Module:
    return answering("tuple")


def in_list() -> nn.Module:
    return answering("list")


def in_model_output() -> nn.Module:
    return answering("model output")


def masked() -> nn.Module:
    return answering("masked")


def in_place() -> nn.Module:
    return answering("in place")


def viewing() -> nn.Module:
    return answering("view")


def in_float64() -> nn.Module:
    """In float64, as scientists' models are."""
    return vit().double()


def nans():  # type: ignore[no-untyped-def]
    return lambda x: torch.full((len(x), 4), torch.nan)


def volumes() -> nn.Module:
    """A convolution in three dimensions, with its channel of colours as depth."""
    torch.manual_seed(0)
    depth = nn.Unflatten(1, (1, 3))
    return nn.Sequential(depth, nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4)).eval()


def wider() -> nn.Module:
    """Six outputs for four classes; the last always wins."""
    torch.manual_seed(0)
    head = nn.Linear(192, 6)
    with torch.no_grad():
        head.bias[5] = 100
    return nn.Sequential(nn.Flatten(), head).eval()


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = vit()

    def forward(self, *, pixel_values: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"logits": self.model(pixel_values * scale)}


def wide_losses(inputs: Path, outputs: Path) -> None:
    with np.load(inputs) as asked, torch.no_grad():
        np.save(outputs, wider()(torch.from_numpy(asked["x"])).numpy())


def grey() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4)).eval()
