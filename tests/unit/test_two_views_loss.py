"""What the trained whole makes of a weak and a strong view of its pictures, against the same said slowly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import models
from fastkd.engine.build import Run
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.meters import Meters
from fastkd.engine.step import Step
from fastkd.method import LOGITS, POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.teacher.live import LiveTeacher
from loaders.contract import Batch, DataSpec

CPU = torch.device("cpu")
BATCH, CLASSES = 6, 4


@final
class Reads(Method):
    """Keeps what it is given."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.5
        kd_weight: float = 3.0

    needs = Needs(student=("stage1",), teacher=(LOGITS, POOLED, "stage2"), views=2)
    given: tuple[Outputs, Outputs]

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        self.given = student, teacher
        return {"own": student.logits.chunk(2)[1].sum()}


def made() -> tuple[Distiller, LiveTeacher, Batch]:
    torch.manual_seed(0)
    nets = models.build("resnet8", CLASSES, 8), models.build("resnet14", CLASSES, 8)
    data = DataSpec(name="d", num_samples=12, num_classes=CLASSES, image_size=8, labels=torch.arange(12) % CLASSES,
                    views=1, mean=(0, 0, 0), std=(1, 1, 1), class_names=("",) * CLASSES)  # fmt: skip
    setting = Setting(student=nets[0], teacher=nets[1], data=data, batch_size=BATCH, gather=lambda rows: rows)
    precision = Precision(CPU, torch.float32)
    distiller = Distiller(nets[0], Reads(Reads.Config(), setting), precision)
    indices = torch.arange(BATCH)
    weak, strong = torch.randn(BATCH, 3, 8, 8), torch.randn(BATCH, 3, 8, 8) * 4 + 2
    batch = Batch(torch.cat([weak, strong]), indices % CLASSES, indices, torch.zeros_like(indices))
    return distiller, LiveTeacher(nets[1], distiller.teacher_needs, precision), batch


def kl(s_BK: Tensor, t_BK: Tensor) -> Tensor:
    log_s, log_t = F.log_softmax(s_BK / 4, 1), F.log_softmax(t_BK / 4, 1)
    return 16 * (log_t.exp() * (log_t - log_s)).sum(1).mean()


def test_losses_are_the_sum_of_both_views_and_batch_norm_sees_one_at_a_time() -> None:
    distiller, teacher, batch = made()
    weak, strong = batch.images[:BATCH], batch.images[BATCH:]
    twin, _, _ = made()
    s_views = [twin.student(images, ("stage1",)) for images in (weak, strong)]
    t_views = [teacher.net(images, ("stage2",)) for images in (weak, strong)]
    terms, logits = distiller(batch, teacher(batch), Clock.start(CPU))
    wanted = {
        "task": sum(F.cross_entropy(s.logits, batch.targets) for s in s_views),
        "kl": sum(kl(s.logits, t.logits) for s, t in zip(s_views, t_views, strict=True)),
        "own": s_views[1].logits.sum(),
    }
    loss = 0.5 * wanted["task"] + 3 * wanted["kl"] + wanted["own"]
    for name, value in {"loss": loss, **wanted}.items():
        torch.testing.assert_close(terms[name], value)
    assert torch.equal(logits, s_views[0].logits)
    assert not logits.requires_grad
    terms["loss"].backward()
    cast(Tensor, loss).backward()
    for mine, others in zip(distiller.student.parameters(), twin.student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, others.grad)
    state: Mapping[str, Any] = twin.student.state_dict()
    for name, value in distiller.student.state_dict().items():
        assert torch.equal(value, state[name]), name
    # what the method is given: the rows of the weak, then of the strong view
    assert isinstance(distiller.method, Reads)
    for given, views in zip(distiller.method.given, (s_views, t_views), strict=True):
        for name in given.taps:
            torch.testing.assert_close(given.taps[name], torch.cat([view.taps[name] for view in views]))
        torch.testing.assert_close(given.logits, torch.cat([view.logits for view in views]))
        torch.testing.assert_close(given.pooled, torch.cat([view.pooled for view in views]))
    assert teacher.counts.forwards == 2 * BATCH


def test_train_accuracy_is_of_the_weak_view() -> None:
    distiller, teacher, batch = made()
    with torch.no_grad():
        answers = [made()[0].student(images).logits.argmax(1) for images in batch.images.chunk(2)]
    batch = batch._replace(targets=answers[0])
    assert not torch.equal(*answers)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.0)
    lr = SimpleNamespace(update=lambda clock: None)
    run = SimpleNamespace(distiller=distiller, teacher=teacher, lr=lr, device=CPU, precision=distiller.precision,
                          optimizer=optimizer)  # fmt: skip
    step = Step(cast(Run, run), Clock.start(CPU), Meters(CPU))
    step(batch)
    assert step.meters.read()["top1"] == 100.0


def test_one_view_where_two_are_needed_is_no_silent_halving() -> None:
    distiller, teacher, batch = made()
    batch = batch._replace(images=batch.images[:BATCH])
    with pytest.raises(AssertionError, match="another number of views"):
        distiller(batch, teacher(batch), Clock.start(CPU))
