"""What every file in fastkd/methods must keep, tested because the file exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fastkd import methods, models
from fastkd.config import OptimConfig
from fastkd.engine import optim
from fastkd.engine.build import Run
from fastkd.engine.distiller import Distiller, Precision
from fastkd.engine.meters import Meters
from fastkd.engine.step import Step
from fastkd.method import LOGITS, POOLED, Method, Setting
from fastkd.outputs import Clock, Outputs
from fastkd.teacher.live import LiveTeacher, NoTeacher
from loaders.contract import Batch, DataSpec
from loaders.errors import UserError
from tests.contract.no_host_sync import HostSync, NoHostSync

CPU = torch.device("cpu")
CLASSES = 4
# every way a method can be set that changes what it computes; phase: the objective of that phase instead of the method
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "rrd": [{}, {"variant": "repository"}, {"memory_type": "momentum", "nce_k": 6}, {"kd_weight": 1.0}],
    "kd": [{}, {"task_weight": 0.0}],
    "rkd": [{}, {"squared": True}],
    "crd": [{}, {"mode": "relax"}, {"memory_type": "fifo"}],
    "dcd": [{}, {"variant": "imagenet"}, {"variant": "fixed"}],
    "itrd": [{}, {"teacher": "resnet8x4"}],  # as wide as the student, and wider
    "dkd": [{}, {"warmup": 0, "kd_temperature": 1.0}],
    "ctkd": [{}, {"of": "dkd"}, {"schedule": "linear"}],
    "mlkd": [{}, {"standardise": True}],
    "lskd": [{}, {"of": "dkd"}, {"of": "ctkd"}, {"of": "mlkd"}],
    "fitnet": [{}, {"hint_layer": 0}],
    "at": [{}, {"power": 3}],
    "sp": [{}, {"stages": "all"}],
    "vid": [{}, {"variance": "constant"}],
    "simkd": [{}, {"factor": 4}],
    "ofd": [{}, {"kernel_size": 3}],
    "fsp": [{}, {"phase": 0}],
    "ft": [{}, {"norm": 2}, {"phase": 0}],
    "ab": [{}, {"phase": 0}],
    "askd": [
        {}, {"region_weight": 0.0}, {"class_weight": 0.0}, {"grid": 1}, {"kd_weight": 1.0},
        {"layers": (0, 1, 2, -1), "small_maps": "inherit"},
    ],
    "kdsvd": [{}, {"layout": "channels"}, {"k": 2}],
    "reviewkd": [{}, {"student_preactivation": True}, {"pooled": False, "max_mid_channels": 8}],
}  # fmt: skip
CASES = [(name, hyper) for name in methods.names() for hyper in SETTINGS.get(name, [{}])]
# what a captured step cannot hold; the docstring says why
WAITS_FOR_THE_DEVICE = {"kdsvd"}
MAIN = [(name, hyper) for name, hyper in CASES if "phase" not in hyper]
IDS = [f"{name}-{'-'.join(map(str, hyper.values()))}" for name, hyper in CASES]


def small(name: str, **hyper: Any) -> dict[str, Any]:
    """Numbers for a data set of a dozen pictures."""
    known = {f.name for f in dataclasses.fields(methods.load(name).Config)}
    return {key: value for key, value in {"nce_k": 16, "feat_dim": 8}.items() if key in known} | hyper


def distiller(
    name: str, student: str = "resnet8", teacher: str = "wrn_16_1", phase: int | None = None, **hyper: Any
) -> tuple[Distiller, LiveTeacher]:
    cls = methods.load(name)
    nets = models.build(student, CLASSES, 8), models.build(teacher, CLASSES, 8)
    spec = DataSpec(name="d", num_samples=12, num_classes=CLASSES, image_size=8, labels=torch.arange(12) % CLASSES,
                    views=1, mean=(0, 0, 0), std=(1, 1, 1), class_names=("",) * CLASSES)  # fmt: skip
    setting = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda rows: rows)
    method = cls(cls.Config(**small(name, **hyper)), setting)
    if phase is not None:
        first = method.phases()[phase]
        nets[0].requires_grad_(first.trains_student)
        method = first.objective.requires_grad_(True)  # as the engine does
    precision = Precision(CPU, torch.float32)
    both = Distiller(nets[0], method, precision)
    return both, LiveTeacher(nets[1], both.teacher_needs, precision)


def batch(size: int = 4, scale: float = 1.0, views: int = 1) -> Batch:
    indices = torch.arange(size) % 12
    images = torch.randn(size * views, 3, 8, 8) * scale
    return Batch(images, indices % CLASSES, indices, torch.zeros_like(indices))


@pytest.mark.parametrize("name", methods.names())
def test_is_final_documented_and_named(name: str) -> None:
    cls = methods.load(name)
    assert issubclass(cls, Method)
    assert cls.__dict__.get("__final__"), f"{name} lacks @final"
    assert cls.__doc__
    assert not cls.__subclasses__()


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=IDS)
def test_terms_are_named_scalars_and_train_everything_trainable(name: str, hyper: dict[str, Any]) -> None:
    both, teacher = distiller(name, **hyper)
    samples = batch(views=both.method.needs.views)
    terms, _ = both(samples, teacher(samples), Clock.start(CPU))
    assert all(
        term.dim() == 0 and term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values()
    )
    terms["loss"].backward()
    # without a loss on the logits the student's classifier learns nothing, and DDP is told so
    spared = set() if both.trains_all else {id(p) for p in both.student.head.parameters()}
    idle = [
        n for n, p in both.named_parameters() if p.requires_grad and p.grad is None and id(p) not in spared
    ]
    assert not idle, f"these would never be trained, and DDP would wait for them: {idle}"
    assert all(p.grad is None for p in teacher.net.parameters())


class Reading(dict[str, Tensor]):
    """Taps that note who was read."""

    def __init__(self, content: Any, seen: set[str]) -> None:
        super().__init__(content)
        self.seen = seen

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=IDS)
def test_needs_are_exact(name: str, hyper: dict[str, Any]) -> None:
    both, teacher = distiller(name, **hyper)
    method, seen = both.method, set[str]()
    samples = batch(views=method.needs.views)
    student = both.student(samples.images, method.needs.student)
    full = teacher.net(samples.images, tuple(n for n in method.needs.teacher if n not in (LOGITS, POOLED)))
    student = student._replace(taps=Reading(student.taps, seen))
    seen_t: set[str] = set()
    for field in (LOGITS, POOLED):  # poison what is not declared: reading it shows as nan
        if field not in method.needs.teacher:
            full = full._replace(**{field: torch.full_like(getattr(full, field), float("nan"))})
    if not method.needs.indices:
        samples = samples._replace(indices=torch.full_like(samples.indices, 10**9))
    terms = method.terms(student, full._replace(taps=Reading(full.taps, seen_t)), samples, Clock.start(CPU))
    assert all(torch.isfinite(term) for term in terms.values())
    assert seen == set(method.needs.student)
    assert seen_t == set(method.needs.teacher) - {LOGITS, POOLED}
    for field in {LOGITS, POOLED} & {*method.needs.teacher}:  # and what is declared is read
        poisoned = full._replace(**{field: torch.full_like(getattr(full, field), float("nan"))})
        terms = method.terms(student, poisoned, samples, Clock.start(CPU))
        assert not all(torch.isfinite(term) for term in terms.values()), f"the teacher's {field} is not read"


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=IDS)
@pytest.mark.parametrize("kind", ["huge", "zero", "zero row", "constant", "alike", "one", "one class"])
def test_adversarial_outputs_stay_finite(name: str, hyper: dict[str, Any], kind: str) -> None:
    both, teacher = distiller(name, **hyper)
    samples = batch(1 if kind == "one" else 4, views=both.method.needs.views)
    if kind == "one class":
        samples = samples._replace(targets=torch.zeros_like(samples.targets))
    taught = teacher(samples)
    student = both.student(samples.images, both.method.needs.student)
    change: Callable[[Tensor], Tensor] = {
        "huge": lambda t: t * 1e4,
        "zero": lambda t: t * 0,
        "zero row": lambda t: torch.cat([t[:1] * 0, t[1:]]),
        "constant": lambda t: t * 0 + 3,
        "alike": lambda t: t[:1].expand_as(t).clone(),
    }.get(kind, lambda t: t)
    student, taught = (
        Outputs(change(o.logits), change(o.pooled), {k: change(v) for k, v in o.taps.items()})
        for o in (student, taught)
    )
    terms = both.method.terms(student, taught, samples, Clock.start(CPU))
    if not terms:
        return
    sum(terms.values(), torch.zeros(())).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in both.parameters() if p.grad is not None)


def step_of(name: str, **hyper: Any) -> tuple[Step, Distiller]:
    both, teacher = distiller(name, **hyper)
    settings = OptimConfig(epochs=2)
    lr = optim.LearningRate(settings, 50, CPU)
    asked = teacher if both.teacher_needs else NoTeacher()
    run = SimpleNamespace(distiller=both, teacher=asked, lr=lr, device=CPU, precision=both.precision,
                          optimizer=optim.optimizer(settings, both, lr.value))  # fmt: skip
    return Step(cast(Run, run), Clock.start(CPU), Meters(CPU)), both


@pytest.mark.parametrize(("name", "hyper"), CASES, ids=IDS)
def test_a_graph_safe_step_never_waits_for_the_device(name: str, hyper: dict[str, Any]) -> None:
    step, both = step_of(name, **hyper)
    if name in WAITS_FOR_THE_DEVICE:
        assert not both.method.needs.graph_safe
        assert "Not graph_safe:" in (methods.load(name).__doc__ or "")
        return
    samples = batch(views=both.method.needs.views)
    step(samples)  # the first step makes momentum buffers and meters
    optimizer = step.run.optimizer
    update = optimizer.step

    def unwatched() -> None:
        """On the CPU the fused update reads the rate on the host, on a GPU it does not."""
        with torch.utils._python_dispatch._disable_current_modes():
            update()

    optimizer.step = unwatched  # type: ignore[method-assign,assignment]
    assert both.method.needs.graph_safe, "an exception needs its reason in the docstring, and a row here"
    with NoHostSync():
        step(samples)
    assert int(step.clock.step) == 2


def test_the_guard_sees_a_sync_and_a_boolean_index() -> None:
    x = torch.randn(4)
    with pytest.raises(HostSync), NoHostSync():
        float(x.sum())
    with pytest.raises(HostSync), NoHostSync():
        x[x > 0]


@pytest.mark.parametrize(("name", "hyper"), MAIN)
def test_a_weight_of_zero_costs_nothing(name: str, hyper: dict[str, Any]) -> None:
    weight = methods.load(name).weighed_by
    both, _ = distiller(name, **(hyper | {weight: 0.0, "task_weight": 1.0}))
    assert set(both.teacher_needs) <= ({LOGITS} if both.method.config.kd_weight else set())
    both.method.terms = None  # type: ignore[method-assign,assignment]  # called, it would fail
    samples = batch(views=both.method.needs.views)
    nothing = Outputs(torch.zeros(len(samples.images), CLASSES), torch.zeros(0), {})
    terms, _ = both(samples, nothing, Clock.start(CPU))
    assert "task" in terms


def test_everything_of_a_method_is_in_the_one_module() -> None:
    both, _ = distiller("rrd")
    names = {n for n, _ in both.named_parameters()}
    assert {"method.embed_student.weight", "method.embed_teacher.weight"} <= names
    assert "method.queue.rows" in dict(both.named_buffers())
    assert not any("teacher." in n and "embed" not in n for n in names)
    assert isinstance(both, nn.Module)


def test_a_method_from_outside_the_tree(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from fastkd.method import LOGITS, Method, Needs\n"
        "class Mimic(Method):\n"
        "    needs = Needs(teacher=(LOGITS,))\n"
        "    def terms(self, student, teacher, batch, clock):\n"
        "        return {'mimic': (student.logits - teacher.logits).square().mean()}\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.load("my_methods:Mimic").__name__ == "Mimic"
    for wrong, why in (
        ("my_methods:Mimik", "has no 'Mimik'"),
        ("my_methods:number", "not a subclass"),
        ("no_such:X", "PYTHONPATH"),
    ):
        with pytest.raises(UserError, match=why):
            methods.load(wrong)
