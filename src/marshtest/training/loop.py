"""The training loop of all models, and the gradient step that it shares with the unlearners."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from marshtest.data.samples import Samples
from marshtest.data.sealed import opened
from marshtest.models.answers import misreads
from marshtest.plumbing.device import clock
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import derive, generator, seeded
from marshtest.plumbing.settings import Settings
from marshtest.training.aside import Aside, Done, Halfway
from marshtest.training.budget import Budget, Cost, Meter, flops_of
from marshtest.training.captured import Captured, recordable
from marshtest.training.tasks import Augmentation, Objective, Precision, Task


class OptimizerSettings(Settings):
    """Settings of an optimiser, and the size of its mini-batches."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # SGD's; AdamW has none
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(128, ge=1)

    def optimizer_for(self, model: nn.Module, *, recorded: bool = False) -> torch.optim.Optimizer:
        """The optimiser over all parameters that are not frozen; `recorded`, as a graph can replay it."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        # A replay reads the rate where it lies on the GPU.
        lr = torch.tensor(self.lr, device=parameters[0].device) if recorded else self.lr
        fused = True if recorded else None  # None is PyTorch's own choice
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                parameters, lr, weight_decay=self.weight_decay, fused=fused, capturable=recorded
            )
        return torch.optim.SGD(
            parameters, lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused
        )


class Training(OptimizerSettings):
    """Settings by which the initial and the retrained model are trained."""

    epochs: int = Field(ge=1)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)  # fraction of the training with a linearly rising rate
    augment: tuple[Augmentation, ...] = ()
    # An ensemble of so many models, each trained on its own shard of the samples (see unlearners.sisa).
    shards: int = Field(1, ge=1, le=10_000, exclude_if=lambda shards: shards == 1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def set_rate(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Set the learning rate for the point at which a fraction `progress` of the training is done."""
        rate = self.rate(progress)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def rate(self, progress: float) -> float:
        """Learning rate when a fraction `progress` of the training is done."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "linear":  # from `lr` at the end of the warm-up to 0
            return self.lr * (1 - progress) / (1 - self.warmup)
        # Over the whole training, so that it takes over from the warm-up where it stands by then.
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def changed(self, **changes: Any) -> Self:
        """The same settings but for `changes`; a MarshtestError for an unknown setting or a bad value."""
        return self.parse({**dict(self), **changes}, "training")


def chosen_precision(
    training: Training,
    model: nn.Module,
    device: torch.device,
    input_shape: tuple[int, ...] | None = None,
) -> Precision:
    """The precision to train in.

    "auto" is bfloat16 for convolutions and transformers on a device that computes in it, else float32;
    also float32 where, by the shape of one input, its kernels would compute the model wrongly.

    Raises:
        MarshtestError: bfloat16 is asked for, and would be wrong.
    """
    if training.precision == "float32":
        return "float32"
    transformer = hasattr(model, "get_input_embeddings")
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    tiles = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    if tiles and convolutions and not transformer and input_shape and misreads(model, input_shape):
        if training.precision == "auto":
            return "float32"
        raise MarshtestError(
            "training.precision: on this processor bfloat16 can give wrong gradients where a convolution's "
            "filter is longer than its map, as in this model. Say float32 or auto."
        )
    if training.precision == "bfloat16":
        return "bfloat16"
    return "bfloat16" if (transformer or convolutions) and _native_bfloat16(device) else "float32"


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # emulation is slow
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return False


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step of the optimiser against the gradient of `loss`."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class Fit:
    """The cost of a training, and how many floating-point operations one of its passes is."""

    cost: Cost
    flops_per_pass: float


def fit(
    model: nn.Module,
    samples: Samples,
    task: Task,
    training: Training,
    seed: int,
    progress: Progress = silent,
    objective: Objective | None = None,
    aside: Aside | None = None,
) -> Fit:
    """Train `model` in place.

    The cost is counted on two samples (a forward, and a forward with backward) and multiplied; where
    mini-batches differ in shape, as texts that are cut to their longest, on two of each. The seed fixes the
    order of the samples, augmentation and dropout; `task.loss` is the default objective.

    Args:
        aside: where the state of this training is kept, from which the next attempt goes on.

    Raises:
        MarshtestError: the loss is no longer finite after an epoch.
    """
    # What an objective of somebody's own decides step by step, a replay would not decide again.
    recorded = objective is None and not Meter.open and recordable(model, samples.y.device)
    objective = objective or task.loss
    # Counting every operation of a long training would slow it down.
    with seeded(derive(seed, "costs")):
        flops_per_pass, flops_per_trained_sample = _costs(model, samples[:2], objective)
    optimizer = training.optimizer_for(model, recorded=recorded)

    def plain_step(batch: Samples) -> Tensor:
        loss = objective(model, batch).mean()
        descend(optimizer, loss)
        return loss.detach()  # or the graph of one step would live on into the next

    take_step = Captured(plain_step) if recorded else plain_step
    # Order and augmentation have a generator of their own: how much a model's dropout draws moves neither.
    rng = generator(seed, "fit")
    steps = training.epochs * math.ceil(len(samples) / training.batch_size)
    step = 0
    trained, few = Counter[torch.Size](), dict[torch.Size, Samples]()  # by the shape of a sample
    halfway = Halfway(aside, model, optimizer, f"{task.precision}.{samples.y.device.type}")
    started = clock()
    model.train()
    with seeded(derive(seed, "dropout")):
        done = halfway.resume()
        for epoch in range(training.epochs):
            for batch in task.epoch(samples, training.batch_size, rng):
                if epoch >= done.epochs:
                    training.set_rate(optimizer, step / steps)
                    loss = take_step(task.as_inputs(batch) if recorded else batch)
                step += 1
                shape = opened(batch).x.shape[1:]
                trained[shape] += len(batch)
                if shape != opened(samples).x.shape[1:]:
                    few.setdefault(shape, batch[:2])
            if epoch >= done.epochs:
                # Once an epoch, since .item() makes the CPU wait for the GPU.
                _stop_if_diverged(loss.item(), epoch, training)
                halfway.keep(Done(epoch + 1, done.seconds + clock() - started))
            progress((epoch + 1) / training.epochs)
    seconds = done.seconds + clock() - started
    per_sample = dict.fromkeys(trained, flops_per_trained_sample)
    with seeded(derive(seed, "costs")):
        per_sample |= {shape: _costs(model, two, objective)[1] for shape, two in few.items()}
    flops = sum(count * per_sample[shape] for shape, count in trained.items())
    model.train()  # as after the last step
    return Fit(Cost(flops / flops_per_pass, flops, seconds), flops_per_pass)


def fit_within(
    model: nn.Module,
    samples: Samples,
    task: Task,
    training: Training,
    seed: int,
    budget: Budget,
    objective: Objective | None = None,
) -> None:
    """Train `model` in place, with the schedule compressed into what is left of the budget."""
    objective = objective or task.loss
    optimizer = training.optimizer_for(model)
    start = budget.progress  # the method may have spent a part before
    if start >= 1:
        return
    epoch = task.batches_per_epoch(samples, training.batch_size)
    model.train()
    for batch in budget.stream(task.batches(samples, training.batch_size, seed), epoch):
        training.set_rate(optimizer, (budget.progress - start) / (1 - start))
        descend(optimizer, objective(model, batch).mean())


def _stop_if_diverged(loss: float, epoch: int, training: Training) -> None:
    if not math.isfinite(loss):
        raise MarshtestError(
            f"training: diverged in epoch {epoch + 1} of {training.epochs} (loss {loss}). "
            f"Lower training.lr (now {training.lr:g}) or raise training.warmup."
        )


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that `torch.compile` took, or the model itself.

    What runs first while operations are counted is never compiled afterwards, so counting takes this one.
    """
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _costs(model: nn.Module, batch: Samples, objective: Objective) -> tuple[float, float]:
    """Floating-point operations for one sample: (of a forward, of a training step).

    The model's weights and statistics stay as they are.
    """
    model = uncompiled(model)
    model.eval()  # or the forward would change BatchNorm's statistics
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        forward = flops_of(lambda: objective(model, batch))
    step = flops_of(
        # A parameter may have no part in the loss, as a pooler whose output nobody reads.
        lambda: torch.autograd.grad(objective(model, batch).sum(), free, allow_unused=True)
    )
    return forward / len(batch), step / len(batch)
