"""Parameter counts from the paper and the design; building is reproducible and touches nothing."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from marshtest.models.checkpoint import load_model, save_model
from marshtest.models.layers import weight_layers
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError


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


def checkpoint(path: Path, about: object) -> Path:
    save_file({"w": torch.zeros(1)}, str(path), {"marshtest": json.dumps(about)})
    return path


@pytest.mark.parametrize("name", ["marks:fn", "subprocess:run", "os:system"])
def test_a_checkpoint_runs_and_imports_nothing_that_it_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marks.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    shape = ["sh", "-c", "touch PWNED"]
    for about in (shape, [4]):
        values = {"settings": {"name": name}, "input_shape": about, "classes": 10}
        with pytest.raises(MarshtestError) as error:
            load_model(checkpoint(tmp_path / "m.safetensors", values))
        assert "\n" not in str(error.value)
    assert "marks" not in sys.modules
    assert not (tmp_path / "PWNED").exists()


MLP_4 = {"settings": {"name": "mlp"}, "input_shape": [4], "classes": 2}
SIZES = {"width": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (
            {**MLP_4, "settings": {"name": "mlp", "width": 10**9}},
            "tensors are not those of the mlp",
        ),
        ({**MLP_4, "settings": {"name": "mlp", "width": 10**30}}, "of these sizes cannot be built"),
        ({**MLP_4, "settings": {"name": "mlp", "width": -1}}, "model.width: .*Got -1"),
        ({**MLP_4, "settings": {"name": "mlp", "depth": 10**9}}, "model.depth: .*Got 1000000000"),
        ({**MLP_4, "input_shape": [-4]}, "input_shape.0: .*Got -4"),
        ({**MLP_4, "input_shape": []}, "input_shape: "),
        ({**MLP_4, "input_shape": [10**12] * 3}, "cannot be built"),
        ({**MLP_4, "classes": 0}, "classes: .*Got 0"),
        ({**MLP_4, "classes": 10**15}, "tensors are not those|cannot be built"),
        ({**MLP_4, "settings": {"name": "transformer", "source": "/etc"}}, "Name the factory"),
        ({**MLP_4, "settings": {"name": "resnet18"}}, r"needs images \[C, H, W\]"),
        ({**MLP_4, "settings": {"name": "gpt2", **SIZES}}, "tensors are not those of the gpt2"),
        ({**MLP_4, "settings": {"name": "gpt2", "width": 15, "heads": 2}}, "cannot be built"),
        ({**MLP_4, "settings": []}, "settings: "),
        ({**MLP_4, "settings": {"name": "mlp", "why": 1}}, "unknown key 'why'"),
        ([], "not a readable marshtest checkpoint|valid dictionary"),
        ({}, "settings: Field required"),
    ],
)
def test_a_checkpoint_of_other_sizes_than_it_holds_is_refused_before_it_takes_memory(
    about: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(MarshtestError, match=says) as error:
        load_model(checkpoint(tmp_path / "m.safetensors", about))
    assert "\n" not in str(error.value)


def test_a_users_model_comes_back_by_the_factory_that_the_user_names(tmp_path: Path) -> None:
    settings = parse_model({"name": f"{__name__}:make", "width": 9})
    model = build(settings, (4,), 2, 0)
    save_model(model, tmp_path / "m.safetensors", settings, (4,), 2)
    for factory in (f"{__name__}:make", make):
        again = load_model(tmp_path / "m.safetensors", factory)
        assert torch.equal(again(torch.ones(3, 4)), model(torch.ones(3, 4)))
    with pytest.raises(MarshtestError, match="returned str, not a torch.nn.Module"):
        load_model(tmp_path / "m.safetensors", lambda *args, **rest: "no model")


def test_texts_of_a_file_do_not_reach_a_factory(tmp_path: Path) -> None:
    settings = parse_model({"name": f"{__name__}:make", "weights": "https://example.org/x"})
    save_model(nn.Linear(1, 1), tmp_path / "m.safetensors", settings, (4,), 2)
    with pytest.raises(MarshtestError, match="its option 'weights' is no number"):
        load_model(tmp_path / "m.safetensors", make)


@pytest.mark.parametrize("width", [10**9, 10**18, 10**25])
def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(width: int) -> None:
    with pytest.raises(MarshtestError, match="model: mlp of these sizes (takes|cannot be built)"):
        build(parse_model({"name": "mlp", "width": width}), (1, 8, 8), 10, 0)
