"""The composition root: a configuration becomes objects here and nowhere else, and every mismatch is refused here,
before the first batch is read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import loaders
from fastkd import config as configs
from fastkd import methods, models
from fastkd.config import RunConfig
from fastkd.engine import files, machine, optim, parallel, rundir
from fastkd.engine.console import Console
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.parallel import Ranks
from fastkd.method import Method, MethodConfig, Setting
from fastkd.models.base import StagedNet
from fastkd.recipes import Request, resolve
from fastkd.teacher.live import LiveTeacher, NoTeacher, Teacher
from loaders import datasets
from loaders.contract import DataSpec, Loader, Plan
from loaders.errors import UserError, nearest

TEACHERS = Path("save", "teachers")

# Options whose part has not landed: (key, the values that ask nothing of it).
LATER = (("data.dali", ("none",)), ("run.graph", ("auto", "off")), ("run.compile", ("off",)),
         ("run.teacher_cache", ("off",)), ("optim.optimizer", ("sgd", "adamw")))  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it says of itself."""

    path: Path
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
            value = self.tensors[key].contiguous()
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


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
    teacher: Teacher
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
    )  # fmt: skip


def read_weights(path: Path, what: str) -> Weights:
    """A checkpoint of ours, or a file of plain tensors under 'model', 'state_dict' or nothing."""
    if path.is_dir():
        if not (path / rundir.LAST).exists():
            raise UserError(
                f"{what}: the folder {path} has no {rundir.LAST}; give a run's folder or a file of weights"
            )
        path = path / rundir.LAST
    content = files.read_tensors(path, what)
    inner = next((content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), content)
    tensors = {str(k).removeprefix("module."): v for k, v in inner.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{what}: {path} holds no weights (keys: {', '.join(map(str, list(content)[:5]))})")
    about = content.get("about")
    return Weights(path, tensors, about if isinstance(about, dict) else {})


def find_teacher(config: RunConfig) -> Path | None:
    """--path-t, else the one finished teacher of this data set under save/teachers."""
    if config.teacher.path:
        return Path(config.teacher.path)
    found = []
    for summary in sorted(TEACHERS.glob("*/summary.json")):
        record = summary.with_name("config.yaml")
        if record.exists() and f"dataset: {config.data.dataset}\n" in record.read_text():
            found.append(summary.parent)
    if len(found) > 1:
        raise UserError(
            f"{len(found)} teachers of {config.data.dataset} are under {TEACHERS}: {', '.join(p.name for p in found)}; "
            "choose one with --path-t"
        )
    return found[0] if found else None


def no_teacher(config: RunConfig) -> str:
    recipe = resolve("teacher", {"data.dataset": config.data.dataset}).config
    model = config.teacher.model or recipe.student.model
    return f"`train_teacher.py --dataset {config.data.dataset} --model {model}` makes one; --path-t names an existing one"


def teacher_name(config: RunConfig, weights: Weights) -> str:
    """--model-t, else what the file says, else the one net that fits it."""
    name = config.teacher.model or weights.about.get("model")
    if name:
        return models.canonical(str(name))
    fitting = models.identify(weights.tensors)
    if len(fitting) != 1:
        why = (
            f"{len(fitting)} nets fit it ({', '.join(fitting)})"
            if fitting
            else "no net has these keys and shapes"
        )
        raise UserError(f"--path-t {weights.path}: which net is it? {why}; say so with --model-t")
    return fitting[0]


def teacher_net(config: RunConfig, weights: Weights, classes: int) -> StagedNet:
    name = teacher_name(config, weights)
    found = classes
    with contextlib.suppress(UserError):  # fits no net: load_weights says so, and how
        found = models.num_classes_of(weights.tensors)
    if found != classes:
        raise UserError(
            f"--path-t {weights.path}: the teacher tells {found} classes apart, {config.data.dataset} has {classes}; "
            "train one on this data set"
        )
    net = models.build(name, classes, config.data.image_size)
    load_weights(net, weights, name)
    return net


def load_weights(net: StagedNet, weights: Weights, name: str) -> None:
    own = net.state_dict()
    wrong = sorted(own.keys() ^ weights.tensors.keys()) or [
        key for key, value in own.items() if value.shape != weights.tensors[key].shape
    ]
    if wrong:
        fitting = models.identify(weights.tensors)
        hint = f"it fits {' and '.join(fitting)}" if fitting else "it fits no net of fastkd"
        raise UserError(f"{weights.path} is no {name}: '{wrong[0]}' differs ({len(wrong)} in all); {hint}")
    broken = [key for key, value in weights.tensors.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{weights.path}: '{broken[0]}' holds numbers that are not finite ({len(broken)} such in all); the file is "
            "damaged or its training went astray"
        )
    net.load_state_dict(weights.tensors)


def build(
    config: RunConfig,
    own: MethodConfig,
    weights: Weights | None,
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
    torch.manual_seed(config.seed)
    _, teacher, distiller = networks(config, own, weights, train.spec, precision)
    layout = torch.channels_last if config.run.channels_last else torch.contiguous_format
    distiller.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack this form
    if isinstance(teacher, LiveTeacher):
        teacher.net.to(device, memory_format=layout)  # type: ignore[call-overload]
    # ranks draw the same weights; from here on a rank's draws are its own
    torch.manual_seed(config.seed + 1_000_003 * (1 + ranks.rank))
    lr = optim.LearningRate(config.optim, len(train), device)
    optimizer = optim.optimizer(config.optim, distiller, lr.value)
    return Run(config, device, precision, ranks, console, train, test, teacher, distiller, optimizer, lr,
               weights.sha256() if weights else "", warnings)  # fmt: skip


def asks_teacher(config: RunConfig) -> bool:
    return config.kind == "student" and config.method["name"] != methods.PLAIN


def with_teacher(config: RunConfig) -> tuple[RunConfig, Weights | None]:
    """The teacher's weights where one is asked, and the configuration with its net named."""
    if not asks_teacher(config):
        return config, None
    weights = teacher_weights(config)
    named = dataclasses.replace(config.teacher, model=teacher_name(config, weights))
    return dataclasses.replace(config, teacher=named), weights


def teacher_weights(config: RunConfig) -> Weights:
    path = find_teacher(config)
    if path is None:
        raise UserError(
            f"there is no teacher of {config.data.dataset} under {TEACHERS}; {no_teacher(config)}"
        )
    return read_weights(path, "--path-t")


def fresh_teacher(config: RunConfig, data: DataSpec) -> StagedNet:
    recipe = resolve("teacher", {"data.dataset": config.data.dataset}).config
    return models.build(
        config.teacher.model or recipe.student.model, data.num_classes, config.data.image_size
    )


def networks(
    config: RunConfig, own: MethodConfig, weights: Weights | None, data: DataSpec, precision: Precision,
    stand_in: StagedNet | None = None,
) -> tuple[StagedNet, Teacher, Distiller]:  # fmt: skip
    """The student, the source of the teacher's answers, and all that is trained. `stand_in`: for a dry run."""
    student = models.build(config.student.model, data.num_classes, config.data.image_size)
    net = teacher_net(config, weights, data.num_classes) if weights else stand_in
    setting = Setting(
        student=student,
        teacher=net or student,
        data=data,
        batch_size=config.data.batch_size,
        gather=parallel.gather,
    )
    method: Method = methods.load(config.method["name"])(own, setting)
    distiller = Distiller(student, method, precision)
    if net and distiller.teacher_needs:
        return student, LiveTeacher(net, distiller.teacher_needs, precision), distiller
    return student, NoTeacher(), distiller


def open_loaders(
    config: RunConfig, device: torch.device, dtype: torch.dtype, ranks: Ranks
) -> tuple[Loader, Loader]:
    source = wanted(config)
    train_split, test_split = datasets.load(source)
    train_view, test_view = datasets.views(source)
    data = config.data
    if data.batch_size > len(train_split):
        raise UserError(
            f"data.batch_size is {data.batch_size}, more than the {len(train_split)} training pictures"
        )
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
