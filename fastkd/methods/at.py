"""Attention transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import directions
from fastkd.toolbox.spatial import needs_of, same_size, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError


def attention(x_BCHW: Tensor, power: int) -> Tensor:
    """B, HW: the mean over channels of x^power, as a vector of length 1."""
    return directions(x_BCHW.pow(power).mean(1).flatten(1))


@final
class AT(Method):
    """Zagoruyko, Komodakis: Paying More Attention to Attention (2017).

    A map's attention: at each position the mean over channels of x^power, the positions together of length 1.
    at = sum over stages of mean over batch and positions of (attention(s) - attention(t))^2, the larger map first
    averaged down to the smaller.

    Equal to RepDistiller's Attention and MDistiller's AT, which are the same. Differs where one net has more stages:
    those are paired from the deep end, where the references cut the deep ones off.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 1000.0
        power: int = 2

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.power < 1:
                raise UserError(f"method.power is {self.power}; it must be a whole number of at least 1")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.pairs = stage_pairs(setting.student, setting.teacher)
        self.needs = needs_of(self.pairs)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        for pair in self.pairs:
            s_BCHW, t_BCHW = same_size(student.taps[pair.student], teacher.taps[pair.teacher])
            power = self.config.power
            apart = attention(s_BCHW, power) - attention(t_BCHW, power)
            terms[f"at_{pair.stage}"] = apart.square().mean()
        return terms


METHOD = AT
