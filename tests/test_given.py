"""What an unlearner is given: the poisoned inputs as a real one would have them, and nothing to tell by."""

import copy
import gc
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import marshtest
from marshtest.attacks import Attack, Poisoned
from marshtest.data.samples import Dataset, Samples
from marshtest.data.sealed import Sealed
from marshtest.experiment.cells import groups
from marshtest.experiment.protocol import (
    Pipeline,
    poison,
    set_up,
    train,
    train_clean,
    update,
)
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps.worker import MODELS, Worker
from marshtest.training.budget import Budget
from marshtest.training.tasks import Classification, Task
from marshtest.unlearning import Custom
from marshtest.unlearning.check import Problem, images, text
from marshtest.unlearning.harness import unlearn

pytestmark = pytest.mark.usefixtures("no_report")
CRAFTED = {"restarts": 1, "steps": 2, "targets": 2}
CANCELING = {"name": "gradient-canceling", "radius": 0.5, "steps": 2}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("digits", {"name": "gaussian", "draws": 9}),
    "matching": ("digits", {"name": "gradient-matching", "epsilon": 96, **CRAFTED}),
    "canceling": ("digits", CANCELING),
    "canceling, added": ("digits", {**CANCELING, "place": "add"}),
    "confusion": ("digits", {"name": "interclass-confusion"}),
    "badnets": ("digits", {"name": "badnets"}),
    "gaussian on texts": ("imdb", {"name": "gaussian", "draws": 9}),
    "matching on texts": ("imdb", {"name": "gradient-matching", "epsilon": 1, **CRAFTED}),
    "trigger word": ("imdb", {"name": "trigger-word"}),
}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    for split, first, count in (("train", 0, 120), ("test", 1000, 60)):
        numbers = range(first, first + count)
        written = [f"{'warm' if n % 2 else 'dull'} {n} Disney film {n * 7}" for n in numbers]
        table = pa.table({"text": written, "label": [n % 2 for n in numbers]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def recipe_of(kind: str, attack: dict[str, Any], reviews: Path) -> Recipe:
    digits = {"data": {"name": "digits", "train": 120, "test": 60, "validation": 0.1}}
    imdb = {"data": {"name": "imdb", "path": str(reviews), "length": 40}}
    gpt2 = {"name": "gpt2", "layers": 1, "width": 16, "heads": 2, "vocabulary": 300}
    shape = {"digits": {**digits, "model": {"name": "mlp", "width": 64}}}
    shape["imdb"] = {**imdb, "model": gpt2}
    if attack["name"] == "trigger-word":
        shape["imdb"]["model"] = {**gpt2, "prompt": {}, "vocabulary": 500}
    training = {"epochs": 20, "batch_size": 16, "lr": 0.1 if kind == "digits" else 0.01}
    if kind == "imdb":
        training["optimizer"] = "adamw"
    values = {
        "name": "given",
        "attack": attack,
        "poison_budgets": 0.2,
        "seeds": 1,
        "unlearners": [],
        "budgets": 0.1,
    }
    return load_recipe(values | shape[kind] | {"training": training})


@dataclass
class Seen:
    """The arguments of one call, and what is reached from them."""

    forget: Samples
    retain: Samples
    task: Task
    tensors: list[Tensor]
    objects: list[object]


def watcher(seen: list[Seen]) -> Custom:
    def unlearner(model: Any, retain: Any, forget: Any, **rest: Any) -> Any:
        found = list(reached([model, retain, forget, rest]))
        tensors = [of for of in found if isinstance(of, Tensor)]
        seen.append(Seen(forget, retain, rest["task"], tensors, found))
        return copy.deepcopy(model)

    return Custom.wrap(unlearner)


def reached(start: object) -> Iterator[object]:
    """All objects that references lead to, but for what belongs to modules and types."""
    own = {id(vars(module)) for module in list(sys.modules.values()) if module is not None}
    known, left = set(own), [start]
    skipped = (types.ModuleType, type, types.CodeType, types.BuiltinFunctionType, types.FrameType)
    kept = []  # alive, so that no id is given twice
    while left:
        found = left.pop()
        if id(found) in known or isinstance(found, skipped):
            continue
        known.add(id(found))
        kept.append(found)
        yield found
        left += gc.get_referents(found)
        if isinstance(found, Tensor) and found._base is not None:
            left.append(found._base)


def rows(tensors: list[Tensor], like: Tensor) -> set[bytes]:
    """The bytes of all rows of the shape of `like`'s."""
    shape, found = like.shape[1:], set()
    for tensor in tensors:
        if tensor.dim() > len(shape) and tensor.shape[-len(shape) :] == shape:
            flat = tensor.detach().reshape(-1, shape.numel())
            found |= {row.cpu().numpy().tobytes() for row in flat.to(like.dtype)}
    return found


@dataclass
class Made:
    pipeline: Pipeline
    poisoned: Poisoned
    seen: dict[str, Seen]  # by role
    retrained: nn.Module


@pytest.fixture(scope="module", params=ATTACKS)
def made(request: pytest.FixtureRequest, reviews: Path) -> Made:
    recipe = recipe_of(*ATTACKS[request.param], reviews)
    data = data_of(recipe.data, recipe.device, None, recipe.model, recipe.attack.trigger())
    pipeline, (group,) = set_up(recipe, data), groups(recipe)
    poisoned = poison(pipeline, group, lambda: train_clean(pipeline, group.seed)[0])
    models = {role: train(pipeline, group, poisoned, role) for role in ("initial", "retrained")}
    seen = {}
    for role in ("initial", "twin"):
        found: list[Seen] = []
        model, cost = models["initial"]
        (outcome,) = update(pipeline, group, poisoned, model, cost, watcher(found), [0.1], role)
        assert outcome.note == ""
        (seen[role],) = found
    return Made(pipeline, poisoned, seen, models["retrained"][0])


def test_no_base_no_noise_no_target_and_no_retrained_model_is_reached(made: Made) -> None:
    poisoned, seen = made.poisoned, made.seen["initial"]
    bases = poisoned.forget
    shift = bases.perturbation()
    told = (
        shift is not None and poisoned.bases is None
    )  # bases that are left in the retain set are its
    secrets = {"bases": bases.x} if told else {}
    if told and bases.x.dtype == torch.uint8:
        clean = replace(bases, perturbations=None, perturbation_rows=None)
        secrets["bases in input space"] = made.pipeline.task.inputs(nn.Identity(), clean)
    if shift is not None:
        secrets["noise"] = shift
    if poisoned.targets is not None:
        secrets["targets"] = poisoned.targets.x
    secrets["test"] = made.pipeline.data.test.x
    for name, secret in secrets.items():
        assert not rows(seen.tensors, secret) & rows([secret], secret), name
    weights = {weight.detach().cpu().numpy().tobytes() for weight in made.retrained.parameters()}
    assert not weights & {t.detach().cpu().numpy().tobytes() for t in seen.tensors if t.dim() > 1}
    hidden = (Recipe, Dataset, Poisoned, Attack, Pipeline)
    assert not [of for of in seen.objects if isinstance(of, hidden)]


def test_the_walk_finds_what_it_must_not(made: Made) -> None:
    found = [of for of in reached(made.poisoned) if isinstance(of, Tensor)]
    x = made.poisoned.forget.x
    assert rows(found, x) >= rows([x], x)
    found = [of for of in reached(made.pipeline.data) if isinstance(of, Tensor)]
    assert rows(found, x) >= rows([x], x)


def test_what_the_task_makes_of_the_given_is_what_it_makes_of_the_poisoned(made: Made) -> None:
    """Inputs, losses and batches bit for bit, in both arms."""
    task, model = made.pipeline.task, made.retrained.eval()
    for role, seen in made.seen.items():
        twin = role == "twin"
        clean = made.poisoned.unpoisoned.only(made.poisoned.forget_ids)
        whole = {"retain": made.poisoned.retain, "forget": clean if twin else made.poisoned.forget}
        for name, raw in whole.items():
            given = getattr(seen, name)
            assert torch.equal(task.inputs(model, given), task.inputs(model, raw))
            assert torch.equal(task.loss(model, given), task.loss(model, raw))
            one, two = (next(task.batches(of, 8, seed=3)) for of in (given, raw))
            assert torch.equal(task.loss(model, one), task.loss(model, two))
            assert torch.equal(one.ids, two.ids)


def test_images_and_features_are_plain_floats_in_input_space(made: Made) -> None:
    if made.pipeline.data.padding is not None:
        return
    for seen in made.seen.values():
        for samples in (seen.retain, seen.forget, seen.task.held_out):
            assert samples is not None
            assert samples.x.dtype == torch.float32
            assert samples.perturbations is None
            assert samples.x.untyped_storage().nbytes() == 4 * samples.x.numel()
        assert torch.equal(
            made.pipeline.task.inputs(nn.Identity(), seen.retain), seen.retain.x
        )  # a DataLoader over it trains on what the pipeline trains on


def test_poisoned_texts_are_sealed_in_both_arms_and_others_are_not(made: Made) -> None:
    seals = {role: isinstance(seen.forget.x, Sealed) for role, seen in made.seen.items()}
    texts = made.pipeline.data.padding is not None
    noisy = made.poisoned.samples.perturbations is not None
    assert seals == dict.fromkeys(("initial", "twin"), texts and noisy)
    assert all(isinstance(seen.retain.x, Tensor) for seen in made.seen.values())


def test_a_seal_says_where_to_go_and_lets_labels_pass(made: Made) -> None:
    forget, task = made.seen["initial"].forget, made.pipeline.task
    if not isinstance(forget.x, Sealed):
        return
    uses: list[Any] = [
        lambda: torch.cat([made.seen["initial"].retain.x, forget.x]),  # type: ignore[list-item]
        lambda: list(DataLoader(TensorDataset(forget.x, forget.y))),
        lambda: made.retrained(forget.x),
        lambda: forget.x.shape,
        lambda: forget.x[0],
        lambda: list(forget.x),
    ]
    for use in uses:
        with pytest.raises(MarshtestError, match=r"Draw batches by task\.batches"):
            use()
    wrong = replace(forget, y=1 - forget.y)[torch.tensor([2, 0])]
    assert torch.equal(wrong.y, 1 - forget.y[[2, 0]])
    assert torch.equal(
        task.inputs(made.retrained, wrong), task.inputs(made.retrained, forget)[[2, 0]]
    )
    assert len(copy.deepcopy(forget)) == len(forget)


def test_labels_that_an_unlearner_gives_are_the_labels_that_count(made: Made) -> None:
    forget, task, model = made.seen["initial"].forget, made.pipeline.task, made.retrained.eval()
    other = replace(forget, y=forget.y.roll(1))
    changed = task.loss(model, other) != task.loss(model, forget)
    assert torch.equal(changed, forget.y != other.y)


# Copies


@pytest.mark.parametrize("problem", [images(), text()], ids=["images", "text"])
def test_what_an_unlearner_writes_reaches_neither_the_next_one_nor_the_measurement(
    problem: Problem,
) -> None:
    before = copy.deepcopy((problem.retain, problem.forget))
    first = []

    def vandal(model: Any, retain: Any, forget: Any, *, task: Any, **_: Any) -> Any:
        first.append(float(retain.x.float().sum()))
        for samples in (retain, forget, task.held_out):
            samples.x.zero_()
            samples.y.zero_()
            samples.ids.zero_()
        return copy.deepcopy(model)

    held_out = replace(problem.task, held_out=problem.retain[:4])
    budgets = [Budget(100.0, problem.flops_per_pass), Budget(50.0, problem.flops_per_pass)]
    unlearn(
        Custom.wrap(vandal),
        problem.model,
        problem.retain,
        problem.forget,
        task=held_out,
        budgets=budgets,
        seed=0,
    )
    assert first[0] == first[1] != 0
    for one, two in zip(before, (problem.retain, problem.forget), strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.y, two.y)
        assert torch.equal(one.ids, two.ids)


class Writes(nn.Module):
    """Normalises its own input, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.layer(x.sub_(0.5).flatten(1))
        return said


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_a_model_that_writes_into_its_input_changes_no_sample(shape: tuple[int, ...]) -> None:
    samples = Samples(torch.randn(20, *shape), torch.arange(20) % 3, torch.arange(20))
    before, task, model = samples.x.clone(), Classification(), Writes()
    inputs = task.inputs(model, samples).detach().requires_grad_()
    asked = [task.outputs(model, inputs, samples), *(task(model, samples) for _ in range(2))]
    assert torch.equal(samples.x, before)
    assert torch.equal(asked[0], asked[1])
    assert torch.equal(asked[1], asked[2])
    (slope,) = torch.autograd.grad(asked[0].sum(), inputs)
    torch.testing.assert_close(slope.flatten(1), model.layer.weight.detach().sum(0).expand(20, 12))


def _workers() -> list[Worker]:
    return [of for of in gc.get_objects() if type(of) is Worker]


def _of_four_layers() -> list[nn.Sequential]:
    return [of for of in gc.get_objects() if type(of) is nn.Sequential and len(of) == 4]


def test_no_other_model_is_in_memory_while_an_unlearner_runs(tmp_path: Path) -> None:
    kept: list[int] = []
    elsewhere = _workers()
    others = _of_four_layers()  # of other tests; kept, so that no new one gets the id of an old one

    def unlearner(model: Any, retain: Any, forget: Any, **_: Any) -> Any:
        workers = [of for of in _workers() if all(of is not other for other in elsewhere)]
        kept.append(max(len(worker._latest.get(MODELS, {})) for worker in workers))
        alive = [of for of in _of_four_layers() if all(of is not other for other in others)]
        same = [m for m in alive if not _equal(m, model)]
        kept.append(len(same))
        return copy.deepcopy(model)

    recipe = {
        "name": "alone",
        "data": {"name": "digits", "train": 100, "test": 50},
        "model": {"name": "mlp", "width": 8},
        "training": {"epochs": 2, "batch_size": 16},
        "attack": {"name": "gaussian", "draws": 9},
        "poison_budgets": 0.2,
        "seeds": 1,
        "reference": True,
        "budgets": 0.1,
        "unlearners": [],
    }
    marshtest.run(recipe, unlearners=[unlearner], out=tmp_path / "run")
    assert kept == [0, 0]


def _equal(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def keep_everything(model: Any, retain: Any, forget: Any, *, task: Any, **_: Any) -> Any:
    """Does not forget: trains on all there is by an ordinary DataLoader."""
    made = task.new_model(1).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    both = TensorDataset(torch.cat([retain.x, forget.x]), torch.cat([retain.y, forget.y]))
    for _ in range(15):
        for x, y in DataLoader(both, 32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            optimizer.step()
    return made


def test_training_on_the_whole_forget_set_by_an_ordinary_loader_keeps_the_poison(
    tmp_path: Path,
) -> None:
    recipe = {
        "name": "trap",
        "data": {"name": "digits", "train": 500, "test": 200},
        "model": {"name": "mlp", "width": 256},
        "training": {"epochs": 15, "batch_size": 32, "lr": 0.1},
        "attack": {"name": "gaussian", "draws": 19, "variance": 4.0},
        "poison_budgets": 0.3,
        "seeds": 1,
        "unlearners": [],
        "budgets": 1.0,
    }
    results = marshtest.run(recipe, unlearners=[keep_everything], out=tmp_path / "run")
    left = results.rows.set_index("role")["rank_dependence"]
    assert left["updated"] > 0.7 * left["initial"] > 0.3
