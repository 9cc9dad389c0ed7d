"""What a method trains before its main objective: each phase is a run of its own over the same nets and data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastkd.engine import optim
from fastkd.engine.build import Run, place
from fastkd.engine.distiller import Distiller
from fastkd.engine.loop import Position, Training
from fastkd.engine.record import Recorder
from fastkd.method import Phase
from fastkd.teacher.cache import CachedTeacher
from fastkd.teacher.live import LiveTeacher, NoTeacher, Teacher


def fit(run: Run, recorder: Recorder, at: Position, state: Mapping[str, Any] | None) -> dict[str, Any]:
    """All phases that are not over yet, then the run itself. `state`: what to go on from."""
    phases = run.distiller.method.phases()
    first = at.stage
    for number in range(first, len(phases)):
        phase = phases[number]
        training = Training(staged(run, phase), recorder, at, final=False)
        if state and number == first:
            training.restore(state)
        names = f"{phase.epochs} epochs" + ("" if phase.trains_student else ", the student waits")
        run.console.say(f"phase {number + 1} of {len(phases)} before {run.config.method['name']}: {names}")
        training.fit()
        phase.objective.requires_grad_(False)
        run.distiller.student.requires_grad_(True)
        at.begin_stage(number + 1)
    training = Training(run, recorder, at)
    if state and first == len(phases):
        training.restore(state)
    return training.fit()


def staged(run: Run, phase: Phase) -> Run:
    """The run as the phase sees it: its objective, an optimizer of its own, its rate and as many epochs."""
    settings = dataclasses.replace(
        run.config.optim, epochs=phase.epochs, lr=phase.lr or run.config.optim.lr, warmup_epochs=0.0,
        optimizer="sgd" if run.config.optim.optimizer == "dot" else run.config.optim.optimizer,
    )  # fmt: skip
    run.distiller.student.requires_grad_(phase.trains_student)
    distiller = objective(run.distiller, phase)
    place(distiller, run.config, run.device)
    lr = optim.LearningRate(settings, len(run.train), run.device)
    return dataclasses.replace(
        run, config=dataclasses.replace(run.config, optim=settings), distiller=distiller, lr=lr,
        optimizer=optim.optimizer(settings, distiller, lr.value), teacher=teacher(run, distiller),
    )  # fmt: skip


def objective(distiller: Distiller, phase: Phase) -> Distiller:
    phase.objective.requires_grad_(True)
    return Distiller(distiller.student, phase.objective, distiller.precision, phase.trains_student)


def teacher(run: Run, distiller: Distiller) -> Teacher:
    """The run's cache where it holds what the phase reads, else the live net."""
    needs, known = distiller.teacher_needs, run.teacher
    if not needs:
        return NoTeacher()
    if isinstance(known, CachedTeacher) and set(needs) <= set(known.live.needs):
        return known
    assert run.source is not None
    live = LiveTeacher(run.source.net, needs, run.precision)
    live.counts = known.counts
    return live
