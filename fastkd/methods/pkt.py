"""Probabilistic knowledge transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastkd.method import POOLED, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import inverse_length
from loaders.contract import Batch
from loaders.errors import UserError


def affinities(x_BD: Tensor, eps: float) -> Tensor:
    """BB: (cosine + 1) / 2, each row divided by its sum. A row of zeros is orthogonal to all."""
    unit_BD = x_BD * inverse_length(x_BD, floor=0.0, eps=eps)
    p_BB = (unit_BD @ unit_BD.T + 1) / 2
    return p_BB / p_BB.sum(1, keepdim=True)


@final
class PKT(Method):
    """Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer (2018).

    p: of each sample of the batch, how alike the others are, from the cosines of the pooled features.
    pkt = mean over all B * B entries, the diagonal included, of p_t * log((p_t + eps) / (p_s + eps)).
    The mean makes the value small: hence the weight of 30000.

    Equal to RepDistiller's PKT and MDistiller's, which are the same. Differs where theirs has no gradient: for a
    student's row of zeros it is 0. Under several ranks each compares its own samples, as there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 30000.0
        eps: float = 1e-7

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.eps < 1:
                raise UserError(f"method.eps is {self.eps}; it must be a number between 0 and 1")

    config: Config
    needs = Needs(teacher=(POOLED,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        eps = self.config.eps
        s_BB, t_BB = affinities(student.pooled, eps), affinities(teacher.pooled, eps)
        return {"pkt": (t_BB * ((t_BB + eps) / (s_BB + eps)).log()).mean()}


METHOD = PKT
