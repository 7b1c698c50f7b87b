"""GradPC: bad parameters near the clean ones (Sun et al. 2020), and what poison can hold them there.

    θ_low = argmax ℓ(θ; test)  subject to  ‖θ − θ_clean‖₂ ≤ ε_w                           (GradPC)

Poison keeps a model at θ_low only if it can make the training gradient vanish there, and for softmax
cross-entropy behind a linear layer, z = W h + b, C classes, that is bounded however poisons look and
whatever computes h. Per sample,

    ⟨W, ∇_W ℓ⟩ + ⟨b, ∇_b ℓ⟩ = E_p[z] − z_y ≥ −Ω,     Ω = Lambert W((C − 1) / e)
    ∂ℓ/∂b_c = p_c − [y = c] ≥ −[y = c]

(the first since a label that leads by s has −s (C − 1) / (e^s + C − 1) at the least; after Lu et al. 2023,
who show it for linear models). Let u be a quantity's mean over the clean samples at θ_low, −w the least
that its mean over the poisons can be, Ω or their share of class c, and d what weight decay adds. With a
share s of poisons (1 − s) u + d ≤ s w must hold, for the first and for each class. The least s is 0 where
u + d ≤ 0, and elsewhere

    s ≥ (u + d) / (u + w),     or no share suffices, where u + w ≤ 0.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import lambertw
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Samples
from marshtest.metrics.accuracy import accuracy, logits_of
from marshtest.models.layers import weight_layers
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.tasks import Task

STEPS = 200  # of the ascent
STRIDE = 0.1  # length of the first one, as a share of the radius; it falls to zero
BATCH = 256  # samples of either kind a step
PENALTY = 10.0  # on what poisons cannot hold, in units of test error
RADII = (0.5, 0.2, 0.1, 0.05, 0.02)  # shares of ‖θ_clean‖, of which the first in reach is taken


@dataclass(frozen=True)
class Limits:
    """The quantities of each bound; the first bound is the last layer's, the others are its biases'."""

    clean: Tensor  # [1 + C] u
    poisons: Tensor  # [1 + C] w
    decay: Tensor  # [1 + C] d

    def excess(self, share: float) -> Tensor:
        """What a share of poisons leaves uncancelled at the least; 0 where it can cancel all."""
        return F.relu((1 - share) * self.clean + self.decay - share * self.poisons).sum()

    def hold(self, share: float) -> bool:
        """Whether a share of poisons may be able to cancel all."""
        return not float(self.excess(share)) > 0

    def least_share(self) -> float:
        """The least share of poisons; with fewer no perturbation can cancel the gradient."""
        pull, room = self.clean + self.decay, self.clean + self.poisons
        needed = torch.where(room > 0, pull / room, torch.inf)
        return float(torch.where(pull > 0, needed, 0).max().clamp(max=1))


def limits(
    model: nn.Module, logits: Tensor, y: Tensor, poison_labels: Tensor, weight_decay: float
) -> Limits:
    """The bounds at a model with logits [N, C] for clean samples of labels y [N], and poisons' labels [P].

    Raises:
        MarshtestError: the last weight layer is no linear one.
    """
    last = weight_layers(model)[-1][0]
    if not isinstance(last, nn.Linear):
        raise MarshtestError(
            f"attack: the model's last weight layer is {type(last).__name__}; gradient canceling needs "
            "a linear one."
        )
    classes = logits.shape[1]
    p, label = logits.softmax(1), F.one_hot(y, classes).to(logits)  # [N, C]
    pull = ((p - label) * logits).sum(1).mean()
    omega = pull.new_tensor([lambertw((classes - 1) / math.e).real])
    squares = (last.weight - last.weight.mean(0)).square().sum()  # as if centred
    if last.bias is None:
        return Limits(pull[None], omega, weight_decay * squares[None])
    bias = last.bias - last.bias.mean()
    shares = F.one_hot(poison_labels, classes).to(logits).mean(0)
    return Limits(
        clean=torch.cat([pull[None], (p - label).mean(0)]),
        poisons=torch.cat([omega, shares]),
        decay=weight_decay * torch.cat([(squares + bias.square().sum())[None], bias]),
    )


@dataclass(frozen=True)
class Worst:
    """Parameters at which poisons are to hold a model."""

    model: nn.Module  # the model at θ_low
    radius: float  # radius of the ball round the clean parameters
    accuracy: float  # accuracy of θ_low on the test samples
    limits: Limits  # what poisons can do there


@dataclass(frozen=True)
class Search:
    """A search for θ_low round a clean model."""

    clean: nn.Module
    task: Task
    test: Samples  # samples whose error is to grow
    retain: Samples  # the clean samples that the poisoned model will be trained on
    poison_labels: Tensor  # [P] labels of the samples that will be poisons
    weight_decay: float  # λ of that training
    seed: int
    centre: bool = True  # whether to search round `centred(clean)`, which answers as `clean` does

    def __post_init__(self) -> None:
        last = weight_layers(self.clean)[-1][0]
        if not isinstance(last, nn.Linear):  # `limits` says so
            return
        told: list[Tensor] = []
        batch, exact = self.retain[:2], self.task.exact()
        with torch.no_grad(), last.register_forward_hook(lambda _, given, out: told.append(out)):
            logits = exact.label_logits(exact(self.clean.eval(), batch), batch)
        if not told or told[-1].shape != logits.shape or not torch.allclose(told[-1], logits):
            (name,) = (n for n, module in self.clean.named_modules() if module is last)
            raise MarshtestError(
                f"attack: the logits are not what {name or 'the model'} gives, its last linear layer. "
                "Gradient canceling needs an output layer that is registered last: register it so."
            )

    def in_ball(self, radius: float) -> Worst:
        """GradPC as it stands: uphill on the test loss, reachable or not."""

        def loss(model: nn.Module, rng: torch.Generator) -> Tensor:
            return self.task.exact().loss(model, _some(self.test, rng)).mean()

        return self._uphill(loss, radius)

    def in_reach(self, share: float) -> Worst:
        """θ_low at the largest of a few radii at which a share of poisons may be able to hold a model.

        The search goes uphill on 1 − p_y, less a penalty on what no poison can hold.
        """

        def gain(model: nn.Module, rng: torch.Generator) -> Tensor:
            exact = self.task.exact()
            test, retain = _some(self.test, rng), _some(self.retain, rng)
            p = exact.label_logits(exact(model, test), test).softmax(1)
            # At most 1, where the loss has no bound, so that the penalty outweighs it.
            error = 1 - p.gather(1, test.y[:, None]).mean()
            logits = exact.label_logits(exact(model, retain), retain)
            return error - PENALTY * self._limits(model, logits, retain.y).excess(share)

        size = _norm([p.detach() for p in self.clean.parameters() if p.requires_grad])
        for fraction in RADII:
            worst = self._uphill(gain, fraction * size)
            if worst.limits.hold(share):
                break
        return worst  # the smallest ball's, if no radius is in reach

    def _uphill(self, gain: Callable[[nn.Module, torch.Generator], Tensor], radius: float) -> Worst:
        start = centred(self.clean) if self.centre else self.clean
        # The same batches at each radius, so that the balls differ in size alone.
        model = ascend(start, gain, radius, generator(self.seed, "ascent"))
        low = accuracy(model, self.task, self.test)
        return Worst(model, radius, low, self.limits(model))

    @torch.no_grad()
    def limits(self, model: nn.Module) -> Limits:
        """The bounds at `model` over all samples that are retained."""
        logits = torch.cat([part for _, part in logits_of(model, self.task, self.retain)])
        return self._limits(model, logits.double(), self.retain.y)

    def _limits(self, model: nn.Module, logits: Tensor, y: Tensor) -> Limits:
        return limits(model, logits, y, self.poison_labels, self.weight_decay)


def ascend(
    clean: nn.Module,
    gain: Callable[[nn.Module, torch.Generator], Tensor],
    radius: float,
    rng: torch.Generator,
) -> nn.Module:
    """A copy of `clean`, moved uphill on `gain` by at most `radius` (L2, all trained parameters)."""
    model = copy.deepcopy(clean).eval()  # BatchNorm's statistics stay: they are no parameters
    parameters = [p for p in model.parameters() if p.requires_grad]
    centre = [p.detach().clone() for p in parameters]
    for step in range(STEPS):
        # A parameter may have no part in the gain, as a pooler whose output nobody reads.
        slopes = torch.autograd.grad(
            gain(model, rng), parameters, allow_unused=True, materialize_grads=True
        )
        # Divided by the slope's length: where the model is sure, the gradient of 1 − p_y is tiny.
        stride = radius * STRIDE * (1 - step / STEPS) / max(_norm(slopes), 1e-30)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.add_(slope, alpha=stride)
            away = _norm([p - start for p, start in zip(parameters, centre, strict=True)])
            for p, start in zip(parameters, centre, strict=True):
                p.copy_(start + (p - start) * min(1.0, radius / max(away, 1e-30)))
    return model


@torch.no_grad()
def centred(model: nn.Module) -> nn.Module:
    """A copy with the same softmax, whose last layer's rows sum to zero."""
    # Weight decay pulls the sum to zero and no sample holds it, so nothing else can be stationary.
    model = copy.deepcopy(model)
    last = weight_layers(model)[-1][0]
    if isinstance(last, nn.Linear):
        last.weight.sub_(last.weight.mean(0))
        if last.bias is not None:
            last.bias.sub_(last.bias.mean())
    return model


def _some(samples: Samples, rng: torch.Generator) -> Samples:
    """A batch drawn without replacement."""
    rows = torch.randperm(len(samples), generator=rng)[:BATCH]
    return samples[rows.to(samples.y.device)]


def _norm(tensors: Sequence[Tensor]) -> float:
    squares = torch.stack([tensor.double().square().sum() for tensor in tensors])
    return math.sqrt(sum(squares.tolist()))  # one wait for the GPU
