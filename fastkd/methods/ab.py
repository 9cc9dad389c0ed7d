"""Activation boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Phase, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import ConvAdapter
from fastkd.toolbox.spatial import needs_of, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError

SCALE = 3e-3  # the published code's


@final
class Boundaries(Method):
    """The objective of AB's phase."""

    def __init__(self, config: MethodConfig, setting: Setting, margin: float) -> None:
        super().__init__(config, setting)
        self.margin = margin
        self.pairs = stage_pairs(setting.student, setting.teacher, "pre", "pre")
        self.needs = needs_of(self.pairs)
        connectors: list[nn.Module] = []
        for pair in self.pairs:
            s, t = setting.student.taps[pair.student], setting.teacher.taps[pair.teacher]
            same = (s.channels, s.height) == (t.channels, t.height)
            connectors.append(nn.Identity() if same else ConvAdapter(s, t, relu=False))
        self.connectors = nn.ModuleList(connectors)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        last = len(self.pairs) - 1
        for k, (pair, connect) in enumerate(zip(self.pairs, self.connectors, strict=True)):
            s_BCHW, t_BCHW = connect(student.taps[pair.student]), teacher.taps[pair.teacher]
            if isinstance(connect, ConvAdapter):
                t_BCHW = connect.target(t_BCHW)
            terms[f"ab_{pair.stage}"] = crossings(s_BCHW, t_BCHW, self.margin) * SCALE / 2 ** (last - k)
        return terms


def crossings(s_BCHW: Tensor, t_BCHW: Tensor, margin: float) -> Tensor:
    """By how much the student is not beyond the margin on the teacher's side of zero; squares, a sample."""
    short_BCHW = torch.where(t_BCHW > 0, margin - s_BCHW, margin + s_BCHW).clamp_min(0)
    return short_BCHW.square().sum() / len(s_BCHW)


@final
class AB(Method):
    """Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons (2019).

    A first phase of init_epochs trains the student on the signs of the teacher's neurons, then it is trained on the
    labels (and soft labels): this method has no term of its own then. With maps before the activation, s through a
    convolution and batch norm where shapes differ:
    ab = sum over stages of 0.003 / 2^(stages that follow) * sum over entries, a sample, of
         max(margin - s, 0)^2 where t > 0, max(margin + s, 0)^2 elsewhere.

    Equal to RepDistiller's ABLoss and its 30 epochs of initialisation, which weigh the terms by 1: weight only says
    whether that phase takes place. Differs: the parts of the student that the phase does not reach are in training mode
    too. Stages are paired from the deep end; there nets of other depths are refused.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        init_epochs: int = 30
        margin: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.init_epochs < 0:
                raise UserError(f"method.init_epochs is {self.init_epochs}; it must be at least 0")
            if not 0 <= self.margin < float("inf"):
                raise UserError(f"method.margin is {self.margin}; it must be a finite number of at least 0")
            if not (self.task_weight or self.kd_weight):
                raise UserError(
                    "method.task_weight and kd_weight are 0, and after its first phase ab has no other loss; "
                    "give one of them a weight above 0"
                )

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        # a tuple: no part of the main objective
        self.first = (Boundaries(MethodConfig(task_weight=0.0), setting, config.margin),)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {}

    def phases(self) -> Sequence[Phase]:
        if not (self.config.weight and self.config.init_epochs):
            return ()
        return (Phase(objective=self.first[0], epochs=self.config.init_epochs),)


METHOD = AB
