"""EUk and CFk on models of other people: what is frozen stays, what is reset is fresh."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.layers import weight_layers
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification
from marshtest.unlearning import parse_trials
from marshtest.unlearning.last_layers import CFk, EUk, free_only


class Adapter(nn.Module):
    """LoRA as PEFT writes it: a frozen base, a drawn A, a B that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class OwnAdapter(nn.Module):
    """LoRA with A and B as parameters beside the base."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.base = base.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + x @ self.A.T @ self.B.T


class Scale(nn.Module):
    """A norm of one's own, without reset_parameters()."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)[:, None]
        return self.last(self.attention(h, h, h)[0][:, 0])


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def behind(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3))


def new_norm(norm: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    return lambda: behind(norm(nn.Linear(8, 8)))


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "adapters": lambda: nn.Sequential(Adapter(nn.Linear(4, 8)), Adapter(nn.Linear(8, 3))),
    "own adapters": lambda: nn.Sequential(OwnAdapter(nn.Linear(4, 8)), OwnAdapter(nn.Linear(8, 3))),
    "frozen head": lambda: nn.Sequential(nn.Linear(4, 8), frozen(nn.Linear(8, 3))),
    "frozen norm": lambda: behind(nn.Linear(8, 8), frozen(nn.BatchNorm1d(8))),
    "weight norm": new_norm(nn.utils.parametrizations.weight_norm),
    "old weight norm": new_norm(nn.utils.weight_norm),
    "spectral norm": new_norm(nn.utils.parametrizations.spectral_norm),
    "old spectral norm": new_norm(nn.utils.spectral_norm),
    "own norm": lambda: behind(nn.Linear(8, 8), Scale()),
    "RMSNorm": lambda: behind(nn.Linear(8, 8), nn.RMSNorm(8)),
    "attention": Attention,
}


def fresh(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def new_model(seed: int) -> nn.Module:
        with seeded(seed % 2**31), torch.no_grad():
            made = make()
            made.eval()(torch.zeros(2, 4))  # old norms then hold no graph
        return made

    return new_model


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """As after a training: nothing that is free is as a factory makes it."""
    model = fresh(make)(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(5)
    return model


def unlearned(spec: dict[str, Any], model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    (method,) = parse_trials({"batch_size": 4, "weight_decay": 0, **spec})
    draws = torch.Generator().manual_seed(0)
    samples = Samples(torch.randn(12, 4, generator=draws), torch.arange(12) % 3, torch.arange(12))
    task = replace(Classification(), new_model=fresh(make))
    method.check(model, task.new_model)
    with Budget(300, 100) as budget:
        return method(model, samples[:8], samples[8:], task=task, budget=budget, seed=1)


@pytest.mark.parametrize("name", ["gd", "cfk", "euk"])
@pytest.mark.parametrize("kind", FACTORIES)
def test_what_is_frozen_stays_bit_equal(kind: str, name: str) -> None:
    model = trained(FACTORIES[kind])
    spec = {"name": name, "lr": 0.05} | ({} if name == "gd" else {"k": 2})
    updated = dict(unlearned(spec, model, FACTORIES[kind]).named_parameters())
    assert any(not torch.equal(p, updated[n]) for n, p in model.named_parameters())
    for key, parameter in model.named_parameters():
        assert updated[key].requires_grad == parameter.requires_grad
        if not parameter.requires_grad:
            assert torch.equal(updated[key], parameter), key


def test_a_frozen_norm_within_the_last_layers_keeps_its_statistics() -> None:
    model = trained(FACTORIES["frozen norm"])
    for name in ("cfk", "euk"):
        spec = {"name": name, "k": 2, "lr": 0.05}
        updated = unlearned(spec, model, FACTORIES["frozen norm"])
        assert torch.equal(updated[2].running_mean, model[2].running_mean)  # type: ignore[index]


def test_dropout_between_the_last_layers_and_behind_them_drops_out() -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)]
    early, between, late = (nn.Dropout(0.5) for _ in range(3))
    model = nn.Sequential(layers[0], early, layers[1], between, layers[2], late)
    free_only(model, weight_layers(model)[-2:])
    assert [one.training for one in (early, between, late)] == [False, True, True]


def test_a_norm_without_a_scale_is_fresh_and_follows_its_batches() -> None:
    def make() -> nn.Module:
        norm = nn.BatchNorm1d(8, affine=False)
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), norm, nn.Linear(8, 3))

    model = trained(make)
    with torch.no_grad():
        model[2].running_mean.fill_(1e4)  # type: ignore[index, operator, union-attr]
    spec = {"k": 2, "lr": 1e-12}
    followed, drawn = (unlearned({"name": n, **spec}, model, make) for n in ("cfk", "euk"))
    assert float(followed[2].running_mean.max()) < 0.9e4  # type: ignore[index, operator, union-attr]
    assert float(drawn[2].running_mean.abs().max()) < 1e3  # type: ignore[index, operator, union-attr]


@pytest.mark.parametrize("kind", FACTORIES)
def test_what_is_reset_is_as_a_factory_makes_it(kind: str) -> None:
    """A training had moved all by 5, which no initialisation comes near."""
    make = FACTORIES[kind]
    model = trained(make)
    updated = unlearned({"name": "euk", "k": 2, "lr": 1e-12}, model, make)
    last = {module for layer in weight_layers(updated)[-2:] for module in layer}
    own = [p for module in last for p in module.parameters(recurse=False) if p.requires_grad]
    assert own
    assert all(bool((p.abs() < 4).all()) for p in own)
    zero = [p for n, p in updated.named_parameters() if "lora_B" in n or n.endswith(".B")]
    assert all(not p.abs().max() > 1e-6 for p in zero)  # an adapter starts by changing nothing


def test_a_spectral_norm_divides_by_the_norm_of_the_fresh_weight() -> None:
    make = FACTORIES["spectral norm"]
    updated = unlearned({"name": "euk", "k": 2, "lr": 1e-12}, trained(make), make).eval()
    norm = float(torch.linalg.matrix_norm(updated[1].weight.detach(), 2))  # type: ignore[index, operator, union-attr]
    assert norm == pytest.approx(1, abs=0.2)  # after few power iterations


def test_layers_count_what_has_weights_once() -> None:
    counts = {kind: len(weight_layers(make())) for kind, make in FACTORIES.items()}
    assert counts.pop("adapters") == counts.pop("own adapters") == 2
    assert counts.pop("frozen head") == 2
    assert set(counts.values()) == {3}
    attention = Attention()
    layers = weight_layers(attention)
    assert layers[1] == [attention.attention.out_proj, attention.attention]
    others = nn.Sequential(nn.LSTM(4, 8), nn.ConvTranspose2d(1, 1, 3), nn.Conv3d(1, 1, 3))
    assert [layer[0] for layer in weight_layers(others)] == list(others)


class Pretrained(nn.Module):
    """A factory that gives the same values again, as a folder does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), Scale(), nn.Linear(8, 3)
        nn.init.constant_(self.norm.gain[:4], 2.0)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.norm(self.first(x)))


class Tied(nn.Module):
    """Two layers with one weight between them, and a layer of its own at the end if asked for."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3) if head else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(self.first(x).relu()))


@pytest.mark.parametrize("method", [EUk, CFk])
def test_a_last_layer_that_shares_its_weight_with_one_to_stay_is_refused(method: Any) -> None:
    with pytest.raises(MarshtestError, match="last 1 layers share weights with earlier ones"):
        method(k=1).check(Tied(head=False), lambda seed: Tied(head=False))
    for k, head in ((2, False), (1, True), (3, True)):
        method(k=k).check(Tied(head), lambda seed, head=head: Tied(head))  # type: ignore[misc]


def test_what_cannot_be_fresh_is_refused_before_training() -> None:
    model = trained(Pretrained)
    with pytest.raises(MarshtestError, match=r"norm \(Scale\) cannot be .* pretrained values"):
        EUk(k=2).check(model, fresh(Pretrained))
    EUk(k=1).check(model, fresh(Pretrained))
    CFk(k=2).check(model, fresh(Pretrained))
    with pytest.raises(MarshtestError, match="a freshly built model has no such module"):
        EUk(k=2).check(model, fresh(lambda: nn.Sequential(nn.Linear(4, 3))))
    with pytest.raises(MarshtestError, match="the task builds no fresh model"):
        EUk(k=2).check(model)
    with pytest.raises(MarshtestError, match="the model's last 1 layers are frozen.*Raise k"):
        CFk(k=1).check(FACTORIES["frozen head"]())


def test_a_plain_layer_is_reset_by_its_own_rule() -> None:
    """No model is built for it, and its draws are those of its own reset_parameters()."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    expected = copy.deepcopy(model)
    EUk(k=1).prepare(model, weight_layers(model)[-1:], None, 3)
    with seeded(3):
        expected[0].reset_parameters()
    assert torch.equal(model[0].weight, expected[0].weight)
