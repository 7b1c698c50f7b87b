"""Small image networks: a multilayer perceptron and ResNet-18."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from marshtest.models.base import ModelSettings
from marshtest.plumbing.errors import MarshtestError


class MLP(ModelSettings):
    """Fully connected layers with ReLU between them, PyTorch's default initialisation."""

    name: str = "mlp"
    width: int = Field(512, ge=1)  # units of a hidden layer
    depth: int = Field(1, ge=0, le=1000)  # hidden layers

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        features = torch.Size(input_shape).numel()
        for _ in range(self.depth):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, classes))


class ResNet18(ModelSettings):
    """ResNet-18 with the 3 × 3 stem for small images (He et al. 2016, CIFAR form)."""

    name: str = "resnet18"
    width: int = Field(64, ge=1)  # channels of the first stage; 64 is the paper's

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        if len(input_shape) != 3:
            raise MarshtestError(f"model: resnet18 needs images [C, H, W]. Got {input_shape}.")
        return ResNet(input_shape[0], self.width, classes)


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of two blocks each; 11,173,962 parameters at width 64 and ten classes."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = []
        for stage in range(4):  # each but the first halves the image and doubles the channels
            outputs = width * 2**stage
            inputs = width if stage == 0 else outputs // 2
            blocks += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        out = self.blocks(out)  # [B, 8 · width, H / 8, W / 8]
        return self.fc(out.mean((2, 3)))  # type: ignore[no-any-return]  # [B, classes]
