"""Small trained modules between a student's features and a teacher's."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.outputs import TapShape
from fastkd.toolbox.spatial import averaged


class UnitEmbedding(nn.Linear):
    """A linear layer whose rows come out with length 1."""

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.normalize(super().forward(x_BD), dim=1)


class BatchNorm(nn.BatchNorm2d):
    """A channel of a single value has no variance; it is normalised by the running statistics instead of refused."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training and x_BCHW.numel() == self.num_features:
            return F.batch_norm(
                x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x_BCHW)


class ConvAdapter(nn.Sequential):
    """A convolution from a map of the student's shape to the teacher's, a batch norm and, if asked, a ReLU.

    Which convolution the sides decide. Equal: 1x1. Twice the teacher's: 3x3 of stride 2. Half of it: transposed 4x4 of
    stride 2. Larger otherwise: without padding, of the kernel that leaves the teacher's side. Smaller otherwise: 3x3,
    and it is the teacher's map that is averaged down to the student's side, by `target`.
    """

    def __init__(self, student: TapShape, teacher: TapShape, relu: bool) -> None:
        s_side, t_side = (student.height, student.width), (teacher.height, teacher.width)
        channels = student.channels, teacher.channels
        meets = True
        conv: nn.Conv2d | nn.ConvTranspose2d
        if s_side == (2 * t_side[0], 2 * t_side[1]):
            conv = nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
        elif (2 * s_side[0], 2 * s_side[1]) == t_side:
            conv = nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
        elif s_side[0] >= t_side[0] and s_side[1] >= t_side[1]:
            conv = nn.Conv2d(*channels, kernel_size=(1 + s_side[0] - t_side[0], 1 + s_side[1] - t_side[1]))
        else:
            conv = nn.Conv2d(*channels, kernel_size=3, padding=1)
            meets = False
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=BatchNorm(teacher.channels))
        if relu:
            layers["relu"] = nn.ReLU(inplace=True)
        super().__init__(layers)
        self.target_side = t_side if meets else s_side

    def target(self, t_BCHW: Tensor) -> Tensor:
        """The teacher's map as large as what comes out here."""
        return averaged(t_BCHW, self.target_side)


def bottleneck(width_in: int, width: int, width_out: int) -> list[nn.Module]:
    """1x1, 3x3, 1x1 convolutions without bias, a batch norm and a ReLU after each but the last."""
    layers: list[nn.Module] = []
    for wide_in, wide_out, kernel in ((width_in, width, 1), (width, width, 3)):
        layers += [
            nn.Conv2d(wide_in, wide_out, kernel, padding=kernel // 2, bias=False),
            BatchNorm(wide_out),
            nn.ReLU(inplace=True),
        ]
    return [*layers, nn.Conv2d(width, width_out, 1, bias=False)]
