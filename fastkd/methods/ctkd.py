"""Soft labels at a temperature that learns to make them hard to follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from fastkd.method import LOGITS, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import decoupled_kl, soft_label_kl
from loaders.contract import Batch
from loaders.errors import UserError


@final
class CTKD(Method):
    """Li, Li, Yang, Zhao, Song, Luo, Li, Yang: Curriculum Temperature for Knowledge Distillation (2023), global form.

    T = t_start + t_end * sigmoid(global_T): ctkd = the soft-label KL at T (of dkd: alpha * TCKD + beta * NCKD at T),
    T^2 included. The gradient that reaches global_T is multiplied by a strength that goes from decay_max to decay_min
    over decay_loops epochs; below 0 the temperature climbs the loss that the student descends.

    As in the reference, global_T starts at 1 (T = 15.62 at the published numbers), has the student's learning rate and
    weight decay, and epoch 1 is one step into the schedule; a linear schedule runs from 0, ends one step short of
    decay_min and is published with no number. kd_weight weighs the term, also of dkd, whose reference weights are 1 / 1.

    Differs from it: of dkd, the gradient to T is finite (there it is nan since torch 2). The losses are computed in
    float64: the parts of dL/dT cancel to a hundredth of their size and less.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.1
        kd_weight: float = 0.9
        weight: float = 0.0  # ctkd has no further term, as kd
        of: Literal["kd", "dkd"] = "kd"
        alpha: float = 1.0  # dkd only
        beta: float = 2.0  # dkd only
        t_start: float = 1.0
        t_end: float = 20.0
        schedule: Literal["cosine", "linear"] = "cosine"
        decay_max: float = 0.0
        decay_min: float = -1.0
        decay_loops: int = 10

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("alpha", "beta", "t_end"):
                value = getattr(self, name)
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"method.{name} is {value}; it must be a finite number >= 0")
            if not (math.isfinite(self.t_start) and self.t_start > 0):
                raise UserError(f"method.t_start is {self.t_start}; a temperature must be a number > 0")
            for name in ("decay_max", "decay_min"):
                if not math.isfinite(getattr(self, name)):
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be a finite number")
            if self.decay_loops < 1:
                raise UserError(f"method.decay_loops is {self.decay_loops}; it must be at least 1 epoch")

    config: Config
    weighed_by = "kd_weight"
    needs = Needs(teacher=(LOGITS,))

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.global_T = nn.Parameter(torch.ones(1))

    def strength(self, epoch: Tensor) -> Tensor:
        """What the gradient to the temperature is multiplied by."""
        config = self.config
        if config.schedule == "linear":
            passed = epoch.clamp(0, config.decay_loops - 1).double() / config.decay_loops
            return passed * (config.decay_min - config.decay_max)
        passed = epoch.clamp(0, config.decay_loops).double() / config.decay_loops
        left = (torch.cos(passed * math.pi) + 1) / 2
        return left * (config.decay_max - config.decay_min) + config.decay_min

    def temperature(self, epoch: Tensor) -> Tensor:
        held = self.global_T.detach()
        # equal to global_T, with a gradient of its own making
        seen = held.double() + self.strength(epoch) * (self.global_T - held).double()
        return (self.config.t_start + self.config.t_end * torch.sigmoid(seen))[0]

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BK, t_BK = student.logits.double(), teacher.logits.double()
        temperature = self.temperature(clock.epoch)
        if self.config.of == "kd":
            loss = soft_label_kl(s_BK, t_BK, temperature)
        else:
            tckd, nckd = decoupled_kl(s_BK, t_BK, batch.targets, temperature)
            loss = self.config.alpha * tckd + self.config.beta * nckd
        return {"ctkd": loss.to(student.logits.dtype)}


METHOD = CTKD
