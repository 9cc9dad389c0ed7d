"""Wide ResNets for CIFAR (Zagoruyko and Komodakis 2016), pre-activation, without dropout.

A stage's output is the raw sum; its `.pre` tap is that sum under the batch norm of the segment that follows.
It is read there as it is computed: applying that batch norm a second time, as the reference does for its
pre-activation features, updates the running statistics twice a step.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from fastkd.models.base import StagedNet, TapCatcher, conv1x1, conv3x3, he_normal_, square_maps
from fastkd.models.sizes import WideResNetSize


class PreActivationBlock(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = conv3x3(width_in, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        # by width alone, as the checkpoints have it: at width 1 the first stage has no shortcut convolution
        self.convShortcut = None if width_in == width else conv1x1(width_in, width, stride)

    def forward(self, x: Tensor, caught: TapCatcher, entry: str) -> Tensor:
        """`entry` names the tap that this block's first batch norm computes."""
        normed = self.bn1(x)
        active = F.relu(normed, inplace=not caught.take(entry, normed))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        # added into the residual: x may be a tap
        return residual.add_(x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = [PreActivationBlock(width, width, 1) for _ in range(blocks - 1)]
        self.layer = nn.ModuleList([PreActivationBlock(width_in, width, stride), *rest])

    def forward(self, x: Tensor, caught: TapCatcher, entry: str) -> Tensor:
        for position, block in enumerate(self.layer):
            x = block(x, caught, entry if position == 0 else "")
        return x


class WideResNet(StagedNet):
    def __init__(self, name: str, size: WideResNetSize, num_classes: int, image_size: int) -> None:
        half = (image_size + 1) // 2
        sides = (image_size, image_size, half, (half + 1) // 2)
        stem, one, two, three = widths = (16, 16 * size.widen, 32 * size.widen, 64 * size.widen)
        super().__init__(name, image_size, square_maps(sides, widths), three, num_classes)
        blocks = (size.depth - 4) // 6
        self.conv1 = conv3x3(3, stem)
        self.block1 = Stage(stem, one, 1, blocks)
        self.block2 = Stage(one, two, 2, blocks)
        self.block3 = Stage(two, three, 2, blocks)
        self.bn1 = nn.BatchNorm2d(three)
        self.fc = nn.Linear(three, num_classes)
        he_normal_(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        second, third = (cast(PreActivationBlock, stage.layer[0]) for stage in (self.block2, self.block3))
        return {"stage1.pre": second.bn1, "stage2.pre": third.bn1, "stage3.pre": self.bn1}[tap]

    def _segment(self, index: int, x: Tensor, caught: TapCatcher) -> Tensor:
        if index == 0:
            stem: Tensor = self.conv1(x)
            return stem
        entry = f"stage{index - 1}.pre"  # no one can ask for the stem's: it is not among the taps
        stages = (self.block1, self.block2, self.block3)
        if index > len(stages):
            normed = self.bn1(x)
            return F.relu(normed, inplace=not caught.take(entry, normed))
        out: Tensor = stages[index - 1](x, caught, entry)
        return out


def build(name: str, size: WideResNetSize, num_classes: int, image_size: int) -> StagedNet:
    return WideResNet(name, size, num_classes, image_size)
