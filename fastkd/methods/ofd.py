"""The overhaul of feature distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import BatchNorm
from fastkd.toolbox.spatial import averaged, needs_of, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError


def margins(norm: nn.BatchNorm2d) -> Tensor:
    """C: what a channel is when it is negative, on average, if it is normal as its batch norm says.

    E[x | x < 0] for x of mean b and deviation |w|; -3 |w| where less than one value in a thousand is negative. A
    channel with w = 0 is b, or 0 where that is not negative.
    """
    mean_C = norm.bias.detach().double()
    std_C = norm.weight.detach().double().abs()
    below_C = torch.special.ndtr(-mean_C / std_C)
    density_C = torch.exp(-((mean_C / std_C) ** 2) / 2) / math.sqrt(2 * math.pi)
    expected_C = mean_C - std_C * density_C / below_C.clamp_min(1e-3)
    return torch.where(below_C > 1e-3, expected_C, -3 * std_C).float()


class Stage(nn.Module):
    """One stage's connector and the margins of its teacher's channels."""

    margin_C11: Tensor

    def __init__(self, width: int, kernel_size: int, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        width_t = norm.num_features
        conv = nn.Conv2d(width, width_t, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(conv.weight, 0, math.sqrt(2 / (kernel_size**2 * width_t)))
        self.connect = nn.Sequential(conv, BatchNorm(width_t))
        self.register_buffer("margin_C11", margins(norm)[:, None, None])

    def forward(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        s_BCHW = self.connect(s_BCHW)
        t_BCHW = averaged(t_BCHW, (s_BCHW.shape[2], s_BCHW.shape[3]))
        goal_BCHW = torch.maximum(t_BCHW, self.margin_C11)
        counts_BCHW = (s_BCHW > goal_BCHW) | (t_BCHW > 0)
        return ((s_BCHW - goal_BCHW).square() * counts_BCHW).sum() / len(s_BCHW)


@final
class OFD(Method):
    """Heo et al.: A Comprehensive Overhaul of Feature Distillation (2019).

    Maps before the activation. goal = max(t, margin), the margin a channel's expected negative value after its batch
    norm; s = connect(student's map), convolution and batch norm, trained. A stage's distance is the sum over channels and
    positions, averaged over the batch, of (s - goal)^2, without what is negative in the teacher and below the goal.
    ofd = sum over stages of the distance / 2^(stages that follow).

    Equal to MDistiller's OFD. The paper's repository divides the sum over the batch by batch size and 1000 (CIFAR-100)
    or 10000 (ImageNet): the weight of 0.001 here, and a row for ImageNet. The teacher's map is averaged to the size of
    the student's, as in MDistiller.
    Differs: the teacher normalises by its running statistics, where both repositories leave it in training mode, which
    the paper's table 8 finds better, and with MDistiller changes the teacher that is saved. Stages are paired from the
    deep end with their own margins; MDistiller pairs so, but takes the margins from the shallow end.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 0.001
        kernel_size: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.kernel_size < 1 or self.kernel_size % 2 == 0:
                raise UserError(
                    f"method.kernel_size is {self.kernel_size}; it must be an odd number of at least 1"
                )

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.pairs = stage_pairs(setting.student, setting.teacher, "pre", "pre")
        self.needs = needs_of(self.pairs)
        self.stages = nn.ModuleList(
            Stage(
                setting.student.taps[pair.student].channels,
                config.kernel_size,
                setting.teacher.norm_of(pair.teacher),
            )
            for pair in self.pairs
        )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        last = len(self.pairs) - 1
        return {
            f"ofd_{pair.stage}": stage(student.taps[pair.student], teacher.taps[pair.teacher])
            / 2 ** (last - k)
            for k, (pair, stage) in enumerate(zip(self.pairs, self.stages, strict=True))
        }


METHOD = OFD
