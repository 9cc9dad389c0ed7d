"""Similarity-preserving distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import directions
from fastkd.toolbox.spatial import needs_of, stage_pairs
from loaders.contract import Batch


def similarity(x_BCHW: Tensor) -> Tensor:
    """BB: scalar products of the samples' maps, each row of length 1."""
    x_BD = x_BCHW.flatten(1)
    return directions(x_BD @ x_BD.T)


@final
class SP(Method):
    """Tung, Mori: Similarity-Preserving Knowledge Distillation (2019).

    sp = sum over all pairs of samples of (G_t - G_s)^2 / B^2, G the products of the samples' flattened maps, each row of
    length 1. Sizes and channels of the two maps need not agree.

    Equal to RepDistiller's Similarity and MDistiller's SP, which are the same. The last stage, as in both; stages all:
    every stage, each with its own term. Under several ranks each compares its own samples, as there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 3000.0
        stages: Literal["last", "all"] = "last"

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        pairs = stage_pairs(setting.student, setting.teacher)
        self.pairs = pairs[-1:] if config.stages == "last" else pairs
        self.needs = needs_of(self.pairs)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        for pair in self.pairs:
            apart_BB = similarity(teacher.taps[pair.teacher]) - similarity(student.taps[pair.student])
            terms[f"sp_{pair.stage}"] = apart_BB.square().mean()
        return terms


METHOD = SP
