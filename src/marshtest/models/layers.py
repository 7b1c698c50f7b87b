"""The layers of a network that hold weights: what "the last k layers" and "each layer" mean here."""

from torch import nn

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def weight_layers(model: nn.Module) -> list[list[nn.Module]]:
    """The model's layers in the order of registration, each a weight module and the modules with it.

    *Weight modules* are convolutions of any dimension, transposed ones among them, and linear, bilinear
    and recurrent modules, parametrised or not (Goel et al. 2022 count convolution and linear layers, and
    norm layers with theirs). Any other module that holds parameters itself, such as a norm layer, goes
    with the weight module before it; if it has weight modules within, as `nn.MultiheadAttention` has, it
    goes with the first of these.

    *One layer each* are a transformer's block, an entry of an `nn.ModuleList` with weights in it, and a
    layer with an adapter, which has its `base_layer` within, as PEFT's LoRA has.

    *No layers* are embeddings, parameters that the model itself holds, and an output head that is tied to
    an embedding: the head could not be reset or trained without the embedding.
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
    """The outermost block around each module that lies within a block."""
    blocks: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        entries = [module] if hasattr(module, "base_layer") else []
        for entry in module if isinstance(module, nn.ModuleList) else entries:
            if _holds_weight(entry):
                # Outer modules come first, and what is in already wins: the outermost block counts.
                blocks = {**dict.fromkeys(entry.modules(), entry), **blocks}
    return blocks


def _holds_weight(module: nn.Module) -> bool:
    return any(_is_weight(within) for within in module.modules())


def _is_weight(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
    return isinstance(module, kinds) or (
        type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # transformers' linear layer
    )
