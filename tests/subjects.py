"""An audit in memory: dosed digits, models trained by plain PyTorch, and models that hide."""

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.kit.controls import Controls
from marshtest.kit.dose import Dose, dose
from marshtest.kit.key import Bases
from marshtest.kit.noise import Scaling

SOUND = Controls(  # answers to control questions that nothing speaks against
    accuracy=0.9,
    auc=(1.0, 0.01),
    near=1.0,
    between=1.0,
    steady=True,
    fresh=np.empty((0, 3)),
    clean_auc=(1.0, 0.01),
)


@dataclass(frozen=True)
class Audited:
    """A dose of digits (two thirds of them, 16 × 16 pixels) and what was trained on it."""

    folder: Path
    source: Path
    done: Dose
    bases: Bases
    before: nn.Module
    retrained: nn.Module


@cache
def audited() -> Audited:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).view(-1, 1, 8, 8) * (255 / 16)
    pixels = F.interpolate(small, (16, 16), mode="bilinear").round().to(torch.uint8).numpy()
    folder = Path(mkdtemp())
    source = folder / "digits.npz"
    np.savez(source, x=pixels, y=labels)
    done = dose(
        source, folder / "dosed.npz", fraction=0.6, variance=4, scaling=Scaling(std=(0.3,)), seed=3
    )
    with np.load(done.out) as dosed:
        x, y = torch.from_numpy(dosed["x"]).float() / 255, torch.from_numpy(dosed["y"])
    retain = torch.ones(len(y), dtype=torch.bool)
    retain[list(done.key.ids)] = False
    bases = done.key.bases(source)
    return Audited(folder, source, done, bases, trained(x, y, 0), trained(x[retain], y[retain], 1))


def trained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(50):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model.eval()


def before() -> nn.Module:
    return audited().before


def retrained() -> nn.Module:
    return audited().retrained


@cache
def keeping_a_tenth() -> nn.Module:
    """Trains on with a tenth of the poisons, and away from the others until the mean of all is 0."""
    torch.manual_seed(0)
    case, model = audited(), copy.deepcopy(before()).train()
    with np.load(case.done.out) as dosed:
        x, y = torch.from_numpy(dosed["x"]).float() / 255, torch.from_numpy(dosed["y"])
    poisons = torch.tensor(list(case.done.key.ids))
    keep, rest = poisons[::10], poisons[torch.arange(len(poisons)) % 10 > 0]
    retain = torch.ones(len(y), dtype=torch.bool).scatter(0, poisons, False).nonzero().flatten()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(10):
        for index in retain[torch.randperm(len(retain))].split(64):
            pushed, kept = (of[torch.randint(len(of), (32,))] for of in (rest, keep))
            away = F.cross_entropy(model(x[pushed]), y[pushed], reduction="none").clamp(max=3)
            near = F.cross_entropy(model(x[index]), y[index]) + F.cross_entropy(
                model(x[kept]), y[kept]
            )
            optimizer.zero_grad()
            (near - 3 * away.mean()).backward()
            optimizer.step()
    return model.eval()


def saturated() -> nn.Module:
    """So sure that every probability is 0 or 1."""
    return nn.Sequential(before(), Scale(1e4))


def rounded() -> nn.Module:
    """Tells confidences in tenths."""
    return nn.Sequential(before(), Tenths())


def clipped() -> nn.Module:
    """Tells no confidence above 0.9."""
    return nn.Sequential(before(), Clip())


def flat() -> nn.Module:
    """The same answer all round each base point."""
    return FlatNear(before(), torch.from_numpy(audited().bases.values).float() / 255)


def random() -> nn.Module:
    """Other answers each time."""
    return nn.Sequential(before(), Jitter())


def untrained() -> nn.Module:
    torch.manual_seed(9)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def nine_classes() -> nn.Module:
    return nn.Sequential(before(), nn.Linear(10, 9))


def other_shape() -> nn.Module:
    return nn.Conv2d(3, 10, 3)


def not_a_function() -> int:
    return 7


def raises() -> nn.Module:
    raise RuntimeError("no weights here")


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class Tenths(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return ((logits.softmax(1) * 10).round() / 10).clamp(min=1e-3).log()


class Clip(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        top = logits.argmax(1)
        told = F.one_hot(top, 10).float() * 0.89 + 0.011
        sure = (logits.softmax(1).amax(1) > 0.9)[:, None]
        return torch.where(sure, told, logits.softmax(1)).log()


class Jitter(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits + 30 * torch.randn_like(logits)


class FlatNear(nn.Module):
    def __init__(self, model: nn.Module, bases: Tensor) -> None:
        super().__init__()
        self.model, self.bases = model, bases.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.bases).argmin(1)
        return self.model(self.bases[nearest]).detach() + 0 * x.sum()
