"""The audited side of the walk-through in docs/audit.md: a training system that knows nothing of marshtest.

    python auditee.py DATA MODEL.pt2 [--forget FILE] [--start MODEL.pt2.weights] [--epochs N] [--lr RATE]

DATA is a folder of one folder a class. With --forget the images that the file lists are left out. With
--start training goes on from given weights, which is how this vendor "unlearns"; else it starts anew.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


def load(folder: Path, forget: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    left_out = set()
    if forget:
        with forget.open(newline="") as file:
            left_out = {line["file"] for line in csv.DictReader(file)}
    pixels, labels = [], []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(kind.iterdir()):
            if path.relative_to(folder).as_posix() not in left_out:
                pixels.append(np.asarray(Image.open(path)))
                labels.append(label)
    x = torch.from_numpy(np.stack(pixels)).float()[:, None]  # [N, 1, H, W]
    return x / 255, torch.tensor(labels)


def network(x: torch.Tensor, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(x[0].numel(), 512), nn.ReLU(), nn.Linear(512, classes)
    )


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, lr: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--forget", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    x, y = load(options.data, options.forget)
    model = network(x, int(y.max()) + 1)
    if options.start:
        model.load_state_dict(load_file(options.start))
    train(model, x, y, options.epochs, options.lr)
    accuracy = (model(x).argmax(1) == y).float().mean()
    print(f"{options.model}: {len(x)} images, training accuracy {accuracy:.3f}")
    save_file(model.state_dict(), f"{options.model}.weights")
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(model.eval(), (x[:2],), dynamic_shapes=(batch,)), options.model
    )


if __name__ == "__main__":
    main()
