"""No teacher: plain supervised training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fastkd.method import Method, MethodConfig
from fastkd.outputs import Clock, Outputs, Terms
from loaders.contract import Batch
from loaders.errors import UserError


@final
class Vanilla(Method):
    """Cross-entropy with the labels alone: how teachers are trained, and the student to compare with."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.kd_weight:
                raise UserError(
                    f"method.kd_weight is {self.kd_weight}, but vanilla has no teacher; use --distill kd"
                )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {}


METHOD = Vanilla
