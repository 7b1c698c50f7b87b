"""Newton's step to the retrained minimum of a linear model (Guo et al. 2020, arXiv 1911.03030).

    F(θ) = mean over the retain set of ℓ(θ)  +  ½ λ ‖θ‖²        µ-strongly convex with µ = λ
    θ' = θ_initial − H⁻¹ ∇F(θ_initial),    H = ∇²F(θ_initial)

At the minimum over all samples ∇F is minus the influence of the forget set, so this is the paper's update
H⁻¹ Δ; where training stopped short of the minimum, it makes up for that as well. The step's equations are
solved by conjugate gradients, as far as the budget goes.

The certificate: ‖θ' − θ*‖ ≤ ‖∇F(θ')‖ / λ, where θ* is the minimum that exact retraining finds. With noise
N(0, σ² I) on both they are (ε, δ)-indistinguishable, δ = `metrics.gaussian_privacy.gaussian_delta` of that
bound over σ, and of ε.

| known | paper | authors' repository | here |
| --- | --- | --- | --- |
| step | one, full | one, full, H⁻¹ by a dense solve | `steps` 1, full, by conjugate gradients |
| objective | Σ ℓ + λ n / 2 ‖θ‖² | the same | the same, divided by n |
| λ | 1e-4 for MNIST | chosen for each data set | `weight_decay`, by default the training's |
| noise | bᵀθ in the objective, before training | the same | σ on the result, `noise`; by default none |
| loss | logistic, one class against the rest | the same | cross-entropy of all classes |

The paper puts its noise into the training, which an unlearner does not own. Noise on the result, as in
Neel et al. 2021 (arXiv 2007.02923), needs the training's end alone.
"""

import copy
import math
from itertools import count

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.budget import Budget, indispensable
from marshtest.training.loop import OptimizerSettings
from marshtest.training.solvers import SoftmaxRegression, Solution
from marshtest.training.tasks import NewModel, Task
from marshtest.unlearning.base import Unlearner

SOLVED = 1e-3  # fraction of the gradient that a step's equations may leave


class Newton(Unlearner):
    """One full Newton step on the retain set's objective, with a certificate (Guo et al. 2020)."""

    name: str = "newton"
    steps: int = Field(1, ge=1, le=100)
    weight_decay: float | None = Field(None, gt=0)  # λ; by default the training's
    noise: float = Field(0.0, ge=0)  # σ, of the noise on the result

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        linear_layer(model)

    def check_setting(self, training: OptimizerSettings, forget_share: float) -> None:
        if self.weight_decay is None and (training.optimizer != "sgd" or not training.weight_decay):
            raise MarshtestError(
                "unlearners.newton.weight_decay: the training minimises no objective with a weight decay "
                f"({training.optimizer}, weight_decay {training.weight_decay:g}), so no minimum is known "
                "to go to. Give one, or train with sgd and a weight_decay above 0."
            )

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        model = copy.deepcopy(model).eval()
        layer, rng = linear_layer(model), generator(seed, "noise")
        with indispensable(f"unlearners.{self.name}", "a step over the retain set"):
            problem = regression(model, retain, task, self.weight_decay)
            # The factor is dear for wide inputs; where it is not affordable, a diagonal takes its place.
            limit = math.inf if budget.epochs is not None else budget.left * budget.flops_per_pass
            diagonal = problem.cost_of_step > limit
            # A step that the budget would not afford after the first is left out: it would end the run. In
            # epochs the rounds within a step are counted, and a step is not one more.
            every = range(self.steps)
            for _ in every if budget.epochs is not None else budget.stream(every):
                rounds = budget.stream(count(), epoch=1)
                write(layer, problem.newton(read(layer), SOLVED, rounds, diagonal))
        for parameter in layer.parameters():
            parameter.data += self.noise * torch.randn(parameter.shape, generator=rng).to(parameter)
        return model


def certificate(
    model: nn.Module, retain: Samples, task: Task, weight_decay: float | None = None
) -> Solution:
    """The certificate of a linear model, however it came about; noise must not be on it yet.

    Raises:
        MarshtestError: the model is not linear in what it trains, or λ is not positive.
    """
    return regression(model, retain, task, weight_decay).certified(read(linear_layer(model)))


def linear_layer(model: nn.Module) -> nn.Linear:
    """The only layer that is trained; its outputs must be the logits.

    Raises:
        MarshtestError: it is not the only one, or part of it is frozen.
    """
    trained = [
        m
        for m in model.modules()
        if any(p.requires_grad for p in m._parameters.values() if p is not None)
    ]
    if len(trained) != 1 or not isinstance(trained[0], nn.Linear):
        kinds = ", ".join(type(m).__name__ for m in trained[:3]) or "none"
        raise MarshtestError(
            f"unlearners.newton: needs a model whose only trained layer is one nn.Linear. It trains "
            f"{len(trained)} layers ({kinds}). Give a linear model: model={{name: mlp, depth: 0}}."
        )
    if not all(p.requires_grad for p in trained[0].parameters()):
        raise MarshtestError(
            "unlearners.newton: needs a linear layer that is trained whole, and part of it is frozen. "
            "Thaw its weight and bias, or freeze neither."
        )
    return trained[0]


def read(layer: nn.Linear) -> Tensor:
    """[C, d] θ in float64; a bias is its last column."""
    columns = [layer.weight] if layer.bias is None else [layer.weight, layer.bias[:, None]]
    return torch.cat([c.detach().double() for c in columns], dim=1)


@torch.no_grad()
def write(layer: nn.Linear, theta: Tensor) -> None:
    """Put θ [C, d] into a layer."""
    layer.weight.copy_(theta[:, : layer.in_features])
    if layer.bias is not None:
        layer.bias.copy_(theta[:, -1])


def regression(
    model: nn.Module, samples: Samples, task: Task, weight_decay: float | None
) -> SoftmaxRegression:
    """The objective F of a model's linear layer, as a problem for the solver."""
    if weight_decay is None:
        assert task.optimizer_for is not None, "a run's task has the training's optimiser"
        weight_decay = task.optimizer_for(copy.deepcopy(model)).param_groups[0]["weight_decay"]
    if not weight_decay:
        raise MarshtestError(
            "unlearners.newton.weight_decay: the training has none, so nothing bounds the distance to "
            "the minimum. Set training.weight_decay above 0."
        )
    layer, inputs = linear_layer(model), list[Tensor]()
    with (
        torch.no_grad(),
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].double())),
    ):
        for batch in (samples[i : i + 1024] for i in range(0, len(samples), 1024)):
            logits = task.label_logits(task.exact()(model.eval(), batch), batch)
    if inputs[-1].shape[1:] != (layer.in_features,) or not torch.allclose(
        layer(inputs[-1].float()), logits, atol=1e-4
    ):
        raise MarshtestError(
            "unlearners.newton: the linear layer's outputs are not the model's logits. Give a model that "
            "ends with the layer."
        )
    features = torch.cat(inputs)
    if layer.bias is not None:
        features = F.pad(features, (0, 1), value=1.0)
    return SoftmaxRegression(features, samples.y, layer.out_features, weight_decay)
