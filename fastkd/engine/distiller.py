"""Student and method as one module: everything that is trained, and the weighted loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import LOGITS, Method
from fastkd.models.base import StagedNet
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import soft_label_kl
from loaders.contract import Batch

TASK, KL = "task", "kl"  # the terms that every method can have


class Precision:
    """The dtype networks run in. Losses are outside of it, in float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def __call__(self) -> torch.autocast:
        mixed = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, dtype=self.dtype if mixed else torch.bfloat16, enabled=mixed)


class Distiller(nn.Module):
    """A term whose weight is 0 is not computed, and the teacher is not asked for it."""

    def __init__(
        self, student: StagedNet, method: Method, precision: Precision, asks_student: bool = True
    ) -> None:
        """`asks_student`: false in a phase that trains the method's own parts from the teacher alone."""
        super().__init__()
        self.student, self.method, self.precision = student, method, precision
        self.asks_student = asks_student
        config = method.config
        self.own_weight = float(getattr(config, method.weighed_by))
        self.adds_kl = config.kd_weight != 0 and method.weighed_by != "kd_weight"
        own = method.needs.teacher if self.own_weight else ()
        self.teacher_needs = tuple(dict.fromkeys([*own, *((LOGITS,) if self.adds_kl else ())]))
        if not self.own_weight:
            method.requires_grad_(False)  # never reached: the optimizer and the ranks must not wait for it
        # false where the student's classifier may learn nothing, as with -c 0 -d 0
        self.trains_all = bool(config.task_weight or self.adds_kl or method.weighed_by == "kd_weight")

    def forward(self, batch: Batch, taught: Outputs, clock: Clock) -> tuple[Terms, Tensor]:
        """Terms by name, unweighted, with their weighted sum as "loss" first; and the student's logits."""
        config = self.method.config
        student = self._student(batch)
        terms: Terms = {}
        if config.task_weight:
            terms[TASK] = F.cross_entropy(student.logits, batch.targets)
        if self.adds_kl:
            terms[KL] = soft_label_kl(student.logits, taught.logits, config.kd_temperature)
        if self.own_weight:
            terms |= self.method.terms(student, taught, batch, clock)
        # detached: DDP takes what it finds behind an output for something that gets a gradient
        return {"loss": self.weighed(terms)} | terms, student.logits.detach()

    def _student(self, batch: Batch) -> Outputs:
        if not self.asks_student:
            nothing = batch.images.new_empty(0)
            return Outputs(nothing, nothing, {})
        with self.precision():
            out: Outputs = self.student(batch.images, self.method.needs.student if self.own_weight else ())
        return out

    def weighed(self, terms: Terms) -> Tensor:
        """The weighted sum of some of the terms."""
        config = self.method.config
        weights = {TASK: config.task_weight, KL: config.kd_weight}
        return torch.stack([term * weights.get(name, self.own_weight) for name, term in terms.items()]).sum()
