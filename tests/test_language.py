"""Texts: tokenised once, padding that changes nothing, models of transformers, the main job on them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ALL_ON_TEXTS
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from marshtest.attacks import Gaussian
from marshtest.attacks.base import Poisoned
from marshtest.commands.run import run
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples
from marshtest.data.texts import Texts, load_texts
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import samples_of
from marshtest.metrics.accuracy import margin_loss
from marshtest.metrics.gus import input_directions
from marshtest.models.checkpoint import load_model, save_model
from marshtest.models.language import GPT2, TextClassifier, Transformer
from marshtest.models.layers import weight_layers
from marshtest.models.table import build, parse_model
from marshtest.models.tokens import tokenised
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import TextClassification
from marshtest.unlearning import EUk

pytestmark = pytest.mark.usefixtures("no_report")
GOOD, BAD = (
    ("a fine film with a warm heart", "lovely and clever"),
    ("a dull mess", "so very bad and slow"),
)
SMALL = GPT2(layers=2, width=16, heads=2, vocabulary=300)


def write(folder: Path, rows: int = 120) -> None:
    """Reviews with the hub's columns, sorted by label as the hub's are."""
    folder.mkdir()
    for split, count in (("train", rows), ("test", 60)):
        labels = [int(row >= count // 2) for row in range(count)]
        texts = [
            f"{(BAD, GOOD)[label][row % 2]} {'really ' * (row % 7)}{row}"
            for row, label in enumerate(labels)
        ]
        table = pa.table({"text": texts, "label": labels})
        pq.write_table(table, folder / f"{split}-00000.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "imdb"
    write(path)
    return path


@pytest.fixture(scope="module")
def texts(folder: Path) -> Texts:
    return load_texts("imdb", str(folder))


@pytest.fixture(scope="module")
def data(texts: Texts) -> Dataset:
    return tokenised(texts, SMALL, 12)


def model_and_task(data: Dataset) -> tuple[torch.nn.Module, TextClassification]:
    assert data.padding is not None
    return build(SMALL, (12,), 2, 0).eval(), TextClassification(padding=data.padding)


def test_reviews_are_shuffled_once_and_keep_their_row_numbers(folder: Path, texts: Texts) -> None:
    written = pq.read_table(folder / "train-00000.parquet").to_pydict()
    for text, label, row in zip(
        texts.train, texts.train_y.tolist(), texts.train_ids.tolist(), strict=True
    ):
        assert (text, label) == (written["text"][row], written["label"][row])
    assert texts.train_ids.tolist() != sorted(texts.train_ids.tolist())
    few = load_texts("imdb", str(folder), train=40)
    assert few.train == texts.train[:40]
    assert 0 < int(few.train_y.sum()) < 40


def test_token_ids_are_the_tokenizers_cut_and_padded_on_the_right(
    texts: Texts, data: Dataset
) -> None:
    tokenizer = SMALL.tokenizer(texts)
    for row, text in enumerate(texts.train):
        alone = tokenizer(text)["input_ids"][:12]
        assert data.train.x[row].tolist() == alone + [data.padding] * (12 - len(alone))
    assert int((data.train.x == data.padding).sum()) > 0


def test_the_head_reads_the_last_real_token_whatever_stands_beside(data: Dataset) -> None:
    model, task = model_and_task(data)
    short = data.train[(data.train.x != data.padding).sum(1) < 12][:4]
    together = task(model, short)
    for row in range(4):
        tokens = short.x[row][short.x[row] != data.padding]
        assert isinstance(model, TextClassifier)
        states = model.backbone(input_ids=tokens[None]).last_hidden_state[
            0, -1
        ]  # transformers itself
        torch.testing.assert_close(together[row], model.head(states), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(tokens[None])[0], together[row], rtol=1e-5, atol=1e-5)
    cut = task.augmented(short, torch.Generator())
    assert cut.x.shape[1] < 12
    torch.testing.assert_close(task(model, cut), together, rtol=1e-5, atol=1e-5)


def test_noise_at_padding_is_never_seen(data: Dataset) -> None:
    model, task = model_and_task(data)
    draws = torch.Generator().manual_seed(0)
    batch = data.train[:6]
    noise = torch.randn(6, 12, 16, generator=draws)
    padding = (batch.x == data.padding)[..., None]
    real = batch.perturbed(batch.ids, noise.masked_fill(padding, 0))
    torch.testing.assert_close(task(model, batch.perturbed(batch.ids, noise)), task(model, real))
    assert not torch.allclose(task(model, batch), task(model, real), atol=1e-4)
    directions = input_directions(model, task, batch).view(6, 12, 16)
    assert float(directions.masked_fill(~padding, 0).abs().max()) == 0
    torch.testing.assert_close(directions.flatten(1).norm(dim=1), torch.ones(6))


def test_both_scores_are_those_of_transformers_called_directly(data: Dataset) -> None:
    model, task = model_and_task(data)
    assert isinstance(model, TextClassifier)
    attack = Gaussian(variance=0.1, draws=19)
    base = data.train[:5]
    noise = attack.noise(3, base.ids, (12, 16))
    poisoned = Poisoned(data.train.perturbed(base.ids, noise), base.ids, 3)
    found = attack.effect(model, poisoned, task)
    fresh = attack.fresh_noise(3, base.ids, (12, 16))
    for row in range(5):
        mask = (base.x[row : row + 1] != data.padding).long()
        last = int(mask.sum()) - 1

        def margin(embedded: Tensor) -> Tensor:
            states = model.backbone(
                inputs_embeds=embedded,
                attention_mask=mask.expand(len(embedded), -1),  # noqa: B023
            ).last_hidden_state
            logits = states[:, last] @ model.head.weight.T  # noqa: B023
            return margin_loss(logits, base.y[row].expand(len(embedded)))  # noqa: B023

        clean = model.backbone.get_input_embeddings()(base.x[row : row + 1]).detach()  # type: ignore[operator]
        (slope,) = torch.autograd.grad(margin(clean.requires_grad_()).sum(), clean)
        expected = float((slope[0] * noise[row]).sum() / slope.norm() / 0.1**0.5)
        assert found.scores["gus"][row] == pytest.approx(expected, abs=1e-4)
        with torch.no_grad():
            at_fresh, at_own = margin(clean + fresh[row]), margin(clean + noise[row : row + 1])
        rank = int((at_fresh < at_own).sum())
        quantile = float(torch.special.ndtr(torch.tensor(found.scores["rank"][row])))
        assert rank == int(20 * quantile)


def test_a_transformers_block_is_a_layer_and_is_reset_whole(data: Dataset) -> None:
    model, _ = model_and_task(data)
    assert isinstance(model, TextClassifier)
    layers = weight_layers(model)
    blocks = list(model.backbone.h)  # type: ignore[arg-type, union-attr]
    assert len(layers) == 3
    for layer, block in zip(layers[:2], blocks, strict=True):
        own = {id(m) for m in block.modules() if list(m.parameters(recurse=False))}
        assert own <= {id(m) for m in layer}
    assert layers[2] == [model.head]
    before = {n: p.clone() for n, p in model.named_parameters()}
    EUk(k=2).prepare(model, layers[-2:], None, 0)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("backbone.h.1.attn") for n in changed)
    assert all(n.startswith(("backbone.h.1.", "head", "backbone.ln_f")) for n in changed)
    with pytest.raises(MarshtestError, match="4 is more than the model's 3 layers"):
        EUk(k=4).check(model)


def test_a_model_comes_back_from_its_file(data: Dataset, tmp_path: Path) -> None:
    model, task = model_and_task(data)
    save_model(model, tmp_path / "m.safetensors", SMALL, (12,), 2)
    again = load_model(tmp_path / "m.safetensors")
    assert torch.equal(task(again, data.test[:4]), task(model, data.test[:4]))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_any_transformer_of_a_local_folder(
    kind: str, texts: Texts, tmp_path: Path, data: Dataset
) -> None:
    backbone: Any
    if kind == "gpt2":
        backbone = GPT2Model(
            GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        )
    else:
        backbone = BertModel(
            BertConfig(
                vocab_size=300,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        )
    backbone.save_pretrained(tmp_path)
    SMALL.tokenizer(texts).save_pretrained(tmp_path)
    settings = parse_model({"name": "transformer", "source": str(tmp_path)})
    assert isinstance(settings, Transformer)
    found = tokenised(texts, settings, 12)
    assert torch.equal(found.train.x, data.train.x)
    model = build(settings, (12,), 2, 0)
    assert isinstance(model, TextClassifier)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    logits = TextClassification(padding=found.padding or 0)(model, found.train[:3])
    loss = F.cross_entropy(logits, found.train.y[:3])
    assert torch.isfinite(loss)
    if kind == "gpt2":
        with pytest.raises(MarshtestError, match="data.length: 33 tokens are more than the 32"):
            build(settings, (33,), 2, 0)


def test_a_folders_files_are_part_of_a_recipe_and_the_hubs_are_not(tmp_path: Path) -> None:
    """Else a store gives what was made of the weights that lay there before."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    settings = Transformer(source=str(tmp_path))
    then = settings.imported()
    (tmp_path / "README.md").write_text("what no model is built from")
    (tmp_path / ".DS_Store").write_bytes(b"nor from this")
    assert then.imported() == settings.imported() == then
    values = {"data": "imdb", "model": then, "attack": "gaussian", "training": {"epochs": 1}}
    values |= {"unlearners": ["gd"], "budgets": 0.1, "poison_budgets": 0.1}
    first = load_recipe(values).hash
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert settings.imported().files not in ("", then.files)
    assert load_recipe({**values, "model": settings}).hash != first
    with pytest.raises(MarshtestError, match=r"not those that the recipe was stored with"):
        then.imported()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert then.imported() == then
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1.safetensors").write_bytes(b"which an index may name")
    assert settings.imported().files != then.files
    shutil.rmtree(tmp_path)  # a name on the hub may be the same as a folder's
    with pytest.raises(MarshtestError, match=r"not those that the recipe was stored with"):
        then.imported()
    hub = Transformer(source="gpt2-medium")
    assert hub.imported() == hub
    assert "files" not in hub.model_dump()


def test_a_source_names_no_kernel_to_be_fetched(
    texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import hub_kernels

    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = json.loads(file.read_text()) | {"_attn_implementation": "somebody/kernel@branch"}
    file.write_text(json.dumps(told))
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *_, **__: pytest.fail("code is fetched"))
    assert Transformer(source=str(tmp_path)).transformer(8, causal=False) is not None


@pytest.mark.slow
def test_the_main_job_runs_on_texts(folder: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "texts",
        "data": {"name": "imdb", "path": str(folder), "length": 12},
        "model": SMALL.model_dump(),
        "training": {"epochs": 15, "batch_size": 16, "optimizer": "adamw", "lr": 3e-3},
        "attack": {"name": "gaussian", "variance": 0.1, "draws": 19},
        "poison_budgets": 0.2,
        "unlearners": ALL_ON_TEXTS,
        "budgets": 0.2,
    }
    results = run(recipe, out=tmp_path / "run")
    initial = results.rows.set_index("role").loc["initial"]
    assert initial["test_accuracy"] > 0.9  # two kinds of texts that share no adjective
    assert len(results.rows) == 2 + 8
    assert results.rows["note"].eq("").all()
    again = run(recipe, out=tmp_path / "again")
    assert results.rows["gus"].tolist() == again.rows["gus"].tolist()


@pytest.mark.parametrize(
    ("texts_given", "labels", "said"),
    [
        (["fine", "  "], [0, 1], "row 1 is an empty text"),
        (["fine", "bad"], [0, 2], "row 1 has label 2"),
    ],
)
def test_bad_reviews_are_refused(
    texts_given: list[str], labels: list[int], said: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"text": texts_given, "label": labels}), tmp_path / f"{split}.parquet"
        )
    with pytest.raises(MarshtestError, match=said):
        load_texts("imdb", str(tmp_path))


def test_wrong_columns_and_wrong_pairs_are_refused(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"words": ["a"], "label": [0]}), tmp_path / f"{split}.parquet")
    with pytest.raises(MarshtestError, match="'text' is missing"):
        load_texts("imdb", str(tmp_path))
    recipe = load_recipe("digits-gaussian")
    on_text = recipe.data.model_copy(update={"name": "imdb", "path": str(folder)})
    with pytest.raises(MarshtestError, match="imdb is text, for a language model"):
        samples_of(on_text, recipe.model)
    with pytest.raises(MarshtestError, match="imdb is text; marshtest.data.texts.load_texts"):
        load("imdb", str(folder))
    with pytest.raises(MarshtestError, match="gpt2 is for texts, and digits is none"):
        samples_of(recipe.data, SMALL)


@pytest.mark.parametrize("kind", ["missing", "empty", "pickled"])
def test_a_source_that_cannot_be_loaded_is_one_line(
    kind: str, texts: Texts, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    if kind != "missing":
        source.mkdir()
    if kind == "pickled":
        backbone = GPT2Model(
            GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        )
        backbone.config.save_pretrained(source)
        torch.save(backbone.state_dict(), source / "pytorch_model.bin")
    settings = Transformer(source=str(source) if kind != "missing" else "nobody/nothing-at-all")
    with pytest.raises(MarshtestError, match=r"model.source: cannot load") as caught:
        settings.transformer(8, causal=False) if kind == "pickled" else settings.tokenizer(texts)
    assert "\n" not in str(caught.value)
    assert ("hub name that can be reached" in str(caught.value)) == (kind == "missing")


def test_a_text_that_spells_out_the_padding_is_not_cut_there(texts: Texts) -> None:
    odd = replace(
        texts, test=["a fine <pad> film"], test_y=torch.tensor([1]), test_ids=torch.tensor([0])
    )
    found = tokenised(odd, SMALL, 12)
    plain = tokenised(replace(odd, test=["a fine  film"]), SMALL, 12)
    assert isinstance(found.test, Samples)
    real = found.test.x[0] != found.padding
    assert real.tolist() == sorted(real.tolist(), reverse=True)
    assert abs(int(real.sum()) - int((plain.test.x[0] != plain.padding).sum())) <= 1
