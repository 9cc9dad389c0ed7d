"""Small trained modules between a student's features and a teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class UnitEmbedding(nn.Linear):
    """A linear layer whose rows come out with length 1."""

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.normalize(super().forward(x_BD), dim=1)
