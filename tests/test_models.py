"""Parameter counts from the paper and the design; building is reproducible and touches nothing."""

import pytest
import torch
from torch import nn

from marshtest.errors import MarshtestError
from marshtest.models import build, parse_model, weight_layers


def count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False))


def test_resnet18_of_width_64_has_the_papers_parameters() -> None:
    model = build(parse_model("resnet18"), (3, 32, 32), 10, 0)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_the_last_three_layers_of_resnet18_are_classifier_and_last_block() -> None:
    layers = weight_layers(build(parse_model("resnet18"), (3, 32, 32), 10, 0))
    assert count([module for layer in layers[-3:] for module in layer]) == 4_725_770
    assert len(layers) == 21  # 17 convolutions, 3 shortcuts, 1 classifier


def test_layers_cover_all_parameters() -> None:
    model = build(parse_model({"name": "resnet18", "width": 4}), (3, 32, 32), 10, 0)
    layers = weight_layers(model)
    assert count([m for layer in layers for m in layer]) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_seed_fixes_the_weights_and_leaves_the_global_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (build(parse_model("mlp"), (4,), 3, seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[1].weight, other[1].weight)


def make(input_shape: tuple[int, ...], classes: int, width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, classes))


def make_text(input_shape: tuple[int, ...], classes: int) -> str:
    return "no model"


def test_a_users_factory_is_called_with_shape_classes_and_options() -> None:
    settings = parse_model({"name": f"{__name__}:make", "width": 9})
    assert build(settings, (4,), 2, 0)[0].out_features == 9


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("resnet", "model.name: unknown model 'resnet'. Did you mean 'resnet18'"),
        ({"name": "mlp", "widht": 3}, "model.widht: unknown key 'widht'. Did you mean 'width'"),
        ({"name": "mlp", "width": "big"}, "model.width: Input should be a valid integer"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        (f"{__name__}:nothing", "has no 'nothing'"),
        (f"{__name__}:make_text", "returned str, not a torch.nn.Module"),
        ("resnet18", r"resnet18 needs images \[C, H, W\]"),
    ],
)
def test_what_cannot_be_built_is_refused(given: object, says: str) -> None:
    with pytest.raises(MarshtestError, match=says):
        build(parse_model(given), (4,), 2, 0)  # type: ignore[arg-type]


def test_a_model_of_other_classes_is_refused() -> None:
    with pytest.raises(MarshtestError, match=r"into logits \[2, 3\], or more than 3. Got \[2, 2\]"):
        build(parse_model(f"{__name__}:two_classes"), (4,), 3, 0)


def two_classes(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(input_shape[0], 2)
