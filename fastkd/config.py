"""The description of a run: frozen, strict, free of torch. A knob's default stands here or in a recipe, never twice.

`method` is open: its keys are the fields of the method's own Config and are checked against it when it is built.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from loaders.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = "cifar100"
    root: str = ""  # folder of the data; '' = ./data
    download: bool = False
    loader: Literal["auto", "device", "torch", "ffcv", "dali"] = "auto"
    dali: Literal["none", "cpu", "gpu"] = "none"
    batch_size: int = 64  # over all ranks
    test_batch_size: int = 500
    num_workers: int = 8  # over all ranks; for loaders that have workers
    image_size: int = 32
    num_classes: int = 20  # made-up data sets only
    train_size: int = 10_000  # made-up data sets only
    test_size: int = 2_000  # made-up data sets only
    cache_views: int = 0  # recorded views of a picture whose crops are endless; 0 = a new crop each time


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    model: str = ""  # '' = what the file says, else the one model that fits it
    path: str = ""  # '' = the one teacher of this data set under save/teachers


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    optimizer: Literal["sgd", "adamw", "dot", "apex-sgd", "apex-lamb"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dot_delta: float = 0.075  # dot only: distillation's momentum is larger by this, the task's smaller
    schedule: Literal["step", "cosine"] = "step"
    decay_epochs: tuple[int, ...] = (150, 180, 210)  # the rate falls after these epochs, counted from 1
    decay_rate: float = 0.1
    warmup_epochs: float = 0.0
    epochs: int = 240


@dataclass(frozen=True, kw_only=True)
class RunSection:
    out: str = ""  # '' = a name made of the run's main facts, under save/
    seed: int = 0
    trial: int = 0  # the run's seed is seed + trial
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpu_id: str = ""
    threads: int = 0  # CPU threads within an operation; 0 = torch's choice
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    deterministic: bool = False
    print_freq: int = 50  # steps between two reports
    save_freq: int = 0  # also keep epoch_N.pt every so many epochs
    skip_validation: bool = False  # of the teacher, before a student's run
    distributed: bool = False
    dist_url: str = "tcp://127.0.0.1:23451"
    graph: Literal["auto", "on", "off"] = "auto"
    compile: Literal["off", "default", "max-autotune"] = "off"
    teacher_cache: str = (
        "off"  # off, auto = a folder under save/caches named by what it is made of, or a folder
    )
    cache_dtype: Literal["fp16", "fp32"] = "fp16"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    kind: Literal["teacher", "student"] = "student"
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)  # the net that is trained
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    method: Mapping[str, Any] = field(default_factory=dict)  # name, and the fields of that method's Config
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunSection = field(default_factory=RunSection)
    applied: tuple[str, ...] = ()  # the recipe rows that changed a value, for the reader

    def __post_init__(self) -> None:
        data, optim, run = self.data, self.optim, self.run
        _at_least("data", data, 1, "batch_size", "test_batch_size", "train_size", "test_size")
        _at_least("data", data, 8, "image_size")  # the views shift by 4, and no net takes less
        _at_least("data", data, 0, "num_workers", "cache_views")
        _at_least(
            "optim", optim, 0, "lr", "weight_decay", "momentum", "warmup_epochs", "decay_rate", "dot_delta"
        )
        _at_least("optim", optim, 1, "epochs")
        _at_least("run", run, 0, "seed", "trial", "threads", "save_freq")
        _at_least("run", run, 1, "print_freq")
        if (
            list(optim.decay_epochs) != sorted(set(optim.decay_epochs))
            or min(optim.decay_epochs, default=1) < 1
        ):
            raise UserError(
                f"optim.decay_epochs is {optim.decay_epochs}; it must rise and begin at 1 or later"
            )
        if optim.warmup_epochs > optim.epochs:
            raise UserError(
                f"optim.warmup_epochs is {optim.warmup_epochs:g}, more than the {optim.epochs} epochs"
            )

    @property
    def seed(self) -> int:
        return self.run.seed + self.run.trial


def _at_least(section: str, config: object, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= low):
            raise UserError(f"{section}.{name} is {value}; it must be a finite number >= {low:g}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second wins."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return out


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """{'optim.lr': 1} as {'optim': {'lr': 1}}."""
    out: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, last = key.split(".")
        at = out
        for section in sections:
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise UserError(f"'{key}': '{section}' is a value, not a section")
        at[last] = value
    return out


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def build(cls: type, tree: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from a mapping: unknown keys and wrong types are refused by name."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{where or 'the configuration'} must be a section of key: value lines, found {tree!r}"
        )
    hints, known = typing.get_type_hints(cls), {f.name for f in fields(cls)}
    values = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise UserError(f"unknown key '{name}'{nearest(str(key), known)}")
        values[key] = convert(value, hints[key], name)
    return cls(**values)


def convert(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return build(typing.cast(type, hint), value, name)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(value, next(a for a in arguments if a is not type(None)), name)
    if origin is Literal:
        value = (
            {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        )  # yaml reads on/off as these
        if value not in arguments:
            raise UserError(f"{name} is '{value}'{nearest(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [v for v in str(value).split(",") if v.strip()]
        return tuple(convert(v, arguments[0], name) for v in items)
    if isinstance(hint, type) and issubclass(hint, bool | int | float | str):
        return _scalar(value, hint, name)
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a section of key: value lines, found {value!r}")
    return dict(value)


def _scalar(value: Any, hint: type, name: str) -> Any:
    words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
    try:
        if hint is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if isinstance(value, bool) or value is None or isinstance(value, Mapping | list | tuple):
            raise ValueError
        if hint is int:
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)
        return hint(value)
    except (ValueError, KeyError, OverflowError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[hint]
        raise UserError(f"{name} is {value!r}; it must be {wanted}") from None


def tree(config: Any) -> dict[str, Any]:
    """Plain data for yaml: what `build` reads back."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return tree(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
