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
share s of poisons (1 − s) u + d ≤ s w must hold, so

    s ≥ (u + d) / (u + w)     for the first, and for each class.
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
    """The three quantities of each bound: one for the whole last layer, then one for each bias."""

    clean: Tensor  # [1 + C] u
    poisons: Tensor  # [1 + C] w
    decay: Tensor  # [1 + C] d

    def excess(self, share: float) -> Tensor:
        """What a share of poisons leaves uncancelled at the least; 0 where it can cancel all."""
        return F.relu((1 - share) * self.clean + self.decay - share * self.poisons).sum()

    def least_share(self) -> float:
        """Of poisons; with fewer no perturbation can cancel."""
        needed = (self.clean + self.decay) / (self.clean + self.poisons)
        return float(needed.max().clamp(0, 1))


def limits(
    model: nn.Module, logits: Tensor, y: Tensor, poison_labels: Tensor, weight_decay: float
) -> Limits:
    """The bounds at `model`.

    Args:
        model: its last weight layer is a linear one.
        logits: [N, C] of clean samples.
        y: [N], their labels.
        poison_labels: [P] of the poisons.
        weight_decay: λ of the training.
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
    """Parameters to hold a victim at.

    Attributes:
        model: at θ_low.
        radius: of the ball round the clean parameters.
        accuracy: of θ_low on the test samples.
        least_share: of poisons; with fewer nothing can hold a victim there.
    """

    model: nn.Module
    radius: float
    accuracy: float
    least_share: float


@dataclass(frozen=True)
class Search:
    """Looks for θ_low round a clean model.

    Attributes:
        clean: the model.
        test: samples whose error is to grow.
        retain: the clean samples that the victim will be trained on.
        poison_labels: [P] of the samples that will be poisons.
        weight_decay: λ of that training.
        centre: look round `centred(clean)`, which is the same model.
    """

    clean: nn.Module
    task: Task
    test: Samples
    retain: Samples
    poison_labels: Tensor
    weight_decay: float
    seed: int
    centre: bool = True

    def in_ball(self, radius: float) -> Worst:
        """GradPC as it stands: uphill on the test loss, reachable or not."""

        def loss(model: nn.Module, draws: torch.Generator) -> Tensor:
            return self.task.exact().loss(model, _some(self.test, draws)).mean()

        return self._found(loss, radius)

    def in_reach(self, share: float) -> Worst:
        """The largest of a few radii at which a share of poisons is not ruled out to hold a victim.

        Uphill on the test error's smooth form, 1 − p_y, against a penalty on what no poison can hold.
        """

        def gain(model: nn.Module, draws: torch.Generator) -> Tensor:
            exact = self.task.exact()
            asked, held = _some(self.test, draws), _some(self.retain, draws)
            p = exact.label_logits(exact(model, asked), asked).softmax(1)
            error = 1 - p.gather(1, asked.y[:, None]).mean()
            logits = exact.label_logits(exact(model, held), held)
            return error - PENALTY * self._limits(model, logits, held.y).excess(share)

        size = _norm([p.detach() for p in self.clean.parameters() if p.requires_grad])
        for part in RADII:
            worst = self._found(gain, part * size)
            if worst.least_share <= share:
                break
        return worst

    def _found(self, gain: Callable[[nn.Module, torch.Generator], Tensor], radius: float) -> Worst:
        start = centred(self.clean) if self.centre else self.clean
        model = ascend(start, gain, radius, generator(self.seed, "ascent"))
        low = accuracy(model, self.task, self.test)
        return Worst(model, radius, low, self.least_share(model))

    @torch.no_grad()
    def least_share(self, model: nn.Module) -> float:
        """The least share of poisons that can make the training gradient vanish at `model`."""
        logits = torch.cat([part for _, part in logits_of(model, self.task, self.retain)])
        return self._limits(model, logits.double(), self.retain.y).least_share()

    def _limits(self, model: nn.Module, logits: Tensor, y: Tensor) -> Limits:
        return limits(model, logits, y, self.poison_labels, self.weight_decay)


def ascend(
    clean: nn.Module,
    gain: Callable[[nn.Module, torch.Generator], Tensor],
    radius: float,
    draws: torch.Generator,
) -> nn.Module:
    """A copy of `clean`, moved uphill on `gain` by at most `radius` (L2, all trained parameters)."""
    model = copy.deepcopy(clean).eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    centre = [p.detach().clone() for p in parameters]
    for step in range(STEPS):
        slopes = torch.autograd.grad(gain(model, draws), parameters)
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
    """A copy of the same softmax whose last layer's rows sum to zero.

    Weight decay pulls their sum to zero and no sample holds it, so nothing else can be stationary.
    """
    model = copy.deepcopy(model)
    last = weight_layers(model)[-1][0]
    if isinstance(last, nn.Linear):
        last.weight.sub_(last.weight.mean(0))
        if last.bias is not None:
            last.bias.sub_(last.bias.mean())
    return model


def _some(samples: Samples, draws: torch.Generator) -> Samples:
    """A batch drawn without replacement."""
    rows = torch.randperm(len(samples), generator=draws)[:BATCH]
    return samples[rows.to(samples.y.device)]


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
