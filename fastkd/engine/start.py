"""From a request to a finished run, or to a dry one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from fastkd import config as configs
from fastkd.config import RunConfig
from fastkd.engine import build as composition
from fastkd.engine import caches, machine, optim, parallel, phases, rundir, teachers
from fastkd.engine.console import Console, clock, show_warnings_as_lines
from fastkd.engine.distiller import Precision
from fastkd.engine.evaluate import score
from fastkd.engine.loop import Position, Stopped, check_fits
from fastkd.engine.meters import Meters
from fastkd.engine.parallel import Ranks
from fastkd.engine.record import Recorder
from fastkd.method import MethodConfig
from fastkd.outputs import Clock
from fastkd.recipes import Request
from fastkd.teacher.live import LiveTeacher, NoTeacher
from loaders import datasets
from loaders.contract import Batch, DataSpec
from loaders.errors import UserError
from loaders.views import View


def _warned(request: Request, unused: Sequence[str]) -> tuple[RunConfig, MethodConfig, list[str]]:
    warnings = machine.limit_gpus(request.config)
    config, own, more = composition.complete(request)
    return config, own, warnings + more + [f"{flag} has no effect" for flag in unused]


def train(request: Request, resume: str | None, unused: Sequence[str]) -> None:
    config, own, warnings = _warned(request, unused)
    device = machine.device(config)
    ranks = parallel.join(device)
    console = Console(speaks=ranks.first)
    show_warnings_as_lines(console)
    try:
        _train(config, own, warnings, resume, device, ranks, console)
        parallel.barrier()  # a rank that leaves first would break the others' connections
    except Stopped as stopped:
        console.say(str(stopped))
        parallel.barrier()
    finally:
        console.close()
        parallel.leave()


def _train(
    config: RunConfig, own: MethodConfig, warnings: list[str], resume: str | None,
    device: torch.device, ranks: Ranks, console: Console,
) -> None:  # fmt: skip
    machine.settle(config)
    for line in [*warnings, *config.applied]:
        console.say(f"note: {line}")
    run = folder = state = None
    try:
        with parallel.together():
            config, weights = teachers.settle(config)
            out = Path(config.run.out) if config.run.out else rundir.default_name(config)
            folder = rundir.RunFolder(out, config, resume) if ranks.first else None
            if not (out / "summary.json").exists():
                run = composition.build(config, own, weights, warnings, ranks, device, console)
                state = rundir.read_state(out)
                if state:
                    check_fits(state, run, out)
        if run is None:
            console.say(f"{out} holds this run, finished; nothing to do")
            return
        with parallel.together():
            if folder:
                folder.start(config)
        _fit(run, out, state)
    finally:
        if folder:
            folder.close()


def _fit(run: composition.Run, out: Path, state: Mapping[str, Any] | None) -> None:
    config, console = run.config, run.console
    recorder = Recorder(out, console, config.run.save_freq, writes=run.ranks.first)
    at = Position()
    if state:
        vars(at).update(state["position"])
        if not config.run.threads:
            torch.set_num_threads(state["threads"])
    env = machine.record(run.device, run.precision.dtype)
    console.say(
        f"{config.student.model} on {config.data.dataset}, {config.method['name']}, {config.optim.epochs} epochs, "
        f"{run.device.type} {env['precision']}, {env['threads']} threads -> {out}"
    )
    if state:
        console.say(f"going on in epoch {at.epoch} after {at.batch} steps")
    with parallel.together():
        recorder.begin(env, at.history)
    try:
        teacher = run.checked
        if teacher is not None and not config.run.skip_validation and at.teacher_top1 is None:
            found = score(lambda batch: teacher(batch).logits, run.test, run.device)
            teacher.keep()
            at.teacher_top1 = found.top1
            console.say(f"the teacher scores {at.teacher_top1:.2f} on the test set")
        summary = phases.fit(run, recorder, at, state)
    finally:
        recorder.close()
    if hits := summary["cache_hits"]:
        console.say(f"teacher: {hits:,} answers read from the cache, {summary['cache_misses']:,} computed")
    console.say(
        f"top-1 {summary['last_top1']:.2f} after the last epoch; best {summary['best_top1']:.2f} "
        f"(epoch {summary['best_epoch']}, chosen on the test set); {clock(summary['seconds'])}"
    )


def dry_run(request: Request, unused: Sequence[str]) -> int:
    """Everything but the data: the nets, the method, one step on made-up pictures, and what is missing here."""
    config, own, warnings = _warned(request, unused)
    device = machine.device(config)
    precision = Precision(device, machine.dtype(config, device))
    source = composition.wanted(config)
    spec = datasets.expected(source)
    missing = []
    if not datasets.on_disk(source):
        missing.append(
            f"data set {source.dataset} in {source.root or datasets.DEFAULT_ROOT}: {datasets.how_to_get(source)}"
        )
    weights = None
    if teachers.asked(config):
        path = teachers.find(config)
        if path and path.exists():
            config, weights = teachers.settle(config)
        else:
            missing.append(
                f"teacher {path or f'of {source.dataset} in {teachers.TEACHERS}'}: {teachers.how_to_get(config)}"
            )
    _one_step(config, own, weights, spec, precision, datasets.views(source)[0])
    out = config.run.out or rundir.default_name(config)
    shown = yaml.safe_dump(configs.tree(dataclasses.replace(config)), sort_keys=False)
    console = Console()
    console.say(shown.rstrip())
    for line in [*warnings, *config.applied]:
        console.say(f"# note: {line}")
    for line in missing:
        console.say(f"# missing here: {line}")
    console.say(
        f"# would run on {device.type} in {str(precision.dtype).removeprefix('torch.')}, into {out}; nothing was written"
    )
    return 0


def _one_step(
    config: RunConfig,
    own: MethodConfig,
    weights: teachers.Weights | None,
    spec: DataSpec,
    precision: Precision,
    view: View,
) -> None:
    device = precision.device
    torch.manual_seed(config.seed)
    # without its file the teacher is stood in for by a fresh net of the named or the recipe's kind
    stand_in = None if weights or not teachers.asked(config) else teachers.fresh(config, spec)
    _, source, distiller = composition.networks(config, own, weights, spec, precision, stand_in)
    if config.run.teacher_cache != "off" and distiller.teacher_needs:
        caches.check(config, distiller, view)
    distiller.to(device)
    lr = optim.LearningRate(config.optim, 1, device)
    now = Clock.start(device)
    count = min(8, config.data.batch_size)
    indices = torch.arange(count, device=device)
    shape = (count * distiller.method.needs.views, 3, spec.image_size, spec.image_size)
    images = torch.randn(shape, device=device, dtype=precision.dtype)
    batch = Batch(images, spec.labels[:count].to(device), indices, torch.zeros_like(indices))
    optimizer = optim.optimizer(config.optim, distiller, lr.value)
    lr.update(now)
    for phase in distiller.method.phases():
        first = phases.objective(distiller, phase).to(device)
        taught = (
            LiveTeacher(source.net, first.teacher_needs, precision)(batch) if source else NoTeacher()(batch)
        )
        first(batch, taught, now)[0]["loss"].backward()
        phase.objective.requires_grad_(False)
    taught = source(batch) if source and distiller.teacher_needs else NoTeacher()(batch)
    terms, logits = distiller(batch, taught, now)
    terms["loss"].backward()
    optimizer.step()
    meters = Meters(device)
    meters.add(terms, logits, batch.targets, now)
    if not torch.isfinite(terms["loss"]):
        raise UserError(
            f"the loss of one step on made-up pictures is {float(terms['loss'].detach())}: {meters.read()}"
        )
