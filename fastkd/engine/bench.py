"""How fast a run's loader is alone, and how fast the run is with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastkd.engine import build, machine, teachers
from fastkd.engine.console import Console
from fastkd.engine.meters import Meters
from fastkd.engine.parallel import Ranks
from fastkd.engine.step import Step
from fastkd.outputs import Clock
from fastkd.recipes import Request
from loaders.contract import Batch, Loader
from loaders.errors import UserError

LEAST_SECONDS, WARM_UP = 3.0, 3


def measure(request: Request) -> dict[str, Any]:
    config, own, warnings = build.complete(request)
    machine.settle(config)
    device = machine.device(config)
    config, weights = teachers.settle(config)
    run = build.build(config, own, weights, warnings, Ranks(), device, Console())
    run.distiller.train()
    clock = Clock.start(device)
    step = Step(run, clock, Meters(device))

    def train(batch: Batch) -> None:
        step(batch)
        clock.step.zero_()  # the schedule's table is as long as the run, and this is no run

    loader = rate(run.train, lambda _batch: None, device)
    training = rate(run.train, train, device)
    return {
        "student": config.student.model, "teacher": config.teacher.model, "method": config.method["name"],
        "loader": type(run.train).__name__, "batch_size": config.data.batch_size,
        "precision": str(run.precision.dtype).removeprefix("torch."), "torch": torch.__version__,
        "device": machine.record(device, run.precision.dtype)["device_name"],
        "loader_images_per_second": loader, "training_images_per_second": training, "data_share": training / loader,
    }  # fmt: skip


def rate(loader: Loader, work: Callable[[Batch], None], device: torch.device) -> float:
    """Images/s over at least LEAST_SECONDS, after WARM_UP batches that are not counted."""
    images, started = 0, 0.0
    for number, batch in enumerate(_endless(loader)):
        work(batch)
        if number < WARM_UP:
            _wait(device)
            images, started = 0, time.perf_counter()
            continue
        images += len(batch.targets)
        if time.perf_counter() - started > LEAST_SECONDS:
            break
    _wait(device)
    return images / (time.perf_counter() - started)


def _endless(loader: Loader) -> Iterator[Batch]:
    if not len(loader):
        raise UserError("the data set has no whole batch; lower --batch-size")
    epoch = 0
    while True:
        epoch += 1
        yield from loader.batches(epoch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
