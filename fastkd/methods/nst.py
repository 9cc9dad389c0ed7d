"""Neuron selectivity transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import directions
from fastkd.toolbox.spatial import needs_of, same_size, stage_pairs
from loaders.contract import Batch


def mean_kernel(a_BCP: Tensor, b_BDP: Tensor) -> Tensor:
    """Mean over samples and pairs of channels of (a_c . b_d)^2, P positions.

    sum_cd (a_c . b_d)^2 is the square of a b^T, C by D, and also the product of a^T a with b^T b, P by P. The smaller
    is taken; the products channel by channel, B * C * D * P numbers, never exist.
    """
    (size, width_a, positions), width_b = a_BCP.shape, b_BDP.shape[1]
    if positions**2 < width_a * width_b:
        total = ((a_BCP.mT @ a_BCP) * (b_BDP.mT @ b_BDP)).sum()
    else:
        total = (a_BCP @ b_BDP.mT).square().sum()
    return total / (size * width_a * width_b)


@final
class NST(Method):
    """Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (2017).

    Channels are unit vectors over positions; k(a, b) = mean over samples and pairs of channels of (a_c . b_d)^2.
    nst = sum over stages of k(t, t) + k(s, s) - 2 k(s, t), the larger map first averaged down to the smaller.

    Equal to RepDistiller's NSTLoss and MDistiller's NST, which are the same, and which hold every product of a channel
    with a channel in memory. Differs where one net has more stages: those are paired from the deep end, where the
    references cut the deep ones off.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 50.0

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.pairs = stage_pairs(setting.student, setting.teacher)
        self.needs = needs_of(self.pairs)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        for pair in self.pairs:
            maps = same_size(student.taps[pair.student], teacher.taps[pair.teacher])
            s_BCP, t_BCP = (directions(x_BCHW.flatten(2)) for x_BCHW in maps)
            terms[f"nst_{pair.stage}"] = (
                mean_kernel(t_BCP, t_BCP) + mean_kernel(s_BCP, s_BCP) - 2 * mean_kernel(s_BCP, t_BCP)
            )
        return terms


METHOD = NST
