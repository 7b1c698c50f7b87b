"""What rounding and clipping to 8 bits does to a dose, for docs/audit.md.

    MARSHTEST_DATA=FOLDER python benchmarks/rounding.py

Digits are dosed as 8-bit images and as floating-point ones, with one scaling and one seed; the network of
examples/auditee.py is trained on each, and asked. Of CIFAR-10, which lies in the folder, the share of the
noise's variance that is left is told alone. It writes docs/reproduce/audit/rounding.csv, in two minutes.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hiding import cifar_png, digits
from PIL import Image

import marshtest
from marshtest.kit.noise import Scaling

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from auditee import network, train  # noqa: E402

DIGITS, CIFAR = (0.32, 2.0), (0.1, 0.32, 1.0, 2.0)  # ε²
IMAGES = 2000  # of CIFAR-10


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """[N, 1, 32, 32] pixels of the digits, and labels."""
    files = sorted(digits(folder, 0).glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    return pixels[:, None], np.array([int(file.parent.name) for file in files])


def asked(
    folder: Path, x: np.ndarray, y: np.ndarray, variance: float, given: Scaling | None
) -> dict[str, Any]:
    """Dose, train and ask; the scores' dependences, and the scaling that the dose had."""
    folder.mkdir()
    source, out, model = (folder / name for name in ("set.npz", "dosed.npz", "model.pt2"))
    np.savez(source, x=x, y=y)
    done = marshtest.dose(source, out, fraction=0.4, variance=variance, scaling=given, seed=1)
    dosed = torch.from_numpy(np.load(out)["x"]).float() / (255 if x.dtype == np.uint8 else 1)
    torch.manual_seed(0)
    net = network(dosed, 10)
    train(net, dosed, torch.from_numpy(y), epochs=60, lr=0.1)
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(net.eval(), (dosed[:2],), dynamic_shapes=(batch,)), model)
    scaling = Scaling() if x.dtype == np.uint8 else None  # pixels in 0…1
    audit = marshtest.audit(done.key_file, source, str(model), scaling=scaling, device="cpu")
    scores = audit.models[0].measured.dependences()
    told = {name: (score.value, score.error) for name, score in scores.items()}
    return {
        "power": done.power,
        "scaling": done.key.noise.scaling,
        "poisons": len(done.key.ids),
        **told,
    }


def lines() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        x, y = arrays(folder)
        for variance in DIGITS:
            byte = asked(folder / f"byte{variance}", x, y, variance, None)
            real = asked(
                folder / f"float{variance}", np.float32(x / 255), y, variance, byte["scaling"]
            )
            line = {"data": f"digits, {byte['poisons']} poisons, MLP", "variance": variance}
            line["left"] = byte["power"]
            for name in ("gus", "rank"):
                for kind, of in (("byte", byte), ("float", real)):
                    line[f"{name}_{kind}"], line[f"{name}_{kind}_error"] = of[name]
            yield line
        source = cifar_png(folder, IMAGES)
        for variance in CIFAR:
            done = marshtest.dose(
                source, folder / f"cifar{variance}", fraction=0.4, variance=variance, seed=1
            )
            yield {"data": "CIFAR-10", "variance": variance, "left": done.power}


if __name__ == "__main__":
    if "MARSHTEST_DATA" not in os.environ:
        raise SystemExit("MARSHTEST_DATA: name the folder in which cifar10/train.parquet lies.")
    torch.set_num_threads(1)
    found = pd.DataFrame(lines())
    found.to_csv(
        ROOT / "docs" / "reproduce" / "audit" / "rounding.csv", index=False, float_format="%.4g"
    )
    print(found.to_string())
