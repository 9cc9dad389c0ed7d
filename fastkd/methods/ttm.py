"""A powered teacher for an untouched student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import power_kl
from loaders.contract import Batch
from loaders.errors import UserError


@final
class TTM(Method):
    """Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching (2024).

    q = softmax(teacher)^ttm_l: ttm = mean_B KL(q / sum q || softmax(student)). The student is at temperature 1, the
    teacher in effect at 1 / ttm_l, and no T^2 is applied. kd_temperature is that of the plain KL alone.

    Equal to zkxufo's TTM. Of its numbers only those of vgg13 -> vgg8 are in the repository (ttm_l 0.1, weight 45);
    they are the defaults here.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 45.0
        ttm_l: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if not (math.isfinite(self.ttm_l) and self.ttm_l > 0):
                raise UserError(f"method.ttm_l is {self.ttm_l}; an exponent must be a number > 0")

    config: Config
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {"ttm": power_kl(student.logits, teacher.logits, self.config.ttm_l).mean()}


METHOD = TTM
