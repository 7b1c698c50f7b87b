"""Training steps on a GPU as one recorded graph.

A step of a small network is hundreds of operations, each over in microseconds, and the processor takes
longer to ask for them than the GPU to do them. A graph asks for all at once. Only networks of our own are
recorded: what a foreign model decides in Python, step by step, a replay would not decide again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from marshtest.data.samples import Samples

WARM = 3  # steps before the recording, in which libraries choose how to compute
OURS = ("torch.nn.", "marshtest.models.")

Step = Callable[[Samples], Tensor]


def recordable(model: nn.Module, device: torch.device) -> bool:
    """Whether steps of the model's training on this device can be recorded."""
    return device.type == "cuda" and torch.backends.cuda.is_built() and ours(model)


def ours(model: nn.Module) -> bool:
    """Whether every step of a model's training is the same work on other numbers."""
    return all(map(_is_plain, model.modules()))


def _is_plain(module: nn.Module) -> bool:
    hooks = any(
        hooked for name, hooked in vars(module).items() if name.endswith(("_hooks", "_pre_hooks"))
    )
    # Without a momentum a running mean reads on the processor how many batches there were.
    averaged = getattr(module, "momentum", 0.1) is None
    return type(module).__module__.startswith(OURS) and not hooks and not averaged


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: Samples  # which the graph reads
    loss: Tensor  # which it writes


class Captured:
    """A training step, done operation by operation at first and as a recorded graph from then on.

    Batches are inputs as the model takes them, without perturbations. A batch of another shape, as an
    epoch's last, is done operation by operation.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._warm = 0
        self._recording: _Recording | None = None
        self._shape: torch.Size | None = None
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: Samples) -> Tensor:
        """Take a step; returns the loss."""
        shape = batch.x.shape
        self._shape = self._shape or shape
        if shape != self._shape:
            return self._step(batch)
        if self._warm < WARM:
            self._warm += 1
            return self._beside(batch)
        if self._recording is None:
            self._recording = self._record(batch)
        recording = self._recording
        recording.batch.x.copy_(batch.x)
        recording.batch.y.copy_(batch.y)
        recording.graph.replay()
        return recording.loss

    def _beside(self, batch: Samples) -> Tensor:
        """A step in a stream of its own, as the recording asks for."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, batch: Samples) -> _Recording:
        held = Samples(batch.x.clone(), batch.y.clone(), batch.ids.clone())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # records, and computes nothing
            loss = self._step(held)
        return _Recording(graph, held, loss.detach())
