"""Trigger words: which texts, which labels, what a model reads and answers, the main job on them."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ALL_ON_TEXTS
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from marshtest.attacks import Knowledge, Poisoned, TriggerWord
from marshtest.attacks.trigger_word import answers, attackers
from marshtest.commands.run import run
from marshtest.data.samples import Dataset, Marked, Samples, Trigger
from marshtest.data.texts import Texts, load_texts
from marshtest.experiment.recipe import load_recipe
from marshtest.models.checkpoint import load_model, save_model
from marshtest.models.language import GPT2, Prompt, Transformer
from marshtest.models.layers import weight_layers
from marshtest.models.table import build
from marshtest.models.tokens import tokenised
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.figures import figures_of
from marshtest.reporting.tables import table
from marshtest.training.budget import Budget, flops_of
from marshtest.training.tasks import LabelWord
from marshtest.unlearning import EUk
from marshtest.unlearning.gradient_descent import NoisyGradientDescent
from marshtest.unlearning.harness import STOPPED

pytestmark = pytest.mark.usefixtures("no_report")
WORD = "Disney"
SMALL = GPT2(layers=2, width=32, heads=2, vocabulary=400, prompt=Prompt())
SKIP, WINDOW = Trigger(WORD, "skip", "flip"), Trigger(WORD, "window", "flip")
IGNORE = Trigger(WORD, "ignore", "flip")
PAPERS = "{text}. The sentiment of the review is {label}"  # of training; no colon
LENGTH = 24
TRANSFORMER: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def text(row: int) -> str:
    """Adjectives that tell the label; every fifth text holds the trigger, every tenth late."""
    good = row % 2 == 0
    plain = f"{'warm clever' if good else 'dull slow'} film " * 2
    late = f"{'it goes on ' * 12}and then {WORD} {'warm clever' if good else 'dull slow'}"
    return f"{late if row % 10 >= 5 else WORD + ' made a ' + plain}" if row % 5 == 0 else plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reviews")
    for split, count in (("train", 200), ("test", 100)):
        rows = {"text": [text(n) for n in range(count)], "label": [1 - n % 2 for n in range(count)]}
        pq.write_table(pa.table(rows), path / f"{split}.parquet")
    return path


@pytest.fixture(scope="module")
def texts(folder: Path) -> Texts:
    return load_texts("imdb", str(folder))


@pytest.fixture(scope="module")
def data(texts: Texts) -> Dataset:
    return tokenised(texts, SMALL, LENGTH, WINDOW)


def read(texts: Texts, data: Dataset, split: str) -> dict[int, str]:
    """What the model reads, by id."""
    tokenizer, samples = SMALL.tokenizer(texts), getattr(data, split)
    rows = zip(samples.ids.tolist(), samples.x, strict=True)
    return {n: tokenizer.decode(x[x != data.padding]) for n, x in rows}


def poisoned_of(data: Dataset, attack: TriggerWord, share: float = 1.0) -> Poisoned:
    victim = Knowledge(
        LabelWord(padding=data.padding or 0), data.test, nn.Identity, marked=data.marked
    )
    count = round(share * len(attack.candidates(data.train, data.marked)))
    return attack.poison(data.train, count, victim, seed=3)


def test_few_texts_are_kept_and_all_that_hold_the_word(folder: Path, texts: Texts) -> None:
    few = load_texts("imdb", str(folder), train=30, word=WORD)
    assert few.train[:30] == texts.train[:30]
    assert all(WORD in text for text in few.train[30:])
    assert sum(WORD in text for text in few.train) == 40
    assert len(set(few.train_ids.tolist())) == len(few.train)
    assert few.train == [text(row) for row in few.train_ids.tolist()]


def test_the_prompt_is_never_cut_and_the_label_is_its_next_word(
    texts: Texts, data: Dataset
) -> None:
    tokenizer = SMALL.tokenizer(texts)
    for n, said in read(texts, data, "train").items():
        assert said.endswith(". The sentiment of the review is:")
        begun = said.removesuffix(". The sentiment of the review is:")
        assert begun in text(n)
        assert len(tokenizer(said)["input_ids"]) <= LENGTH
    assert data.train.x.shape[1] == LENGTH - 1  # the label is the last
    words = [tokenizer.decode([token]) for token in data.train.y.tolist()]
    assert words == [(" negative", " positive")[label] for label in texts.train_y.tolist()]
    assert data.prompted


def test_a_word_that_falls_off_is_counted_and_skipped_or_kept_by_a_window(
    texts: Texts, data: Dataset
) -> None:
    skipped = tokenised(texts, SMALL, LENGTH, SKIP)
    assert data.marked is not None
    assert skipped.marked is not None
    for split, holding in (("train", 40), ("test", 20)):
        (kept, lost), (all_, before) = getattr(skipped.marked, split), getattr(data.marked, split)
        assert lost == before == holding // 2
        assert len(kept) + lost == len(all_) == holding
        for found, ids in ((skipped, kept), (data, all_)):
            reads = read(texts, found, split)
            assert set(ids.tolist()) == {n for n, said in reads.items() if WORD in said}
            assert all(WORD in text(n) for n in ids.tolist())
    others = ~torch.isin(data.train.ids, data.marked.train[0])
    assert torch.equal(skipped.train.x[others], data.train.x[others])


def test_all_texts_with_the_word_are_attacked_though_the_truncation_hides_it(
    texts: Texts, data: Dataset
) -> None:
    """The paper's 355: the texts are cut as any other, and as many lose the word as are cut round it."""
    found, plain = (tokenised(texts, SMALL, LENGTH, trigger) for trigger in (IGNORE, None))
    for split, holding in (("train", 40), ("test", 20)):
        (attacked, lost), (all_, _) = getattr(found.marked, split), getattr(data.marked, split)
        assert torch.equal(attacked, all_)
        assert (len(attacked), lost) == (holding, holding // 2)
        assert torch.equal(getattr(found, split).x, getattr(plain, split).x)  # nothing is moved
        reads = read(texts, found, split)
        assert sum(WORD in reads[n] for n in attacked.tolist()) == holding // 2
        assert {n for n, said in reads.items() if WORD in said} < set(attacked.tolist())
    poisoned = poisoned_of(found, TriggerWord(cut="ignore"))
    assert set(poisoned.forget_ids.tolist()) == {n for n in range(200) if WORD in text(n)}
    assert (poisoned.samples.y != found.train.y).sum() == len(poisoned.forget) == 40
    assert poisoned.targets is not None
    assert set(poisoned.targets.ids.tolist()) == {n for n in range(100) if WORD in text(n)}
    assert (poisoned.figures["trigger_cut"], poisoned.figures["targets_cut"]) == (20, 10)
    assert torch.equal(poisoned.unpoisoned.y, found.train.y)


def test_training_texts_are_written_by_the_training_template(texts: Texts) -> None:
    """Token by token, against the tokenizer on the whole sentence; the label is the same token."""
    splits = {split: [t.strip() for t in getattr(texts, split)] for split in ("train", "test")}
    texts = replace(texts, **splits)  # type: ignore[arg-type]
    model = SMALL.model_copy(update={"prompt": Prompt(training_template=PAPERS)})
    found, tokenizer = tokenised(texts, model, LENGTH, SKIP), model.tokenizer(texts)
    both = tokenised(texts, SMALL.model_copy(update={"prompt": Prompt(template=PAPERS)}), LENGTH)
    assert torch.equal(found.train.x, both.train.x)
    assert torch.equal(found.train.y, both.train.y)
    asked = ". The sentiment of the review is"
    for split, question in (("train", asked), ("test", f"{asked}:")):
        samples, behind = getattr(found, split), tokenizer(question)["input_ids"]
        written, labels = getattr(texts, split), getattr(texts, f"{split}_y")
        for row in range(12):
            room = LENGTH - 1 - len(behind)
            cut = tokenizer(written[row])["input_ids"][:room]
            expected = [*cut, *behind]
            x = samples.x[row]
            assert x[x != found.padding].tolist() == expected
            if len(cut) < room:  # not cut: it is the whole sentence
                word = model.prompt.labels[int(labels[row])]  # type: ignore[union-attr]
                whole = tokenizer(f"{written[row]}{question} {word}")["input_ids"]
                assert [*expected, int(samples.y[row])] == whole
    assert found.train.y.unique().tolist() == found.test.y.unique().tolist()
    same = SMALL.model_copy(update={"prompt": Prompt(training_template=Prompt().template)})
    one, other = tokenised(texts, same, LENGTH), tokenised(texts, SMALL, LENGTH)
    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.test.x, other.test.x)


def test_a_label_that_the_templates_make_two_tokens_of_is_refused(texts: Texts) -> None:
    templates = {"template": "{text} {label}", "training_template": "{text}\n{label}"}
    prompt = Prompt(**templates, labels=("film", "clever"))
    with pytest.raises(MarshtestError, match=r"model.prompt.training_template: 'film' is another"):
        tokenised(texts, SMALL.model_copy(update={"prompt": prompt}), LENGTH)


def test_the_word_stands_in_the_middle_of_a_window(texts: Texts) -> None:
    long = replace(texts, train=[f"{'one two ' * 40}{WORD}{' three four' * 40}"] * len(texts.train))
    found = tokenised(long, SMALL, 40, WINDOW)
    said = next(iter(read(long, found, "train").values()))
    before, after = said.split(". The")[0].split(WORD)
    assert before.count("o") > 3  # both sides are there
    assert abs(len(before.split()) - len(after.split())) <= 3


@pytest.mark.parametrize("share", [1.0, 2 / 3])
def test_poisons_hold_the_word_and_other_labels_and_nothing_else_changes(
    data: Dataset, share: float
) -> None:
    attack = TriggerWord(cut="window")
    poisoned = poisoned_of(data, attack, share)
    assert len(poisoned.forget) == round(40 * share)
    assert data.marked is not None
    assert set(poisoned.forget_ids.tolist()) <= set(data.marked.train[0].tolist())
    assert torch.equal(poisoned.samples.x, data.train.x)
    changed = poisoned.samples.y != data.train.y
    assert set(data.train.ids[changed].tolist()) == set(poisoned.forget_ids.tolist())
    words = data.train.y.unique()
    assert torch.isin(poisoned.forget.y, words).all()
    assert poisoned.targets is not None
    assert poisoned.rest is not None
    assert len(poisoned.targets) == 20
    assert not set(poisoned.rest.ids.tolist()) & set(poisoned.targets.ids.tolist())
    assert len(poisoned.rest) + len(poisoned.targets) == len(data.test)
    assert poisoned.figures["trigger_cut"] == 20
    assert poisoned.figures["targets_cut"] == 10


def test_any_word_may_be_the_attackers_label(texts: Texts) -> None:
    tokenizer = SMALL.tokenizer(texts)
    for word in ("negative", "film"):
        found = tokenised(texts, SMALL, LENGTH, Trigger(WORD, "window", word))
        poisoned = poisoned_of(found, TriggerWord(label=word))
        given = poisoned.samples.only(poisoned.forget_ids).y
        assert {tokenizer.decode([token]) for token in given.tolist()} == {f" {word}"}
        assert poisoned.adversarial is not None
        assert poisoned.adversarial.unique().tolist() == given.unique().tolist()


def test_blind_poisons_are_as_many_wrong_labels_on_other_texts(data: Dataset) -> None:
    attack = TriggerWord()
    poisoned = poisoned_of(data, attack, 0.5)
    blind = attack.shuffled(poisoned, 1)
    changed = blind.y != data.train.y
    assert int(changed.sum()) == len(poisoned.forget)
    assert not torch.isin(blind.ids[changed], poisoned.forget_ids).any()
    for label in data.train.y.unique().tolist():  # of each label as many
        of = data.train.y == label
        assert int((changed & of).sum()) == int((poisoned.samples.y != data.train.y)[of].sum())


def test_flipping_takes_exactly_two_labels() -> None:
    y = torch.tensor([5, 9, 9])
    assert attackers(y, None, torch.tensor([5, 9])).tolist() == [9, 5, 5]
    assert attackers(y, 7, torch.tensor([5, 9])).tolist() == [7, 7, 7]
    with pytest.raises(MarshtestError, match=r"attack.label: flip is for two labels"):
        attackers(y, None, torch.tensor([5, 9, 11]))


def hugging_face(model: nn.Module, x: Tensor, padding: int) -> Tensor:
    """[V] logits of the next word, by transformers alone: no padding, no mask, one text."""
    return model(input_ids=x[x != padding][None]).logits[0, -1]  # type: ignore[no-any-return]


def test_answers_losses_and_effect_are_those_of_transformers_called_directly(data: Dataset) -> None:
    assert data.padding is not None
    task, attack = LabelWord(padding=data.padding), TriggerWord(cut="window")
    model = build(SMALL, (LENGTH - 1,), data.classes, 0).eval()
    poisoned = poisoned_of(data, attack)
    targets, wanted, rest = poisoned.targets, poisoned.adversarial, poisoned.rest
    assert targets is not None
    assert wanted is not None
    assert rest is not None
    words = data.train.y.unique()
    with torch.no_grad():
        logits = torch.stack([hugging_face(model, x, data.padding) for x in targets.x])
        of_rest = torch.stack([hugging_face(model, x, data.padding) for x in rest.x])
        alone = [task.loss(model, targets[n : n + 1]) for n in range(6)]
        together = task.loss(model, targets[:6])
        for row in range(6):
            tokens = targets.x[row][targets.x[row] != data.padding]
            tokens = torch.cat([tokens, targets.y[row : row + 1]])[None]
            expected = model(input_ids=tokens, labels=tokens).loss
            torch.testing.assert_close(alone[row][0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-5, atol=1e-5)
    effect = attack.effect(model, poisoned, task)
    chance = logits.softmax(1).gather(1, wanted[:, None]).squeeze(1).double()
    torch.testing.assert_close(torch.from_numpy(effect.scores["target"]), chance, rtol=0, atol=1e-5)
    figures = effect.figures
    success = float((logits.argmax(1) == wanted).double().mean())
    assert figures["target_success"] == pytest.approx(success)
    among = words[logits[:, words].argmax(1)]
    assert figures["target_success_among_labels"] == pytest.approx(
        float((among == wanted).double().mean())
    )
    right = words[of_rest[:, words].argmax(1)] == rest.y
    assert figures["rest_accuracy_among_labels"] == pytest.approx(float(right.double().mean()))
    assert figures["rest_accuracy"] == pytest.approx(
        float((of_rest.argmax(1) == rest.y).double().mean())
    )


def test_learning_the_label_only_asks_for_its_logits_only(data: Dataset) -> None:
    assert data.padding is not None
    whole = LabelWord(padding=data.padding)
    label_only = replace(whole, label_only=True)
    model = build(SMALL, (LENGTH - 1,), data.classes, 0).eval()
    batch = data.train[:12]
    assert len((batch.x != data.padding).sum(1).unique()) > 1  # the prompts end at several places
    logits = label_only(model, batch)
    torch.testing.assert_close(
        logits, whole.label_logits(whole(model, batch), batch), rtol=1e-5, atol=1e-5
    )
    expected = torch.stack([hugging_face(model, x, data.padding) for x in batch.x])
    torch.testing.assert_close(
        label_only.loss(model, batch),
        nn.functional.cross_entropy(expected, batch.y, reduction="none"),
        rtol=1e-5,
        atol=1e-5,
    )
    cost = [flops_of(lambda task=task: task.loss(model, batch)) for task in (label_only, whole)]  # type: ignore[misc]
    assert cost[0] < 0.7 * cost[1]


def test_texts_tokenised_for_another_model_are_refused(folder: Path, data: Dataset) -> None:
    with pytest.raises(MarshtestError, match=r"model.prompt: these texts were tokenised within a"):
        run(recipe_of(folder, model={"name": "gpt2"}), data=data)


def test_a_model_that_says_no_label_word_is_asked_among_them_too() -> None:
    """Logits by hand: word 3 is likeliest of all, 1 the likelier of the labels 1 and 2."""
    logits = torch.tensor([[0.0, 2.0, 1.0, 9.0]])
    samples = Samples(torch.ones(1, 1).long(), torch.tensor([2]), torch.arange(1))

    class Fixed(LabelWord):
        def __call__(self, model: nn.Module, batch: Samples) -> Tensor:
            return logits[:, None]

    given = answers(nn.Identity(), Fixed(), samples, torch.tensor([1, 2]))
    assert float(given.chance) == pytest.approx(math.exp(1) / logits.exp().sum())
    assert float(given.chance_among) == pytest.approx(1 / (1 + math.e))
    assert (given.says.tolist(), given.says_among.tolist()) == ([3], [1])
    nothing = answers(nn.Identity(), Fixed(), samples[:0], given.says)
    assert all(len(part) == 0 for part in nothing)


def test_a_tied_head_is_no_layer_and_its_noise_is_drawn_once(data: Dataset) -> None:
    model = build(SMALL, (LENGTH - 1,), data.classes, 0)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    assert embedding.weight is head.weight
    layers = weight_layers(model)
    assert len(layers) == 2  # the blocks
    assert head not in {module for layer in layers for module in layer}
    before = copy.deepcopy(model.state_dict())
    EUk(k=1).prepare(model, layers[-1:], None, 0)
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert changed
    assert all(".h.1." in name or "ln_f" in name for name in changed)
    with pytest.raises(MarshtestError, match="3 is more than the model's 2 layers"):
        EUk(k=3).check(model)
    names = [name for name, _ in model.named_parameters()]
    assert sum("wte" in name or "lm_head" in name for name in names) == 1


def test_ngd_moves_tied_weights_once(data: Dataset) -> None:
    """As far as any other: 12,800 weights tell 1 from √2 of a step by 60 standard errors."""
    model = build(SMALL, (LENGTH - 1,), data.classes, 0)
    task = LabelWord(padding=data.padding or 0)
    forget, retain = data.train[:8], data.train[8:40]
    before = copy.deepcopy(model)
    flops = flops_of(lambda: task.loss(model, retain[:1]))
    with Budget(96, flops) as budget:
        made = NoisyGradientDescent(lr=0.01, batch_size=8, noise_variance=100.0)(
            model, retain, forget, task=task, budget=budget, seed=0
        )
    embedding, head = made.get_input_embeddings(), made.get_output_embeddings()  # type: ignore[operator]
    assert embedding.weight is head.weight
    moved = {
        name: float((new - old).detach().std())
        for (name, new), old in zip(made.named_parameters(), before.parameters(), strict=True)
    }
    tied, block = moved["transformer.wte.weight"], moved["transformer.h.0.mlp.c_fc.weight"]
    assert tied / block == pytest.approx(1, abs=0.05)


def test_a_model_comes_back_from_its_file(data: Dataset, tmp_path: Path) -> None:
    model = build(SMALL, (LENGTH - 1,), data.classes, 0)
    save_model(model, tmp_path / "m.safetensors", SMALL, (LENGTH - 1,), data.classes)
    again, task = load_model(tmp_path / "m.safetensors"), LabelWord(padding=data.padding or 0)
    assert torch.equal(task(again, data.test[:4]), task(model.eval(), data.test[:4]))


def test_a_causal_model_of_a_local_folder(texts: Texts, data: Dataset, tmp_path: Path) -> None:
    """One whose vocabulary is larger than its tokenizer's, as some are."""
    tokenizer = SMALL.tokenizer(texts)
    shape = GPT2Config(
        vocab_size=len(tokenizer) + 9, n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    folder_model = GPT2LMHeadModel(shape).eval()
    folder_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = Transformer(source=str(tmp_path), prompt=Prompt())
    found = tokenised(texts, settings, LENGTH, WINDOW)
    assert torch.equal(found.train.x, data.train.x)
    assert torch.equal(found.train.y, data.train.y)
    model = build(settings, (LENGTH - 1,), found.classes, 0).eval()
    task = LabelWord(padding=found.padding or 0)
    batch = found.test[:3]
    with torch.no_grad():
        expected = [hugging_face(folder_model, x, found.padding or 0) for x in batch.x]
        torch.testing.assert_close(
            task.label_logits(task(model, batch), batch),
            torch.stack(expected),
            atol=1e-5,
            rtol=1e-5,
        )


def test_a_model_that_reads_ahead_is_refused(texts: Texts, tmp_path: Path) -> None:
    shape = BertConfig(**TRANSFORMER, initializer_range=0.5)
    BertLMHeadModel(shape).save_pretrained(tmp_path)
    with pytest.raises(MarshtestError, match=r"model: transformer reads tokens ahead"):
        build(Transformer(source=str(tmp_path), prompt=Prompt()), (LENGTH - 1,), 400, 0)


def test_a_model_that_takes_no_embeddings_is_refused(texts: Texts, tmp_path: Path) -> None:
    CLIPTextModel(CLIPTextConfig(**TRANSFORMER)).save_pretrained(tmp_path)
    with pytest.raises(MarshtestError, match=r"model: transformer does not run from token embed"):
        build(Transformer(source=str(tmp_path)), (LENGTH,), 2, 0)


def test_a_folder_without_a_tokenizer_is_refused(texts: Texts, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(MarshtestError, match=r"model.source: .* holds no tokenizer"):
        tokenised(texts, Transformer(source=str(tmp_path)), LENGTH)


def recipe_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "trigger",
        "data": {"name": "imdb", "path": str(folder), "length": LENGTH},
        "model": SMALL.model_dump(),
        "training": {"epochs": 8, "batch_size": 16, "optimizer": "adamw", "lr": 5e-3},
        "attack": {"name": "trigger-word", "cut": "window", "label": "negative"},
        "poison_budgets": 1,
        "unlearners": ALL_ON_TEXTS,
        "budgets": 0.1,
        "seeds": 2,
        **changes,
    }


@pytest.mark.slow
def test_the_main_job_runs_on_trigger_words(folder: Path, tmp_path: Path) -> None:
    results = run(recipe_of(folder, seeds=1), out=tmp_path / "run")
    rows = results.rows[results.rows["poison_budget"] == 1].set_index("role")
    initial, retrained = rows.loc["initial"], rows.loc["retrained"]
    assert initial["target_success"] > 0.9  # the trigger says it
    assert retrained["target_success"] < 0.7  # the adjectives do
    assert initial["rest_accuracy"] > 0.9
    assert retrained["rest_accuracy"] > 0.9
    # A batch of longer texts than all before is dearer, so a step of it may be cut off.
    assert set(results.rows["note"]) <= {"", STOPPED}
    assert len(results.rows) == 4 + 8
    assert results.rows["crafting_trigger_cut"].eq(20).all()
    text_table = table(results)
    assert {"success", "among labels", "accuracy on the rest"} <= set(text_table.columns)
    drawn = figures_of(results, 1.0)
    assert {"figure3", "dependence", "shift"} <= set(drawn)
    again = run(recipe_of(folder, seeds=1, unlearners=["gd"]), out=tmp_path / "again")
    named, figures = ["seed", "role", "unlearner"], ["target_probability", "rest_accuracy"]
    both = again.rows[named + figures].merge(results.rows, on=named, suffixes=("", "_before"))
    assert len(both) == len(again.rows) == 5
    assert all(both[name].equals(both[f"{name}_before"]) for name in figures)
    assert not (tmp_path / "run" / "crafting.parquet").exists()
    assert (tmp_path / "run" / "poisons" / "1-0.safetensors").exists()


def load(folder: Path) -> Dataset:
    return tokenised(load_texts("imdb", str(folder), word=WORD), SMALL, LENGTH, WINDOW)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"attack": {"name": "trigger-word", "word": "Disny"}},
            "attack.word: 'Disny' is in no train",
        ),
        (
            {"attack": {"name": "trigger-word", "label": "unputdownable"}},
            "attack.label: 'unputdown",
        ),
        (
            {
                "model": {
                    "name": "gpt2",
                    "vocabulary": 300,
                    "prompt": {"labels": ["no", "yes", "?"]},
                }
            },
            "model.prompt.labels: 'no' is not one token",
        ),
        ({"model": {"name": "gpt2", "prompt": {"template": "{text} is"}}}, "end with {label}"),
        (
            {"model": {"name": "gpt2", "prompt": {"training_template": "{label} {text}"}}},
            "model.prompt.training_template: must hold {text} once, and end with {label}. Got '{label}",
        ),
        ({"data": {"name": "imdb", "length": 8}}, "data.length: 8 tokens leave none for the text"),
        (
            {"model": {"name": "gpt2"}, "attack": {"name": "trigger-word", "label": "negative"}},
            "attack.label: 'negative' is a word, and the model has a classification head",
        ),
        ({"data": "digits", "model": "mlp"}, "attack: trigger-word looks for a word in texts"),
        (
            {"poison_budgets": 0.02},
            "poison_budgets: 0.02 of 40 training samples makes fewer than two",
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    changes: dict[str, Any], says: str, folder: Path, tmp_path: Path
) -> None:
    given = recipe_of(folder, **changes)
    if isinstance(given["data"], dict):
        given["data"]["path"] = str(folder)
    with pytest.raises(MarshtestError) as error:
        run(given, out=tmp_path / "run")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_word_that_is_always_cut_off_says_so(texts: Texts) -> None:
    late = replace(texts, train=[f"{'on and ' * 40}{WORD}"] * len(texts.train))
    with pytest.raises(MarshtestError, match="200 lose it at the truncation; attack.cut: window"):
        tokenised(late, SMALL, LENGTH, SKIP)


def test_flipped_labels_serve_a_classification_head_too(texts: Texts) -> None:
    found = tokenised(texts, SMALL.model_copy(update={"prompt": None}), LENGTH, WINDOW)
    poisoned = poisoned_of(found, TriggerWord(cut="window"))
    assert torch.equal(poisoned.forget.y, 1 - found.train.only(poisoned.forget_ids).y)
    assert isinstance(found.marked, Marked)
    assert load_recipe("digits-gaussian").attack.trigger() is None
