"""Opening and asking a foreign model; processes that tests end do it too, so little is imported here."""

import numpy as np
import torch

from marshtest.kit.key import Key
from marshtest.kit.model import AskedModel
from marshtest.kit.noise import Noise, Scaling
from marshtest.kit.open_model import open_model

CPU = torch.device("cpu")
KEY = Key(
    noise=Noise(seed=7_340_981_112_077, variance=1.0, scaling=Scaling(), pixels=False),
    samples=40,
    classes=4,
    ids=(0, 1),
    input="0" * 64,
    output="0" * 64,
    dosed="0" * 64,
    versions={},
)
VALUES = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(40) % 4


def opened(spec: str, in_process: bool = False) -> AskedModel:
    return open_model(spec, KEY, np.zeros((2, 3, 8, 8), np.uint8), None, CPU, in_process)
