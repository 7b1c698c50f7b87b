"""Weights rounded to a few bits, as a model is when it is served cheaply: quantisation after training.

    s = max |w| / (2^(b − 1) − 1)     the step of an output channel, of b bits
    w ← s · round(w / s)              to the nearest of 2^b − 1 levels about 0; ties go to the even one

The weights of convolution and linear layers are rounded. Embeddings stay, and with them heads that are tied
to one; so do norm layers, biases and activations. These are the choices of the 4-bit and 8-bit loaders by
which unlearned language models got their knowledge back (Zhang et al. 2024, arXiv 2410.16454). PyTorch's
`fake_quantize_per_channel_affine` rounds: it serves any layer on any device, where `torch.ao` quantises
linear layers to 8 bits only, and their activations with them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from marshtest.models.state import copied

ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model whose weights have 2^bits − 1 levels in each output channel; `bits` from 2 on."""
    model = copied(model)
    for module in model.modules():
        # Of a weight that is computed from others, such as a normalised one, its value is rounded.
        if _is_layer(module) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    for weight, axis in weights(model):
        weight.data = _rounded(weight.detach(), axis, bits).to(weight.dtype)
    return model


def weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """The weights that are rounded, each once, and the axis of its output channels."""
    seen = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        for name in ("weight",) if _is_layer(module) else _of_attention(module):
            weight = getattr(module, name)
            if isinstance(weight, nn.Parameter) and id(weight) not in seen:
                seen.add(id(weight))
                yield weight, int(_outputs_are_second(module))


def _rounded(weight: Tensor, axis: int, bits: int) -> Tensor:
    most = 2 ** (bits - 1) - 1
    others = [d for d in range(weight.dim()) if d != axis]
    step = weight.float().abs().amax(others) / most
    # A channel of zeros stays as it is, whatever its step.
    step = torch.where(step > 0, step, 1.0)
    zero = torch.zeros_like(step, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), step, zero, axis, -most, most)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # transformers' linear layer, by its name: the library may not be there
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _of_attention(module: nn.Module) -> list[str]:
    """The projections that PyTorch's attention holds itself, beside its one linear layer."""
    if not isinstance(module, nn.MultiheadAttention):
        return []
    return [name for name in ATTENTION if getattr(module, name) is not None]


def _outputs_are_second(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd) or _is_conv1d(module)
