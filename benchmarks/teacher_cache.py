"""What the teacher cache costs and saves: a step with cached answers against the student alone and the live teacher,
look-ups in a table as large as CIFAR-100's, and filling against the teacher's bare forward.

python benchmarks/teacher_cache.py [--teacher resnet32x4] [--student resnet8x4] [--json PATH] [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.shared.measure import Samples, arguments, finish, ratio, seconds, take_turns
from fastkd import models, recipes
from fastkd.engine import build, filling, machine, teachers
from fastkd.engine.console import Console
from fastkd.engine.distiller import Precision
from fastkd.engine.meters import Meters
from fastkd.engine.parallel import Ranks
from fastkd.engine.step import Step
from fastkd.method import LOGITS, POOLED
from fastkd.outputs import Clock
from fastkd.teacher.cache import ALWAYS, Store
from fastkd.teacher.live import LiveTeacher
from fastkd.teacher.table import Table
from loaders.contract import Loader

BATCH, SAMPLES, VIEWS, CLASSES = 64, 50_000, 162, 100  # CIFAR-100


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def steps(asked: dict[str, Any], count: int, device: torch.device) -> Callable[[], float]:
    """Seconds a step over the same `count` batches, each time."""
    request = recipes.resolve("student", asked)
    config, own, _ = build.complete(request)
    config, weights = teachers.settle(config)
    run = build.build(config, own, weights, [], Ranks(), device, Console(speaks=False))
    run.distiller.train()
    clock = Clock.start(device)
    step = Step(run, clock, Meters(device))

    def epoch() -> None:
        run.teacher.expect(*run.train.dealt(1))
        for batch in run.train.batches(1):
            step(batch)
            clock.step.zero_()
        wait(device)

    epoch()
    run.teacher.keep()
    return lambda: seconds(epoch) / count


def lookups(device: torch.device, batch: int, count: int) -> Callable[[], float]:
    """Rows a second from the whole table of CIFAR-100's logits in fp16."""
    table = Table(SAMPLES, VIEWS, {LOGITS: (CLASSES,)}, torch.float16, device)
    table.values[LOGITS].normal_()
    indices = torch.randint(SAMPLES, (count, batch), device=device)
    aug_ids = torch.randint(VIEWS, (count, batch), device=device)

    def work() -> None:
        for at in range(count):
            table.take(table.rows(indices[at], aug_ids[at]))
        wait(device)

    return lambda: count * batch / seconds(work)


def forwards(live: LiveTeacher, loader: Loader, device: torch.device, count: int) -> Callable[[], float]:
    """Pictures a second of nothing but the network, at the batch size that suits it best."""
    indices = torch.arange(max(filling.BATCHES[device.type])) % loader.spec.num_samples
    images = next(iter(loader.visit(indices, indices % VIEWS, len(indices)))).images

    def rate(size: int, pictures: int) -> float:
        @torch.no_grad()
        def work() -> None:
            for _ in range(-(-pictures // size)):
                with live.precision():
                    live.net(images[:size])
            wait(device)

        return -(-pictures // size) * size / seconds(work)

    trials = {
        size: statistics.median(rate(size, 2 * size) for _ in range(3))
        for size in filling.BATCHES[device.type]
    }
    best = max(trials, key=lambda size: trials[size])
    print("bare forward, images/s by batch size:", {size: round(found) for size, found in trials.items()})
    return lambda: rate(best, count)


def fills(live: LiveTeacher, loader: Loader, folder: Path, count: int) -> Callable[[], float]:
    """Views a second into a new cache on the disk, batch size found on the way."""
    made = [0]

    def work() -> None:
        made[0] += 1
        at = folder / str(made[0])
        store = Store(at, "0" * 16, SAMPLES * VIEWS, ALWAYS, torch.float16, print)
        for _ in filling.chunks(torch.arange(count), live, loader, store):
            pass
        store.seal()

    return lambda: count / seconds(work)


def main() -> None:
    made = arguments(__doc__ or "")
    made.add_argument("--teacher", default="resnet32x4")
    made.add_argument("--student", default="resnet8x4")
    made.add_argument("--device", default="auto")
    made.add_argument("--amp", default="auto")
    space = made.parse_args()
    count, rounds, rows = (3, 1, 1024) if space.quick else (10, 7, 8192)
    common = {"data.dataset": "shapes", "data.batch_size": BATCH, "data.train_size": count * BATCH, "data.test_size": 100,
              "student.model": space.student, "run.device": space.device, "run.amp": space.amp}  # fmt: skip
    config = recipes.resolve("student", common).config
    device = machine.device(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(models.build(space.teacher, 20).state_dict(), folder / "t.pt")
        taught = common | {
            "teacher.path": str(folder / "t.pt"),
            "teacher.model": space.teacher,
            "method.name": "kd",
        }
        stepping = take_turns(
            {
                "alone": steps(common | {"method.name": "vanilla"}, count, device),
                "cached": steps(taught | {"run.teacher_cache": str(folder / "c")}, count, device),
                "live": steps(taught, count, device),
            },
            rounds,
        )
        looking = take_turns(
            {f"lookup_b{size}": lookups(device, size, 2000 * 64 // size) for size in (64, 512)}, rounds
        )
        of = filling.source(recipes.resolve("student", taught).config, device, Ranks())
        live = LiveTeacher(of.live.net, (LOGITS, POOLED), Precision(device, of.precision))
        fill_rounds = max(1, rounds // 2)
        filled = take_turns(
            {
                "bare_forward": forwards(live, of.train, device, rows),
                "fill": fills(live, of.train, folder / "f", rows),
            },
            fill_rounds,
        )
    print(f"{space.teacher} -> {space.student}, kd, batch {BATCH}, {of.precision}, {device}")
    samples: Samples = {**{f"{k}_seconds_per_step": v for k, v in stepping.items()}, **looking, **filled}
    ratios = {
        "cached_over_alone": ratio(stepping["cached"], stepping["alone"]),
        "live_over_alone": ratio(stepping["live"], stepping["alone"]),
        "live_over_cached": ratio(stepping["live"], stepping["cached"]),
        "fill_over_bare_forward": ratio(filled["fill"], filled["bare_forward"]),
    }
    finish(space, samples, ratios, "s/step, rows/s or images/s")


if __name__ == "__main__":
    main()
