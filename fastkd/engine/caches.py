"""Which cache a run reads: where it lies, what it must have been made of, and whether its table fits in memory."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fastkd.config import RunConfig
from fastkd.engine import machine
from fastkd.engine.distiller import Distiller
from fastkd.engine.teachers import Weights
from fastkd.method import LOGITS
from fastkd.teacher import manifest, tidy
from fastkd.teacher.cache import CachedTeacher, Store, shapes_of
from fastkd.teacher.live import LiveTeacher
from fastkd.teacher.table import Table
from loaders import views
from loaders.contract import Loader
from loaders.errors import UserError

CACHES = Path("save", "caches")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
SHARE_OF_GPU, SHARE_OF_HOST = 0.5, 0.7  # of what is free: the rest is for the nets and for other processes
TRAIN, TEST = "train", "test"


@dataclasses.dataclass(frozen=True)
class Cache:
    """A folder that was found to fit a run."""

    folder: Path
    identity: str
    dtype: torch.dtype


def check(config: RunConfig, distiller: Distiller, view: views.View) -> None:
    """Refuses what no cache can do."""
    name = config.method["name"]
    if distiller.own_weight and distiller.method.needs.live_teacher:
        raise UserError(
            f"--teacher-cache {config.run.teacher_cache}: {name} shows the teacher other tensors than the pictures, so its "
            "answers cannot be stored; use --teacher-cache off"
        )
    if distiller.method.needs.views > 1:
        raise UserError(
            f"--teacher-cache {config.run.teacher_cache}: {name} also shows the teacher a strong view of each picture, new "
            "each time, so no answer would be asked for twice; use --teacher-cache off"
        )
    check_views(config, view)


def check_views(config: RunConfig, view: views.View) -> None:
    if view.count is None:
        raise UserError(
            f"--teacher-cache {config.run.teacher_cache}: pictures of {config.data.dataset} are cropped in endless ways, so no "
            "answer would be asked for twice; record some views of each with --cache-views 16 (an approximation), or "
            "use --teacher-cache off"
        )


def facts(
    config: RunConfig, model: str, weights: Weights, train: Loader, test: Loader, precision: torch.dtype
) -> dict[str, Any]:
    """All that a stored answer depends on."""
    spec = train.spec
    return {
        "format": manifest.FORMAT,
        "teacher": {"model": model, "weights": weights.sha256()},
        "data": {
            "dataset": config.data.dataset, "num_classes": spec.num_classes, "image_size": spec.image_size,
            "train_size": spec.num_samples, "test_size": test.spec.num_samples,
            TRAIN: train.split.fingerprint(), TEST: test.split.fingerprint(),
        },
        "views": {TRAIN: views.describe(train.view), TEST: views.describe(test.view)},
        "preprocessing": {"mean": list(spec.mean), "std": list(spec.std)},
        "precision": str(precision).removeprefix("torch."),
        "dtype": config.run.cache_dtype,
    }  # fmt: skip


def settle(
    config: RunConfig, model: str, weights: Weights, train: Loader, test: Loader, precision: torch.dtype
) -> Cache:
    """The folder, made where it is not there yet."""
    made_of = facts(config, model, weights, train, test, precision)
    identity = manifest.identity(made_of)
    asked, dtype = config.run.teacher_cache, config.run.cache_dtype
    folder = Path(asked)
    if asked == "auto":
        folder = CACHES / f"{model}_{config.data.dataset}_{dtype}_{identity[:8]}"
    manifest.settle(folder, made_of)
    return Cache(folder, identity, DTYPES[dtype])


def hold(folder: Path, user: object) -> None:
    """As long as `user` lives the folder is not tidied. Many may hold it at once."""
    lock = os.open(folder / tidy.LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    weakref.finalize(user, os.close, lock)
    with suppress(OSError):  # some network file systems
        fcntl.flock(lock, fcntl.LOCK_SH)


def cached(
    cache: Cache, config: RunConfig, live: LiveTeacher, train: Loader, test: Loader, device: torch.device,
    warn: Callable[[str], None],
) -> tuple[CachedTeacher, CachedTeacher]:  # fmt: skip
    """(of the training views, of the test pictures)"""
    out = []
    for name, loader, fields in ((TRAIN, train, live.needs), (TEST, test, (LOGITS,))):
        pinned = not room(config, live, loader, device, fields)
        shapes, of_each = shapes_of(live, fields), loader.spec.views
        assert of_each is not None
        table = Table(loader.spec.num_samples, of_each, shapes, cache.dtype, device, pinned)
        store = Store(cache.folder / name, cache.identity, table.size, fields, cache.dtype, warn, table)
        hold(cache.folder, store)
        out.append(CachedTeacher(live, store, table))
    return out[0], out[1]


def room(
    config: RunConfig, live: LiveTeacher, loader: Loader, device: torch.device, fields: Sequence[str] = ()
) -> bool:
    """Whether the table goes to the device itself; refused where the host's memory does not hold it either."""
    fields, samples, of_each = fields or live.needs, loader.spec.num_samples, loader.spec.views
    assert of_each is not None
    dtype = config.run.cache_dtype
    need = Table.bytes_of(samples * of_each, shapes_of(live, fields), DTYPES[dtype])
    if device.type == "cuda" and need <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
        return True
    free = SHARE_OF_HOST * machine.free_memory()
    if need > free:
        advice = "use --teacher-cache off"
        if isinstance(loader.view, views.Recorded):
            advice = f"lower --cache-views {loader.view.count}, or {advice}"
        elif dtype == "fp32" and need <= 2 * free:
            advice = "use --cache-dtype fp16"
        raise UserError(
            f"--teacher-cache {config.run.teacher_cache}: {', '.join(fields)} of {samples} pictures in {of_each} views take "
            f"{_size(need)} in {dtype}, and {_size(free)} of memory can be had here; {advice}"
        )
    return device.type == "cpu"


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def describe(cache: Cache, teacher: CachedTeacher) -> str:
    filled, table = int(teacher.table.present.sum()), teacher.table
    return (
        f"teacher cache {cache.folder}: {filled:,} of {table.size:,} views there "
        f"({100 * filled / table.size:.1f} %), {str(cache.dtype).removeprefix('torch.')}"
    )
