"""Which teacher a run has: its file, what net it is, and whether it fits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd import files, methods, models
from fastkd.config import RunConfig
from fastkd.engine import rundir
from fastkd.models.base import StagedNet
from fastkd.recipes import resolve
from loaders.contract import DataSpec
from loaders.errors import UserError

TEACHERS = Path("save", "teachers")


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it says of itself."""

    path: Path
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    method: Mapping[str, Tensor]  # of a method whose parts the student answers through, else empty

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
            value = self.tensors[key].contiguous()
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def read(path: Path, what: str) -> Weights:
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
    about = about if isinstance(about, dict) else {}
    method = content.get("method") if isinstance(about.get("method"), dict) else {}
    return Weights(path, tensors, about, method if isinstance(method, dict) else {})


def find(config: RunConfig) -> Path | None:
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


def how_to_get(config: RunConfig) -> str:
    recipe = resolve("teacher", {"data.dataset": config.data.dataset}).config
    model = config.teacher.model or recipe.student.model
    return f"`python train_teacher.py --dataset {config.data.dataset} --model {model}` makes one; --path-t names an existing one"


def name_of(config: RunConfig, weights: Weights) -> str:
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


def load(config: RunConfig, weights: Weights, classes: int) -> StagedNet:
    name = name_of(config, weights)
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


def asked(config: RunConfig) -> bool:
    return config.kind == "student" and config.method["name"] != methods.PLAIN


def settle(config: RunConfig) -> tuple[RunConfig, Weights | None]:
    """The teacher's weights where one is asked, and the configuration with its net named."""
    if not asked(config):
        return config, None
    weights = weights_of(config)
    named = dataclasses.replace(config.teacher, model=name_of(config, weights))
    return dataclasses.replace(config, teacher=named), weights


def weights_of(config: RunConfig) -> Weights:
    path = find(config)
    if path is None:
        raise UserError(
            f"there is no teacher of {config.data.dataset} under {TEACHERS}; {how_to_get(config)}"
        )
    weights = read(path, "--path-t")
    if weights.method:
        raise UserError(
            f"--path-t {weights.path}: that student answers through parts of {weights.about['method'].get('name')} and not "
            "by its own classifier; a teacher must be a net of its own"
        )
    return weights


def fresh(config: RunConfig, data: DataSpec) -> StagedNet:
    recipe = resolve("teacher", {"data.dataset": config.data.dataset}).config
    return models.build(
        config.teacher.model or recipe.student.model, data.num_classes, config.data.image_size
    )
