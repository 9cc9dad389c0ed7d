"""Student and method as one module: everything that is trained, and the weighted loss."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

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
        """Terms by name, unweighted, with their weighted sum as "loss" first; and the student's logits of the pictures,
        of two views of them the weak ones. The task's loss and the KL are the sums of the views' means."""
        config, views = self.method.config, self.method.needs.views
        assert len(batch.images) == views * len(batch.targets), "the loader gives another number of views"
        seen = [self._student(images) for images in batch.images.chunk(views)]
        student = seen[0] if views == 1 else _joined(seen)
        terms: Terms = {}
        if config.task_weight:
            terms[TASK] = _sum(F.cross_entropy(each.logits, batch.targets) for each in seen)
        if self.adds_kl:
            pairs = zip(seen, taught.logits.chunk(views), strict=True)
            terms[KL] = _sum(soft_label_kl(s.logits, t_BK, config.kd_temperature) for s, t_BK in pairs)
        if self.own_weight:
            terms |= self.method.terms(student, taught, batch, clock)
        # detached: DDP takes what it finds behind an output for something that gets a gradient
        answered = seen[0].logits if self.method.answered is None else self.method.answered
        return {"loss": self.weighed(terms)} | terms, answered.detach()

    def _student(self, images: Tensor) -> Outputs:
        """Of one view: batch norm sees pictures of one kind, as in the references."""
        if not self.asks_student:
            nothing = images.new_empty(0)
            return Outputs(nothing, nothing, {})
        with self.precision():
            out: Outputs = self.student(images, self.method.needs.student if self.own_weight else ())
        return out

    def weighed(self, terms: Terms) -> Tensor:
        """The weighted sum of some of the terms."""
        config = self.method.config
        weights = {TASK: config.task_weight, KL: config.kd_weight}
        return torch.stack([term * weights.get(name, self.own_weight) for name, term in terms.items()]).sum()


def _joined(seen: list[Outputs]) -> Outputs:
    taps = {name: torch.cat([each.taps[name] for each in seen]) for name in seen[0].taps}
    return Outputs(torch.cat([each.logits for each in seen]), torch.cat([each.pooled for each in seen]), taps)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, losses)
