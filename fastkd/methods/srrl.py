"""Softmax regression representation learning."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import nn

from fastkd.method import LOGITS, POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import BatchNorm
from loaders.contract import Batch


@final
class SRRL(Method):
    """Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning (2021).

    r = connect(student's pooled features): 1x1 convolution, batch norm, ReLU, trained with the student.
    srrl_feature = mean (r - t)^2; srrl_logit = mean (head_t(r) - t's logits)^2, head_t the teacher's classifier, frozen.

    Equal to SimKD's SRRL, trained with weights 1, 1 and 1. The repository takes the mean square of logits for any
    teacher; for several of its nets it takes a stage for the classifier and fails.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        kd_weight: float = 1.0

    needs = Needs(teacher=(LOGITS, POOLED))

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        width = setting.teacher.pooled_width
        self.connect = nn.Sequential(
            nn.Conv2d(setting.student.pooled_width, width, 1, bias=False),
            BatchNorm(width),
            nn.ReLU(inplace=True),
        )
        self.head = copy.deepcopy(setting.teacher.head).requires_grad_(False)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BD = self.connect(student.pooled[:, :, None, None]).flatten(1)
        return {
            "srrl_feature": F.mse_loss(s_BD, teacher.pooled),
            "srrl_logit": F.mse_loss(self.head(s_BD), teacher.logits),
        }


METHOD = SRRL
