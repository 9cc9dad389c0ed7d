"""The composition root: a configuration becomes objects here and nowhere else, and every mismatch is refused here,
before the first batch is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

import loaders
from fastkd import config as configs
from fastkd import methods, models
from fastkd.config import RunConfig
from fastkd.engine import caches, machine, optim, parallel, teachers
from fastkd.engine.console import Console
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.parallel import Ranks
from fastkd.method import Method, MethodConfig, Setting
from fastkd.models.base import StagedNet
from fastkd.recipes import Request
from fastkd.teacher.live import LiveTeacher, NoTeacher, Teacher
from loaders import datasets
from loaders.contract import DataSpec, Loader, Plan
from loaders.errors import UserError, nearest
from loaders.views import Recorded

# Options whose part has not landed: (key, the values that ask nothing of it).
LATER = (("data.dali", ("none",)), ("run.graph", ("auto", "off")), ("run.compile", ("off",)),
         ("optim.optimizer", ("sgd", "adamw", "dot")))  # fmt: skip


@dataclass
class Run:
    """Everything `fit` needs."""

    config: RunConfig
    device: torch.device
    precision: Precision
    ranks: Ranks
    console: Console
    train: Loader
    test: Loader
    source: LiveTeacher | None  # the teacher's net, where the method or one of its phases asks it
    teacher: Teacher
    checked: Teacher | None  # the same on the test set, where a run has a teacher
    distiller: Distiller
    optimizer: Optimizer
    lr: optim.LearningRate
    teacher_sha256: str
    warnings: list[str]


def method_config(request: Request) -> tuple[MethodConfig, list[str]]:
    """The chosen method's Config from the open `method` section, and warnings."""
    given = dict(request.config.method)
    cls = methods.load(given.pop("name")).Config
    known = {f.name for f in fields(cls)}
    warnings = []
    for key in sorted(set(given) - known):
        if f"method.{key}" not in request.shared_method_keys:
            raise UserError(
                f"unknown key 'method.{key}': {request.config.method['name']} has no such number{nearest(key, known)}"
            )
        del given[key]
        warnings.append(f"--{key.replace('_', '-')} is not read by {request.config.method['name']}")
    made: MethodConfig = configs.build(cls, given, "method")
    return made, warnings


def complete(request: Request) -> tuple[RunConfig, MethodConfig, list[str]]:
    """The configuration with the method's section written out, after all checks that need no data."""
    config = request.config
    if config.data.dali == "gpu":
        machine.device(config)
    flat = configs.flat(configs.tree(config))
    for key, free in LATER:
        if flat[key] not in free:
            raise UserError(f"{key} {flat[key]} is not part of this version yet; use {' or '.join(free)}")
    loaders.check(config.data.loader)
    own, warnings = method_config(request)
    name = config.method["name"]
    own_weight = 0.0 if name == methods.PLAIN else getattr(own, methods.load(name).weighed_by)
    if not any((own.task_weight, own.kd_weight, own_weight)):
        raise UserError(
            f"{name} with method.task_weight {own.task_weight:g}, kd_weight {own.kd_weight:g} and weight {own.weight:g}: "
            "no term of its loss counts, there is nothing to learn from; give one a weight above 0"
        )
    section = {"name": config.method["name"]} | dataclasses.asdict(own)
    if not config.student.model:
        raise UserError("no student net is named; give --model-s (fastkd models lists them)")
    return dataclasses.replace(config, method=section), own, warnings


def wanted(config: RunConfig) -> datasets.Wanted:
    data = config.data
    return datasets.Wanted(
        dataset=data.dataset, root=Path(data.root) if data.root else None, download=data.download,
        image_size=data.image_size, num_classes=data.num_classes, train_size=data.train_size, test_size=data.test_size,
        recorded_views=data.cache_views,
    )  # fmt: skip


def build(
    config: RunConfig,
    own: MethodConfig,
    weights: teachers.Weights | None,
    warnings: list[str],
    ranks: Ranks,
    device: torch.device,
    console: Console,
) -> Run:
    """The run as described, on this machine, at its first step."""
    precision = Precision(device, machine.dtype(config, device))
    if config.data.batch_size % ranks.world or config.data.test_batch_size % ranks.world:
        raise UserError(f"data.batch_size {config.data.batch_size} and test_batch_size {config.data.test_batch_size} must "
                        f"each divide by the {ranks.world} ranks")  # fmt: skip
    train, test = open_loaders(config, device, precision.dtype, ranks)
    if config.data.batch_size > train.spec.num_samples:
        raise UserError(
            f"data.batch_size is {config.data.batch_size}, more than the {train.spec.num_samples} training pictures"
        )
    torch.manual_seed(config.seed)
    _, source, distiller = networks(config, own, weights, train.spec, precision)
    if (views := distiller.method.needs.views) > 1:  # known only now; no batch has been read yet
        plan = dataclasses.replace(train.plan, views=views)
        train = loaders.build(config.data.loader, train.split, train.view, plan)
    place(distiller, config, device)
    if source:
        place(source.net, config, device)
    teacher: Teacher = source if source and distiller.teacher_needs else NoTeacher()
    teacher.counts = source.counts if source else teacher.counts
    _check_optimizer(config, distiller, precision)
    # ranks draw the same weights; from here on a rank's draws are its own
    torch.manual_seed(config.seed + 1_000_003 * (1 + ranks.rank))
    lr = optim.LearningRate(config.optim, len(train), device)
    optimizer = optim.optimizer(config.optim, distiller, lr.value)
    run = Run(config, device, precision, ranks, console, train, test, source, teacher, source, distiller, optimizer, lr,
              weights.sha256() if weights else "", warnings)  # fmt: skip
    if config.run.teacher_cache != "off":
        _look_up(run, weights)
    return run


def layout(config: RunConfig) -> torch.memory_format:
    return torch.channels_last if config.run.channels_last else torch.contiguous_format


def place(module: nn.Module, config: RunConfig, device: torch.device) -> None:
    """On the run's device, in its memory format."""
    module.to(device, memory_format=layout(config))  # type: ignore[call-overload]  # torch's stubs lack this form


def _check_optimizer(config: RunConfig, distiller: Distiller, precision: Precision) -> None:
    if config.optim.optimizer != "dot":
        return
    if not (distiller.method.config.task_weight and distiller.teacher_needs):
        raise UserError(
            f"--optimizer dot keeps the gradients of task and distillation apart, and {config.method['name']} with these "
            "weights has only one of them; use sgd"
        )
    if precision.dtype == torch.float16:
        raise UserError(
            "--optimizer dot does not work with the scaled gradients of float16; use --amp bf16 or off"
        )


def _look_up(run: Run, weights: teachers.Weights | None) -> None:
    """From here on the teacher is asked only what its cache does not know."""
    live, warnings = run.teacher, run.warnings

    def warn(line: str) -> None:
        warnings.append(line)
        run.console.warn(line)

    if not isinstance(live, LiveTeacher) or weights is None:
        warn(f"--teacher-cache {run.config.run.teacher_cache} has no effect: no teacher is asked")
        return
    caches.check(run.config, run.distiller, run.train.view)
    caches.room(run.config, live, run.train, run.device)  # before anything is made on disk
    cache = caches.settle(run.config, live.net.name, weights, run.train, run.test, run.precision.dtype)
    run.teacher, run.checked = caches.cached(cache, run.config, live, run.train, run.test, run.device, warn)
    run.console.say(caches.describe(cache, run.teacher))
    if isinstance(run.train.view, Recorded):
        warn(
            f"the teacher cache is an approximation: {run.train.view.count} recorded views of each picture stand for "
            "endless ones (--cache-views)"
        )


def networks(
    config: RunConfig, own: MethodConfig, weights: teachers.Weights | None, data: DataSpec, precision: Precision,
    stand_in: StagedNet | None = None,
) -> tuple[StagedNet, LiveTeacher | None, Distiller]:  # fmt: skip
    """The student, the teacher if anything asks it, and all that is trained. `stand_in`: for a dry run."""
    student = models.build(config.student.model, data.num_classes, config.data.image_size)
    net = teachers.load(config, weights, data.num_classes) if weights else stand_in
    setting = Setting(
        student=student,
        teacher=net or student,
        data=data,
        batch_size=config.data.batch_size,
        gather=parallel.gather,
    )
    method: Method = methods.load(config.method["name"])(own, setting)
    distiller = Distiller(student, method, precision)
    asked = distiller.teacher_needs or any(phase.objective.needs.teacher for phase in method.phases())
    source = LiveTeacher(net, distiller.teacher_needs, precision) if net and asked else None
    return student, source, distiller


def open_loaders(
    config: RunConfig, device: torch.device, dtype: torch.dtype, ranks: Ranks
) -> tuple[Loader, Loader]:
    source = wanted(config)
    train_split, test_split = datasets.load(source)
    train_view, test_view = datasets.views(source)
    data = config.data
    out = []
    for split, view, train, size in (
        (train_split, train_view, True, data.batch_size),
        (test_split, test_view, False, data.test_batch_size),
    ):
        plan = Plan(
            batch_size=size // ranks.world, seed=config.seed, train=train, device=device, dtype=dtype,
            channels_last=config.run.channels_last, rank=ranks.rank, world=ranks.world,
            num_workers=-(-data.num_workers // ranks.world),
        )  # fmt: skip
        out.append(loaders.build(data.loader, split, view, plan))
    return out[0], out[1]
