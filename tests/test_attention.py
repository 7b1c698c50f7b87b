"""Attention of texts in bfloat16 on a CPU: float32 inside, by its formula; all else is rounded."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from marshtest.data.samples import Samples
from marshtest.models.language import GPT2, Prompt
from marshtest.training.attention import Float32Attention
from marshtest.training.tasks import LabelWord, Language, Precision, TextClassification


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng).bfloat16().requires_grad_() for shape in shapes]


def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention in float64, by its definition."""
    later = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu(1)
    scores = query.double() @ key.double().mT / math.sqrt(query.shape[-1])
    return scores.masked_fill(later, -math.inf).softmax(-1) @ value.double()


@pytest.mark.parametrize("by_name", [False, True])
def test_answers_and_gradients_are_the_formulas_but_for_one_rounding(by_name: bool) -> None:
    given = tensors(*[(2, 3, 7, 4)] * 3)
    (weights,) = tensors((2, 3, 7, 4))
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        query, key, value = given
        if by_name:
            answer = F.scaled_dot_product_attention(
                is_causal=True, value=value, key=key, query=query
            )
        else:
            answer = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = formula(*given)
    assert answer.dtype == torch.bfloat16
    # Half a unit in the last of bfloat16's eight binary digits, and float32's own error.
    torch.testing.assert_close(answer.double(), expected, rtol=2.0**-8, atol=1e-6)
    found = torch.autograd.grad((answer * weights).sum(), given)
    exact = torch.autograd.grad((expected * weights.double()).sum(), given)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2.0**-7, atol=1e-2)


class Kinds(TorchDispatchMode):
    """The dtypes that attention and matrix products are computed in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attended, self.multiplied = set[torch.dtype](), set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "dot_product" in str(func):
            self.attended.add(args[0].dtype)
        if str(func).startswith("aten.addmm"):
            self.multiplied.add(args[1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [LabelWord, TextClassification])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_attention_is_computed_in_float32(kind: type[Language], precision: Precision) -> None:
    prompt = Prompt() if kind is LabelWord else None
    # Without dropout: with it attention is not fused on a CPU.
    settings = GPT2(layers=1, width=16, heads=2, vocabulary=300, dropout=0, prompt=prompt)
    model = settings.build((5,), 2)
    samples = Samples(torch.arange(1, 11).view(2, 5), torch.tensor([0, 1]), torch.arange(2))
    with Kinds() as kinds:
        kind(precision=precision).loss(model, samples).sum().backward()
    assert kinds.attended == {torch.float32}
    assert kinds.multiplied == {getattr(torch, precision)}
