"""Which feature maps are compared, and what makes their sizes agree."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import nn

from fastkd import methods, models
from fastkd.method import POOLED, Setting
from fastkd.methods.ofd import margins
from fastkd.outputs import Clock, TapShape
from fastkd.toolbox.adapters import BatchNorm, ConvAdapter
from fastkd.toolbox.spatial import Pair, from_the_deep_end, same_size, stage_pairs, stages
from loaders.contract import DataSpec
from loaders.errors import UserError

RESNET, VGG = "resnet8", "vgg8"  # three stages and four


class Made(NamedTuple):
    method: Any
    student: Any
    teacher: Any


def make(name: str, student: str, teacher: str, **hyper: Any) -> Made:
    spec = cast(DataSpec, SimpleNamespace(num_classes=5))
    nets = models.build(student, 5, image_size=16), models.build(teacher, 5, image_size=16)
    own = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda rows: rows)
    cls = methods.load(name)
    return Made(cls(cls.Config(**hyper), own), *nets)


def test_the_longer_list_loses_its_shallow_end() -> None:
    assert from_the_deep_end(("a", "b", "c"), ("x", "y")) == (Pair("b", "x"), Pair("c", "y"))
    assert from_the_deep_end(("a",), ("x", "y", "z")) == (Pair("a", "z"),)
    nets = models.build(VGG, 5), models.build(RESNET, 5)
    assert stages(nets[0], "pre") == ("stage1.pre", "stage2.pre", "stage3.pre", "stage4.pre")
    pairs = stage_pairs(*nets, "pre")
    assert [pair.student for pair in pairs] == ["stage2.pre", "stage3.pre", "stage4.pre"]
    assert [pair.teacher for pair in pairs] == ["stage1", "stage2", "stage3"]
    assert [pair.stage for pair in pairs] == ["stage2", "stage3", "stage4"]


@pytest.mark.parametrize("name", ["at", "vid", "sp", "nst", "ofd", "reviewkd"])
@pytest.mark.parametrize("nets", [(VGG, RESNET), (RESNET, VGG)], ids="-".join)
def test_nets_of_other_depths_are_paired_from_the_deep_end(name: str, nets: tuple[str, str]) -> None:
    hyper = {"stages": "all"} if name == "sp" else {}
    method, student, teacher = make(name, *nets, **hyper)
    count = {VGG: 4, RESNET: 3}
    for needs, net in zip((method.needs.student, method.needs.teacher), nets, strict=True):
        maps = [tap.partition(".")[0] for tap in needs if tap != POOLED]
        assert maps == [f"stage{k}" for k in range(count[net] - 2, count[net] + 1)]
    images = torch.randn(2, 3, 16, 16)
    taught = teacher(images, [tap for tap in method.needs.teacher if tap != POOLED])
    terms = method.terms(
        student(images, method.needs.student), taught, None, Clock.start(torch.device("cpu"))
    )
    wanted = {f"{name}_{tap.partition('.')[0]}" for tap in method.needs.student}
    assert set(terms) - {"reviewkd_pooled"} == wanted


def test_the_larger_map_is_averaged_down() -> None:
    wide, tall = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 6, 2)
    s, t = same_size(wide, tall)
    assert s.shape == (2, 3, 4, 2)
    assert t.shape == (2, 5, 4, 2)
    torch.testing.assert_close(s[0, 0, 0, 0], wide[0, 0, 0, :4].mean())
    assert same_size(wide, wide)[0] is wide


@pytest.mark.parametrize(("side_s", "side_t"), [*itertools.product(range(1, 9), repeat=2)])
def test_an_adapter_makes_maps_that_can_be_compared(side_s: int, side_t: int) -> None:
    student, teacher = TapShape(2, side_s, side_s), TapShape(3, side_t, side_t)
    adapter = ConvAdapter(student, teacher, relu=True)
    s = adapter(torch.randn(2, *student))
    t = adapter.target(torch.randn(2, *teacher))
    assert s.shape == t.shape
    assert s.min() >= 0
    averages = side_s < side_t and 2 * side_s != side_t
    assert t.shape[-1] == (side_s if averages else side_t)


def test_a_single_value_is_normalised_by_what_was_seen_before() -> None:
    norm: Any = BatchNorm(3)
    norm(torch.randn(5, 3, 1, 1) * 2 + 1)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), (x.flatten() - mean) / (var + norm.eps).sqrt())
    assert torch.equal(norm.running_mean, mean)


@pytest.mark.parametrize("net", [RESNET, VGG, "wrn_16_1"])
def test_simkd_classifies_the_teachers_own_map_as_the_teacher_does(net: str) -> None:
    """A student whose projection equals its target answers as the teacher, whatever the teacher's family."""
    method, _, teacher = make("simkd", RESNET, net)
    taught = teacher.eval()(torch.randn(3, 3, 16, 16), method.needs.teacher)
    _, logits = method.reuse(method.target(taught.taps[method.needs.teacher[0]]))
    torch.testing.assert_close(logits, taught.logits)


def test_simkd_deploys_student_projector_and_the_teachers_head() -> None:
    method, student, teacher = make("simkd", RESNET, VGG)
    deployed = method.deployed(student).eval()
    images = torch.randn(3, 3, 16, 16)
    before = deployed(images).logits
    assert before.shape == (3, 5)
    with torch.no_grad():
        student.head.weight.add_(1)  # its own classifier plays no part
    assert torch.equal(deployed(images).logits, before)
    kept = {name for name, parameter in deployed.named_parameters() if not parameter.requires_grad}
    assert kept == {"reuse.head.weight", "reuse.head.bias"}
    assert teacher.head.weight.requires_grad, "the method's head is a copy"


def test_srrl_keeps_a_frozen_copy_of_the_teachers_head() -> None:
    method, _, teacher = make("srrl", RESNET, VGG)
    assert not any(parameter.requires_grad for parameter in method.head.parameters())
    assert teacher.head.weight.requires_grad
    assert torch.equal(method.head.weight, teacher.head.weight)


@pytest.mark.parametrize("name", ["at", "sp", "nst"])
def test_a_dead_sample_gets_no_huge_gradient(name: str) -> None:
    """It has no direction to learn; a plain normalisation divides its gradient by 1e-12."""
    method, student, _ = make(name, RESNET, RESNET)
    sizes = {tap: student.taps[tap] for tap in method.needs.student}
    maps = {tap: torch.rand(3, *size) for tap, size in sizes.items()}
    for x in maps.values():
        x[0] = 0
        x.requires_grad_()
    taught = {tap: torch.rand(3, *size) for tap, size in sizes.items()}
    terms = method.terms(SimpleNamespace(taps=maps), SimpleNamespace(taps=taught), None, None)
    torch.stack([*terms.values()]).sum().backward()
    for x in maps.values():
        assert x.grad is not None
        assert x.grad.abs().max() < 1


@pytest.mark.parametrize(
    ("name", "hyper", "why"),
    [
        ("fitnet", {"hint_layer": 4}, "hint_layer is 4; the student has 0"),
        ("simkd", {"factor": 600}, "more than the 512 channels"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, hyper: dict[str, int], why: str) -> None:
    with pytest.raises(UserError, match=why):
        make(name, RESNET, VGG, **hyper)


def test_a_margin_is_what_a_channel_is_when_negative() -> None:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5, 1.0, 0.0, 0.0]))
        norm.bias.copy_(torch.tensor([0.3, -1.0, 5.0, -0.7, 0.0]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1_000_000, generator=generator)
    for channel in (0, 1):
        values = drawn * norm.weight[channel] + norm.bias[channel]
        assert margins(norm)[channel] == pytest.approx(values[values < 0].mean().item(), rel=1e-2)
    assert margins(norm)[2] == -3, "almost never negative: three deviations below zero"
    assert margins(norm)[3] == pytest.approx(-0.7), "a channel without deviation is its mean"
    assert margins(norm)[4] == pytest.approx(0.0, abs=1e-9), "also where the mean is 0"


def test_reviewkd_warms_up_by_the_epoch() -> None:
    method, student, teacher = make("reviewkd", RESNET, VGG, warmup_epochs=4)
    images, clock = torch.randn(2, 3, 16, 16), Clock.start(torch.device("cpu"))
    taught = teacher(images, [tap for tap in method.needs.teacher if tap != POOLED])
    seen = []
    for epoch in (1, 3, 4, 9):
        clock.epoch.fill_(epoch)
        terms = method.terms(student(images, method.needs.student), taught, None, clock)
        seen.append(terms["reviewkd_pooled"].item())
    assert seen == pytest.approx([seen[2] / 4, seen[2] * 3 / 4, seen[2], seen[2]], rel=1e-5)
