"""The kernel against double backward, on networks of several kinds."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.attacks import kernel as kernels
from marshtest.attacks.gradient_canceling import canceling
from marshtest.attacks.gradient_matching import matching
from marshtest.attacks.held_activations import Bits, Gates
from marshtest.attacks.kernel import Kernel, Objective, cosine
from marshtest.data.samples import Samples
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.tasks import Classification

TASK = Classification()


class Transformer(nn.Module):
    """Attention over the four rows of an input, then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.0, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """In-place, leaky and functional activations, and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.act, self.leaky = nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.conv1(x)), 2)
        x = self.leaky(self.conv2(x)) + 0.5
        return self.head(F.leaky_relu(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


def resnet() -> nn.Module:  # width 8: oneDNN's AVX2 convolutions corrupt memory at 4 channels
    model = build(parse_model({"name": "resnet18", "width": 8}), (3, 16, 16), 4, 0)
    with torch.no_grad():  # batch norms as after training
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return model


def mlp() -> nn.Module:
    return build(parse_model({"name": "mlp", "width": 32, "depth": 2}), (3, 16, 16), 4, 0)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (resnet, (3, 16, 16)),
    "mlp": (mlp, (3, 16, 16)),
    "transformer": (Transformer, (4, 16)),
    "pooled": (Pooled, (3, 16, 16)),
}


def problem(name: str, count: int = 70) -> tuple[nn.Module, Samples, Samples]:
    """A model, poisons of more than one micro-batch, and a target."""
    make, shape = MODELS[name]
    with seeded(1):
        model = make().eval()
        x, y = torch.randn(count + 1, *shape), torch.arange(count + 1) % 4
    samples = Samples(x, y, torch.arange(count + 1))
    return model, samples[:count], samples[count:]


def double_backward(
    model: nn.Module, poisons: Samples, objective: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """J and ∂J/∂x by differentiating through the gradient: the slow literal way."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    x = poisons.x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), poisons.y, reduction="sum")
    total = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)]
    )
    value = objective(total)
    return value, torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fast", [True, False])
def test_kernel_equals_double_backward(name: str, fast: bool) -> None:
    model, poisons, target = problem(name)
    kernel = Kernel(model, TASK, fast=fast)
    aim = kernel.gradient(target)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, slope = double_backward(
            model, poisons, lambda total: 1 - F.cosine_similarity(aim, total, dim=0)
        )
    found, mine = kernel(poisons.x, poisons, matching(aim))
    assert found == pytest.approx(value.item(), abs=1e-5)
    assert float(cosine(mine.flatten(), slope.flatten())) >= 0.99999
    assert float(mine.norm() / slope.norm()) == pytest.approx(1, abs=1e-3)
    assert kernel.way.startswith("fast" if fast else "exact")


def test_canceling_equals_double_backward() -> None:
    model, poisons, others = problem("mlp")
    kernel = Kernel(model, TASK)
    clean, decay = 30 * kernel.gradient(others), 0.1 * kernel.flat()
    for weighting, scale in (("size", 1.0), ("mean", 30 / 70)):
        objective = canceling(clean, decay, 30, 70, weighting)  # type: ignore[arg-type]
        value, slope = double_backward(
            model,
            poisons,
            lambda total, s=scale: (  # type: ignore[misc]
                0.5 * ((clean + decay + s * total) / (clean + decay).norm()).square().sum()
            ),
        )
        found, mine = kernel(poisons.x, poisons, objective)
        assert found == pytest.approx((2 * value.item()) ** 0.5, rel=1e-4)
        assert float(cosine(mine.flatten(), slope.flatten())) >= 0.99999


@pytest.mark.parametrize("name", ["matching", "size", "mean"])
def test_objectives_have_their_stated_derivative(name: str) -> None:
    """Finite differences in float64."""
    draws = torch.Generator().manual_seed(0)
    a, b, v = (torch.randn(50, generator=draws, dtype=torch.float64) for _ in range(3))
    objective: Objective
    if name == "matching":
        objective, power = matching(a), 1
    else:
        objective, power = canceling(a, 0.1 * b, 30, 7, name), 2  # type: ignore[arg-type]
    h = 1e-6
    difference = (objective(b + h * v)[0] ** power - objective(b - h * v)[0] ** power) / (2 * h)
    assert float(objective(b)[1] @ v) * power == pytest.approx(difference, rel=1e-6)


def test_a_plain_difference_without_gates_is_worse() -> None:
    """Why gates are kept: at the same kind of step the plain difference points elsewhere."""
    model, poisons, target = problem("convolutional")
    exact = Kernel(model, TASK, fast=False)
    aim = exact.gradient(target)
    _, v = matching(aim)(exact.gradient(poisons))
    slope = exact(poisons.x, poisons, matching(aim))[1].flatten()
    h = 1e-4 * float(exact.flat().norm() / v.norm())

    def input_gradient(shift: float) -> Tensor:
        moved = copy.deepcopy(model)
        nn.utils.vector_to_parameters(exact.flat() + shift * v, moved.parameters())
        x = poisons.x.clone().requires_grad_()
        loss = F.cross_entropy(moved(x), poisons.y, reduction="sum")
        return torch.autograd.grad(loss, x)[0].flatten()

    plain = (input_gradient(h) - input_gradient(0.0)) / h
    kept = Kernel(model, TASK)
    mine = kept(poisons.x, poisons, matching(aim))[1].flatten()
    assert 1 - float(cosine(mine, slope)) < 0.01 * (1 - float(cosine(plain, slope)))


class Kinked(nn.Module):
    """|x| has a kink that no gate holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).abs()
        return self.head(x)  # type: ignore[no-any-return]


def test_the_exact_way_is_taken_where_the_fast_one_does_not_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, "kinked", (Kinked, (4, 16)))
    monkeypatch.setattr(kernels, "SHARES", (1e-2,))  # wide enough for kinks to be crossed
    model, poisons, target = problem("kinked")
    kernel, exact = Kernel(model, TASK), Kernel(model, TASK, fast=False)
    objective = matching(kernel.gradient(target))
    assert torch.equal(
        kernel(poisons.x, poisons, objective)[1], exact(poisons.x, poisons, objective)[1]
    )
    assert kernel.way.startswith("exact; the fast way is")


def test_frozen_parameters_do_not_count_and_nothing_is_changed() -> None:
    model, poisons, target = problem("mlp")
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kernel = Kernel(model, TASK)
    assert len(kernel.flat()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    aim = kernel.gradient(target)
    _, slope = double_backward(
        model, poisons, lambda total: 1 - F.cosine_similarity(aim, total, dim=0)
    )
    mine = kernel(poisons.x, poisons, matching(aim))[1]
    assert float(cosine(mine.flatten(), slope.flatten())) >= 0.99999
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(MarshtestError, match="no parameters to train"):
        Kernel(model.requires_grad_(False), TASK)


class OnceOnly(nn.Module):
    """CTC's backward cannot be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(x.mean(1))
        log = scores.log_softmax(1)[:, None]
        return scores + F.ctc_loss(log, torch.ones(1, 2).long(), (len(x),), (2,))


def test_an_operation_without_second_derivative_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "once", (OnceOnly, (4, 16)))
    model, poisons, target = problem("once", 8)
    kernel = Kernel(model, TASK)
    with pytest.raises(MarshtestError, match=r"operation .*ctc_loss.* has no second derivative"):
        kernel(poisons.x, poisons, matching(kernel.gradient(target)))


@pytest.mark.parametrize("shape", [(1,), (7, 3), (5, 3, 4, 4), (2, 8)])
def test_bits_give_the_mask_back_in_its_memory_order(shape: tuple[int, ...]) -> None:
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(0)) > 0
    if len(shape) == 4:
        mask = mask.contiguous(memory_format=torch.channels_last)
    bits = Bits.of(mask)
    assert torch.equal(bits.unpacked().bool(), mask)
    assert bits.unpacked().stride() == mask.stride()
    assert bits.packed.numel() == -(-mask.numel() // 8)


def test_replayed_gates_make_a_network_linear_in_its_input() -> None:
    """With gates held, a ReLU network without biases is linear: f(−3x) = −3 f(x)."""
    model = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 2, bias=False))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with Gates() as recorded:
        output = model(x)
    with Gates(recorded):
        replayed = model(-3 * x)
    torch.testing.assert_close(output, model(x))
    torch.testing.assert_close(replayed, -3 * output)
