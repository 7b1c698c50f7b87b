"""Models and black boxes that the door tests name as "boxes:function"."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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
