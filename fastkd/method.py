"""The contract of a distillation method.

Shape letters: B batch, C channels, K classes, D width, N samples of the data set, M negatives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor, nn

from fastkd.outputs import Clock, Network, Outputs, Terms
from loaders.contract import Batch, DataSpec
from loaders.errors import UserError

LOGITS, POOLED = "logits", "pooled"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method reads. Declared exactly: what is not asked for is not computed, cached or checked."""

    student: tuple[str, ...] = ()  # taps of the student beyond logits and pooled
    teacher: tuple[str, ...] = ()  # "logits", "pooled" and taps of the teacher; () = no teacher at all
    indices: bool = False  # reads batch.indices
    views: int = (
        1  # 2: outputs hold the rows of a weak, then of a strong view of the batch; batch.targets holds B
    )
    negatives: int = 0  # contrastive negatives drawn on the device for each sample
    live_teacher: bool = False  # feeds the teacher other tensors than the images: cannot be cached
    graph_safe: bool = True  # no host sync, no shape that depends on data


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """loss = task_weight * cross-entropy + kd_weight * KL at kd_temperature + weight * (sum of the method's terms)."""

    task_weight: float = 1.0
    kd_weight: float = 0.0
    weight: float = 1.0
    kd_temperature: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("weight") and not (math.isfinite(value) and value >= 0):
                raise UserError(f"method.{field.name} is {value}; a weight must be a finite number >= 0")
        if not (math.isfinite(self.kd_temperature) and self.kd_temperature > 0):
            raise UserError(f"method.kd_temperature is {self.kd_temperature}; it must be a number > 0")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All a method may look at while it builds itself."""

    student: Network
    teacher: Network
    data: DataSpec
    batch_size: int  # over all ranks
    gather: Callable[[Tensor], Tensor]  # rows of every rank, in rank order; identity when alone


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with an objective of its own, before the main one."""

    objective: (
        Method  # its terms, weighed by its own Config. It may share modules with the method; they are trained
    )
    # in the phase and fixed after it
    epochs: int
    lr: float | None = None  # None: the run's
    trains_student: bool = True  # false: only what the objective itself holds


class Method(nn.Module, ABC):
    """Concrete methods are final, one a file, named METHOD there.

    What __init__ assigns with requires_grad is trained, saved and synchronised with the student; buffers are saved.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    # The config field that weighs `terms`. A method whose one term is the soft-label KL itself says "kd_weight".
    weighed_by: ClassVar[str] = "weight"
    needs: Needs = Needs()
    # What the deployed net says of the batch, where that is not the student: left here by `terms`, for the accuracy.
    answered: Tensor | None = None

    def __init__(self, config: MethodConfig, setting: Setting) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        """The method's own losses, unweighted scalars by name."""

    def phases(self) -> Sequence[Phase]:
        """What is trained before the method itself."""
        return ()

    def deployed(self, student: nn.Module) -> nn.Module:
        """The network that is evaluated, saved and exported."""
        return student
