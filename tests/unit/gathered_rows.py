"""CRD's scores as its formula reads: every row that is compared is fetched, B * M * D numbers on either side."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkd.toolbox.memory_bank import PairedBank


def scores_by_gathered_rows(
    bank: PairedBank, s_BD: Tensor, t_BD: Tensor, rows_BM: Tensor
) -> tuple[Tensor, Tensor]:
    sides = []
    for side, (anchor_BD, rows_ND) in enumerate(((s_BD, bank.teacher_rows), (t_BD, bank.student_rows))):
        scores = torch.einsum("bmd,bd->bm", rows_ND[rows_BM], anchor_BD).div(bank.temperature).exp()
        with torch.no_grad():
            estimate = scores.mean() * len(rows_ND)
            bank.z[side] = torch.where(bank.z[side] < 0, estimate, bank.z[side])
        sides.append(scores / bank.z[side].clone())
    return sides[0], sides[1]
