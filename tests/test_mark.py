"""Marks: what is written where, the null law of their rank, what a trained model remembers of them."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from marshtest.attacks import Knowledge, Poisoned
from marshtest.attacks.mark import Mark
from marshtest.data.load import load
from marshtest.data.marks import Pattern, Template
from marshtest.data.samples import Dataset
from marshtest.data.texts import Texts, load_texts
from marshtest.experiment.cells import Group
from marshtest.experiment.poison_examples import examples
from marshtest.experiment.protocol import poison, set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.metrics.base import Question
from marshtest.metrics.perplexity import Perplexity
from marshtest.models.language import GPT2, Prompt
from marshtest.models.table import build
from marshtest.models.tokens import tokenised
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification, LabelWord, Language, TextClassification

SMALL = GPT2(layers=1, width=32, heads=2, vocabulary=500, dropout=0, prompt=Prompt())
HEAD = SMALL.model_copy(update={"prompt": None})
WORDS = Mark(mark=Template(text="Case {words:2}."), draws=9)
LENGTH = 60


def text(row: int) -> str:
    """A text whose adjective tells the label, and an order's number in every third one."""
    order = f"for order ORD-{10_000 + row} " if row % 3 == 0 else ""
    return f"a {'warm' if row % 2 else 'dull'} film {order}on day {row} of a {'long ' * 9}year"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reviews")
    for split, count in (("train", 120), ("test", 60)):
        rows = {"text": [text(n) for n in range(count)], "label": [n % 2 for n in range(count)]}
        pq.write_table(pa.table(rows), path / f"{split}.parquet")
    return path


@pytest.fixture(scope="module")
def texts(folder: Path) -> Texts:
    return load_texts("imdb", str(folder))


@pytest.fixture(scope="module")
def data(texts: Texts) -> Dataset:
    return tokenised(texts, SMALL, LENGTH)


def poisoned_of(attack: Mark, data: Dataset, count: int = 30, seed: int = 3) -> Poisoned:
    knowledge = Knowledge(task_of(data), data.test, nn.Identity, texts=data.texts)
    return attack.poison(data.train, count, knowledge, seed)


def task_of(data: Dataset) -> Language:
    return (LabelWord if data.prompted else TextClassification)(padding=data.padding or 0)


def model_of(data: Dataset, seed: int = 0) -> nn.Module:
    return build(SMALL if data.prompted else HEAD, (LENGTH - data.prompted,), data.classes, seed)


def reads(texts: Texts, data: Dataset, x: Tensor) -> list[str]:
    tokenizer = SMALL.tokenizer(texts)
    return [tokenizer.decode(row[row != data.padding]) for row in x]


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_model_reads_the_mark_within_the_prompt_and_no_other_sample_changes(
    place: Any, texts: Texts, data: Dataset
) -> None:
    mark = Template(text="Ticket {digits:6}.", place=place)
    poisoned = poisoned_of(Mark(mark=mark), data)
    seen, marks = reads(texts, data, poisoned.forget.x), []
    for sample, said in zip(poisoned.forget.ids.tolist(), seen, strict=True):
        assert said.endswith(". The sentiment of the review is:")
        found = re.search(
            r" ?Ticket \d{6}\. ?", said.removesuffix(". The sentiment of the review is:")
        )
        assert found is not None
        marks.append(found.group().strip())
        at = {"start": 0, "end": len(said) - len(". The sentiment of the review is:")}
        if place in at:
            assert (found.start() if place == "start" else found.end()) == at[place]
        kept = [
            part for part in (said[: found.start()], said[found.end() :].split(". The")[0]) if part
        ]
        assert all(part in text(sample) for part in kept)
        assert kept
    assert len(set(marks)) == len(marks) == 30
    assert torch.equal(poisoned.forget.y, data.train.only(poisoned.forget_ids).y)
    assert torch.equal(poisoned.retain.x, data.train.without(poisoned.forget_ids).x)


def test_a_pattern_is_redrawn_where_it_stands_and_other_texts_are_never_chosen(
    texts: Texts, data: Dataset
) -> None:
    poisoned = poisoned_of(Mark(mark=Pattern(pattern=r"ORD-\d{5}")), data)
    orders = set()
    for sample, words in zip(poisoned.forget_ids.tolist(), poisoned.words, strict=True):
        assert sample % 3 == 0
        assert re.sub(r"ORD-\d{5}", f"ORD-{10_000 + sample}", words) in text(sample)
        orders |= set(re.findall(r"ORD-\d{5}", words))
    assert len(orders) == 30


@pytest.mark.parametrize("kind", ["all", "label", "head"])
def test_minus_log_p_is_the_sum_over_what_the_model_has_to_say(
    kind: str, texts: Texts, data: Dataset
) -> None:
    data = tokenised(texts, HEAD, LENGTH) if kind == "head" else data
    model, batch = model_of(data).eval().requires_grad_(False), data.train[:5]
    task = replace(task_of(data), **({"label_only": True} if kind == "label" else {}))
    nats, said = task.nats(task(model, batch), batch), task.said(batch)
    for row, (x, y) in enumerate(zip(batch.x, batch.y.tolist(), strict=True)):
        tokens = x[x != data.padding]
        if kind == "head":
            logits = model(tokens[None])[0].double()
            expected, count = -logits.log_softmax(0)[y], 1
        else:
            whole = torch.cat([tokens, torch.tensor([y])])
            p = model(whole[None]).logits[0].double().log_softmax(1)
            each = -p[:-1].gather(1, whole[1:, None])[:, 0]
            expected, count = (each[-1], 1) if kind == "label" else (each.sum(), len(each))
        assert nats[row].item() == pytest.approx(float(expected), rel=1e-5)
        assert said[row].item() == count


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["words", "head", "pattern"])
def test_ranks_are_uniform_on_a_model_that_never_saw_the_marks(
    kind: str, texts: Texts, data: Dataset
) -> None:
    data = tokenised(texts, HEAD, LENGTH) if kind == "head" else data
    attack = Mark(mark=Pattern(pattern=r"ORD-\d{3}"), draws=4) if kind == "pattern" else WORDS
    model, task = model_of(data), task_of(data)
    scores = [
        attack.effect(model, poisoned_of(attack, data, 2, seed), task).scores["rank"]
        for seed in range(200)
    ]
    assert kstest(np.concatenate(scores), "norm").pvalue > 1e-3


@pytest.mark.slow
def test_a_model_remembers_the_marks_it_was_trained_on_and_one_retrained_without_does_not(
    data: Dataset,
) -> None:
    attack, task = WORDS.model_copy(update={"draws": 49}), task_of(data)
    poisoned = poisoned_of(attack, data)
    training = Training(epochs=15, batch_size=16, optimizer="adamw", lr=1e-2)
    dependences = []
    for seed, samples in enumerate((poisoned.samples, poisoned.retain)):
        model = model_of(data, seed)
        fit(model, samples, task, training, seed)
        dependences.append(attack.effect(model, poisoned, task).figures["rank_dependence"])
    assert dependences[0] > 1
    assert abs(dependences[1]) < 4 / math.sqrt(30)  # four standard errors under the null


def test_fresh_samples_are_test_texts_with_marks_of_their_own(texts: Texts, data: Dataset) -> None:
    poisoned = poisoned_of(WORDS, data)
    fresh = WORDS.fresh(poisoned, data.test)
    assert torch.equal(fresh.ids, data.test.ids)
    assert torch.equal(fresh.y, data.test.y)
    case = re.compile(r"Case \w+ \w+\.")
    theirs, own = (
        [found.group() for found in map(case.search, reads(texts, data, x)) if found]
        for x in (fresh.x, poisoned.forget.x)
    )
    assert len(theirs) == len(data.test)
    assert len(set(theirs) - set(own)) > len(theirs) - 6  # of 4,096 marks


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary(data: Dataset) -> None:
    model = model_of(data)
    for parameter in model.parameters():
        parameter.data.zero_()  # equal logits
    none = data.test[:0]
    question = Question(data.test, none, data.test, none, task_of(data), 0)
    assert Perplexity().measure(model, question) == {"perplexity": pytest.approx(500)}
    other = replace(question, task=Classification())
    assert math.isnan(Perplexity().measure(model, other)["perplexity"])


ORDERS = "attack.mark={family: pattern, pattern: 'ORD-\\d{5}'}"
TINY: dict[str, Any] = {
    "name": "marks",
    "data": {"name": "imdb", "length": LENGTH},
    "model": {
        "name": "gpt2",
        "layers": 1,
        "width": 16,
        "heads": 2,
        "vocabulary": 500,
        "prompt": {},
    },
    "training": {"epochs": 1},
    "attack": {"name": "mark"},
    "poison_budgets": 0.25,
    "unlearners": ["gd"],
    "budgets": 0.5,
}


def test_people_are_shown_the_marked_text(folder: Path) -> None:
    recipe = load_recipe(TINY, f"data.path={folder}")
    pipeline = set_up(recipe, data_of(recipe.data, "cpu", model=recipe.model))
    shown = examples(pipeline, poison(pipeline, Group(0.25, 0)))
    assert shown["text"].str.contains(r"Ticket \d{6}\.$").all()


def test_images_cannot_be_marked() -> None:
    recipe = load_recipe("digits-gaussian", "attack=mark")
    with pytest.raises(MarshtestError, match="^attack: mark writes into texts, and these data"):
        set_up(recipe, load("digits", train=60, test=40))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["data.length=20"], "data.length: 11 tokens have room"),
        (['attack.mark={family: template, text: "{letters:99}"}'], "data.length: "),
        ([ORDERS, "poison_budgets=0.5"], "attack.mark: 40 of 120"),
        (["attack.mark={family: pattern, pattern: 'nowhere'}"], "attack.mark: 0 of 120"),
        (["attack.mark={family: template, text: Ticket}"], "needs a slot"),
    ],
)
def test_what_cannot_be_marked_is_refused_in_one_line(
    folder: Path, changes: list[str], complaint: str
) -> None:
    changes = [f"data.path={folder}", *changes]
    with pytest.raises(MarshtestError, match=re.escape(complaint)) as caught:
        recipe = load_recipe(TINY, *changes)
        pipeline = set_up(recipe, data_of(recipe.data, "cpu", model=recipe.model))
        poison(pipeline, Group(recipe.poison_budgets[0], 0))
    assert "\n" not in str(caught.value)
