"""VGG with batch norm and a single linear layer, for small images (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from fastkd.models.base import StagedNet, TapCatcher, conv3x3, he_normal_, normal_, square_maps
from fastkd.models.sizes import VGGSize

WIDTHS = (64, 128, 256, 512, 512)


class VGG(StagedNet):
    def __init__(self, name: str, size: VGGSize, num_classes: int, image_size: int) -> None:
        # As the reference has it, the fifth block pools its input for 64x64 images only.
        pools = (False, True, True, True, image_size == 64)
        sides = [image_size // 2 ** sum(pools[: k + 1]) for k in range(len(pools))]
        super().__init__(name, image_size, square_maps(sides, WIDTHS), WIDTHS[-1], num_classes)
        self._pools = pools
        widths_in = (3, *WIDTHS[:-1])
        blocks = [_block(*row) for row in zip(widths_in, WIDTHS, size.convs, strict=True)]
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_normal_(self)
        normal_(self.classifier.weight, 0.01)
        nn.init.zeros_(self.classifier.bias)

    @property
    def head(self) -> nn.Linear:
        return self.classifier

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        stages = (self.block1, self.block2, self.block3, self.block4)
        return {f"stage{k}.pre": cast(nn.BatchNorm2d, stage[-1]) for k, stage in enumerate(stages, 1)}[tap]

    def _segment(self, index: int, x: Tensor, caught: TapCatcher) -> Tensor:
        blocks = (self.block0, self.block1, self.block2, self.block3, self.block4)
        if index == len(blocks):
            return x
        if self._pools[index]:
            x = F.max_pool2d(x, 2)
        x = blocks[index](x)
        # no one can ask for "stage0.pre", the stem's: it is not among the taps
        return F.relu(x, inplace=not caught.take(f"stage{index}.pre", x))


def _block(width_in: int, width: int, convs: int) -> nn.Sequential:
    """convolution, batch norm, ReLU, .. without the last ReLU: the sum before it is a tap."""
    layers: list[nn.Module] = []
    for position in range(convs):
        conv = conv3x3(width_in if position == 0 else width, width, bias=True)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def build(name: str, size: VGGSize, num_classes: int, image_size: int) -> StagedNet:
    return VGG(name, size, num_classes, image_size)
