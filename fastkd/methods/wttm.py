"""A powered teacher, its unsure samples weighing more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import power_kl
from loaders.contract import Batch
from loaders.errors import UserError


@final
class WTTM(Method):
    """Zheng, Yang: Knowledge Distillation Based on Transformed Teacher Matching (2024), the weighted form.

    q = softmax(teacher)^ttm_l, n = sum q of a sample, at least 1 for ttm_l < 1 and larger the flatter the teacher:
    wttm = mean_B n * KL(q / n || softmax(student)).

    Equal to zkxufo's WTTM. Of its numbers only those for WTTM next to CRD are in the repository (vgg13 -> vgg8:
    ttm_l 0.2, weight 4); they are the defaults here.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 4.0
        ttm_l: float = 0.2

        def __post_init__(self) -> None:
            super().__post_init__()
            if not (math.isfinite(self.ttm_l) and self.ttm_l > 0):
                raise UserError(f"method.ttm_l is {self.ttm_l}; an exponent must be a number > 0")

    config: Config
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        power = self.config.ttm_l
        log_t_BK = F.log_softmax(teacher.logits.detach(), dim=1)
        n_B = (log_t_BK * power).logsumexp(1).exp()
        return {"wttm": (n_B * power_kl(student.logits, log_t_BK, power)).mean()}


METHOD = WTTM
