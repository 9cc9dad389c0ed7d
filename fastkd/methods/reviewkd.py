"""Knowledge review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import BatchNorm
from fastkd.toolbox.spatial import stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError


def pyramid_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Mean squares of the maps and of their averages over 4x4, 2x2 and 1x1 cells, each worth half the one before."""
    total, worth, worths = F.mse_loss(s_BCHW, t_BCHW), 1.0, 1.0
    for cells in (4, 2, 1):
        if cells < s_BCHW.shape[2]:  # the height alone decides, as published
            worth /= 2
            worths += worth
            s_cells, t_cells = (F.adaptive_avg_pool2d(x, (cells, cells)) for x in (s_BCHW, t_BCHW))
            total = total + worth * F.mse_loss(s_cells, t_cells)
    return total / worths


class Fusion(nn.Module):
    """One level of the student, with what the deeper levels made, as a map like the teacher's."""

    def __init__(self, width: int, mid: int, width_t: int, deepest: bool) -> None:
        super().__init__()
        enter = nn.Conv2d(width, mid, 1, bias=False)
        leave = nn.Conv2d(mid, width_t, 3, padding=1, bias=False)
        for conv in (enter, leave):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.enter = nn.Sequential(enter, BatchNorm(mid))
        self.leave = nn.Sequential(leave, BatchNorm(width_t))
        self.weigh = None if deepest else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, x_BCHW: Tensor, deeper_BMHW: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """A map of the teacher's shape, and what the next shallower level gets. `size`: the teacher's."""
        x_BMHW = self.enter(x_BCHW)
        if self.weigh is not None:
            deeper_BMHW = F.interpolate(deeper_BMHW, x_BMHW.shape[2:], mode="nearest")
            own, others = self.weigh(torch.cat([x_BMHW, deeper_BMHW], 1)).sigmoid().split(1, dim=1)
            x_BMHW = x_BMHW * own + deeper_BMHW * others
        if x_BMHW.shape[2:] != size:
            x_BMHW = F.interpolate(x_BMHW, size, mode="nearest")
        return self.leave(x_BMHW), x_BMHW


@final
class ReviewKD(Method):
    """Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review (2021).

    Levels: the stages and, deepest, the pooled features as a map of one position. From the deepest up, each student
    level is mixed with what came from below by two maps of weights, and turned into a map of the teacher's shape, which
    is compared with the teacher's map before its activation:
    reviewkd = min(epoch / warmup_epochs, 1) * sum over levels of pyramid_distance.

    Equal to MDistiller's ReviewKD, with epochs counted from 1; dvlab's counts from 0 and so gives the first none. Shapes
    come from the nets, so no table of them is needed; stages are paired from the deep end, as those tables do. Of
    max_mid_channels MDistiller reads nothing and takes 512; dvlab's takes 256 for MobileNetV1.
    student_preactivation: the student's maps before the activation too, as published for ImageNet.
    pooled false: stages alone, as published for detection.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 5.0
        warmup_epochs: int = 20
        max_mid_channels: int = 512
        student_preactivation: bool = False
        pooled: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("warmup_epochs", "max_mid_channels"):
                if getattr(self, name) < 1:
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be at least 1")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        kind = "pre" if config.student_preactivation else ""
        self.pairs = stage_pairs(setting.student, setting.teacher, kind, "pre")
        self.needs = Needs(
            student=tuple(pair.student for pair in self.pairs),
            teacher=(*(pair.teacher for pair in self.pairs), *((POOLED,) if config.pooled else ())),
        )
        widths = [
            (setting.student.taps[pair.student].channels, setting.teacher.taps[pair.teacher].channels)
            for pair in self.pairs
        ]
        if config.pooled:
            widths.append((setting.student.pooled_width, setting.teacher.pooled_width))
        mid = min(config.max_mid_channels, widths[-1][0])
        self.fusions = nn.ModuleList(  # deepest first
            Fusion(width, mid, width_t, deepest=k == 0) for k, (width, width_t) in enumerate(reversed(widths))
        )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        levels = [(p.stage, student.taps[p.student], teacher.taps[p.teacher]) for p in self.pairs]
        if self.config.pooled:
            levels.append(("pooled", student.pooled[:, :, None, None], teacher.pooled[:, :, None, None]))
        warm = (clock.epoch / self.config.warmup_epochs).clamp(max=1)
        terms: Terms = {}
        passed = levels[-1][1]  # the deepest has nothing below, and does not look
        for fusion, (name, s_BCHW, t_BCHW) in zip(self.fusions, reversed(levels), strict=True):
            fused_BCHW, passed = fusion(s_BCHW, passed, t_BCHW.shape[2:])
            terms[f"reviewkd_{name}"] = warm * pyramid_distance(fused_BCHW, t_BCHW)
        return terms


METHOD = ReviewKD
