"""The whole loop - metrics, progress bar, schedules, checks - against a bare loop written by hand over the same tensors.

python benchmarks/overhead.py [--json PATH] [--quick]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.shared.measure import arguments, finish, ratio, seconds, take_turns
from fastkd import recipes
from fastkd.engine import build
from fastkd.engine.console import Console
from fastkd.engine.loop import Position, Training
from fastkd.engine.parallel import Ranks
from fastkd.engine.record import Recorder
from fastkd.engine.signals import Signals


def main() -> None:
    made = arguments(__doc__ or "")
    made.add_argument("--batch-size", type=int, default=64)
    space = made.parse_args()
    steps, rounds = (10, 2) if space.quick else (100, 11)
    asked = {"data.dataset": "shapes", "data.batch_size": space.batch_size, "data.train_size": steps * space.batch_size,
             "data.test_size": 100, "student.model": "resnet8", "run.device": "cpu"}  # fmt: skip
    config, own, _ = build.complete(recipes.resolve("teacher", asked))
    console = Console(live=True)

    def make() -> build.Run:
        return build.build(config, own, None, [], Ranks(), torch.device("cpu"), console)

    bare = make()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, Signals() as signals:
        sys.stderr = nowhere  # the bar is drawn, and nobody has to see it
        training = Training(make(), Recorder(Path(folder), console, 0, writes=False), Position())

        def ours() -> float:
            training.at.epoch, training.at.batch, training.at.epoch_seconds, training.at.wait_seconds = (
                1,
                0,
                0.0,
                0.0,
            )
            training.clock.step.zero_()
            training.meters.clear()
            return seconds(lambda: training.train_epoch(signals)) / steps

        def by_hand() -> float:
            student, optimizer = bare.distiller.student.train(), bare.optimizer

            def epoch() -> None:
                for batch in bare.train.batches(1):
                    with bare.precision():
                        logits = student(batch.images).logits
                    F.cross_entropy(logits, batch.targets).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

            return seconds(epoch) / steps

        samples = take_turns({"loop": ours, "bare": by_hand}, rounds)
        sys.stderr = sys.__stderr__
    print(
        f"resnet8, batch {space.batch_size}, {bare.precision.dtype}, {steps} steps a round, {rounds} rounds"
    )
    finish(space, samples, {"loop_over_bare": ratio(samples["loop"], samples["bare"])}, "s/step")


if __name__ == "__main__":
    main()
