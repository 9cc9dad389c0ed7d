"""The teacher's classifier, reused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, TapShape, Terms
from fastkd.toolbox.adapters import BatchNorm, bottleneck
from fastkd.toolbox.spatial import averaged, stages
from loaders.contract import Batch
from loaders.errors import UserError


class Reuse(nn.Module):
    """From the student's last map to logits, by the projector and the teacher's frozen head."""

    def __init__(self, student: TapShape, teacher: TapShape, factor: int, head: nn.Linear) -> None:
        super().__init__()
        width = teacher.channels // factor
        self.side = (min(student.height, teacher.height), min(student.width, teacher.width))
        self.projector = nn.Sequential(
            *bottleneck(student.channels, width, teacher.channels),
            BatchNorm(teacher.channels),
            nn.ReLU(inplace=True),
        )
        self.head = copy.deepcopy(head).requires_grad_(False)

    def project(self, s_BCHW: Tensor) -> Tensor:
        projected: Tensor = self.projector(averaged(s_BCHW, self.side))
        return projected

    def forward(self, projected_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features and logits."""
        pooled_BD = projected_BCHW.mean((2, 3))
        return pooled_BD, self.head(pooled_BD)


class Deployed(nn.Module):
    """Student, projector and the teacher's head, as one classifier."""

    def __init__(self, student: nn.Module, tap: str, reuse: Reuse) -> None:
        super().__init__()
        self.student, self.tap, self.reuse = student, tap, reuse

    def forward(self, images: Tensor) -> Outputs:
        s_BCHW = self.student(images, (self.tap,)).taps[self.tap]
        with torch.autocast(images.device.type, enabled=False):  # in training too, losses are float32
            pooled_BD, logits_BK = self.reuse(self.reuse.project(s_BCHW))
        return Outputs(logits_BK, pooled_BD, {})


@final
class SimKD(Method):
    """Chen et al.: Knowledge Distillation with the Reused Teacher Classifier (2022).

    simkd = mean over all entries of (project(s) - t)^2, s the student's last map, t the map that the teacher's head
    averages; the larger of the two is first averaged down to the smaller. project: 1x1, 3x3, 1x1 convolutions, the inner
    width the teacher's divided by factor. What is evaluated and deployed is head_t(mean over positions of project(s)):
    the student's own classifier is neither trained nor used, hence the weights 0, 0 and 1.

    Equal to SimKD's repository, whose numbers are the same for CIFAR-100 and ImageNet. t is the last stage after its
    ReLU: the map itself in the nets it was published for. A pre-activation teacher gives the ReLU of its last batch norm,
    where the repository, taking that net's last stage for its classifier, fails. A teacher whose head reads something
    else is refused. The student's idle classifier stays as it was, where the repository's weight decay shrinks it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.0
        factor: int = 2

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.factor < 1:
                raise UserError(f"method.factor is {self.factor}; it must be at least 1")

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.tap, self.teacher_tap = stages(setting.student)[-1], stages(setting.teacher, "pre")[-1]
        shape_s, shape_t = setting.student.taps[self.tap], setting.teacher.taps[self.teacher_tap]
        head = setting.teacher.head
        if shape_t.channels != head.in_features:
            raise UserError(
                f"the teacher's classifier reads {head.in_features} features and its last stage has {shape_t.channels} "
                "channels, so a map like that stage cannot be classified by it; pick another teacher or method"
            )
        if config.factor > shape_t.channels:
            raise UserError(
                f"method.factor is {config.factor}, more than the {shape_t.channels} channels it divides"
            )
        self.needs = Needs(student=(self.tap,), teacher=(self.teacher_tap,))
        self.reuse = Reuse(shape_s, shape_t, config.factor, head)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        projected_BCHW = self.reuse.project(student.taps[self.tap])
        self.answered = self.reuse(projected_BCHW.detach())[1]
        return {"simkd": F.mse_loss(projected_BCHW, self.target(teacher.taps[self.teacher_tap]))}

    def target(self, t_BCHW: Tensor) -> Tensor:
        return averaged(F.relu(t_BCHW), self.reuse.side)

    def deployed(self, student: nn.Module) -> nn.Module:
        return Deployed(student, self.tap, self.reuse)


METHOD = SimKD
