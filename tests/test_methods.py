"""What holds across methods: where two of them meet, tied weights, small sets, and what is no result."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import METHODS
from stepwise import (
    SGD,
    Exact,
    Steps,
    assert_same,
    equipped,
    flat,
    free,
    network,
    problem,
)
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.state import same_tensors
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget
from marshtest.training.loop import Training
from marshtest.training.tasks import LabelWord
from marshtest.unlearning import Unlearner, parse_trials
from marshtest.unlearning.bad_teacher import BadTeacher
from marshtest.unlearning.check import TinyLM, images
from marshtest.unlearning.harness import unlearn
from marshtest.unlearning.ssd import SSD

TRAINING = Training(epochs=1, batch_size=16, lr=0.05, weight_decay=0.01, schedule="constant")
IMAGES = images()
VALUES: dict[str, dict[str, Any]] = {  # that suit the small networks, and little work
    "ssd": {"alpha": 1.1},
    "euk": {"k": 1},
    "cfk": {"k": 1},
    "certified": {"steps": 1, "noisy_batch_size": 16},
}


def method(name: str, **values: Any) -> Unlearner:
    (only,) = parse_trials({"name": name, **values})
    return only


def fit(name: str) -> Unlearner:
    """The method by values that suit the small networks."""
    return method(name, **VALUES.get(name, {}))


def after(unlearner: Unlearner, steps: int, kind: str = "plain") -> nn.Module:
    with seeded(2):  # dropout
        given = problem(kind)
        task = equipped(kind, TRAINING)
        return unlearner(*given, task=task, budget=Steps(steps), seed=5)


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_distillation_by_the_labels_alone_is_retraining(kind: str) -> None:
    one, other = method("distill", label_weight=1), method("retrain-tuned")
    assert_same(after(one, 6, kind), after(other, 6, kind), network(kind, 5))


@pytest.mark.parametrize("kind", ["plain", "batch norm"])
def test_undo_without_noise_and_teacher_is_training_on(kind: str) -> None:
    one = method("undo", alpha=0, unlearn_share=0, label_weight=1)
    trained = after(one, 6, kind)
    assert_same(trained, after(method("shrink-perturb", keep=1), 6, kind), network(kind))
    shared = TRAINING.model_dump(include={"lr", "momentum", "weight_decay", "batch_size"})
    assert_same(trained, after(method("gd", **shared), 6, kind), network(kind))


def test_undo_without_noise_and_labels_stays_its_teacher() -> None:
    one = method("undo", alpha=0, unlearn_share=0, label_weight=0, weight_decay=0)
    torch.testing.assert_close(
        flat(free(after(one, 6))), flat(free(network("plain"))), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_the_penalty_tends_to_gradient_ascent_as_beta_falls(name: str) -> None:
    """The papers: −(2/β) log σ(β x) falls as x rises, by its slope of 1 at β = 0; eight are one batch."""
    shared = {**SGD, "batch_size": 8, "optimizer": "sgd"}
    ascended = flat(free(after(method("ga", **shared), 5)))
    gaps = []
    for beta in (1e-2, 1e-4, 1e-6):
        faded = method(name, beta=beta, retain_weight=0, forget_weight=1, **shared)
        gaps.append(float((flat(free(after(faded, 5))) - ascended).norm()))
    assert gaps[0] > 50 * gaps[1] > 2500 * gaps[2] > 0  # the gap is linear in β


def test_an_alpha_above_every_ratio_changes_nothing() -> None:
    model, retain, forget = problem("plain")
    with Budget(1e9, 1.0) as budget:
        of_forget, of_retain = SSD().importances(model, retain, forget, Exact(), budget, 5)
    largest = float((of_forget / (0.2 * of_forget + 0.8 * of_retain)).max())
    for alpha, same in ((largest * 1.001, True), (largest * 0.999, False)):
        with Budget(1e9, 1.0) as budget:
            found = SSD(alpha=alpha)(model, retain, forget, task=Exact(), budget=budget, seed=5)
        assert torch.equal(flat(free(found)), flat(free(model))) == same


def test_a_bad_teacher_of_nothing_to_forget_teaches_nothing() -> None:
    """The student is its competent teacher, whose divergence from itself is least."""
    model, retain, forget = problem("plain")
    task = equipped("plain", TRAINING)
    sgd: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1}
    found = BadTeacher(**sgd)(model, retain, forget[:0], task=task, budget=Steps(9), seed=5)
    torch.testing.assert_close(flat(free(found)), flat(free(model)), rtol=0, atol=1e-12)
    found = BadTeacher(**sgd)(model, retain, forget, task=task, budget=Steps(9), seed=5)
    assert float((flat(free(found)) - flat(free(model))).abs().max()) > 1e-3


class Tied(TinyLM):
    """A language model whose head is its embedding, as GPT-2's is."""

    def __init__(self) -> None:
        super().__init__(13, 16)
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Any:
        return self.head(super().forward(input_ids, inputs_embeds))


def tied(seed: int) -> nn.Module:
    with seeded(seed):
        return Tied()


@pytest.mark.parametrize("name", METHODS)
def test_tied_weights_stay_tied(name: str) -> None:
    """And are one weight, in the model, in its fresh twin and in what is drawn."""
    x = torch.randint(3, 13, (40, 5), generator=torch.Generator().manual_seed(0))
    samples = Samples(x, 1 + torch.arange(40) % 2, torch.arange(40))
    plain, model = LabelWord(padding=0), tied(1)

    def train(kept: Samples, seed: int, budget: Any, **rest: Any) -> nn.Module:
        start = rest.pop("start", None) or tied(seed)
        objective = rest.pop("objective", None) or plain.loss
        trained, optimizer = copy.deepcopy(start).train(), None
        optimizer = TRAINING.optimizer_for(trained)
        for batch in budget.stream(plain.batches(kept, 16, seed), 2):
            optimizer.zero_grad()
            objective(trained, batch).mean().backward()
            optimizer.step()
        return trained  # type: ignore[no-any-return]

    task = replace(plain, train=train, new_model=tied, optimizer_for=TRAINING.optimizer_for)
    given = (fit(name), model, samples[8:], samples[:8])
    (outcome,) = unlearn(*given, task=task, budgets=[Budget(3000, 10_000.0)], seed=3)
    assert outcome.note == ""
    found = outcome.model
    assert isinstance(found, Tied)
    assert found.head.weight is found.embedding.weight
    assert not same_tensors(found.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("kept", "forgotten"), [(56, 1), (56, 2), (2, 8), (2, 2)])
def test_sets_of_one_or_two_samples_are_worked_on(name: str, kept: int, forgotten: int) -> None:
    few = replace(IMAGES, retain=IMAGES.retain[:kept], forget=IMAGES.forget[:forgotten])
    outcome = few.run(fit(name), 0.1)
    if name in ("ga", "neggrad+", "npo", "simnpo", "random-labels", "salun") and forgotten == 1:
        return  # BatchNorm cannot be trained on one sample: whatever the row says, nothing is raised
    assert outcome.model is not None, outcome.note


@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_is_only_to_be_forgotten_is_worked_on(name: str) -> None:
    retain = IMAGES.retain[IMAGES.retain.y != 2]
    forget = replace(IMAGES.forget, y=torch.full_like(IMAGES.forget.y, 2))
    outcome = replace(IMAGES, retain=retain, forget=forget).run(fit(name), 0.1)
    assert outcome.note == ""
    assert outcome.model is not None


WHOLE = {"ssd": {"alpha": 2}, "assd": {}, "salun": {}, "certified": {}}


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_stopped_method_leaves_half_done_is_not_judged(name: str) -> None:
    """Whatever the budget: an error in one line, or the model after all of what it needs."""
    unlearner, ends = method(name, **WHOLE[name]), set()
    for passes in (1, 10, 30, 60, 200, 500, 900, 3000):
        budget = Budget(passes, IMAGES.flops_per_pass)
        given = (unlearner, IMAGES.model, IMAGES.retain, IMAGES.forget)
        (outcome,) = unlearn(*given, task=IMAGES.task, budgets=[budget], seed=0)
        ends.add(outcome.model is None)
        if outcome.model is None:
            assert "budget affords" in outcome.note or "does not afford" in outcome.note
            assert "\n" not in outcome.note
        elif name != "salun":
            assert not same_tensors(outcome.model.state_dict(), IMAGES.model.state_dict())
    assert ends == {True, False}


@pytest.mark.parametrize("name", METHODS)
def test_a_list_of_budgets_gives_what_a_run_of_each_gives(name: str) -> None:
    given = (fit(name), IMAGES.model, IMAGES.retain, IMAGES.forget)

    def run(*shares: float) -> list[Any]:
        sizes = [Budget(share * IMAGES.passes, IMAGES.flops_per_pass) for share in shares]
        return unlearn(*given, task=IMAGES.task, budgets=sizes, seed=4)

    together, apart = run(0.06, 0.1), [*run(0.06), *run(0.1)]
    for one, other in zip(together, apart, strict=True):
        assert one.note == other.note
        assert one.cost.passes == other.cost.passes
        assert (one.model is None) == (other.model is None)
        if one.model is not None and other.model is not None:
            assert same_tensors(one.model.state_dict(), other.model.state_dict())
