"""One model opened in every way gives one score; what cannot be asked is one clear line."""

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import boxes
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from marshtest import load_model, save_model
from marshtest.kit.black_box import losses_of
from marshtest.kit.dose import dose
from marshtest.kit.exported import TENSORS_ONLY
from marshtest.kit.key import Bases, Key
from marshtest.kit.measure import Measured, measure
from marshtest.kit.noise import Scaling
from marshtest.kit.open_model import open_model
from marshtest.models.table import parse_model
from marshtest.plumbing.errors import MarshtestError

CPU = torch.device("cpu")
HALF = Scaling(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Case:
    """A dose of random images and one model in every form."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (80, 3, 8, 8), dtype=np.uint8)
        np.savez(folder / "in.npz", x=x, y=np.arange(80) % 4)
        done = dose(folder / "in.npz", folder / "out.npz", fraction=0.5, seed=1, scaling=HALF)
        self.key: Key = done.key
        self.bases: Bases = done.key.bases(folder / "in.npz")
        model = boxes.vit()
        boxes.hugging_face_vit().save_pretrained(folder / "hf")
        boxes.preprocessor(
            folder / "hf", do_resize=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
        )
        settings = parse_model("boxes:vit")
        save_model(model, folder / "ours.safetensors", settings, (3, 8, 8), 4)
        for name, sizes in (("any", ({0: torch.export.Dim("b")},)), ("fixed", None)):
            program = torch.export.export(model, (torch.zeros(7, 3, 8, 8),), dynamic_shapes=sizes)
            torch.export.save(program, folder / f"{name}.pt2")

    def measured(self, spec: str, **rest: Any) -> Measured:
        name = spec if ":" in spec else str(self.folder / spec)
        name += "@boxes:vit" * (spec == "ours.safetensors")  # a file does not choose its factory
        asked_model = open_model(
            name, self.key, self.bases.values, rest.get("scaling"), CPU, in_process=True
        )
        return measure(asked_model, self.bases, draws=19)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("spec", ["any.pt2", "fixed.pt2", "hf", "boxes:vit"])
def test_every_way_to_open_a_model_gives_our_checkpoints_scores(case: Case, spec: str) -> None:
    ours, theirs = case.measured("ours.safetensors"), case.measured(spec)
    for name in ("gus", "gus_fresh", "rank"):
        assert np.abs(ours.scores[name] - theirs.scores[name]).max() < 1e-5
    assert ours.accuracy == theirs.accuracy


class Runs:
    """A pickle that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_program_whose_weight_is_a_pickle_is_refused_before_it_runs(
    case: Case, tmp_path: Path
) -> None:
    name = str(tmp_path / "evil.pt2")
    with zipfile.ZipFile(case.folder / "any.pt2") as good, zipfile.ZipFile(name, "w") as evil:
        for entry in good.namelist():
            content = good.read(entry)
            if entry.endswith("model_weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "/weights/weight_" in entry:
                content = pickle.dumps(Runs(tmp_path / "ran"), protocol=2)
            evil.writestr(entry, content)
    with pytest.raises(MarshtestError, match="cannot be read as a torch.export program"):
        open_model(name, case.key, case.bases.values, None, CPU, in_process=True)
    assert not (tmp_path / "ran").exists()
    assert TENSORS_ONLY not in os.environ


@pytest.mark.parametrize(
    "function",
    [
        "in_dict",
        "in_one_entry",
        "in_tuple",
        "in_list",
        "in_model_output",
        "masked",
        "in_place",
        "viewing",
        "in_float64",
    ],
)
def test_logits_are_found_in_what_a_model_answers_with(case: Case, function: str) -> None:
    values = case.bases.values.copy()
    ours, theirs = case.measured("ours.safetensors"), case.measured(f"boxes:{function}")
    for name in ("gus", "gus_fresh", "rank"):
        assert np.abs(ours.scores[name] - theirs.scores[name]).max() < 1e-4
    assert ours.accuracy == theirs.accuracy
    assert (case.bases.values == values).all()


DIM = torch.export.Dim
RANGES: dict[str, Any] = {
    "any": DIM("b"),
    "few": DIM("b", min=3, max=11),
    "many": DIM("b", min=200, max=300),
    "eights": 8 * DIM("k", max=20),
    "automatic": DIM.AUTO,
    "fixed": None,
}


@pytest.mark.parametrize("name", RANGES)
def test_an_exported_program_is_asked_in_batches_it_takes(
    case: Case, name: str, tmp_path: Path
) -> None:
    size = {"many": 240, "eights": 16}.get(name, 8)  # of 8 * k, k = 1 would be taken for a constant
    dims = RANGES[name] and ({0: RANGES[name]},)
    program = torch.export.export(boxes.vit(), (torch.zeros(size, 3, 8, 8),), dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "model.pt2")
    exported, bases = str(tmp_path / "model.pt2"), case.bases
    asked_model = open_model(exported, case.key, bases.values, HALF, CPU, in_process=True)
    ours = open_model("boxes:vit", case.key, case.bases.values, HALF, CPU, in_process=True)
    for count in (1, 2, 37):
        asked = case.bases.values[:count], case.bases.labels[:count]
        assert np.allclose(asked_model.ask(*asked)[0], ours.ask(*asked)[0], atol=1e-4)
        mine, their = asked_model.gradients(*asked), ours.gradients(*asked)
        assert mine is not None
        assert their is not None
        assert np.allclose(mine, their, atol=1e-5)


def test_an_exported_program_takes_its_tensor_by_keyword(case: Case, tmp_path: Path) -> None:
    named = {"pixel_values": torch.zeros(4, 3, 8, 8), "scale": 1.0}
    program = torch.export.export(boxes.Keyword().eval(), (), named)
    torch.export.save(program, tmp_path / "model.pt2")
    exported, bases = str(tmp_path / "model.pt2"), case.bases
    asked_model = open_model(exported, case.key, bases.values, HALF, CPU, in_process=True)
    ours = open_model("boxes:vit", case.key, case.bases.values, HALF, CPU, in_process=True)
    asked = case.bases.values, case.bases.labels
    assert np.allclose(asked_model.ask(*asked)[0], ours.ask(*asked)[0], atol=1e-4)


def test_convolutions_in_three_dimensions_are_asked(case: Case) -> None:
    assert np.isfinite(case.measured("boxes:volumes").scores["gus"]).all()


@pytest.mark.parametrize("spec", ["boxes:wider", "box:boxes:wide_losses"])
def test_outputs_beyond_the_classes_count_as_answers(case: Case, spec: str) -> None:
    asked_model = open_model(spec, case.key, case.bases.values, HALF, CPU, in_process=True)
    losses, right = asked_model.ask(case.bases.values, case.bases.labels)
    x = torch.from_numpy((case.bases.values / 255 - 0.5) / 0.25).float()
    logits = boxes.wider()(x).double().detach().numpy()
    own = logits[np.arange(len(x)), case.bases.labels]
    expected = np.log(np.exp(logits - 100).sum(1) - np.exp(own - 100)) + 100 - own
    assert np.allclose(losses, expected)
    assert right is not None
    assert not right.any()
    assert "6 outputs for 4 classes" in asked_model.notes[0]


@pytest.mark.parametrize(
    ("shape", "model", "scaling", "says"),
    [
        ((1, 8, 8), "vit", Scaling(), "[1, 8, 8] are given as [3, 8, 8], of three equal channels"),
        ((1, 8, 8), "vit", HALF, "[1, 8, 8] are given as [3, 8, 8], of three equal channels"),
        ((8, 8), "vit", HALF, "[8, 8] are given as [3, 8, 8], of three equal channels"),
        ((8, 8, 1), "vit", HALF, "[8, 8, 1] are given as [3, 8, 8], of three equal channels"),
        ((8, 8, 3), "vit", HALF, "[8, 8, 3] are given as [3, 8, 8]"),
        ((8, 8), "grey", Scaling(), "[8, 8] are given as [1, 8, 8]"),
        ((1, 8, 8), "grey", Scaling(), ""),
    ],
)
def test_pictures_are_laid_out_as_the_model_wants(
    case: Case, shape: tuple[int, ...], model: str, scaling: Scaling, says: str
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    y = np.arange(6) % 4
    asked_model = open_model(f"boxes:{model}", case.key, x, scaling, CPU, in_process=True)
    assert asked_model.notes == ((f"samples {says}",) if says else ())
    first = x.reshape(6, 1, 8, 8) if shape[-1] != 3 else x.transpose(0, 3, 1, 2)
    wide = first.repeat(3, 1) if model == "vit" and first.shape[1] == 1 else first
    ours = open_model(f"boxes:{model}", case.key, wide, scaling, CPU, in_process=True)
    assert np.allclose(asked_model.ask(x, y)[0], ours.ask(wide, y)[0])
    gradients = asked_model.gradients(x, y)
    assert gradients is not None
    assert gradients.shape == (6, x[0].size)


SCRIPT = """
import sys, numpy as np

def losses(inputs, outputs):
    x = np.load(inputs)["x"]
    np.save(outputs, np.sin(5 * x.reshape(len(x), -1)[:, ::7]).sum(1))

if __name__ == "__main__":
    losses(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    "box",
    [
        "boxes:numpy_model",
        "boxes:plain_numpy",
        "boxes:one_way",
        "box:boxes:logits",
        "box:boxes:probabilities",
        "box:boxes:losses",
    ],
)
def test_black_boxes_give_the_same_ranks(case: Case, box: str) -> None:
    found = case.measured(box)
    assert "gus" not in found.scores
    assert (found.scores["rank"] == case.measured("ours.safetensors").scores["rank"]).all()
    assert np.isnan(found.accuracy) == box.endswith("losses")


@pytest.mark.slow
def test_a_command_gives_the_same_ranks_as_its_function(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "commanded.py"
    script.write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    found = case.measured(f"cmd:{sys.executable} {script} {{inputs}} {{outputs}}")
    assert "gus" not in found.scores
    assert np.isnan(found.accuracy)
    assert len(set(found.scores["rank"])) > 10
    assert (found.scores["rank"] == case.measured("box:commanded:losses").scores["rank"]).all()


def test_a_preprocessor_normalises_and_resizes(case: Case, tmp_path: Path) -> None:
    boxes.hugging_face_vit().save_pretrained(tmp_path / "hf")
    boxes.preprocessor(
        tmp_path / "hf",
        size={"height": 8, "width": 8},
        do_resize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=2,
    )
    big = np.kron(case.bases.values, np.ones((1, 1, 2, 2), np.uint8))
    asked_model = open_model(str(tmp_path / "hf"), case.key, big, None, CPU)
    x = F.interpolate(torch.from_numpy(big).float(), (8, 8), mode="bilinear", antialias=True)
    logits = boxes.vit()((x / 255 - 0.5) / 0.5)
    expected = logits.argmax(1).numpy() == case.bases.labels
    _, right = asked_model.ask(big, case.bases.labels)
    assert right is not None
    assert (right == expected).all()
    boxes.preprocessor(
        tmp_path / "hf",
        size={"shortest_edge": 10},
        crop_size={"height": 8, "width": 8},
        do_resize=True,
        do_center_crop=True,
        do_normalize=False,
    )
    asked_model = open_model(str(tmp_path / "hf"), case.key, big, None, CPU)
    x = F.interpolate(torch.from_numpy(big).float(), (10, 10), mode="bilinear", antialias=True)
    expected = boxes.vit()(x[..., 1:9, 1:9] / 255).argmax(1).numpy() == case.bases.labels
    assert (asked_model.ask(big, case.bases.labels)[1] == expected).all()
    bases = case.bases.values  # what is given wins
    own = open_model(str(tmp_path / "hf"), case.key, bases, HALF, CPU)
    ours = open_model("boxes:vit", case.key, case.bases.values, HALF, CPU, in_process=True)
    values = case.bases.values, case.bases.labels
    assert np.allclose(own.ask(*values)[0], ours.ask(*values)[0], atol=1e-5)


def test_a_sequence_classifier_is_asked_with_embeddings(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")
    x = np.random.default_rng(1).normal(size=(30, 5, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x, y=np.arange(30) % 3)
    key = dose(tmp_path / "in.npz", tmp_path / "out.npz", fraction=0.5, variance=0.1, seed=1).key
    bases = key.bases(tmp_path / "in.npz")
    asked_model = open_model(str(tmp_path / "bert"), key, bases.values, None, CPU)
    found = measure(asked_model, bases, draws=9)
    assert np.isfinite(found.scores["gus"]).all()
    logits = model(inputs_embeds=torch.from_numpy(bases.values)).logits
    assert found.accuracy == float((logits.argmax(1).numpy() == bases.labels).mean())


def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    asked_model = open_model("boxes:vit", case.key, case.bases.values, HALF, CPU, in_process=True)
    values, labels = case.bases.values[:4].astype(np.float32), case.bases.labels[:4]
    gradients = asked_model.gradients(values, labels)
    assert gradients is not None
    step = np.random.default_rng(3).normal(size=values.shape).astype(np.float32)
    ahead, behind = (asked_model.ask(values + h * step, labels)[0] for h in (0.2, -0.2))
    along = (gradients * step.reshape(4, -1)).sum(1)
    assert np.allclose((ahead - behind) / 0.4, along, rtol=0.02, atol=1e-4)


def test_checkpoints_come_back_bit_for_bit(tmp_path: Path) -> None:
    settings = parse_model({"name": "resnet18", "width": 8})
    model = settings.build((3, 8, 8), 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_model(model, tmp_path / "m.safetensors", settings, (3, 8, 8), 5)
    again = load_model(tmp_path / "m.safetensors")
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing", "no such model. Give a .safetensors"),
        ("nothing.pt2", "no such file"),
        ("nothing.safetensors", "no such checkpoint"),
        ("junk.pt2", "cannot be read as a torch.export program"),
        ("junk.safetensors", "not a readable marshtest checkpoint"),
        ("foreign.safetensors", "not a readable marshtest checkpoint"),
        ("empty", "no Hugging Face model folder"),
        ("pickled", "weights must be safetensors"),
        ("gpt", "holds a GPT2LMHeadModel; an image or sequence classifier is needed"),
        ("nowhere:load", "cannot import 'nowhere'"),
        ("boxes:missing", "has no 'missing'"),
        ("subjects:not_a_function", "must return a function from inputs to logits. Got int"),
        ("subjects:raises", "raised RuntimeError: no weights here"),
        ("subjects:other_shape", "into logits"),
        ("boxes:nans", "answered NaN for 2 of 2 inputs"),
        ("cmd:false", "needs {inputs} and {outputs}"),
        ("cmd:nosuchprogram {inputs} {outputs}", "cannot be started"),
        ("cmd:false {inputs} {outputs}", "died with exit code 1"),
        ("cmd:true {inputs} {outputs}", "wrote no outputs file"),
        (
            "box:boxes:too_few",
            "must write 40 losses [40], or probabilities or logits [40, 4] or wider. Got [3]",
        ),
        ("box:boxes:not_numbers", "answered NaN for 40 of 40 inputs"),
        ("box:boxes:words", "answered <U3, not numbers"),
        ("cmd:'{inputs} {outputs}", "cannot be read as a command (No closing quotation)"),
        ("box:boxes:nothing", "wrote no outputs file"),
        ("box:boxes:junk", "no .npy file"),
        ("box:boxes:dies", "raised RuntimeError: out of memory"),
    ],
)
def test_what_cannot_be_asked_is_one_line(case: Case, tmp_path: Path, spec: str, says: str) -> None:
    import transformers
    from safetensors.torch import save_file

    (tmp_path / "junk.pt2").write_bytes(b"junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    boxes.hugging_face_vit().config.save_pretrained(tmp_path / "pickled")
    config = tmp_path / "pickled" / "config.json"
    config.write_text(
        config.read_text().replace("{", '{"architectures": ["ViTForImageClassification"],', 1)
    )
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    small = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)
    if spec == "gpt":
        transformers.GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt")
    given = spec if ":" in spec else str(tmp_path / spec)
    with pytest.raises(MarshtestError) as error:
        measure(
            open_model(given, case.key, case.bases.values, None, CPU, in_process=True),
            case.bases,
            draws=3,
        )
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(given)


@pytest.mark.slow
def test_models_of_other_inputs_or_classes_are_refused(case: Case) -> None:
    larger = np.zeros((2, 3, 9, 9), np.uint8)
    with pytest.raises(MarshtestError, match=r"does not take inputs \[3, 9, 9\]"):
        open_model(str(case.folder / "any.pt2"), case.key, larger, None, CPU)
    other = case.key.model_copy(update={"classes": 7})
    with pytest.raises(MarshtestError, match=r"into logits \[2, 7\] or wider, one for each class"):
        open_model("boxes:vit", other, case.bases.values, None, CPU, in_process=True)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_rounded_probabilities_are_probabilities_in_every_batch(classes: int) -> None:
    draws = np.random.default_rng(0)
    answers = np.exp(3 * draws.standard_normal((5000, classes)))
    answers /= answers.sum(1, keepdims=True)
    labels = answers.argmax(1)  # whose probabilities three decimals show
    exact, _ = losses_of("box", answers, labels)
    for decimals in (3, 4, 6):
        rounded, right = losses_of("box", answers.round(decimals), labels)
        assert right is not None
        assert right.mean() > 0.99
        some = np.isfinite(rounded)  # all others may be rounded to 0
        assert np.median(np.abs(rounded - exact)[some]) < 0.05


def test_answers_of_which_some_are_no_probabilities_are_refused() -> None:
    answers = np.full((50, 2), 0.5)
    answers[7] = 0.9
    with pytest.raises(MarshtestError, match="box: 1 of 50 answers are no probabilities: .* 1.8,"):
        losses_of("box", answers, np.zeros(50, np.int64))
    logits, labels = np.random.default_rng(0).standard_normal((50, 2)), np.zeros(50, np.int64)
    assert losses_of("box", logits, labels)[0] == pytest.approx(logits[:, 1] - logits[:, 0])
