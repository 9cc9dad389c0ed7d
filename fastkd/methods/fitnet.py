"""Hints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F

from fastkd.method import Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import ConvAdapter
from fastkd.toolbox.spatial import stages
from loaders.contract import Batch
from loaders.errors import UserError


@final
class FitNet(Method):
    """Romero et al.: FitNets: Hints for Thin Deep Nets (2015).

    fitnet = mean over all entries of (regress(s) - t)^2, s and t the maps of stage hint_layer (0: the stem).
    regress: convolution, batch norm, ReLU, trained with the student; its kernel follows from the sides.

    Equal to RepDistiller's HintLoss, MDistiller's FitNet and SimKD's, which alone allows a student's map that is smaller
    than the teacher's but not half as large (the teacher's is averaged down). As there, hint and task are trained
    together, where the paper trains the hint first. hint_layer 2 is RepDistiller's and MDistiller's; SimKD's is 1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 100.0
        hint_layer: int = 2

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        tap = f"stage{config.hint_layer}" if config.hint_layer else "stem"
        for role, net in (("student", setting.student), ("teacher", setting.teacher)):
            if tap not in net.taps:
                raise UserError(
                    f"method.hint_layer is {config.hint_layer}; the {role} has 0 (its stem) to {len(stages(net))}"
                )
        self.needs = Needs(student=(tap,), teacher=(tap,))
        self.tap = tap
        self.regress = ConvAdapter(setting.student.taps[tap], setting.teacher.taps[tap], relu=True)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BCHW = self.regress(student.taps[self.tap])
        return {"fitnet": F.mse_loss(s_BCHW, self.regress.target(teacher.taps[self.tap]))}


METHOD = FitNet
