"""Normalised soft labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import target_against_rest
from loaders.contract import Batch
from loaders.errors import UserError


@final
class NKD(Method):
    """Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach (2023).

    s, t: softmax at temperature 1, y the true class; s', t': softmax over the classes but y at T = kd_temperature.
    target = -mean_B t_y log s_y, others = -gamma * T^2 * mean_B sum t' log s'; the loss is their sum.
    Where targets are distributions (BK), y is the most likely class.

    Equal to cls_KD's NKDLoss, which takes cross-entropies: the values lack the teacher's entropy and are no KL's.
    T 3 and gamma 3.5 are its numbers for CIFAR-100, 1 and 1.5 those for ImageNet.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        kd_temperature: float = 3.0
        gamma: float = 3.5

        def __post_init__(self) -> None:
            super().__post_init__()
            if not (math.isfinite(self.gamma) and self.gamma >= 0):
                raise UserError(f"method.gamma is {self.gamma}; it must be a finite number >= 0")

    config: Config
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        temperature = self.config.kd_temperature
        s_BK, t_BK = student.logits, teacher.logits.detach()
        y_B = batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1)
        log_t_y, log_s_y = (F.log_softmax(logits, dim=1).gather(1, y_B[:, None]) for logits in (t_BK, s_BK))
        _, s_rest = target_against_rest(s_BK / temperature, y_B)
        _, t_rest = target_against_rest(t_BK / temperature, y_B)
        others = -(t_rest.exp() * s_rest).sum(1).mean()
        return {
            "target": -(log_t_y.exp() * log_s_y).mean(),
            "others": self.config.gamma * temperature**2 * others,
        }


METHOD = NKD
