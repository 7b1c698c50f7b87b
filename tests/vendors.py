"""Foreign models that do what no model should; the tests of `marshtest.kit.process` name them."""

import contextlib
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]
CLASSES = 4
DEES = "7702111890437"  # the seed of the tests' key from behind: itself, it would be found here


def honest() -> Model:
    return lambda x: x.flatten(1)[:, :CLASSES] * torch.arange(1.0, CLASSES + 1)


def layers() -> nn.Module:
    """A network with weights of seed 0."""
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 16), nn.GELU(), nn.Linear(16, CLASSES))
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.GELU(), flat).eval()


def in_numpy() -> Callable[[Tensor], np.ndarray]:
    """The network's answers without a gradient."""
    model = layers()
    return lambda x: model(torch.from_numpy(x.numpy())).detach().numpy()


def losses(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.load(inputs)["x"].reshape(len(np.load(inputs)["y"]), -1).sum(1))


def doing(what: Callable[[], object]) -> Model:
    def model(x: Tensor) -> Tensor:
        what()
        return honest()(x)

    return model


class Stop(BaseException):
    pass


def interrupt() -> None:
    raise KeyboardInterrupt


def stop() -> None:
    raise Stop("enough")


def crash() -> None:
    ctypes.string_at(0)


def spy() -> None:
    """Look through all that is in memory for what only the auditor may know."""
    secrets = {"Key", "Noise", "Bases"}
    for thing in gc.get_objects():
        if type(thing).__name__ in secrets:
            raise RuntimeError(f"found a {type(thing).__name__}")
        values = thing.values() if isinstance(thing, dict) else thing
        if type(thing) in (dict, list, tuple) and DEES[::-1] in plain(values):
            raise RuntimeError("found the seed")


def plain(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values if type(value) is int]


def leave_a_child() -> None:
    if os.fork():
        os._exit(7)
    time.sleep(600)  # and holds every pipe of its parent


def shut_all() -> None:
    os.closerange(0, 1000)
    time.sleep(600)


def lie() -> None:
    """Guess which pipe the answers go through, and claim a terabyte."""
    for pipe in range(3, 20):
        with contextlib.suppress(OSError):
            os.write(pipe, (1 << 40).to_bytes(8))


exits = lambda: doing(lambda: sys.exit(0))  # noqa: E731
quits = lambda: doing(lambda: os._exit(0))  # noqa: E731
interrupts = lambda: doing(interrupt)  # noqa: E731
stops = lambda: doing(stop)  # noqa: E731
crashes = lambda: doing(crash)  # noqa: E731
starves = lambda: doing(lambda: os.kill(os.getpid(), signal.SIGKILL))  # noqa: E731
leaves = lambda: doing(leave_a_child)  # noqa: E731
shuts = lambda: doing(shut_all)  # noqa: E731
lies = lambda: doing(lie)  # noqa: E731
reads = lambda: doing(input)  # noqa: E731


def exits_on_loading() -> Model:
    sys.exit(1)


def talks() -> Model:
    print("loading the weights")
    return doing(lambda: (print("asked"), os.system("echo from a program")))


def draws() -> Model:
    def noise() -> float:
        return np.random.rand() * random.random() * float(torch.rand(()))

    fixed = noise()
    return lambda x: honest()(x) * (fixed + noise())


def meddles() -> Model:
    """Turns every switch that others depend on."""

    def model(x: Tensor) -> Tensor:
        logits = honest()(x)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return logits

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    return model


def double() -> Model:
    """Needs the default type that its loading sets."""
    torch.set_default_dtype(torch.float64)
    return lambda x: torch.ones(x[0].numel(), CLASSES).T.matmul(x.double().flatten(1).T).T


def hangs() -> Model:
    """Waits, beside a program that it started; writes both their numbers into a file."""

    def hang() -> None:
        other = subprocess.Popen(["sleep", "600"])
        Path("hanging.tmp").write_text(f"{os.getpid()} {other.pid}")
        Path("hanging.tmp").rename("hanging")
        while True:
            time.sleep(0.1)

    return doing(hang)


def probability_of_the_second(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.load(inputs)["x"].reshape(len(np.load(inputs)["y"]), -1)[:, 0] % 1)


def probability_of_the_label(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.where(np.load(inputs)["y"] == TRUE, 0.9, 0.1))


def one_minus_the_probability_of_the_label(inputs: Path, outputs: Path) -> None:
    np.save(outputs, np.where(np.load(inputs)["y"] == TRUE, 0.1, 0.9))


TRUE = np.arange(40) % 2


def spies() -> Model:
    return doing(spy)
