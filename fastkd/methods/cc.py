"""Correlation congruence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import nn

from fastkd.method import POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from loaders.contract import Batch
from loaders.errors import UserError


@final
class CC(Method):
    """Peng et al.: Correlation Congruence for Knowledge Distillation (2019).

    d_i = |W_s s_i + b_s - (W_t t_i + b_t)|, entry by entry, of the pooled features;
    cc = mean over i of sum_d d_i * d_{i+1}: neighbours in the batch, B - 1 pairs, so the value depends on its order.

    Equal to RepDistiller's Correlation, which stands for the method in every table; the paper compares all pairs through
    a kernel. Both embeddings are trained, as there. Differs where it is not finite: a batch of one sample gives 0.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 0.02
        feat_dim: int = 128

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.feat_dim < 1:
                raise UserError(f"method.feat_dim is {self.feat_dim}; it must be at least 1")

    needs = Needs(teacher=(POOLED,))

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.embed_student = nn.Linear(setting.student.pooled_width, config.feat_dim)
        self.embed_teacher = nn.Linear(setting.teacher.pooled_width, config.feat_dim)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        apart_BD = (self.embed_student(student.pooled) - self.embed_teacher(teacher.pooled)).abs()
        return {"cc": (apart_BD[:-1] * apart_BD[1:]).sum() / max(len(apart_BD) - 1, 1)}


METHOD = CC
