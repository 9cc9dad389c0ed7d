"""Factor transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Needs, Phase, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import BatchNorm
from fastkd.toolbox.relations import directions
from fastkd.toolbox.spatial import Pair, same_size, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError


def chain(convs: Sequence[nn.Conv2d | nn.ConvTranspose2d], normed: bool) -> nn.Sequential:
    """Each followed by a batch norm, if asked, and a leaky ReLU."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, *([BatchNorm(conv.out_channels)] if normed else []), nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map, whose code is the factor."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        down, up = (
            ((width, width), (width, factor), (factor, factor)),
            ((factor, factor), (factor, width), (width, width)),
        )
        self.encoder = chain([nn.Conv2d(*widths, 3, padding=1) for widths in down], normed=False)
        self.decoder = chain([nn.ConvTranspose2d(*widths, 3, padding=1) for widths in up], normed=False)


@final
class Paraphrasing(Method):
    """The objective of FT's phase."""

    def __init__(self, config: MethodConfig, setting: Setting, pair: Pair, paraphraser: Paraphraser) -> None:
        super().__init__(config, setting)
        self.tap = pair.teacher
        self.needs = Needs(teacher=(self.tap,))
        self.paraphraser = paraphraser

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        t_BCHW = teacher.taps[self.tap]
        again_BCHW = self.paraphraser.decoder(self.paraphraser.encoder(t_BCHW))
        return {"ft_reconstruction": F.mse_loss(again_BCHW, t_BCHW)}


@final
class FT(Method):
    """Kim, Park, Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer (2018).

    A first phase of init_epochs trains a paraphraser on the teacher's last map, to reconstruct it from a factor of
    rate * its channels: mean squares. Then the paraphraser is fixed, and a translator trained with the student makes a
    factor of the student's last map. q(factor) = mean over channels of factor^power, the positions together of length 1.
    ft = mean over batch and positions of |q(s) - q(t)|^norm, the larger factor first averaged down.

    Equal to RepDistiller's FactorTransfer, with power 2 and norm 1. init_lr: the rate of the first phase; RepDistiller
    takes 0.01 for its own resnets and wide resnets as students (rows in configs) and the run's for others.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 200.0
        init_epochs: int = 30
        init_lr: float | None = None  # None: the run's
        rate: float = 0.5
        power: int = 2
        norm: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.init_epochs < 0:
                raise UserError(f"method.init_epochs is {self.init_epochs}; it must be at least 0")
            if self.init_lr is not None and not 0 < self.init_lr < math.inf:
                raise UserError(f"method.init_lr is {self.init_lr}; it must be a finite number above 0")
            if not 0 < self.rate < math.inf:
                raise UserError(f"method.rate is {self.rate}; it must be a finite number above 0")
            for name in ("power", "norm"):
                if getattr(self, name) < 1:
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be at least 1")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        pair = stage_pairs(setting.student, setting.teacher)[-1]
        self.pair = pair
        self.needs = Needs(student=(pair.student,), teacher=(pair.teacher,))
        width, width_t = (
            setting.student.taps[pair.student].channels,
            setting.teacher.taps[pair.teacher].channels,
        )
        factor = max(int(width_t * config.rate), 1)
        self.translator = chain(
            [nn.Conv2d(*w, 3, padding=1) for w in ((width, width), (width, factor), (factor, factor))],
            normed=True,
        )
        self.paraphraser = Paraphraser(width_t, factor).requires_grad_(False)
        first = Paraphrasing(MethodConfig(task_weight=0.0), setting, pair, self.paraphraser)
        self.first = (first,)  # a tuple: no part of the main objective

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BCHW = self.translator(student.taps[self.pair.student])
        with torch.no_grad():
            t_BCHW = self.paraphraser.encoder(teacher.taps[self.pair.teacher])
        s_BCHW, t_BCHW = same_size(s_BCHW, t_BCHW)
        apart_BP = (self._strength(s_BCHW) - self._strength(t_BCHW)).abs()
        return {"ft": apart_BP.pow(self.config.norm).mean()}

    def _strength(self, factor_BCHW: Tensor) -> Tensor:
        return directions(factor_BCHW.pow(self.config.power).mean(1).flatten(1))

    def phases(self) -> Sequence[Phase]:
        if not (self.config.weight and self.config.init_epochs):
            return ()
        objective = self.first[0]
        return (
            Phase(
                objective=objective,
                epochs=self.config.init_epochs,
                lr=self.config.init_lr,
                trains_student=False,
            ),
        )


METHOD = FT
