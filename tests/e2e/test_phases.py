"""Phases before a method, and two gradients kept apart, through the real script and the real step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fastkd import methods, models
from fastkd.config import OptimConfig
from fastkd.engine import optim
from fastkd.engine.build import Run
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.loop import Training
from fastkd.engine.meters import Meters
from fastkd.engine.step import Step
from fastkd.method import Setting
from fastkd.outputs import Clock
from fastkd.teacher.live import LiveTeacher
from loaders.contract import Batch, DataSpec
from tests.e2e.runs import STUDENT, Train, end, load, one_line, rows, same_run

CPU = torch.device("cpu")
WORDS = (*STUDENT, "--path-t", "teacher", "--threads", "1")
PHASES = {
    "ft": ("ft_reconstruction",),
    "fsp": ("fsp_stage1", "fsp_stage2", "fsp_stage3"),
    "ab": ("ab_stage1",),
}


def given(method: str, phase: int = 3, epochs: int = 2) -> tuple[object, ...]:
    return (*WORDS, "--distill", method, "--init-epochs", phase, "--epochs", epochs)


@pytest.fixture
def after_phase(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What the student's weights are at the start of each stage and at its end."""
    seen: list[dict[str, torch.Tensor]] = []
    fit = Training.fit

    def watched(self: Training) -> dict[str, Any]:
        student = self.run.distiller.student
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        summary = fit(self)
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        return summary

    monkeypatch.setattr(Training, "fit", watched)
    return seen


@pytest.mark.parametrize("method", PHASES)
def test_a_phase_trains_its_own_objective_first(
    train: Train, teacher: Path, method: str, after_phase: list[dict[str, torch.Tensor]]
) -> None:
    said = train("student", *given(method), "--out", "run")
    assert said.code == 0, said
    assert f"phase 1 of 1 before {method}: 3 epochs" in said.out
    assert said.out.count("\nphase 1: ") == 3
    summary = json.loads(Path("run/summary.json").read_text())
    assert [row["epoch"] for row in summary["phases"]] == [1, 2, 3]
    losses = [row["train_loss"] for row in summary["phases"]]
    assert losses[2] < losses[0]
    for term in PHASES[method]:
        assert all(f"loss_{term}" in row for row in summary["phases"])
    assert [row["epoch"] for row in rows(Path("run"))] == [1, 2]
    # asked in the phase, and after it only by a method that still has terms; the teacher's check is once
    asked_after = 2 * 200 if method == "ft" else 0
    assert summary["teacher_forwards"] == 110 + 3 * 200 + asked_after
    before, after, main, trained = after_phase
    assert all(torch.equal(after[key], main[key]) for key in after)
    untouched = [key for key in before if torch.equal(before[key], after[key])]
    if method == "ft":
        assert len(untouched) == len(before), "batch norms count what they see, and here they see nothing"
    else:
        assert {key for key in untouched if "weight" in key} == {"fc.weight"}  # the head is not reached
    assert not torch.equal(main["fc.weight"], trained["fc.weight"])


def test_what_a_phase_made_is_fixed_after_it(train: Train, teacher: Path, here: Path) -> None:
    assert train("student", *given("ft", epochs=1), "--out", "one").code == 0
    assert train("student", *given("ft", epochs=2), "--out", "two").code == 0
    one, two = (load(here / run / "last.pt")["method"] for run in ("one", "two"))
    for key in one:
        assert torch.equal(one[key], two[key]) == key.startswith("paraphraser."), key


@pytest.mark.parametrize(("method", "steps"), [("ab", 17), ("ft", 34), ("fsp", 31)])
def test_stopped_in_or_after_a_phase_it_goes_on_the_same(
    train: Train, teacher: Path, here: Path, stop_after: Callable[..., None], method: str, steps: int
) -> None:
    """The phase has 30 steps."""
    assert train("student", *given(method), "--out", "whole").code == 0
    stop_after(steps)
    said = train("student", *given(method), "--out", "run")
    assert "saved: go on with --resume auto" in said.out
    assert load(here / "run" / "last.pt")["position"]["stage"] == (1 if steps > 30 else 0)
    assert train("student", *given(method), "--out", "run", "--resume").code == 0
    same_run(here / "whole", here / "run")


def test_without_its_phase(train: Train, teacher: Path) -> None:
    said = train("student", *given("ft", phase=0, epochs=1), "--out", "run")
    assert said.code == 0
    assert "phase" not in said.out
    assert json.loads(Path("run/summary.json").read_text())["phases"] == []


def test_a_phase_reads_the_cache(train: Train, teacher: Path) -> None:
    """Its map is the one that the method itself reads, and its epochs show the very views of the run's."""
    for run, asked in (("first", 110 + 2 * 200), ("second", 0)):
        words = (*given("ft", phase=2), "--teacher-cache", "c", "--out", run)
        assert train("student", *words).code == 0
        assert json.loads(Path(f"{run}/summary.json").read_text())["teacher_forwards"] <= asked
    same = [rows(Path(run))[-1]["train_loss"] for run in ("first", "second")]
    assert same[0] == same[1]


@pytest.mark.dist
@pytest.mark.parametrize(
    "words", [("--distill", "ft", "--init-epochs", "1"), ("--distill", "kd", "--optimizer", "dot")]
)
def test_two_ranks(train: Train, teacher: Path, here: Path, words: tuple[str, ...]) -> None:
    from tests.e2e.test_distributed import SCRIPT, TWO, begin

    processes = begin(SCRIPT, *TWO, *words, "--out", "run", cwd=here)
    alone = train("student", *TWO, *words, "--out", "alone")
    assert alone.code == 0
    assert [end(process).code for process in processes] == [0, 0]
    mine, others = (rows(here / run)[-1] for run in ("run", "alone"))
    assert mine["train_loss"] == pytest.approx(others["train_loss"], rel=0.1)


# ---- dot


def small(optimizer: str, delta: float = 0.05) -> tuple[Step, Distiller, Callable[[int], Batch]]:
    torch.manual_seed(0)
    nets = models.build("resnet8", 4, 8), models.build("resnet14", 4, 8)
    spec = DataSpec(name="d", num_samples=12, num_classes=4, image_size=8, labels=torch.arange(12) % 4, views=1,
                    mean=(0, 0, 0), std=(1, 1, 1), class_names=("",) * 4)  # fmt: skip
    cls = methods.load("kd")
    setting = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda x: x)
    both = Distiller(nets[0], cls(cls.Config(), setting), Precision(CPU, torch.float32))
    settings = OptimConfig(optimizer=cast(Any, optimizer), epochs=1, dot_delta=delta, lr=0.1)
    lr = optim.LearningRate(settings, 50, CPU)
    live = LiveTeacher(nets[1], both.teacher_needs, both.precision)
    run = SimpleNamespace(distiller=both, teacher=live, lr=lr, device=CPU, precision=both.precision,
                          optimizer=optim.optimizer(settings, both, lr.value))  # fmt: skip

    def batch(number: int) -> Batch:
        at = torch.arange(4)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        return Batch(images, at % 4, at, at * 0)

    return Step(cast(Run, run), Clock.start(CPU), Meters(CPU)), both, batch


def weights(both: Distiller) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in both.parameters()])


def test_dot_without_a_difference_is_sgd() -> None:
    """At delta 0 the two momenta add up to one."""
    found = []
    for optimizer in ("sgd", "dot"):
        step, both, batch = small(optimizer, 0.0)
        for number in range(4):
            step(batch(number))
        found.append(weights(both))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_dot_moves_by_the_gradients_of_task_and_distillation_apart() -> None:
    """Three steps against momenta written out; the gradients are torch's own, of each loss alone."""
    step, both, batch = small("dot")
    twin = small("dot")[1]
    live = small("dot")[0].run.teacher
    params = list(twin.parameters())
    task, distilled = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for number in range(3):
        step(batch(number))
        samples = batch(number)
        terms, _ = twin(samples, live(samples), Clock.start(CPU))
        losses = terms["task"] * 0.1, terms["kd"] * 0.9
        gradients = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
        with torch.no_grad():
            for p, v, u, g, h in zip(params, task, distilled, *gradients, strict=True):
                v.mul_(0.85).add_(g + 5e-4 * p)
                u.mul_(0.95).add_(h)
                p.sub_(0.1 * (v + u))
        torch.testing.assert_close(weights(both), weights(twin), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("--distill", "vanilla", "--optimizer", "dot"),
            "keeps the gradients of task and distillation apart, and vanilla",
        ),
        (("--distill", "kd", "-c", "0", "--optimizer", "dot"), "has only one of them; use sgd"),
        (
            ("--distill", "kd", "--optimizer", "dot", "--amp", "fp16"),
            "scaled gradients of float16; use --amp bf16 or off",
        ),
        (
            ("--distill", "kd", "--optimizer", "dot", "--dot-delta", "0.2"),
            "DOT with momentum 0.9 and delta 0.2",
        ),
        (("--distill", "kd", "--optimizer", "dot", "--dot-delta", "-1"), "optim.dot_delta is -1"),
    ],
)
def test_what_dot_cannot_do_is_refused(
    refused: Train, teacher: Path, words: tuple[str, ...], says: str
) -> None:
    refused("student", *WORDS, *words, "--out", "run", says=(says,))


def test_a_phase_of_no_finite_loss_ends_the_run(train: Train, teacher: Path) -> None:
    one_line(
        train("student", *given("ab"), "--lr", "1e20", "--out", "run"), "the loss is not finite since epoch 1"
    )
