"""Relations between samples: distances and angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.method import POOLED, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import directions
from loaders.contract import Batch
from loaders.errors import UserError


def distances(apart_BBD: Tensor, squared: bool, eps: float) -> Tensor:
    """BB, divided by their mean off the diagonal, where they are 0."""
    count = len(apart_BBD)
    square = apart_BBD.square().sum(2).clamp_min(eps)
    diagonal = torch.eye(count, dtype=torch.bool, device=square.device)
    d_BB = (square if squared else square.sqrt()).masked_fill(diagonal, 0)
    # a clamped distance is positive, so the mean of the positive ones is that of all pairs; one sample has none
    mean = d_BB.sum() / max(count * (count - 1), 1)
    return d_BB / mean.clamp_min(eps)


def angles(apart_BBD: Tensor) -> Tensor:
    """BBB: at the first sample of each triple, the cosine between the ways to the other two."""
    way_BBD = directions(apart_BBD)
    return way_BBD @ way_BBD.transpose(1, 2)


@final
class RKD(Method):
    """Park, Kim, Lu, Cho: Relational Knowledge Distillation (2019).

    On the pooled features x, with l the smooth L1 distance, mean over pairs or triples:
    distance = distance_weight * l(|x_i - x_j| / mean, the teacher's),
    angle = angle_weight * l(cos(x_j - x_i, x_k - x_i), the teacher's).
    `squared` compares squared distances instead (MDistiller's option).

    Equal to RepDistiller's RKDLoss and MDistiller's RKD, which differ in nothing else. Differs from both where they are
    not finite: the mean distance of one sample, and the gradient of samples that coincide, are 0 here. Distances are
    taken from the differences and not from |x|^2 + |y|^2 - 2xy, which loses close samples in float32. Under several
    ranks each compares its own samples, as there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        distance_weight: float = 25.0
        angle_weight: float = 50.0
        squared: bool = False
        eps: float = 1e-12  # the smallest squared distance

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.eps < 1:
                raise UserError(f"method.eps is {self.eps}; it must be a number between 0 and 1")

    config: Config
    needs = Needs(teacher=(POOLED,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        config = self.config
        s_BBD, t_BBD = (x[None] - x[:, None] for x in (student.pooled, teacher.pooled))
        s_BB, t_BB = (distances(apart, config.squared, config.eps) for apart in (s_BBD, t_BBD))
        return {
            "distance": config.distance_weight * F.smooth_l1_loss(s_BB, t_BB),
            "angle": config.angle_weight * F.smooth_l1_loss(angles(s_BBD), angles(t_BBD)),
        }


METHOD = RKD
