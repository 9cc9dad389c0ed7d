"""Losses as their formulas read: every product and every pair exists in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.toolbox.spatial import same_size


def kernel_of_all_products(a_BCP: Tensor, b_BDP: Tensor) -> Tensor:
    """nst: each channel times each channel at each position, B * C * D * P numbers."""
    return (a_BCP[:, :, None] * b_BDP[:, None]).sum(3).square().mean()


def nst_of_all_products(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Of maps, stage by stage; the larger map averaged down first."""
    total = student[0].new_zeros(())
    for maps in zip(student, teacher, strict=True):
        s_BCP, t_BCP = (F.normalize(x_BCHW.flatten(2), dim=2) for x_BCHW in same_size(*maps))
        kernels = [kernel_of_all_products(*pair) for pair in ((t_BCP, t_BCP), (s_BCP, s_BCP), (s_BCP, t_BCP))]
        total = total + kernels[0] + kernels[1] - 2 * kernels[2]
    return total


def structure_of_all_pairs(x: Tensor) -> Tensor:
    """askd: every ordered pair of entries, with the floor and the mean of what is positive as published."""
    apart = (x[..., :, None] - x[..., None, :]).square().clamp_min(1e-12).sqrt()
    apart = apart * (1 - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device))
    return apart / apart[apart > 0].mean()
