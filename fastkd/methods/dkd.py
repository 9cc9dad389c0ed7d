"""Decoupled soft labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.schedules import rise
from fastkd.toolbox.softlabels import decoupled_kl
from loaders.contract import Batch
from loaders.errors import UserError


@final
class DKD(Method):
    """Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation (2022).

    p = softmax(logits / T), T = kd_temperature, y the true class:
    tckd = T^2 * mean_B KL((p_y, 1 - p_y) of the teacher || of the student),
    nckd = T^2 * mean_B KL(softmax of the teacher's logits without y || of the student's),
    dkd = min(epoch / warmup, 1) * (alpha * tckd + beta * nckd); the terms are returned with these factors.

    Differs from MDistiller's code where that is not finite: it takes logarithms of probabilities (in float32 at T = 1
    the loss is infinite from a gap of about 120 between logits on) and pushes y down by 1000 instead of leaving it out.
    With two classes nckd is 0, as there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        alpha: float = 1.0
        beta: float = 8.0
        warmup: int = 20  # epochs; 0: none

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("alpha", "beta", "warmup"):
                value = getattr(self, name)
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"method.{name} is {value}; it must be a finite number >= 0")

    config: Config
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        config = self.config
        tckd, nckd = decoupled_kl(student.logits, teacher.logits, batch.targets, config.kd_temperature)
        warm = rise(clock.epoch, config.warmup, tckd.dtype)
        return {"tckd": warm * config.alpha * tckd, "nckd": warm * config.beta * nckd}


METHOD = DKD
