"""The loop: the same for every method, loader, precision and number of ranks."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.engine import optim, parallel
from fastkd.engine.build import Run
from fastkd.engine.evaluate import Score, evaluate
from fastkd.engine.meters import Meters
from fastkd.engine.record import Recorder
from fastkd.engine.rundir import LAST
from fastkd.engine.signals import Signals
from fastkd.engine.step import Step
from fastkd.outputs import Clock
from loaders.contract import Batch
from loaders.errors import UserError

STATE = {
    "about", "model", "method", "optimizer", "scaler", "meters", "clock", "position", "rng", "threads", "teacher_sha256",
}  # fmt: skip


class Stopped(Exception):
    """A signal asked for an end; the state is saved."""


def check_fits(state: Mapping[str, Any], run: Run, out: Path) -> None:
    """Whether `out`'s checkpoint can go on as this run, before anything is changed."""
    missing = sorted(STATE - state.keys())
    if missing:
        raise UserError(
            f"--resume: {out / LAST} is no checkpoint of a run: it lacks {missing[0]}; pick another --out"
        )
    if state["teacher_sha256"] != run.teacher_sha256:
        raise UserError(
            f"--out {out}: that run began with another teacher (weights {state['teacher_sha256'][:8]}.., "
            f"here {run.teacher_sha256[:8]}..); pass its --path-t or pick another --out"
        )


class Position:
    """Where a run stands; what its checkpoints hold besides tensors."""

    def __init__(self) -> None:
        self.stage = 0  # the method's phases, then the run itself
        self.epoch = 1  # of this stage, the one under way
        self.batch = 0  # its next batch
        self.seconds = 0.0  # of training and testing, over all sittings
        self.epoch_seconds = 0.0  # of the epoch under way
        self.wait_seconds = 0.0
        self.taught: dict[str, int] = {}  # of the teacher's pictures, over all ranks: forwards, hits, misses
        self.teacher_top1: float | None = None
        self.phases: list[dict[str, Any]] = []  # a row an epoch
        self.history: list[dict[str, Any]] = []  # likewise, of the run itself

    def begin_stage(self, number: int) -> None:
        self.stage, self.epoch, self.batch = number, 1, 0

    @property
    def best(self) -> float:
        return max((row["test_top1"] for row in self.history), default=0.0)


class Training:
    """`final`: false for a phase, after whose epochs there is nothing to evaluate yet."""

    def __init__(self, run: Run, recorder: Recorder, at: Position, final: bool = True) -> None:
        self.run, self.recorder, self.final = run, recorder, final
        self.clock = Clock.start(run.device)
        self.meters = Meters(run.device)
        self.at = at
        self.step = Step(run, self.clock, self.meters)
        self.deployed = run.distiller.method.deployed(run.distiller.student)

    def fit(self) -> dict[str, Any]:
        epochs = self.run.config.optim.epochs
        with Signals() as signals:
            while self.at.epoch <= epochs:
                self.train_epoch(signals)
                self.run.teacher.keep()  # before the ranks meet: in the next epoch each finds what all have learned
                parallel.average_buffers(self.run.distiller)
                if self.final:
                    self._finish_epoch(evaluate(self.deployed, self.run.test, self.run.precision))
                else:
                    self._finish_epoch_of_phase()
        return self.recorder.finish(self.summary()) if self.final else {}

    def train_epoch(self, signals: Signals) -> None:
        run, at, steps = self.run, self.at, len(self.run.train)
        console, every = run.console, run.config.run.print_freq
        self.clock.epoch.fill_(at.epoch)
        run.distiller.train()
        console.begin_epoch(at.epoch, run.config.optim.epochs, steps, at.batch)
        started, before = time.perf_counter(), at.epoch_seconds
        run.teacher.expect(*run.train.dealt(at.epoch))
        for batch in self._timed(run.train.batches(at.epoch, at.batch)):
            self.step(batch)
            at.batch += 1
            at.epoch_seconds = before + time.perf_counter() - started
            reports = at.batch % every == 0 or at.batch == steps
            if reports:
                self._check(shown := self.meters.read())
                done = at.epoch_seconds / at.batch
                speed = run.config.data.batch_size / done
                left = done * (steps - at.batch + steps * (run.config.optim.epochs - at.epoch))
                console.progress(
                    at.batch, shown["loss"], shown["top1"], speed, at.wait_seconds / at.epoch_seconds, left
                )
            # ranks leave together, so they ask each other; alone there is nobody to wait for
            asked = signals.caught is not None
            if (run.ranks.world == 1 and asked) or (reports and parallel.any_rank(asked, run.device)):
                self._stop(signals.caught)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.at.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _check(self, shown: Mapping[str, float]) -> None:
        if shown["first_bad"] < 0:
            return
        where = self.at.epoch, int(shown["first_bad"]) - (self.at.epoch - 1) * len(self.run.train) + 1
        bad = [name for name in self.meters.names if name in shown and not abs(shown[name]) < float("inf")]
        batch = next(iter(self.run.train.batches(self.at.epoch, where[1] - 1)))
        evidence = {
            "epoch": where[0], "step": where[1], "terms": dict(shown), "lr": float(self.run.lr.value),
            "indices": batch.indices.cpu(), "aug_ids": batch.aug_ids.cpu(), "model": self.run.distiller.student.state_dict(),
        }  # fmt: skip
        evidence_is = self.recorder.save_evidence(evidence)
        with parallel.together():
            raise UserError(
                f"the loss is not finite since epoch {where[0]}, step {where[1]} ({', '.join(bad) or 'loss'}); "
                f"{evidence_is}; try a lower --learning-rate, or --amp off"
            )

    def _finish_epoch(self, score: Score) -> None:
        run, at = self.run, self.at
        shown = self.meters.read()
        if not math.isfinite(score.loss):
            # the last step's loss was finite, what that step made of the weights is not
            shown["first_bad"] = float(self.clock.step) - 1
        self._check(shown)
        seconds = at.epoch_seconds
        row = self._trained(shown) | {
            "test_loss": score.loss, "test_top1": score.top1, "test_top5": score.top5,
            "images_per_second": len(run.train) * run.config.data.batch_size / seconds, "seconds": seconds,
            "data_wait": at.wait_seconds / seconds,
        }  # fmt: skip
        is_best = score.top1 > at.best or not at.history
        at.history.append(row)
        self._next_epoch()
        self.recorder.save_epoch(self.state(), self.about(row), is_best)
        run.console.end_epoch(
            run.config.optim.epochs, row, at.best, seconds * (run.config.optim.epochs - row["epoch"])
        )

    def _trained(self, shown: Mapping[str, float]) -> dict[str, Any]:
        row = {"epoch": self.at.epoch, "lr": float(self.run.lr.value), "train_loss": shown["loss"]}
        row |= {f"loss_{name}": shown[name] for name in self.meters.names if name not in ("loss", "hits")}
        return row if math.isnan(shown["top1"]) else row | {"train_top1": shown["top1"]}

    def _next_epoch(self) -> None:
        at = self.at
        at.epoch += 1
        at.seconds += at.epoch_seconds
        at.batch, at.epoch_seconds, at.wait_seconds = 0, 0.0, 0.0
        self._count()
        self.meters.clear()

    def _finish_epoch_of_phase(self) -> None:
        at, shown = self.at, self.meters.read()
        self._check(shown)
        row = self._trained(shown) | {"phase": at.stage + 1, "seconds": at.epoch_seconds}
        at.phases.append(row)
        self._next_epoch()
        self.recorder.save_phase(self.state())
        epochs = self.run.config.optim.epochs
        self.run.console.say(f"phase {at.stage + 1}: {row['epoch']}/{epochs} loss {row['train_loss']:.4g}")

    def _stop(self, caught: signal.Signals | None) -> None:
        self._check(self.meters.read())
        parallel.average_buffers(self.run.distiller)
        self.run.teacher.keep()
        self._count()
        self.recorder.save_last(self.state())
        self.run.console.close()
        name = caught.name if caught else "another rank"
        raise Stopped(
            f"stopped by {name} in epoch {self.at.epoch} after {self.at.batch} steps; saved: go on with --resume auto"
        )

    def _count(self) -> None:
        counts = vars(self.run.teacher.counts)
        totals = parallel.total(torch.tensor(list(counts.values()), device=self.run.device))
        self.at.taught = dict(zip(counts, totals.tolist(), strict=True))

    def about(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a file of weights says of itself."""
        config, data = self.run.config, self.run.train.spec
        # what answers may be more than the student: then the method's parts belong to the file
        more = {"method": dict(config.method), "teacher": config.teacher.model}
        return (more if self.deployed is not self.run.distiller.student else {}) | {
            "model": config.student.model, "dataset": config.data.dataset, "num_classes": data.num_classes,
            "image_size": data.image_size, "mean": list(data.mean), "std": list(data.std),
            "epoch": row["epoch"], "test_top1": row["test_top1"],
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Of all ranks, so all of them call it."""
        run, at = self.run, self.at
        last = at.history[-1] if at.history else {"epoch": 0, "test_top1": 0.0}
        return {
            "about": self.about(last), "model": run.distiller.student.state_dict(),
            "method": run.distiller.method.state_dict(), "optimizer": run.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(), "meters": self.meters.state(),
            "clock": {"epoch": self.clock.epoch, "step": self.clock.step}, "position": dict(vars(at)),
            "rng": {kind: parallel.gather(state[None].to(run.device)).cpu() for kind, state in self._generators().items()},
            "threads": torch.get_num_threads(), "teacher_sha256": run.teacher_sha256,
        }  # fmt: skip

    def _generators(self) -> dict[str, Tensor]:
        """The states of this rank's random generators."""
        states = {"cpu": torch.get_rng_state()}
        if self.run.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.run.device)
        return states

    def restore(self, state: Mapping[str, Any]) -> None:
        run = self.run
        run.distiller.student.load_state_dict(state["model"])
        run.distiller.method.load_state_dict(state["method"])
        optim.load_state(run.optimizer, state["optimizer"], run.lr.value)
        self.step.scaler.load_state_dict(state["scaler"])
        self.meters.load({**state["meters"], "sums": state["meters"]["sums"].to(run.device)})
        if not run.ranks.first:  # the sums of all ranks are with the first
            self.meters.clear()
        self.clock.epoch.copy_(state["clock"]["epoch"])
        self.clock.step.copy_(state["clock"]["step"])
        vars(self.at).update(state["position"])
        if run.ranks.first:  # the counts of all ranks are with the first
            vars(run.teacher.counts).update(self.at.taught)
        # on another number of ranks or another kind of device the draws begin anew
        drawn = {
            kind: states[run.ranks.rank].clone()  # torch reads a view from the start of its storage
            for kind, states in state["rng"].items()
            if len(states) == run.ranks.world
        }
        if "cpu" in drawn:
            torch.set_rng_state(drawn["cpu"])
        if "cuda" in drawn and run.device.type == "cuda":
            torch.cuda.set_rng_state(drawn["cuda"], run.device)

    def summary(self) -> dict[str, Any]:
        at, run = self.at, self.run
        last = at.history[-1]
        best = max(at.history, key=lambda row: row["test_top1"])
        return {
            "last_top1": last["test_top1"], "best_top1": best["test_top1"], "best_epoch": best["epoch"],
            "epochs": last["epoch"], "steps": int(self.clock.step), "seconds": at.seconds,
            "images_per_second": sum(r["images_per_second"] for r in at.history) / len(at.history),
            "teacher_forwards": at.taught["forwards"],
            "cache_hits": at.taught["hits"], "cache_misses": at.taught["misses"],
            "phases": at.phases, "teacher_top1": at.teacher_top1, "loader": type(run.train).__name__, "warnings": run.warnings,
        }  # fmt: skip
