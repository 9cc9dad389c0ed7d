"""Variational information distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.spatial import needs_of, same_size, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError


def first_log_scale(init_pred_var: float, eps: float) -> float:
    """softplus(this) + eps is init_pred_var."""
    return math.log(math.expm1(init_pred_var - eps))


class Regression(nn.Module):
    """A normal distribution over the teacher's map: the student's map gives the mean, each channel has a variance."""

    def __init__(self, width_s: int, width_t: int, config: VID.Config) -> None:
        super().__init__()
        self.config = config
        if config.variance == "trained":
            start = first_log_scale(config.init_pred_var, config.eps)
            self.log_scale = nn.Parameter(torch.full((width_t,), start))
        self.mean = nn.Sequential(
            nn.Conv2d(width_s, width_t, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(width_t, width_t, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(width_t, width_t, 1, bias=False),
        )

    def forward(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        """The mean negative log likelihood of the teacher's map, without its constant."""
        s_BCHW, t_BCHW = same_size(s_BCHW, t_BCHW)
        error_BCHW: Tensor = (self.mean(s_BCHW) - t_BCHW).square()
        if self.config.variance == "constant":
            variance = self.config.init_pred_var
            return (error_BCHW.mean() / variance + math.log(variance)) / 2
        variance_C11 = (F.softplus(self.log_scale) + self.config.eps)[:, None, None]
        return (error_BCHW / variance_C11 + variance_C11.log()).mean() / 2


@final
class VID(Method):
    """Ahn et al.: Variational Information Distillation for Knowledge Transfer (2019).

    vid = sum over stages of mean over all entries of ((mu(s) - t)^2 / v + log v) / 2, mu three 1x1 convolutions, trained,
    v = softplus(log_scale) + eps one variance a channel that starts at init_pred_var.

    variance trained (default): RepDistiller's VIDLoss, the log_scale is trained, under weight decay as all else.
    variance constant: MDistiller's VID, whose log_scales are neither trained nor saved: v stays init_pred_var.
    Differs where one net has more stages: those are paired from the deep end, where the references cut the deep ones
    off. Every rank trains the same regressions, which RepDistiller's descendants leave apart.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        init_pred_var: float = 5.0
        eps: float = 1e-5
        variance: Literal["trained", "constant"] = "trained"

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.eps < self.init_pred_var < math.inf:
                raise UserError(
                    f"method.eps is {self.eps} and init_pred_var {self.init_pred_var}; eps must be above 0 and below "
                    "init_pred_var, which must be a finite number"
                )

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.pairs = stage_pairs(setting.student, setting.teacher)
        self.needs = needs_of(self.pairs)
        self.regressions = nn.ModuleList(
            Regression(
                setting.student.taps[pair.student].channels,
                setting.teacher.taps[pair.teacher].channels,
                config,
            )
            for pair in self.pairs
        )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {
            f"vid_{pair.stage}": regression(student.taps[pair.student], teacher.taps[pair.teacher])
            for pair, regression in zip(self.pairs, self.regressions, strict=True)
        }


METHOD = VID
