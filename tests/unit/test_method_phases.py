"""Methods that train something before their main objective."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fastkd import methods, models
from fastkd.method import Setting
from fastkd.outputs import Clock
from loaders.contract import DataSpec
from loaders.errors import UserError


def make(name: str, student: str = "resnet8", teacher: str = "wrn_16_1", **hyper: Any) -> Any:
    nets = models.build(student, 5, 16), models.build(teacher, 5, 16)
    spec = cast(DataSpec, SimpleNamespace(num_classes=5))
    setting = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda rows: rows)
    cls = methods.load(name)
    return cls(cls.Config(**hyper), setting)


@pytest.mark.parametrize(("name", "trains_student"), [("fsp", True), ("ab", True), ("ft", False)])
def test_a_phase_says_what_it_trains_and_for_how_long(name: str, trains_student: bool) -> None:
    method = make(name, init_epochs=7)
    (phase,) = method.phases()
    assert (phase.epochs, phase.lr, phase.trains_student) == (7, None, trains_student)
    config = phase.objective.config
    assert (config.task_weight, config.kd_weight, config.weight) == (0, 0, 1), "its terms alone, unweighted"
    assert make(name, init_epochs=0).phases() == ()
    assert make(name, weight=0.0).phases() == ()


def test_ft_fixes_what_its_phase_trains() -> None:
    method = make("ft", init_lr=0.02)
    (phase,) = method.phases()
    assert phase.lr == 0.02
    assert phase.objective.paraphraser is method.paraphraser
    maps: Any = SimpleNamespace(taps={tap: torch.randn(2, 64, 4, 4) for tap in method.needs.student})
    method.terms(maps, maps, None, None)["ft"].backward()
    assert all(parameter.grad is None for parameter in method.paraphraser.parameters())
    fixed = make("ft")
    assert not any(parameter.requires_grad for parameter in fixed.paraphraser.parameters())
    assert {name for name in fixed.state_dict() if name.startswith("paraphraser.encoder.0")}, "and saves it"


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_nothing_of_a_phase_is_left_in_the_main_objective(name: str) -> None:
    method = make(name)
    assert method.needs.student == method.needs.teacher == ()
    assert not [*method.parameters()]
    assert method.terms(None, None, None, None) == {}


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_something_must_be_left_to_learn_after_the_phase(name: str) -> None:
    cls = methods.load(name)
    with pytest.raises(UserError, match=f"after its first phase {name} has no other loss"):
        cls.Config(task_weight=0.0)
    cls.Config(task_weight=0.0, kd_weight=1.0)


def test_fsp_refuses_nets_of_other_widths() -> None:
    with pytest.raises(UserError, match=r"student's stage1 has 16 channels and the teacher's stage1 has 32"):
        make("fsp", teacher="wrn_16_2")


def test_fsp_pairs_from_the_deep_end() -> None:
    objective = make("fsp", "vgg8", "vgg11").phases()[0].objective
    assert objective.needs.student == ("stem", "stage1", "stage2", "stage3", "stage4")


def test_ab_pairs_from_the_deep_end_and_halves_the_weight_of_each_shallower_stage() -> None:
    objective = make("ab", "vgg8", "resnet8").phases()[0].objective
    assert objective.needs.student == ("stage2.pre", "stage3.pre", "stage4.pre")
    assert objective.needs.teacher == ("stage1.pre", "stage2.pre", "stage3.pre")
    same = make("ab", "resnet8", "resnet8").phases()[0].objective
    shape = {"stage1.pre": (16, 4, 4), "stage2.pre": (16, 4, 4), "stage3.pre": (16, 4, 4)}
    taps = {tap: torch.zeros(2, *size) for tap, size in shape.items()}
    zeros: Any = SimpleNamespace(taps=taps)
    one, two, three = same.terms(zeros, zeros, None, Clock.start(torch.device("cpu"))).values()
    assert three.item() == pytest.approx(0.003 * 16 * 4 * 4), (
        "every entry is the margin, 1, short of its side"
    )
    assert (one * 4).item() == (two * 2).item() == three.item()
