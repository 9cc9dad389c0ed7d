"""Soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fastkd.method import LOGITS, Method, MethodConfig, Needs
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import soft_label_kl
from loaders.contract import Batch


@final
class KD(Method):
    """Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015).

    kd = T^2 * mean over the batch of KL(softmax(teacher / T) || softmax(student / T)), weighed by kd_weight.

    Equal to RepDistiller's and SimKD's DistillKL and to MDistiller's KD.kd_loss. The weights 0.1 / 0.9 at T = 4 are
    RepDistiller's and MDistiller's for CIFAR-100; SimKD trains with 1 / 1 (-c 1 -d 1).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.1
        kd_weight: float = 0.9
        weight: float = (
            0.0  # kd has no further term; -b is accepted, as in the references, and weighs nothing
        )

    weighed_by = "kd_weight"
    needs = Needs(teacher=(LOGITS,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        return {"kd": soft_label_kl(student.logits, teacher.logits, self.config.kd_temperature)}


METHOD = KD
