"""CIFAR ResNets of basic blocks (He et al. 2016, section 4.2), post-activation; x2 and x4 are wider."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from fastkd.models.base import StagedNet, TapCatcher, conv1x1, conv3x3, he_normal_, square_maps
from fastkd.models.sizes import ResNetSize


class BasicBlock(nn.Module):
    """Returns the sum BEFORE its ReLU, so that a stage can hand out its last one."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(width_in, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(conv1x1(width_in, width, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        # added into the residual: the block's input may be a tap
        return residual.add_(x if self.downsample is None else self.downsample(x))


class ResNet(StagedNet):
    def __init__(self, name: str, size: ResNetSize, num_classes: int, image_size: int) -> None:
        half = (image_size + 1) // 2
        sides = (image_size, image_size, half, (half + 1) // 2)
        super().__init__(name, image_size, square_maps(sides, size.widths), size.widths[-1], num_classes)
        blocks = (size.depth - 2) // 6
        stem, one, two, three = size.widths
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, one, 1, blocks)
        self.layer2 = _stage(one, two, 2, blocks)
        self.layer3 = _stage(two, three, 2, blocks)
        self.fc = nn.Linear(three, num_classes)
        he_normal_(self)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        stage = {"stage1.pre": self.layer1, "stage2.pre": self.layer2, "stage3.pre": self.layer3}[tap]
        return cast(BasicBlock, stage[-1]).bn2

    def _segment(self, index: int, x: Tensor, caught: TapCatcher) -> Tensor:
        if index == 0:
            return F.relu(self.bn1(self.conv1(x)), inplace=True)
        stages = (self.layer1, self.layer2, self.layer3)
        if index > len(stages):
            return x
        *inner, last = stages[index - 1]
        for block in inner:
            x = F.relu(block(x), inplace=True)
        x = last(x)
        return F.relu(x, inplace=not caught.take(f"stage{index}.pre", x))


def _stage(width_in: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(width_in, width, stride), *rest)


def build(name: str, size: ResNetSize, num_classes: int, image_size: int) -> StagedNet:
    return ResNet(name, size, num_classes, image_size)
