"""Every model as data. No torch here: `--help` lists the names without paying for its import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ResNetSize(NamedTuple):
    depth: int  # 6n + 2: n basic blocks a stage, two convolutions each
    widths: tuple[int, int, int, int]  # channels of the stem and of the three stages


class WideResNetSize(NamedTuple):
    depth: int  # 6n + 4: n pre-activation blocks a stage
    widen: int


class VGGSize(NamedTuple):
    convs: tuple[int, int, int, int, int]  # 3x3 convolutions in each of the five blocks


_X1 = (16, 16, 32, 64)
_X2 = (16, 32, 64, 128)  # the stem is not widened
_X4 = (32, 64, 128, 256)

# family -> model -> size. `fastkd/models/<family>.py` builds the models of its row.
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "resnet": {
        "resnet8": ResNetSize(8, _X1),
        "resnet14": ResNetSize(14, _X1),
        "resnet20": ResNetSize(20, _X1),
        "resnet32": ResNetSize(32, _X1),
        "resnet38": ResNetSize(38, _X1),
        "resnet44": ResNetSize(44, _X1),
        "resnet56": ResNetSize(56, _X1),
        "resnet110": ResNetSize(110, _X1),
        "resnet116": ResNetSize(116, _X1),
        "resnet14x2": ResNetSize(14, _X2),
        "resnet38x2": ResNetSize(38, _X2),
        "resnet110x2": ResNetSize(110, _X2),
        "resnet8x4": ResNetSize(8, _X4),
        "resnet14x4": ResNetSize(14, _X4),
        "resnet32x4": ResNetSize(32, _X4),
        "resnet38x4": ResNetSize(38, _X4),
    },
    "wrn": {
        "wrn_16_1": WideResNetSize(16, 1),
        "wrn_16_2": WideResNetSize(16, 2),
        "wrn_40_1": WideResNetSize(40, 1),
        "wrn_40_2": WideResNetSize(40, 2),
    },
    "vgg": {
        "vgg8": VGGSize((1, 1, 1, 1, 1)),
        "vgg11": VGGSize((1, 1, 2, 2, 2)),
        "vgg13": VGGSize((2, 2, 2, 2, 2)),
        "vgg16": VGGSize((2, 2, 3, 3, 3)),
        "vgg19": VGGSize((2, 2, 4, 4, 4)),
    },
}

# Other names in use for the same network. Case, '-' and '_' never matter and need no row here.
ALIASES: Mapping[str, str] = {
    "vgg8_bn": "vgg8",
    "vgg11_bn": "vgg11",
    "vgg13_bn": "vgg13",
    "vgg16_bn": "vgg16",
    "vgg19_bn": "vgg19",
}
