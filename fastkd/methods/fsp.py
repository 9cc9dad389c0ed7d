"""The flow of the solution procedure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor

from fastkd.method import Method, MethodConfig, Phase, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.spatial import from_the_deep_end, needs_of, same_size
from loaders.contract import Batch
from loaders.errors import UserError


def flow(lower_BCHW: Tensor, upper_BDHW: Tensor) -> Tensor:
    """BCD: products of the channels of two maps of one net, averaged over positions."""
    lower_BCHW, upper_BDHW = same_size(lower_BCHW, upper_BDHW)
    lower_BCP, upper_BDP = lower_BCHW.flatten(2), upper_BDHW.flatten(2)
    return lower_BCP @ upper_BDP.mT / lower_BCP.shape[2]


@final
class Flows(Method):
    """The objective of FSP's phase."""

    def __init__(self, config: MethodConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        s_taps, t_taps = (
            tuple(tap for tap in net.taps if not tap.endswith(".pre"))
            for net in (setting.student, setting.teacher)
        )
        self.pairs = from_the_deep_end(s_taps, t_taps)
        self.needs = needs_of(self.pairs)
        if len(self.pairs) < 2:
            raise UserError("fsp compares what lies between two maps of a net; a net here has only one")
        for pair in self.pairs:
            wide_s, wide_t = (
                setting.student.taps[pair.student].channels,
                setting.teacher.taps[pair.teacher].channels,
            )
            if wide_s != wide_t:
                raise UserError(
                    f"fsp compares channel by channel, but the student's {pair.student} has {wide_s} channels and the "
                    f"teacher's {pair.teacher} has {wide_t}; pick nets of equal widths or another method"
                )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        for lower, upper in itertools.pairwise(self.pairs):
            s_BCD = flow(student.taps[lower.student], student.taps[upper.student])
            t_BCD = flow(teacher.taps[lower.teacher], teacher.taps[upper.teacher])
            terms[f"fsp_{upper.stage}"] = F.mse_loss(s_BCD, t_BCD)
        return terms


@final
class FSP(Method):
    """Yim et al.: A Gift from Knowledge Distillation (2017).

    A first phase of init_epochs trains the student alone on its flows, then it is trained on the labels (and soft
    labels): this method has no term of its own then. For the stem and all stages, flow = products of the channels of
    two maps that follow each other, averaged over positions, the larger map first averaged down.
    fsp = sum over neighbours of mean over all entries of (flow_s - flow_t)^2.

    Equal to RepDistiller's FSP and its 30 epochs of initialisation, which weigh the terms by 1: weight, 50 there, only
    says whether that phase takes place. Both nets need the same widths. Differs: the parts of the student that the
    phase does not reach are in training mode too. Maps are paired from the deep end.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 50.0
        init_epochs: int = 30

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.init_epochs < 0:
                raise UserError(f"method.init_epochs is {self.init_epochs}; it must be at least 0")
            if not (self.task_weight or self.kd_weight):
                raise UserError(
                    "method.task_weight and kd_weight are 0, and after its first phase fsp has no other loss; "
                    "give one of them a weight above 0"
                )

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.first = (
            Flows(MethodConfig(task_weight=0.0), setting),
        )  # a tuple: no part of the main objective

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {}

    def phases(self) -> Sequence[Phase]:
        if not (self.config.weight and self.config.init_epochs):
            return ()
        return (Phase(objective=self.first[0], epochs=self.config.init_epochs),)


METHOD = FSP
