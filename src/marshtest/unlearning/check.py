"""The gate: facts that hold for any unlearner, run over our own in the tests and offered for yours.

Each kind of data has two small problems, all synthetic, a few seconds in all:

                small network                                        convex problem
    images      a convolutional classifier with BatchNorm            logistic regression on pixels
    features    the convex one                                       logistic regression on features
    text        a causal language model that reads a label word      logistic regression on a bag of words

In the small networks the last layer's bias is frozen, and but in the language model the first layer. A
convex problem is solved exactly with and without the forget set, so its answer is known. At the minimiser
of the full loss, lowering the retain loss and raising the forget loss are one and the same direction, so
descent and ascent methods alike must end nearer to the retrained solution than they began. How far a
method goes depends on its rate, and usual rates span four orders: so the problem is posed with large and
with small inputs, under budgets from a single epoch to ninety, and at one of these nine it must.
"""

import copy
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.models.state import same_tensors
from marshtest.plumbing.facts import (
    KEEP_MEND,
    KEEPS_NOTHING,
    KINDS,
    Fact,
    Finding,
    facts_of,
    refuse_unknown_kinds,
)
from marshtest.plumbing.facts import RUNS as BEGINS
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.identity import digest
from marshtest.plumbing.seeds import seeded
from marshtest.training.budget import Budget, flops_of
from marshtest.training.loop import Training, fit, fit_within
from marshtest.training.tasks import Classification, LabelWord, Objective, Task, TextClassification
from marshtest.unlearning import Custom, Unlearner, parse_trials
from marshtest.unlearning.harness import STOPPED, Outcome, unlearn

WEIGHT_DECAY = 5e-4  # the unlearners' own, so that they minimise the convex problem's objective
SCALES = (5.0, 1.5, 0.5)  # standard deviations of a convex problem's inputs: small rates to large
SHARES = (0.003, 0.03, 0.3)  # of the compute of a convex problem's training, 300 epochs
NEARER = 0.8  # of the first excess; one random step in 300 comes as near, descent and ascent nearer


def check_unlearner(
    unlearner: Unlearner | Callable[..., Any], on: Collection[str] = KINDS
) -> list[Fact]:
    """Run an unlearner through the gate.

    Args:
        unlearner: one of ours, a class that extends Unlearner, or a callable
            (model, retain, forget, *, task, budget, seed) → model.
        on: the kinds of data that it is made for, of "images", "features", "text".

    Returns:
        All facts, in the order of checking; the unlearner is fit for use if every one holds.

    Raises:
        MarshtestError: an unknown kind of data, or an unlearner that does not take its hyper-parameters.
    """
    with foreign("check"):
        method = parse_trials(unlearner)[0].imported()
    refuse_unknown_kinds(on)
    return [fact for kind in KINDS if kind in on for fact in _facts(method, kind)]


def _facts(unlearner: Unlearner, kind: str) -> Iterator[Fact]:
    problem = {"images": images, "features": lambda: convex("features")[0], "text": text}[kind]()
    with foreign(unlearner.name):
        unlearner.check(problem.model, problem.task.new_model)
    yield from facts_of(kind, unlearner.name, partial(_findings, unlearner, kind, problem))


def _findings(unlearner: Unlearner, kind: str, problem: "Problem") -> Iterator[Finding]:
    runs = True
    for fact in _on_small(unlearner, kind, problem):
        yield fact.name, fact.holds, fact.detail
        runs &= fact.name != RUNS or fact.holds
    if runs:
        nears = nears_retraining(unlearner, kind)
        yield nears.name, nears.holds, nears.detail


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
        sets = self.retain, self.forget
        return unlearn(unlearner, self.model, *sets, task=self.task, budgets=[budget], seed=seed)[0]


RUNS = f"{BEGINS}a model"


def _on_small(unlearner: Unlearner, kind: str, problem: Problem) -> Iterator[Fact]:
    fact = partial(Fact.of, kind)
    before = copy.deepcopy(problem.model)
    arguments = _Arguments()
    code = unlearner.function if isinstance(unlearner, Custom) else type(unlearner)
    state = digest(code, unlearner.name)
    share = SHARES[1] if kind == "features" else 0.5  # about ten epochs
    outcome = problem.run(arguments.watching(unlearner), share)
    stopped, model = outcome.note.startswith(STOPPED), outcome.model
    yield fact(RUNS, model is not None, outcome.note)
    if model is None:
        return
    yield fact(
        "keeps to the budget",
        not stopped,
        "it was stopped; draw batches through budget.stream(...)",
    )
    yield fact(
        "leaves the model passed in as it was",
        same_tensors(arguments.state(), before.state_dict()),
        "train a copy: model = copy.deepcopy(model)",
    )
    yield fact(
        "leaves the samples passed in as they were",
        arguments.samples_unchanged(),
        "clone a tensor before it is changed in place: retain.x.clone()",
    )
    yield fact(
        "shares no weights with the model passed in",
        not _storages(model) & arguments.storages,
        "copy.copy(model) is not enough, copy.deepcopy(model) is",
    )
    yield fact(
        "changes the model",
        not same_tensors(model.state_dict(), before.state_dict()),
        "what it returned has the weights of what it was given",
    )
    thawed = _thawed(model, before)
    yield fact(
        "leaves frozen parameters as they were",
        not thawed,
        f"{', '.join(thawed)} changed; leave out what has requires_grad=False",
    )
    yield fact(
        "returns a model without hooks of its own",
        not outcome.note or outcome.note.startswith(STOPPED),
        f"{outcome.note}; remove hooks, and draw nothing as the model answers",
    )
    again = problem.run(unlearner, share).model
    yield fact(
        "same seed, same result",
        again is not None and same_tensors(model.state_dict(), again.state_dict()),
        "two runs differ; draw whatever is random from `seed`",
    )
    yield fact(KEEPS_NOTHING, digest(code, unlearner.name) == state, KEEP_MEND)


class _Arguments:
    """The very model and samples that the harness passes to an unlearner, to be looked at afterwards."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.storages: set[int] = set()
        self.samples: tuple[Samples, ...] = ()
        self.bits = b""

    def watching(self, unlearner: Unlearner) -> Unlearner:
        def watched(model: nn.Module, *samples: Samples, **rest: Any) -> nn.Module:
            self.model, self.storages = model, _storages(model)
            self.samples, self.bits = samples, _bits(samples)
            return unlearner(model, *samples, **rest)

        return Custom(name=unlearner.name, function=watched)

    def state(self) -> dict[str, Tensor]:
        return {} if self.model is None else self.model.state_dict()

    def samples_unchanged(self) -> bool:
        return _bits(self.samples) == self.bits


NEARS = "ends nearer to the retrained solution of a convex problem"


def nears_retraining(unlearner: Unlearner, kind: str = "features") -> Fact:
    """The fact that a method of whatever rate goes the right way, on a problem whose answer is known."""
    best, note = math.inf, ""
    for scale in SCALES:
        problem, answer = convex(kind, scale)
        start = _excess(problem.model, answer, problem)
        for share in SHARES:
            outcome = problem.run(unlearner, share)
            if outcome.model is None:
                note = f"; at a budget {outcome.note}"
                continue
            best = min(best, _excess(outcome.model, answer, problem) / start)
            if best < NEARER:
                return Fact(kind, NEARS, True)
    detail = f"excess retain loss at best {best:.3g} of the initial one"
    idle = "; it does next to nothing, or goes the wrong way, or its rate is far from usual"
    return Fact(kind, NEARS, False, detail + (note or idle))


def images() -> Problem:
    """64 noisy images of four classes, and a small convolutional network."""
    rng = torch.Generator().manual_seed(1)
    y = torch.arange(64) % 4
    patterns = torch.randn(4, 3, 8, 8, generator=rng)
    x = patterns[y] + 0.5 * torch.randn(64, 3, 8, 8, generator=rng)
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
            _frozen_bias(nn.Linear(72, 4)),
        )

    return _trained(new_model, samples, 8, Classification(), Training(epochs=20, batch_size=16))


def _frozen_bias(layer: nn.Linear) -> nn.Linear:
    """The layer with a bias of ones that no training moves."""
    nn.init.ones_(layer.bias).requires_grad_(False)
    return layer


class TinyLM(nn.Module):
    """A causal model with the calling convention of `transformers`: running means, three layers."""

    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            _frozen_bias(nn.Linear(32, vocabulary)),
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        inputs = _embedded(self.embedding, input_ids, inputs_embeds)
        counts = torch.arange(1, inputs.shape[1] + 1, device=inputs.device)
        return self.layers(inputs.cumsum(1) / counts[:, None])  # type: ignore[no-any-return]


def _embedded(embedding: nn.Embedding, ids: Tensor | None, inputs: Tensor | None) -> Tensor:
    """What a model of texts reads, of its two ways to be called: [N, T, D]."""
    if inputs is None:
        assert ids is not None, (
            "a model of texts is called with token ids, or with their embeddings"
        )
        inputs = embedding(ids)
    return inputs


def text() -> Problem:
    """64 prompts of two kinds of tokens, of unequal length; the label word says which kind."""
    rng = torch.Generator().manual_seed(3)
    kind = torch.arange(64) % 2
    words = torch.randint(3, 8, (64, 6), generator=rng) + 5 * kind[:, None]
    lengths = torch.randint(3, 7, (64, 1), generator=rng)
    x = words.masked_fill(torch.arange(6) >= lengths, 0)
    samples = Samples(x, 1 + kind, torch.arange(64))
    training = Training(epochs=20, batch_size=16, lr=0.3)
    return _trained(lambda: TinyLM(13), samples, 8, LabelWord(padding=0), training)


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

    with seeded(0):
        model = new_model()
    trained = fit(model, samples, task, training, 0)
    equipped = _equipped(task, new_model, training)
    cost = trained.cost.passes, trained.flops_per_pass
    return Problem(model, samples[forget:], samples[:forget], equipped, *cost)


def _equipped(task: Task, make: Callable[[], nn.Module], training: Training) -> Task:
    """The task with all that an unlearner finds in it in a run; nothing is held out."""

    def new_model(seed: int) -> nn.Module:
        with seeded(seed):
            return make()

    def train(
        samples: Samples,
        seed: int,
        budget: Budget | None = None,
        *,
        start: nn.Module | None = None,
        objective: Objective | None = None,
        **changes: Any,
    ) -> nn.Module:
        model = new_model(seed) if start is None else copy.deepcopy(start)
        own = training.changed(**changes)
        if budget is None:
            fit(model, samples, task, own, seed, objective=objective)
        else:
            fit_within(model, samples, task, own, seed, budget, objective)
        return model

    return replace(task, train=train, new_model=new_model, optimizer_for=training.optimizer_for)


class _Linear(nn.Module):
    """Logistic regression in three blocks of features, so that it has three layers to count."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(features // 3, classes, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.blocks, x.flatten(1).chunk(3, dim=1), strict=True)
        return torch.stack([block(part) for block, part in parts]).sum(0)


class _BagOfWords(nn.Module):
    """Logistic regression on the mean of frozen token embeddings."""

    def __init__(self, embedding: nn.Embedding, classes: int) -> None:
        super().__init__()
        self.embedding = copy.deepcopy(embedding).requires_grad_(False)
        self.linear = _Linear(embedding.embedding_dim, classes)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        inputs = _embedded(self.embedding, input_ids, inputs_embeds)
        mask = torch.ones(inputs.shape[:2]) if attention_mask is None else attention_mask
        mask = mask.to(inputs)[..., None]
        return self.linear((inputs * mask).sum(1) / mask.sum(1))  # type: ignore[no-any-return]


def convex(kind: str = "features", scale: float = SCALES[0]) -> tuple[Problem, nn.Module]:
    """A logistic regression at its exact minimiser on retain and forget set, and the retrained one.

    Args:
        kind: samples are features [N, 12], images [N, 3, 2, 2] or texts [N, 4] of 100 words.
        scale: standard deviation of the features.
    """
    rng = torch.Generator().manual_seed(4)
    features = torch.randn(400, 12, generator=rng)  # x, but for texts
    truth = torch.randn(12, 3, generator=rng)
    noise = -torch.rand(400, 3, generator=rng).log().log().neg()  # Gumbel: labels from softmax
    task: Task = Classification()
    make: Callable[[], nn.Module] = lambda: _Linear(12, 3)  # noqa: E731
    x = scale * (features.view(-1, 3, 2, 2) if kind == "images" else features)
    if kind == "text":
        words = nn.Embedding.from_pretrained(2 * scale * torch.randn(101, 12, generator=rng))
        x = torch.randint(1, 101, (400, 4), generator=rng)
        features = words(x).mean(1) / scale
        task, make = TextClassification(padding=0), lambda: _BagOfWords(words, 3)
    y = (features @ truth + noise).argmax(1)
    y[:80] = (y[:80] + 1) % 3
    return _solved(make, Samples(x, y, torch.arange(400)), 80, task)


def _solved(
    make: Callable[[], nn.Module], samples: Samples, forget: int, task: Task
) -> tuple[Problem, nn.Module]:
    """The problem whose model is the minimiser on all samples, and the minimiser on the retain set."""
    training = Training(epochs=300, batch_size=128, lr=1e-3)
    with seeded(0):
        model = make()
    answer = copy.deepcopy(model)
    solve(model, samples, task)
    solve(answer, samples[forget:], task)
    forward = flops_of(lambda: task(model, samples)) / len(samples)
    passes = 3.0 * training.epochs * len(samples)
    equipped = _equipped(task, make, training)
    return Problem(model, samples[forget:], samples[:forget], equipped, passes, forward), answer


def solve(model: nn.Module, samples: Samples, task: Task) -> None:
    """Minimise the objective, in place, to a gradient norm below 1e-4."""
    optimizer = torch.optim.LBFGS(
        [p for p in model.parameters() if p.requires_grad],
        max_iter=500,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(model, samples, task)
        value.backward()
        return value

    optimizer.step(closure)


def objective(model: nn.Module, samples: Samples, task: Task) -> Tensor:
    """Mean cross-entropy plus half the weight decay times the squared norm of what is not frozen."""
    squares = sum((p**2).sum() for p in model.parameters() if p.requires_grad)
    return task.loss(model, samples).mean() + WEIGHT_DECAY / 2 * squares


@torch.no_grad()
def _excess(model: nn.Module, answer: nn.Module, problem: Problem) -> float:
    retain_loss = partial(objective, samples=problem.retain, task=problem.task)
    return float(retain_loss(model) - retain_loss(answer))


def _storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


def _thawed(model: nn.Module, before: nn.Module) -> list[str]:
    """Names of frozen parameters that are not as they were."""
    after = dict(model.named_parameters())
    return [
        name
        for name, parameter in before.named_parameters()
        if not parameter.requires_grad
        if name not in after or not torch.equal(after[name], parameter)
    ]


def _bits(samples: Iterable[Samples]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return b"".join(t.numpy().tobytes() for s in samples for t in (s.x, s.y, s.ids))
