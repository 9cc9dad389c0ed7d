"""Discriminative and consistent distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import UnitEmbedding
from loaders.contract import Batch
from loaders.errors import UserError


@final
class DCD(Method):
    """Giakoumoglou, Stathaki: Discriminative and Consistent Representation Distillation (2024); first called ICD.

    s, t: unit embeddings of the pooled features, both trained. Within the batch, with
    L = scale * s t^T + b:
    contrast = cross-entropy of the rows of L, each sample's own teacher embedding being its label;
    consistency = alpha * mean_B KL(softmax of the columns of L || softmax of the rows of L), both sides trained.

    The scale is published in three forms under this name:
      variant trained (default; the trainer of 2024, behind the published table): min(exp(tau), max_tau), with tau and b
        trained from init_tau and init_b;
      variant imagenet (the ImageNet trainer since): the same, but nothing trains tau and b;
      variant fixed (trainable=False there): nce_t itself, with b = 0. The similarities are multiplied by the
        temperature 0.07 where one would divide.
    b shifts every entry of L alike, so it cancels in both soft-maxes: it is kept as published, and learns nothing.

    Under several ranks each contrasts its own samples, as there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        variant: Literal["trained", "imagenet", "fixed"] = "trained"
        feat_dim: int = 128
        alpha: float = 0.5
        init_tau: float = 1.0  # trained and imagenet
        init_b: float = 0.0  # trained and imagenet
        max_tau: float = 10.0  # trained and imagenet: the largest scale
        nce_t: float = 0.07  # fixed only

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.feat_dim < 1:
                raise UserError(f"method.feat_dim is {self.feat_dim}; it must be at least 1")
            for name in ("max_tau", "nce_t"):
                if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be a number > 0")
            for name in ("init_tau", "init_b"):
                if not math.isfinite(getattr(self, name)):
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be a finite number")
            if not (math.isfinite(self.alpha) and self.alpha >= 0):
                raise UserError(f"method.alpha is {self.alpha}; a weight must be a finite number >= 0")

    config: Config
    needs = Needs(teacher=(POOLED,))

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.embed_student = UnitEmbedding(setting.student.pooled_width, config.feat_dim)
        self.embed_teacher = UnitEmbedding(setting.teacher.pooled_width, config.feat_dim)
        fixed, trained = config.variant == "fixed", config.variant == "trained"
        self.tau = nn.Parameter(
            torch.tensor(config.nce_t if fixed else config.init_tau), requires_grad=trained
        )
        self.b = nn.Parameter(torch.tensor(0.0 if fixed else config.init_b), requires_grad=trained)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BD, t_BD = self.embed_student(student.pooled), self.embed_teacher(teacher.pooled)
        logits_BB = self._scale() * (s_BD @ t_BD.T) + self.b
        s_BB, t_BB = F.log_softmax(logits_BB, dim=1), F.log_softmax(logits_BB.T, dim=1)
        return {
            "contrast": -s_BB.diagonal().mean(),
            "consistency": self.config.alpha * F.kl_div(s_BB, t_BB, reduction="batchmean", log_target=True),
        }

    def _scale(self) -> Tensor:
        if self.config.variant == "fixed":
            return self.tau
        # clamped before the exponential: after it, an overflow would have the gradient 0 * inf
        return self.tau.clamp_max(math.log(self.config.max_tau)).exp()


METHOD = DCD
