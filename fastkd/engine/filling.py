"""A cache filled as a whole, and compared with the teacher it was made from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fastkd.config import RunConfig
from fastkd.engine import build, caches, machine, parallel, teachers
from fastkd.engine.console import Console
from fastkd.engine.distiller import Precision
from fastkd.engine.parallel import Ranks
from fastkd.method import LOGITS, POOLED
from fastkd.recipes import Request, resolve
from fastkd.teacher import cache, manifest, tidy
from fastkd.teacher.live import LiveTeacher
from loaders.contract import Loader
from loaders.errors import UserError
from loaders.views import numbered

BATCHES = {"cpu": (32, 64, 128, 256, 512), "cuda": (256, 512, 1024, 2048, 4096)}
AMP = {"float32": "off", "bfloat16": "bf16", "float16": "fp16"}
# Two forwards of one picture differ by the order of their sums; of another picture, or another view, by far more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 2e-2}  # of the answer's largest number


class Source(NamedTuple):
    """Whom to ask about what."""

    live: LiveTeacher
    train: Loader
    test: Loader
    weights: teachers.Weights
    precision: torch.dtype


def source(config: RunConfig, device: torch.device, ranks: Ranks) -> Source:
    precision = Precision(device, machine.dtype(config, device))
    weights = teachers.weights_of(config)
    named = dataclasses.replace(config.teacher, model=teachers.name_of(config, weights))
    config = dataclasses.replace(config, teacher=named)
    train, test = build.open_loaders(config, device, precision.dtype, ranks)
    net = teachers.load(config, weights, train.spec.num_classes)
    build.place(net, config, device)
    return Source(LiveTeacher(net, (LOGITS, POOLED), precision), train, test, weights, precision.dtype)


def fill(request: Request) -> None:
    config = request.config
    if config.run.teacher_cache == "off":
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, teacher_cache="auto"))
    machine.settle(config)
    device = machine.device(config)
    ranks = parallel.join(device)
    console = Console(speaks=ranks.first)
    try:
        with parallel.together():
            of = source(config, device, ranks)
            caches.check_views(config, of.train.view)
            held = caches.settle(config, of.live.net.name, of.weights, of.train, of.test, of.precision)
        for name, loader in ((caches.TEST, of.test), (caches.TRAIN, of.train)):
            _fill(held, name, loader, of.live, ranks, console)
        parallel.barrier()
    finally:
        parallel.leave()


def _fill(
    held: caches.Cache, name: str, loader: Loader, live: LiveTeacher, ranks: Ranks, console: Console
) -> None:
    views = loader.spec.views
    assert views is not None
    total = loader.spec.num_samples * views
    store = cache.Store(held.folder / name, held.identity, total, cache.ALWAYS, held.dtype, console.warn)
    caches.hold(held.folder, store)
    missing = np.flatnonzero(~store.known)
    mine = torch.from_numpy(missing[ranks.rank :: ranks.world].copy())
    console.say(f"{held.folder}, {name}: {total - len(missing):,} of {total:,} views there")
    started, already = time.perf_counter(), live.counts.forwards
    bar = tqdm(total=total, initial=total - len(missing), unit=" views", unit_scale=True, ncols=80, leave=False,
               disable=not (console.live and console.speaks))  # fmt: skip
    try:
        for rows in chunks(mine, live, loader, store):
            bar.update(rows * ranks.world)
            if not store.writes:
                raise UserError(
                    f"{held.folder}: no room for more; what is there stays: make room and build on"
                )
    except KeyboardInterrupt:
        store.seal()
        console.say(f"{name}: {store.known.sum():,} views there; the same command goes on")
        raise
    finally:
        bar.close()
        store.seal()
    made, seconds = live.counts.forwards - already, time.perf_counter() - started
    if made:
        console.say(
            f"{name}: {made * ranks.world:,} views computed, {made * ranks.world / seconds:,.0f} a second"
        )


def chunks(rows: torch.Tensor, live: LiveTeacher, loader: Loader, store: cache.Store) -> Iterator[int]:
    """Asks the teacher for these rows; how many at once is found while doing so. Gives the number done each time."""
    device, views = loader.plan.device, loader.spec.views
    assert views is not None
    sizes: tuple[int, ...] = BATCHES[device.type]
    rates, done = dict[int, float](), 0
    if len(rows) < 8 * sum(sizes):  # too few to find out
        sizes = sizes[len(sizes) // 2 :][:1]
    while done < len(rows):
        trial = next((size for size in sizes if size not in rates), None)
        size = trial or max(rates, key=lambda size: rates[size])
        part = rows[done : done + 2 * size] if trial else rows[done:]
        indices, started = part // views, 0.0
        for batch in loader.visit(indices, numbered(loader.view, indices, part % views), size):
            started = time.perf_counter()  # of the trial's last batch: the first of a size is slower
            at = part[:size].to(device)
            part = part[size:]
            store.add(at, live(batch))  # waits for the device
            done += len(at)
            yield len(at)
        if trial:
            rates[trial] = size / (time.perf_counter() - started)


class Difference(NamedTuple):
    part: tidy.Part
    segment: Path
    rows: int
    largest: float  # over the largest number of the answer
    allowed: float


def recompute(folder: Path, asked: dict[str, Any], samples: int) -> Iterator[Difference]:
    """A random part of what is stored, against the teacher asked now. `asked`: teacher.path, data.root, run.device."""
    facts = manifest.read(folder)
    data, view = facts["data"], facts["views"][caches.TRAIN]
    keys = ("dataset", "num_classes", "image_size", "train_size", "test_size")
    config = resolve("student", {
        **{f"data.{key}": data[key] for key in keys}, "data.cache_views": view.get("count", 0),
        "run.amp": AMP[facts["precision"]], "run.cache_dtype": facts["dtype"], **asked,
    }).config  # fmt: skip
    of = source(config, machine.device(config), Ranks())
    manifest.compare(
        folder, facts, caches.facts(config, of.live.net.name, of.weights, of.train, of.test, of.precision)
    )
    for part, path, (rows, values) in tidy.pick(folder, samples):
        loader = of.train if part.split == caches.TRAIN else of.test
        views = loader.spec.views
        assert views is not None
        numbers = torch.from_numpy(rows)
        indices = numbers // views
        stored = torch.from_numpy(values).float()
        live = LiveTeacher(of.live.net, (part.field,), of.live.precision)
        found = [
            {LOGITS: answer.logits, POOLED: answer.pooled, **answer.taps}[part.field].cpu()
            for batch in loader.visit(indices, numbered(loader.view, indices, numbers % views), 256)
            for answer in [live(batch)]
        ]
        now = torch.cat(found)
        apart = (stored - now).flatten(1).abs().amax(1) / now.flatten(1).abs().amax(1).clamp_min(1e-6)
        yield Difference(part, path, len(rows), apart.max().item(), TOLERANCE[facts["precision"]])
