"""One kernel for every attack whose objective is a function of the poisons' summed gradient.

    G = Σ_i ∇_θ ℓ(x_i, y_i)                 [D] over all poisons
    J = J(G),  v = ∂J/∂G                    a closed form in each attack
    ∂J/∂x_i = ∇_x ⟨v, ∇_θ ℓ(x_i, y_i)⟩      [*input] for each poison

Two passes in micro-batches, so that only inputs and gates are held for all poisons: G first, then, v
known, each poison's own derivative, in one of two ways:

    exact   double backward: ∇_x of ⟨v, ∇_θ ℓ⟩
    fast    (∇_x ℓ(θ + hv) − ∇_x ℓ(θ)) / h with the gates of the first pass kept

Without kept gates the difference is useless: activations switch between θ and θ + hv, and each switch
makes an error that does not shrink with h. With every gate kept the network is smooth in θ. ∇_x ℓ(θ)
falls off the first pass, so a step costs five units (forward, two backward; forward, backward) where
plain training costs three. The fast way is used only where it agrees with the exact one on the first
micro-batch, at a step h chosen there.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from marshtest.attacks.held_activations import Gates
from marshtest.data.samples import Samples, slices
from marshtest.plumbing.errors import MarshtestError
from marshtest.training.tasks import Task

Parameters = dict[str, Tensor]
Objective = Callable[[Tensor], tuple[float, Tensor]]  # G [D] → (J, ∂J/∂G [D])

MICRO_BATCH = 64  # a processor's caches are small
WIDE_BATCH = 512  # a GPU is wide
STEP_PASSES = 5.0  # sample passes of a step in the fast way, by poison
SHARES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)  # |hv| / |θ|, tried in turn
AGREEMENT = 1e-5  # largest 1 − cosine to the exact derivative at which the fast way is used


class Kernel:
    """J and its derivative for the poisons of one model.

    The model is put into eval mode. Only parameters that are not frozen count; of these only the first
    tensor, if `first`. Unless `fast`, the exact way is kept to.

    Raises:
        MarshtestError: the model has nothing to train.
    """

    def __init__(
        self, model: nn.Module, task: Task, *, fast: bool = True, first: bool = False
    ) -> None:
        # In eval mode: BatchNorm would make a sample's gradient depend on its micro-batch.
        self.model, self.task = model.eval(), task.exact()
        free = [(n, p.detach()) for n, p in model.named_parameters() if p.requires_grad]
        self.parameters = dict(free[:1] if first else free)
        if not self.parameters:
            raise MarshtestError("attack: the model has no parameters to train, so no gradient.")
        self.share: float | None = None if fast else 0.0  # |hv| / |θ|; 0 is the exact way
        # Which way is used and how well it agrees, once the first step has chosen.
        self.way = "" if fast else "exact"

    def flat(self) -> Tensor:
        """[D] the parameters as one vector."""
        return _flat(self.parameters.values())

    def gradient(self, samples: Samples) -> Tensor:
        """[D] Σ_i ∇_θ ℓ of the samples as they are."""
        inputs = self.task.inputs(self.model, samples).detach()
        return self._first_pass(inputs, samples, keep=False).total

    def __call__(
        self, inputs: Tensor, samples: Samples, objective: Objective
    ) -> tuple[float, Tensor]:
        """J and ∂J/∂x [P, *input] at `inputs`, the samples' places in input space.

        Raises:
            MarshtestError: an operation of the model has no second derivative.
        """
        first = self._first_pass(inputs, samples, keep=self.share != 0)
        value, v = objective(first.total)
        along = self._unflat(v)
        if self.share is None:
            self.share, self.way = self._choose(inputs, samples, along, first)
        out = first.slopes  # one buffer of the inputs' size for both
        if not self.share:
            for part in slices(len(samples), micro_batch(inputs.device)):
                out[part] = self._exact(inputs[part], samples[part], along)
            return value, out
        moved = self._moved(along, self.share)
        for part, gates in zip(
            slices(len(samples), micro_batch(inputs.device)), first.gates, strict=True
        ):
            out[part] = self._fast(inputs[part], samples[part], moved, out[part], gates)
        return value, out

    def _first_pass(self, inputs: Tensor, samples: Samples, *, keep: bool) -> "_FirstPass":
        """G, and for the fast way each micro-batch's ∇_x ℓ(θ) and gates."""
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        first = _FirstPass(torch.zeros_like(self.flat()), torch.empty_like(inputs), [])
        for part in slices(len(samples), micro_batch(inputs.device)):
            x = inputs[part].detach().requires_grad_(keep)
            gates = Gates()
            with gates if keep else nullcontext():
                loss = self._loss(leaves, x, samples[part])
            by = [*leaves.values(), *([x] if keep else [])]
            # A parameter may have no part in the loss; its gradient is then 0, not None.
            slopes = torch.autograd.grad(loss, by, materialize_grads=True)
            first.total += _flat(slopes[: len(leaves)])
            if keep:
                first.slopes[part] = slopes[-1]
                first.gates.append(gates)
        return first

    def _choose(
        self, inputs: Tensor, samples: Samples, along: Parameters, first: "_FirstPass"
    ) -> tuple[float, str]:
        """The share of |θ| at which the fast way agrees best with the exact one, or 0 if none does."""
        part = slice(micro_batch(inputs.device))
        x, batch = inputs[part], samples[part]
        exact = self._exact(x, batch, along)
        errors = []
        # A small h is lost in rounding, a large one in curvature; where between depends on the model.
        for share in SHARES:
            moved = self._moved(along, share)
            fast = self._fast(x, batch, moved, first.slopes[part], first.gates[0])
            errors.append((1 - float(cosine(fast.flatten(), exact.flatten())), share))
        off, share = min(errors)
        if off <= AGREEMENT:
            return share, f"fast, 1 − cosine to exact {off:.0e} at |hv| = {share:g} |θ|"
        return 0.0, f"exact; the fast way is {off:.0e} off"

    def _exact(self, x: Tensor, batch: Samples, along: Parameters) -> Tensor:
        """∇_x ⟨v, ∇_θ ℓ⟩ by differentiating twice, a micro-batch at a time."""
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        x = x.detach().requires_grad_()
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                loss = self._loss(leaves, x, batch)
                slopes = torch.autograd.grad(
                    loss, list(leaves.values()), create_graph=True, materialize_grads=True
                )
                product = _flat(slopes) @ _flat(along.values())
                return torch.autograd.grad(product, x, materialize_grads=True)[0]
        except RuntimeError as error:
            named = re.search(r"derivative for (\S+) is not implemented", str(error))
            if named is None:
                raise
            raise MarshtestError(
                f"attack: the model's operation {named[1]} has no second derivative in PyTorch. "
                "Replace it by one that has."
            ) from None

    def _moved(self, along: Parameters, share: float) -> "_Moved":
        """θ + hv with |hv| = share · |θ|."""
        # Relative to θ, whose rounding is what h must outgrow.
        h = share * float(self.flat().norm() / _flat(along.values()).norm())
        return _Moved({name: p + h * along[name] for name, p in self.parameters.items()}, h)

    def _fast(
        self, x: Tensor, batch: Samples, moved: "_Moved", slope: Tensor, gates: Gates
    ) -> Tensor:
        """(∇_x ℓ(θ + hv) − ∇_x ℓ(θ)) / h, the gates as they were at θ."""
        x = x.detach().requires_grad_()
        with Gates(gates):
            loss = self._loss(moved.parameters, x, batch)
        return (torch.autograd.grad(loss, x)[0] - slope) / moved.h

    def _loss(self, parameters: Parameters, x: Tensor, batch: Samples) -> Tensor:
        """Σ_i ℓ of a micro-batch at other parameters than the model's."""

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.model, parameters, args, kwargs)

        return self.task.losses(self.task.outputs(model, x, batch), batch).sum()

    def _unflat(self, vector: Tensor) -> Parameters:
        parts = vector.split([p.numel() for p in self.parameters.values()])
        shaped = zip(self.parameters.items(), parts, strict=True)
        # In each parameter's own memory layout, so that θ + hv runs through the same kernels as θ.
        return {name: torch.empty_like(p).copy_(part.view(p.shape)) for (name, p), part in shaped}


@dataclass
class _FirstPass:
    total: Tensor  # [D] G
    slopes: Tensor  # [P, *input] ∇_x ℓ(θ), where kept
    gates: list[Gates]  # by micro-batch, where kept


@dataclass
class _Moved:
    parameters: Parameters  # θ + hv
    h: float


def micro_batch(device: torch.device) -> int:
    """Number of samples that are differentiated at once."""
    return WIDE_BATCH if device.type == "cuda" else MICRO_BATCH


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between two vectors, summed in float64."""
    return F.cosine_similarity(one.double(), other.double(), dim=0)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
