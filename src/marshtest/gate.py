"""The gate: facts that hold for any unlearner, run over our own in the tests and offered for yours.

Three small problems, all on synthetic data, a few seconds in all:

    images    a convolutional classifier with BatchNorm behind a frozen stem
    text      a causal language model that reads a label word
    convex    logistic regression, solved exactly with and without the forget set

The last has a known answer. At the minimiser of the full loss, lowering the retain loss and raising
the forget loss are one and the same direction, so descent and ascent methods alike must end nearer
to the retrained solution than they began, at one of three budgets at least.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.budget import Budget, flops_of
from marshtest.data import Samples
from marshtest.seeds import seeded
from marshtest.tasks import Classification, LabelWord, Task, Train
from marshtest.training import Training, fit, fit_within
from marshtest.unlearning import Custom, Unlearner
from marshtest.unlearning.harness import STOPPED, Outcome, unlearn

WEIGHT_DECAY = 5e-4  # the unlearners' own, so that they minimise the convex problem's objective


@dataclass(frozen=True)
class Fact:
    """One thing that must hold, and what was seen where it does not."""

    name: str
    holds: bool
    detail: str = ""


def check_unlearner(unlearner: Unlearner | Callable[..., Any]) -> list[Fact]:
    """Run an unlearner through the gate.

    Args:
        unlearner: one of ours, or a callable
            (model, retain, forget, *, task, budget, seed) → model.

    Returns:
        All facts, in the order of checking; the unlearner is fit for use if every one holds.
    """
    made = unlearner.imported() if isinstance(unlearner, Unlearner) else Custom.wrap(unlearner)
    return [*_on_task(made, "images", images()), *_on_task(made, "text", text()), *_on_convex(made)]


@dataclass(frozen=True)
class Problem:
    """A trained model, its samples and its task; `passes` is what its training cost."""

    model: nn.Module
    retain: Samples
    forget: Samples
    task: Task
    passes: float
    flops_per_pass: float

    def run(self, unlearner: Unlearner, share: float, seed: int = 0) -> Outcome:
        """Unlearn within a share of the training's cost."""
        budget = Budget(share * self.passes, self.flops_per_pass)
        return unlearn(
            unlearner,
            self.model,
            self.retain,
            self.forget,
            task=self.task,
            budgets=[budget],
            seed=seed,
        )[0]


def _on_task(unlearner: Unlearner, kind: str, problem: Problem) -> Iterator[Fact]:
    given = copy.deepcopy(problem.model)
    seen = _Given()
    before = _bits(problem)
    outcome = problem.run(seen.watching(unlearner), 0.5)
    yield Fact(f"{kind}: runs and returns a model", outcome.model is not None, outcome.note)
    stopped = outcome.note == STOPPED
    detail = "stopped by the harness; draw batches through budget.stream(...)" if stopped else ""
    yield Fact(f"{kind}: keeps to the budget", not stopped, detail)
    if outcome.model is None:
        return
    yield Fact(
        f"{kind}: leaves model and samples passed in as they were",
        _equal(seen.state(), given.state_dict()) and before == _bits(problem),
    )
    shared = _storages(outcome.model) & seen.storages
    yield Fact(f"{kind}: shares no weights with the model passed in", not shared)
    yield Fact(
        f"{kind}: changes the model",
        not _equal(outcome.model.state_dict(), given.state_dict()),
    )
    yield Fact(f"{kind}: leaves frozen parameters as they were", _frozen_kept(outcome.model, given))
    again = problem.run(unlearner, 0.5)
    same = again.model is not None and _equal(outcome.model.state_dict(), again.model.state_dict())
    yield Fact(f"{kind}: same seed, same result", same)


class _Given:
    """Keeps hold of the very model that the harness passes in, to look at it afterwards."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.storages: set[int] = set()

    def watching(self, unlearner: Unlearner) -> Unlearner:
        def watched(model: nn.Module, *samples: Samples, **rest: Any) -> nn.Module:
            self.model, self.storages = model, _storages(model)
            return unlearner(model, *samples, **rest)

        return Custom(name=unlearner.name, function=watched)

    def state(self) -> dict[str, Tensor]:
        return {} if self.model is None else self.model.state_dict()


def _on_convex(unlearner: Unlearner) -> Iterator[Fact]:
    problem, answer = convex()
    start = _excess(problem.model, answer, problem)
    ends = []
    for share in (0.03, 0.3, 1.0):
        outcome = problem.run(unlearner, share)
        if outcome.model is not None:
            ends.append(_excess(outcome.model, answer, problem) / start)
    nearest = min(ends, default=float("nan"))
    yield Fact(
        "convex: ends nearer to the retrained solution than it began",
        nearest < 0.9,
        f"excess retain loss {nearest:.3g} of the initial one"
        + ("" if nearest < 0.9 else "; it does nothing, or goes the wrong way"),
    )


def images() -> Problem:
    """64 noisy images of four classes, a small convolutional network, its stem frozen."""
    draws = torch.Generator().manual_seed(1)
    y = torch.arange(64) % 4
    patterns = torch.randn(4, 3, 8, 8, generator=draws)
    x = patterns[y] + 0.5 * torch.randn(64, 3, 8, 8, generator=draws)
    samples = Samples(x, y, torch.arange(64))
    with seeded(2):
        stem = nn.Conv2d(3, 8, 3, padding=1)

    def new_model() -> nn.Module:
        return nn.Sequential(
            copy.deepcopy(stem).requires_grad_(False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 4),
        )

    return _trained(new_model, samples, 8, Classification(), Training(epochs=20, batch_size=16))


class _TinyLM(nn.Module):
    """A causal model with the calling convention of `transformers`: running means, three layers."""

    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, vocabulary)
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        counts = torch.arange(1, inputs_embeds.shape[1] + 1, device=inputs_embeds.device)
        return self.layers(inputs_embeds.cumsum(1) / counts[:, None])  # type: ignore[no-any-return]


def text() -> Problem:
    """64 prompts of two kinds of tokens, of unequal length; the label word says which kind."""
    draws = torch.Generator().manual_seed(3)
    kind = torch.arange(64) % 2
    words = torch.randint(3, 8, (64, 6), generator=draws) + 5 * kind[:, None]
    lengths = torch.randint(3, 7, (64, 1), generator=draws)
    x = words.masked_fill(torch.arange(6) >= lengths, 0)
    samples = Samples(x, 1 + kind, torch.arange(64))
    training = Training(epochs=20, batch_size=16, lr=0.3)
    return _trained(lambda: _TinyLM(13), samples, 8, LabelWord(padding=0), training)


def _trained(
    new_model: Callable[[], nn.Module],
    samples: Samples,
    forget: int,
    task: Task,
    training: Training,
) -> Problem:
    """Train on all samples, the first `forget` of them with wrong labels."""
    y = samples.y.clone()
    y[:forget] = samples.y.roll(1)[:forget]
    samples = replace(samples, y=y)

    def train(kept: Samples, seed: int, budget: Budget | None = None) -> nn.Module:
        with seeded(seed):
            made = new_model()
        if budget is None:
            fit(made, kept, task, training, seed)
        else:
            fit_within(made, kept, task, training, seed, budget)
        return made

    with seeded(0):
        model = new_model()
    done = fit(model, samples, task, training, 0)
    return Problem(
        model,
        samples[forget:],
        samples[:forget],
        _equipped(task, train, new_model, training),
        done.cost.passes,
        done.flops_per_pass,
    )


def _equipped(
    task: Task, train: Train, new_model: Callable[[], nn.Module], training: Training
) -> Task:
    """The task with all that an unlearner finds in it in a run; nothing is held out."""

    def fresh(seed: int) -> nn.Module:
        with seeded(seed):
            return new_model()

    return replace(task, train=train, new_model=fresh, optimizer_for=training.optimizer_for)


class _Linear(nn.Module):
    """Logistic regression in three blocks of features, so that it has three layers to count."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(features // 3, classes, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.blocks, x.chunk(3, dim=1), strict=True)
        return torch.stack([block(part) for block, part in parts]).sum(0)


def convex() -> tuple[Problem, nn.Module]:
    """A logistic regression at its exact minimiser on retain and forget set, and the retrained one.

    Features are large (s.d. 5), so that the paper's small learning rates move within a budget.
    """
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(400, 12, generator=draws)
    truth = torch.randn(12, 3, generator=draws)
    noise = -torch.rand(400, 3, generator=draws).log().log().neg()  # Gumbel: labels from softmax
    y = (x @ truth + noise).argmax(1)
    y[:80] = (y[:80] + 1) % 3
    samples = Samples(5 * x, y, torch.arange(400))
    task, training = Classification(), Training(epochs=300, batch_size=128, lr=1e-3)

    def train(kept: Samples, seed: int, budget: Budget | None = None) -> nn.Module:
        with seeded(seed):
            made = _Linear(12, 3)
        if budget is None:
            solve(made, kept)
        else:
            fit_within(made, kept, task, training, seed, budget)
        return made

    model, answer = train(samples, 0), train(samples[80:], 0)
    forward = flops_of(lambda: model(samples.x)) / len(samples)
    passes = 3.0 * training.epochs * len(samples)
    equipped = _equipped(task, train, lambda: _Linear(12, 3), training)
    return Problem(model, samples[80:], samples[:80], equipped, passes, forward), answer


def solve(model: nn.Module, samples: Samples) -> None:
    """Minimise the mean cross-entropy plus weight decay, in place, to a gradient norm below 1e-4."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(model, samples)
        value.backward()
        return value

    optimizer.step(closure)


def objective(model: nn.Module, samples: Samples) -> Tensor:
    """Mean cross-entropy plus half the weight decay times the squared norm."""
    squares = sum((parameter**2).sum() for parameter in model.parameters())
    return F.cross_entropy(model(samples.x), samples.y) + WEIGHT_DECAY / 2 * squares


@torch.no_grad()
def _excess(model: nn.Module, answer: nn.Module, problem: Problem) -> float:
    return float(objective(model, problem.retain) - objective(answer, problem.retain))


def _storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _frozen_kept(model: nn.Module, given: nn.Module) -> bool:
    after = dict(model.named_parameters())
    return all(
        name in after and torch.equal(after[name], parameter)
        for name, parameter in given.named_parameters()
        if not parameter.requires_grad
    )


def _bits(problem: Problem) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [t for s in (problem.retain, problem.forget) for t in (s.x, s.y, s.ids)]
        return b"".join(tensor.numpy().tobytes() for tensor in tensors)
