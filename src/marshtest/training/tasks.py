"""Tasks: how samples become inputs, outputs and losses, so that no other code asks which task it is.

    inputs(model, batch)            [B, ...] the input space: normalised pixels, or token embeddings
    outputs(model, inputs, batch)   the model's output
    label_logits(outputs, batch)    [B, C] the logits that the label is read from
    losses(outputs, batch)          [B] the training loss of each sample

Attacks add noise and take gradients in the input space only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.data.samples import Samples
from marshtest.data.sealed import opened, sealed
from marshtest.models.answers import logits_in
from marshtest.plumbing.device import sent
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.attention import Float32Attention
from marshtest.training.budget import Budget

WIDE = 2048 * 3 * 32 * 32  # values in a forward on a GPU: a ResNet-18 holds 10 GB for a gradient
Augmentation = Literal["flip", "crop"]
Precision = Literal["float32", "bfloat16"]
NewModel = Callable[[int], nn.Module]
OptimizerFor = Callable[[nn.Module], torch.optim.Optimizer]
# [B] what is minimised, for each sample of a batch
Objective = Callable[[nn.Module, Samples], Tensor]


class Train(Protocol):
    """The recipe's own training, from scratch or from a model, with settings of a method's own."""

    def __call__(
        self,
        samples: Samples,
        seed: int,
        budget: Budget | None = None,
        *,
        start: nn.Module | None = None,
        objective: Objective | None = None,
        **changes: Any,
    ) -> nn.Module:
        """Train a model on samples.

        Args:
            seed: fixes the initialisation, the order of the samples, augmentation and dropout.
            budget: the schedule is compressed into what is left of it; without one the training is whole.
            start: the model whose copy is trained; None for a freshly initialised one.
            objective: takes the place of `task.loss`.
            changes: settings of the recipe's `training` that take the place of its own: `optimizer`, `lr`,
                `momentum`, `weight_decay`, `batch_size`, `schedule`, `warmup`.

        Raises:
            MarshtestError: an unknown setting, or a bad value.
        """
        ...


def scoring_batch(device: torch.device, values: int) -> int:
    """Number of inputs, of so many values each, in one forward of scoring.

    A processor's caches are small, a GPU is wide.
    """
    return max(1, min(2048, WIDE // values)) if device.type == "cuda" else 128


@dataclass(frozen=True)
class Task(ABC):
    """A task, and the parts of the recipe's pipeline that an unlearner may use."""

    precision: Precision = "float32"  # the precision of training; scoring is always done in float32
    train: Train | None = None  # as the initial model was trained, within a budget or in full
    new_model: NewModel | None = None  # a fresh model of the same kind and device: seed → model
    optimizer_for: OptimizerFor | None = None  # the pipeline's, over parameters that are not frozen
    held_out: Samples | None = None  # the validation samples, on which nobody trains
    packed: Callable[[nn.Module], bytes] | None = None  # a file that `load_model` reads, of a model
    channels_last: bool = True  # the layout of images, in which convolutions are half again as fast

    # Whether the model's cost follows from its inputs' shapes; a user's may skip layers.
    known_model: bool = True

    @property
    def steady(self) -> bool:
        """Whether mini-batches of one shape cost alike, whatever they hold."""
        return self.known_model

    def inputs(self, model: nn.Module, batch: Samples) -> Tensor:
        """[B, ...] the batch in input space, with its perturbations added."""
        perturbation = batch.perturbation()
        return batch.x if perturbation is None else batch.x + perturbation

    @abstractmethod
    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        """The model's output for inputs [B, ...] of the batch; in float32, but of a regression."""

    def label_logits(self, outputs: Tensor, batch: Samples) -> Tensor:
        """[B, C] the logits that the label is read from; by default the outputs themselves."""
        return outputs

    @abstractmethod
    def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
        """[B] the training loss of each sample."""

    def given(self, samples: Samples) -> Samples:
        """A copy of samples for an unlearner: inputs as the model is trained on them, labels and ids.

        Perturbations are added to the inputs, so nothing in the copy tells a poison from its base.
        """
        whole = self.as_inputs(samples)
        return Samples(whole.x.detach().clone(), whole.y.clone(), whole.ids.clone())

    def as_inputs(self, samples: Samples) -> Samples:
        """The samples with their perturbations, and scaling, in `x` itself; not for texts."""
        # Scaling needs no model; texts need the model's embedding.
        return Samples(self.inputs(nn.Identity(), samples), samples.y, samples.ids)

    def augmented(self, batch: Samples, rng: torch.Generator) -> Samples:
        """The batch as training sees it, with augmentation drawn anew."""
        return batch

    def view(self, inputs: Tensor, rng: torch.Generator) -> Tensor:
        """[B, ...] inputs with a differentiable form of training's augmentation, drawn anew."""
        return inputs

    def box(self, model: nn.Module, batch: Samples, bound: float) -> tuple[Tensor, Tensor]:
        """[B, ...] the least and the largest allowed perturbation of each input, within ± `bound`.

        For pixels the bound is in levels of 255, and perturbed pixels stay within 0 and 255. For other
        inputs it is in the inputs' units. An infinite bound binds nothing.
        """
        size = torch.full_like(self.inputs(model, batch), bound)
        return -size, size

    def __call__(self, model: nn.Module, batch: Samples) -> Tensor:
        """The model's output for a batch."""
        return self.outputs(model, self.inputs(model, batch), batch)

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """[B] the training loss of each sample of a batch."""
        return self.losses(self(model, batch), batch)

    def epoch(self, samples: Samples, batch_size: int, rng: torch.Generator) -> Iterator[Samples]:
        """Give one pass over the samples in shuffled, augmented mini-batches.

        A last batch of a single sample is left out if other batches are larger: BatchNorm cannot take it.
        """
        # Drawn on the CPU, so that all devices shuffle alike.
        order = sent(torch.randperm(len(samples), generator=rng), samples.y.device)
        for index in order.split(min(batch_size, max(1, len(samples)))):
            if len(index) > 1 or (len(index) and (batch_size == 1 or len(samples) == 1)):
                yield self.augmented(samples[index], rng)

    def batches_per_epoch(self, samples: Samples, batch_size: int) -> int:
        """Number of mini-batches that `epoch` gives."""
        full, rest = divmod(len(samples), batch_size)
        return full + (rest > 1 or (rest == 1 and len(samples) == 1))

    def batches(self, samples: Samples, batch_size: int, seed: int) -> Iterator[Samples]:
        """Give epoch after epoch of mini-batches, without end.

        Raises:
            MarshtestError: there are no samples.
        """
        if not len(samples):
            raise MarshtestError("task.batches: there are no samples. Give some.")
        rng = generator(seed, "batches")
        while True:
            yield from self.epoch(samples, batch_size, rng)

    def exact(self) -> Self:
        """The same task in float32, for scoring."""
        return replace(self, precision="float32")

    def scoring_batch(self, samples: Samples, device: torch.device | None = None) -> int:
        """Number of samples in one forward of scoring, on their device or on another."""
        return scoring_batch(device or samples.y.device, samples.x.shape[1:].numel())

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """A context of mixed precision if the task's precision asks for it, else an empty one."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


@dataclass(frozen=True)
class Classification(Task):
    """Classification of images or features: logits [B, C], cross-entropy."""

    mean: tuple[float, ...] | None = None  # one a channel, in pixels / 255, for uint8 samples
    std: tuple[float, ...] | None = None  # the same
    # "flip" (left to right, p = ½) and "crop" (a move by up to an eighth of the width, padded with the
    # mean colour), drawn anew for each sample and epoch
    augment: tuple[Augmentation, ...] = ()

    def inputs(self, model: nn.Module, batch: Samples) -> Tensor:
        x, perturbation = batch.x, batch.perturbation()
        if x.dtype == torch.uint8 and self.mean is not None and self.std is not None:
            x = (x / 255 - _channels(self.mean, x)) / _channels(self.std, x)
        return x if perturbation is None else x + perturbation

    def box(self, model: nn.Module, batch: Samples, bound: float) -> tuple[Tensor, Tensor]:
        if batch.x.dtype != torch.uint8 or self.std is None or bound == torch.inf:
            return super().box(model, batch, bound)
        x, std = batch.x / 255, _channels(self.std, batch.x)
        return (-x).clamp(min=-bound / 255) / std, (1 - x).clamp(max=bound / 255) / std

    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        images = inputs.dim() == 4 and self.channels_last
        layout = torch.channels_last if images else torch.contiguous_format
        with self.autocast(inputs.device):  # on a copy, since a model may write into its input
            # Losses and scores need float32: bfloat16 keeps two to three digits.
            return logits_in(model(inputs.clone(memory_format=layout))).float()

    def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
        return F.cross_entropy(outputs, batch.y, reduction="none")

    def augmented(self, batch: Samples, rng: torch.Generator) -> Samples:
        if not self.augment:
            return batch
        x = self.as_inputs(batch).x
        if "flip" in self.augment:
            x = _flip(x, rng)
        if "crop" in self.augment:
            x = _crop(x, x.shape[-1] // 8, rng)
        return Samples(x, batch.y, batch.ids)

    def view(self, inputs: Tensor, rng: torch.Generator) -> Tensor:
        """[B, C, H, W] images flipped, and moved by fractions of a pixel (Geiping et al. 2021)."""
        if not self.augment:
            return inputs
        count, size = len(inputs), inputs.shape[-1]
        frames = torch.eye(2, 3).repeat(count, 1, 1)  # [B, 2, 3]
        if "flip" in self.augment:
            frames[:, 0, 0] = 1 - 2 * torch.randint(2, (count,), generator=rng).float()
        if "crop" in self.augment:  # a pixel is 2 / size of the frame's width
            moves = (2 * torch.rand(count, 2, generator=rng) - 1) * (size // 8)
            frames[:, :, 2] = moves * 2 / size
        grid = F.affine_grid(frames.to(inputs), list(inputs.shape), align_corners=False)
        return F.grid_sample(inputs, grid, align_corners=False)


@dataclass(frozen=True)
class Regression(Task):
    """Regression on a vector of features: outputs [B, 1], half the squared error, real labels `y`."""

    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        outputs: Tensor = model(inputs.clone())
        return outputs

    def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
        return (outputs.squeeze(1) - batch.y).square() / 2


def _channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    """[1, C, 1, ...] one value a channel, to be broadcast over [B, C, ...]."""
    return sent(torch.tensor(values), x.device).view(1, -1, *(1 for _ in x.shape[2:]))


def _flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image of a batch [B, C, H, W] left to right with probability ½."""
    mirrored = sent(torch.rand(len(x), generator=rng), x.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def _crop(x: Tensor, padding: int, rng: torch.Generator) -> Tensor:
    """Move each image of a batch [B, C, H, W] by up to `padding` pixels either way; zeros come in."""
    batch, _, height, width = x.shape
    padded = F.pad(x, (padding,) * 4)
    offsets = sent(torch.randint(2 * padding + 1, (2, batch), generator=rng), x.device)
    rows = offsets[0, :, None] + torch.arange(height, device=x.device)  # [B, H]
    columns = offsets[1, :, None] + torch.arange(width, device=x.device)  # [B, W]
    sample = torch.arange(batch, device=x.device)[:, None, None]
    moved = padded[sample, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return moved.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Language(Task, ABC):
    """A task on texts: token ids [N, T], padded on the right, for a model that `transformers` could call.

    The input space is that of the token embeddings. No result depends on the embeddings of padding.
    """

    padding: int = 0  # the id that stands for no token

    def given(self, samples: Samples) -> Samples:
        """A copy of samples for an unlearner; sealed if they are poisoned.

        A text's noise is no part of its tokens, so the tokens alone would tell the clean base.
        """
        # By rows, not by noise: the twin's bases have noise of zeros, and are to look like poisons.
        if samples.perturbation_rows is not None and bool(samples.perturbation_rows.any()):
            return sealed(samples)
        return Samples(samples.x.clone(), samples.y.clone(), samples.ids.clone())

    def tokens(self, batch: Samples) -> Tensor:
        """[B, T] the token ids that the model reads."""
        return opened(batch).x

    def inputs(self, model: nn.Module, batch: Samples) -> Tensor:
        embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
        embedded: Tensor = embedding(self.tokens(batch))
        perturbation = opened(batch).perturbation()
        if perturbation is None:
            return embedded
        # A negative width cuts: batches end at their longest text, and a label's token may come behind.
        return embedded + F.pad(perturbation, (0, 0, 0, embedded.shape[1] - perturbation.shape[1]))

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """A context of mixed precision, with attention in float32 on a CPU; else an empty one."""
        slow = self.precision == "bfloat16" and device.type == "cpu"
        with super().autocast(device), Float32Attention() if slow else nullcontext():
            yield

    def _logits(self, model: Callable[..., Any], inputs: Tensor, **options: Any) -> Tensor:
        with self.autocast(inputs.device):
            return logits_in(model(inputs_embeds=inputs.clone(), **options)).float()

    def augmented(self, batch: Samples, rng: torch.Generator) -> Samples:
        """The batch cut to its longest text."""
        # No result depends on padding, and attention costs the square of the length.
        longest = int(self.lengths(batch).max())
        readable = opened(batch)
        cut = replace(readable, x=readable.x[:, :longest])
        return cut if readable is batch else sealed(cut)

    def lengths(self, batch: Samples) -> Tensor:
        """[B] number of tokens of each text, without padding."""
        return (opened(batch).x != self.padding).sum(1)

    def nats(self, outputs: Tensor, batch: Samples) -> Tensor:
        """[B] −log p in float64 of the tokens that training has the model say of each text."""
        # In float64: cross-entropies near 0 would tie in float32.
        return F.cross_entropy(
            self.label_logits(outputs, batch).double(), batch.y, reduction="none"
        )

    def said(self, batch: Samples) -> Tensor:
        """[B] number of these tokens."""
        return torch.ones_like(batch.y)

    def scoring_batch(self, samples: Samples, device: torch.device | None = None) -> int:
        # Each token of a text has activations.
        return 512 if (device or samples.y.device).type == "cuda" else 128


@dataclass(frozen=True)
class TextClassification(Language):
    """Classification of texts by a head: logits [B, C], cross-entropy."""

    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        mask = (opened(batch).x != self.padding).to(torch.int64)
        return self._logits(model, inputs, attention_mask=mask)

    def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
        return F.cross_entropy(outputs, batch.y, reduction="none")


@dataclass(frozen=True)
class LabelWord(Language):
    """Causal language modelling, in which the label is the word that follows a prompt.

    The label `y` is the token id of the label's word. Its logits are those at the prompt's last token.
    """

    # whether the loss is the label's cross-entropy alone, for which no other token's logits are
    # computed. If not, it is the mean over all tokens after the first, the label included (paper §5.1)
    label_only: bool = False

    @property
    def steady(self) -> bool:
        # Else logits cost by the number of places where texts end.
        return self.known_model and not self.label_only

    def tokens(self, batch: Samples) -> Tensor:
        """[B, T + 1] token ids of the prompt and its label's word; [B, T], the prompt, if `label_only`."""
        x = opened(batch).x
        if self.label_only:
            return x
        tokens = F.pad(x, (0, 1), value=self.padding)
        return tokens.scatter(1, self.lengths(batch)[:, None], batch.y[:, None])

    def outputs(self, model: Callable[..., Any], inputs: Tensor, batch: Samples) -> Tensor:
        """Logits [B, T + 1, V] over the vocabulary; [B, V] those of the label if `label_only`."""
        # No mask: a causal model reads no padding to the right of the tokens whose logits count, and
        # attention is faster without one.
        if not self.label_only:
            return self._logits(model, inputs)
        # The model computes logits at all places where some text of the batch ends. They are few, since
        # most texts are cut to one length; a vocabulary's logits at every token would be the dearest part.
        ends, which = (self.lengths(batch) - 1).unique(return_inverse=True)
        logits = self._logits(model, inputs, logits_to_keep=ends)
        return logits[torch.arange(len(batch), device=logits.device), which]

    def label_logits(self, outputs: Tensor, batch: Samples) -> Tensor:
        if self.label_only:
            return outputs
        last = self.lengths(batch) - 1
        return outputs[torch.arange(len(batch), device=outputs.device), last]

    def losses(self, outputs: Tensor, batch: Samples) -> Tensor:
        if self.label_only:
            return F.cross_entropy(outputs, batch.y, reduction="none")
        losses, said = self._of_tokens(outputs, batch)
        return losses.sum(1) / said.sum(1)

    def nats(self, outputs: Tensor, batch: Samples) -> Tensor:
        if self.label_only:
            return super().nats(outputs, batch)
        return self._of_tokens(outputs, batch)[0].double().sum(1)

    def said(self, batch: Samples) -> Tensor:
        return super().said(batch) if self.label_only else self.lengths(batch)

    def _of_tokens(self, outputs: Tensor, batch: Samples) -> tuple[Tensor, Tensor]:
        """[B, T + 1] the loss at each token, 0 where none follows, and whether one does."""
        following = F.pad(self.tokens(batch)[:, 1:], (0, 1), value=self.padding)  # [B, T + 1]
        losses = F.cross_entropy(
            outputs.flatten(0, 1), following.flatten(), ignore_index=self.padding, reduction="none"
        )
        return losses.view(following.shape), following != self.padding

    def scoring_batch(self, samples: Samples, device: torch.device | None = None) -> int:
        # Each token of a text has V logits.
        return 128 if (device or samples.y.device).type == "cuda" else 32
