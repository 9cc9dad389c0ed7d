"""Correlation of predictions within a sample and within a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from loaders.contract import Batch
from loaders.errors import UserError


def uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - the mean Pearson correlation along dim. What does not vary counts as uncorrelated."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return 1 - ((a * b).sum(dim) / (lengths + 1e-8)).mean()


@final
class DIST(Method):
    """Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher (2022).

    p = softmax(logits / T), T = kd_temperature; rows are samples, columns classes:
    inter = T^2 * (1 - mean correlation of the two nets' rows), intra = T^2 * (1 - mean correlation of their columns),
    dist = beta * inter + gamma * intra. Logits of shape BKHW make every pixel a row, as DIST does for segmentation.

    Equal to hunto's DIST, whose T is 4 for CIFAR-100 and 1 for ImageNet. Columns are those of a rank's own batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 2.0
        beta: float = 1.0
        gamma: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("beta", "gamma"):
                value = getattr(self, name)
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"method.{name} is {value}; it must be a finite number >= 0")

    config: Config
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        temperature = self.config.kd_temperature
        s_RK, t_RK = (
            F.softmax(logits.movedim(1, -1).flatten(0, -2) / temperature, dim=1)
            for logits in (student.logits, teacher.logits.detach())
        )
        return {
            "inter": self.config.beta * temperature**2 * uncorrelated(s_RK, t_RK, 1),
            "intra": self.config.gamma * temperature**2 * uncorrelated(s_RK, t_RK, 0),
        }


METHOD = DIST
