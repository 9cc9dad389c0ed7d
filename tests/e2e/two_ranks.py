"""A few steps on one rank, or as a program on several: what test_distributed.py compares. No test itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.engine import parallel
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.meters import Meters
from fastkd.method import Setting
from fastkd.methods import load
from fastkd.models.base import StagedNet, TapCatcher, conv3x3, square_maps
from fastkd.outputs import Clock
from fastkd.teacher.live import LiveTeacher
from loaders.contract import Batch, DataSpec
from loaders.errors import UserError

CPU = torch.device("cpu")
BATCH, CLASSES, SIZE, STEPS = 12, 5, 8, 3


class Plain(StagedNet):
    """Without batch norm: a picture's outputs do not depend on the pictures it shares a rank with."""

    def __init__(self) -> None:
        super().__init__("plain", SIZE, square_maps((SIZE, SIZE), (4, 6)), 6, CLASSES)
        self.first, self.second, self.fc = conv3x3(3, 4), conv3x3(4, 6), nn.Linear(6, CLASSES)

    @property
    def head(self) -> nn.Linear:
        return self.fc

    def _segment(self, index: int, x: Tensor, caught: TapCatcher) -> Tensor:
        return torch.relu(self.first(x)) if index == 0 else torch.relu(self.second(x)) if index == 1 else x


# name -> method, its numbers
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "rrd": ("rrd", {"nce_k": 30, "feat_dim": 8, "kd_weight": 0.5}),
    "rrd, keys first": ("rrd", {"nce_k": 30, "feat_dim": 8, "variant": "repository"}),
    "rrd, a bank": ("rrd", {"nce_k": 30, "feat_dim": 8, "memory_type": "momentum", "weight": 0.1}),
    "crd": ("crd", {"nce_k": 30, "feat_dim": 8}),
    "crd, a queue": ("crd", {"nce_k": 30, "feat_dim": 8, "memory_type": "fifo"}),
    "a queue smaller than a batch": ("rrd", {"nce_k": 7, "feat_dim": 8}),
    "a classifier that learns nothing": ("rrd", {"nce_k": 30, "feat_dim": 8, "task_weight": 0.0}),
    "a method that weighs nothing": ("rrd", {"nce_k": 30, "feat_dim": 8, "weight": 0.0, "kd_weight": 1.0}),
}


def run(case: str, rank: int, world: int) -> dict[str, Tensor]:
    """A few steps: the last gradients, and all parameters and buffers."""
    torch.manual_seed(0)
    student, teacher = Plain(), Plain()
    labels = torch.arange(60) % CLASSES
    mean = (0.0, 0.0, 0.0)
    data = DataSpec(
        name="made", num_samples=60, num_classes=CLASSES, image_size=SIZE, labels=labels, views=1, mean=mean, std=mean,
        class_names=tuple("abcde"),
    )  # fmt: skip
    setting = Setting(student=student, teacher=teacher, data=data, batch_size=BATCH, gather=parallel.gather)
    method, numbers = CASES[case]
    cls = load(method)
    precision = Precision(CPU, torch.float32)
    made = cls(cls.Config(**numbers), setting)
    if hasattr(made, "sampler"):  # the same rows for a sample, whichever rank it is on
        made.sampler.others = lambda targets, num: (targets[:, None] * 7 + torch.arange(num)) % 60  # type: ignore
    distiller = Distiller(student, made, precision)
    live = LiveTeacher(teacher, distiller.teacher_needs, precision)
    module = parallel.synchronised(distiller, CPU, distiller.trains_all)
    optimizer = torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=0.1)
    images, order = torch.randn(60, 3, SIZE, SIZE), torch.randperm(60)
    clock = Clock.start(CPU)
    share = BATCH // world
    for step in range(STEPS):
        first = step * BATCH + rank * share
        rows = order[first : first + share]
        batch = Batch(images[rows], labels[rows], rows, torch.zeros_like(rows))
        optimizer.zero_grad(set_to_none=True)
        terms, _ = module(batch, live(batch), clock)
        terms["loss"].backward()
        optimizer.step()
    out = {f"gradient {name}": p.grad for name, p in distiller.named_parameters() if p.grad is not None}
    out |= dict(distiller.named_parameters()) | {f"buffer {name}": b for name, b in distiller.named_buffers()}
    return {name: value.detach().clone() for name, value in out.items()}


def agreed(rank: int) -> dict[str, Tensor]:
    """What the ranks make of a refusal and of a bad step that only the second has; 1 and 3 are their losses."""
    meters, clock = Meters(CPU), Clock.start(CPU)
    for step in range(2):
        clock.step.fill_(4 * step)
        loss = torch.tensor(1.0 + 2 * rank)
        meters.add({"loss": loss}, torch.zeros(3, 2), torch.ones(3, dtype=torch.int64), clock)
    shown = meters.read()
    sums = meters.state()["sums"]
    assert isinstance(sums, Tensor)
    meters.add({"loss": loss / (1 - rank)}, torch.zeros(3, 2), torch.ones(3, dtype=torch.int64), clock)
    bad = meters.read()["first_bad"]
    told = -1
    try:
        with parallel.together():
            if rank == 1:
                raise UserError("the second rank has a reason")
    except UserError as error:
        told = int(str(error) == "the second rank has a reason")
    except SystemExit as end:
        told = 0 if end.code == 2 else -1
    return {
        "first bad step": torch.tensor(bad), "mean of the loss": torch.tensor(shown["loss"]),
        "sums of a saved state": sums, "told": torch.tensor(told),
    }  # fmt: skip


if __name__ == "__main__":
    ranks = parallel.join(CPU)
    made = {case: run(case, *ranks) for case in CASES} | {"agreed": agreed(ranks.rank)}
    torch.save(made, Path(sys.argv[1]) / f"{ranks.rank}.pt")
    parallel.leave()
