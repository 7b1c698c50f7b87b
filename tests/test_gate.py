"""Our own unlearners pass the gate; fakes fail it, each at the fact that it breaks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import METHODS
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.budget import Budget
from marshtest.unlearning import Custom, parse_trials
from marshtest.unlearning.check import (
    KINDS,
    NEARS,
    RUNS,
    SCALES,
    check_unlearner,
    convex,
    nears_retraining,
    objective,
)
from marshtest.unlearning.harness import unlearn

# Neither descent on labels nor ascent: SSD only makes weights smaller, where the retrained solution has
# larger ones, and Bad Teacher obeys the initial model.
NEITHER: dict[str, dict[str, Any]] = {"ssd": {"alpha": 1.0}, "assd": {}, "bad-teacher": {}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in NEITHER])
def test_our_unlearners_pass(name: str) -> None:
    facts = check_unlearner(parse_trials(name)[0])
    assert [fact for fact in facts if not fact.holds] == []
    assert {fact.kind for fact in facts} == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEITHER)
def test_what_looks_at_no_label_in_a_step_fails_at_the_convex_problem_alone(name: str) -> None:
    facts = check_unlearner(parse_trials({"name": name, **NEITHER[name]})[0])
    assert {fact.name for fact in facts if not fact.holds} == {NEARS}
    assert {fact.kind for fact in facts} == set(KINDS)


def descend(
    model: Any, retain: Any, task: Any, budget: Any, seed: int, sign: float = 1.0, size: int = 64
) -> Any:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in budget.stream(task.batches(retain, size, seed)):
        optimizer.zero_grad()
        (sign * task.loss(model, batch).mean()).backward()
        optimizer.step()
    return model


def no_op(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return copy.deepcopy(model)


def shares_the_weights(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    shallow = copy.copy(model)  # the known peer bug: teacher and student are one
    return descend(shallow.train(), retain, task, budget, seed)


def ascends(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return descend(copy.deepcopy(model).train(), retain, task, budget, seed, sign=-1.0, size=160)


def overspends(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    for batch in task.batches(retain, 64, seed):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()


def unseeded(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    import os

    odd = int.from_bytes(os.urandom(4), "big")
    model = copy.deepcopy(model).train()
    return descend(model, retain, task, budget, odd, size=16)  # no batch is all of the retain set


def thaws(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model).train().requires_grad_(True)
    return descend(model, retain, task, budget, seed)


def writes_samples(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    made = descend(copy.deepcopy(model).train(), retain, task, budget, seed)
    forget.x.zero_()
    return made


def raises(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise RuntimeError("no such thing")


def thaws_the_head(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    model = copy.deepcopy(model).train()
    [*model.modules()][-1].requires_grad_(True)  # a whole layer, of which one parameter is frozen
    return descend(model, retain, task, budget, seed)


def exits(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("fake", "fact"),
    [
        (no_op, "images: changes the model"),
        *((no_op, f"{kind}: {NEARS}") for kind in KINDS),
        (shares_the_weights, "images: leaves the model passed in as it was"),
        (shares_the_weights, "text: shares no weights with the model passed in"),
        *((ascends, f"{kind}: {NEARS}") for kind in KINDS),
        (overspends, "images: keeps to the budget"),
        (unseeded, "text: same seed, same result"),
        (thaws, "images: leaves frozen parameters as they were"),
        (thaws_the_head, "images: leaves frozen parameters as they were"),
        (thaws_the_head, "text: leaves frozen parameters as they were"),
        (writes_samples, "images: leaves the samples passed in as they were"),
        (raises, f"images: {RUNS}"),
        (exits, f"text: {RUNS}"),
    ],
)
def test_fakes_fail(fake: Any, fact: str) -> None:
    kind, _, name = fact.partition(": ")
    failed = {found.name for found in check_unlearner(fake, [kind]) if not found.holds}
    assert name in failed


def test_only_the_kinds_that_are_named_are_asked() -> None:
    def images_only(model: Any, retain: Any, forget: Any, **rest: Any) -> Any:
        _, _, _, _ = retain.x.shape
        return descend_within(model, retain, forget, **rest)

    facts = check_unlearner(images_only, ["images"])
    assert {fact.kind for fact in facts} == {"images"}
    assert all(fact.holds for fact in facts)
    (fact,) = check_unlearner(images_only, ["text"])
    assert (fact.name, fact.holds) == (RUNS, False)
    assert fact.detail.startswith("raised ValueError: not enough values to unpack")
    with pytest.raises(MarshtestError, match="unknown kind of data 'image'.* 'images'"):
        check_unlearner(images_only, ["image"])


OPTIMISERS = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
}


def tuning(kind: str, lr: float, size: int, part: str = "retain", sign: float = 1.0) -> Custom:
    """Plain training: the retain set down is right, all else is wrong."""

    def tune(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
        model = copy.deepcopy(model).train()
        optimizer = OPTIMISERS[kind]([p for p in model.parameters() if p.requires_grad], lr)
        both = (torch.cat([getattr(s, f) for s in (retain, forget)]) for f in ("x", "y", "ids"))
        samples = {"retain": retain, "forget": forget, "all": Samples(*both)}[part]
        for batch in budget.stream(task.batches(samples, size, seed)):
            optimizer.zero_grad()
            (sign * task.loss(model, batch).mean()).backward()
            optimizer.step()
        return model

    return Custom.wrap(tune)


@pytest.mark.slow
def test_the_readmes_own_unlearner_passes() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    _, _, after = text.partition("## Bring your own unlearner\n\n```python\n")
    own, _, _ = after.partition("\n\n\n# two of ten seeds")
    assert own.startswith("import copy")
    found: dict[str, Any] = {"__name__": "readme"}
    exec(own, found)
    assert [fact for fact in check_unlearner(found["my_unlearner"]) if not fact.holds] == []


@pytest.mark.parametrize(("lr", "size"), [(1e-3, 64), (1e-2, 256), (0.05, 64), (0.1, 256)])
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_plain_fine_tuning_goes_the_right_way_at_every_usual_rate(
    kind: str, lr: float, size: int
) -> None:
    assert nears_retraining(tuning(kind, lr, size)).holds


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lr"), [("sgd", 0.1), ("momentum", 1e-3), ("adam", 1e-2)])
@pytest.mark.parametrize(("part", "sign"), [("retain", -1.0), ("forget", 1.0), ("all", 1.0)])
def test_the_wrong_way_is_wrong_at_every_rate(kind: str, lr: float, part: str, sign: float) -> None:
    assert not nears_retraining(tuning(kind, lr, 128, part, sign)).holds


@pytest.mark.parametrize("name", ["gd", "ngd", "cfk", "euk", "scrub", "neggrad+"])
@pytest.mark.parametrize("lr", [1e-3, 1e-2, 0.1])
def test_our_own_go_the_right_way_at_every_usual_rate(name: str, lr: float) -> None:
    (method,) = parse_trials({"name": name, "lr": lr})
    assert nears_retraining(method).holds


def test_random_steps_of_any_size_pass_for_nothing() -> None:
    """36 weights: of all directions, few lead as near as descent does."""
    passed = 0
    for seed in range(100):
        for scale in SCALES:
            problem, answer = CONVEX[scale]
            for size in (0.003, 0.03, 0.3):
                model = copy.deepcopy(problem.model)
                draws = torch.Generator().manual_seed(seed)
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(torch.randn(p.shape, generator=draws), alpha=size)
                    given = problem.retain, problem.task
                    best = objective(answer, *given)
                    left = objective(model, *given) - best
                    passed += bool(left < 0.8 * (objective(problem.model, *given) - best))
    assert passed <= 9  # of 900


CONVEX = {scale: convex("features", scale) for scale in SCALES}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_convex_answer_is_a_minimum_to_a_stated_gradient_norm(kind: str, scale: float) -> None:
    problem, answer = convex(kind, scale)

    def slope(value: Any, model: nn.Module) -> torch.Tensor:
        free = [p for p in model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, free)])

    assert float(slope(objective(answer, problem.retain, problem.task), answer).norm()) < 1e-3
    descent, ascent = (
        slope(problem.task.loss(problem.model, samples).sum(), problem.model)
        for samples in (problem.retain, problem.forget)
    )
    assert (
        nn.functional.cosine_similarity(-descent, ascent, dim=0) > 0.9
    )  # one direction, as stated


def run(fake: Any, share: float = 0.2) -> Any:
    problem, _ = convex()
    budget = Budget(share * problem.passes, problem.flops_per_pass)
    (outcome,) = unlearn(
        Custom.wrap(fake),
        problem.model,
        problem.retain,
        problem.forget,
        task=problem.task,
        budgets=[budget],
        seed=0,
    )
    return outcome, budget, problem


@pytest.mark.slow
def test_one_that_overspends_is_stopped_and_its_model_as_of_then_is_kept() -> None:
    outcome, budget, problem = run(overspends)
    kept, _, _ = run(descend_within)
    assert outcome.note == "stopped at the budget"
    assert budget.spent <= budget.passes
    one, other, start = (
        torch.cat([p.flatten() for p in m.parameters()])
        for m in (outcome.model, kept.model, problem.model)
    )
    assert not torch.equal(one, start)
    torch.testing.assert_close(one, other)  # what an honest loop had after as many steps


def descend_within(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return descend(copy.deepcopy(model).train(), retain, task, budget, seed)


def returns_text(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return "done"


def returns_nan(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def returns_other_classes(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return nn.Linear(12, 7)


def returns_other_inputs(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int
) -> Any:
    return nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("fake", "note"),
    [
        (returns_other_classes, "returned a model of logits (2, 7), not (2, 3)"),
        (returns_other_inputs, "returned a model that raises RuntimeError: mat1 and mat2"),
        (raises, "raised RuntimeError: no such thing"),
        (returns_text, "returned str, not a model"),
        (returns_nan, "NaN or infinite weights"),
    ],
)
def test_what_an_unlearner_does_wrong_is_a_note_and_no_model(fake: Any, note: str) -> None:
    outcome, _, _ = run(fake)
    assert outcome.model is None
    assert outcome.note.startswith(note)


def takes_any(model: Any, retain: Any, forget: Any, **rest: Any) -> Any:
    return model


def rated(
    model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int, rate: float
) -> Any:
    return model


@pytest.mark.parametrize(
    ("function", "given", "complaint"),
    [
        (rated, {"rte": 1}, "unknown hyper-parameter 'rte'. Did you mean 'rate'[?] Known: rate."),
        (rated, {}, "does not take that: missing a required argument: 'rate'"),
        (no_op, {"lr": 1}, "unknown hyper-parameter 'lr'. Known: none."),
        (lambda model, retain: model, {}, "is called as .model, retain, forget"),
        (nn.Linear, {}, "is a class. Extend marshtest.unlearning.Unlearner"),
    ],
)
def test_what_a_callable_does_not_take_is_told_before_it_runs(
    function: Any, given: dict[str, Any], complaint: str
) -> None:
    method = Custom(name="mine:it", source="", options=given, function=function)
    with pytest.raises(MarshtestError, match=complaint):
        check_unlearner(method)


@pytest.mark.parametrize(("function", "given"), [(rated, {"rate": 1}), (takes_any, {"any": 1})])
def test_what_a_callable_takes_is_let_through(function: Any, given: dict[str, Any]) -> None:
    Custom(name="mine:it", source="", options=given, function=function).check(nn.Identity())
