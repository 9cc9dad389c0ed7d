"""What of the soft-label methods golden vectors do not show."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd import config, methods, recipes
from fastkd.engine import build
from fastkd.methods.lskd import LSKD
from fastkd.methods.mlkd import up_to_median
from fastkd.outputs import Clock, Terms
from fastkd.toolbox import schedules
from fastkd.toolbox.softlabels import decoupled_kl
from loaders.errors import UserError
from tests.parity import case
from tests.parity.case import CPU, Said, batch, said


def made(name: str, student: Said, teacher: Said, **hyper: Any) -> Any:
    return case.build(name, student, teacher, batch(1).targets, student.outputs.logits.shape[1], **hyper)


def slowly_decoupled(s: Tensor, t: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample by sample, from the formula, the non-target class list written out."""
    on_target, among_rest = [], []
    for s_K, t_K, y in zip(s / temperature, t / temperature, targets.tolist(), strict=True):
        rest = [k for k in range(len(s_K)) if k != y]
        pairs = []
        for x_K in (s_K, t_K):
            log_p = torch.log_softmax(x_K, 0)
            pairs.append(torch.stack([log_p[y], log_p[rest].logsumexp(0)]))
        on_target.append((pairs[1].exp() * (pairs[1] - pairs[0])).sum())
        log_s, log_t = torch.log_softmax(s_K[rest], 0), torch.log_softmax(t_K[rest], 0)
        among_rest.append((log_t.exp() * (log_t - log_s)).sum())
    square = temperature**2
    return torch.stack(on_target).mean() * square, torch.stack(among_rest).mean() * square


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("gap", [1.0, 60.0, 120.0, 1e3, 1e4])
def test_decoupled_parts_are_finite_in_float32_at_any_gap(gap: float, classes: int) -> None:
    torch.manual_seed(0)
    s, t, y = torch.randn(6, classes), torch.randn(6, classes), torch.arange(6) % classes
    s[torch.arange(3), y[:3]] += gap  # sure and right; the others sure and wrong
    s[torch.arange(3, 6), y[3:]] -= gap
    ours, twins = s.requires_grad_(), s.detach().double().requires_grad_()
    found = torch.stack(decoupled_kl(ours, t, y, 1.0))
    wanted = torch.stack(slowly_decoupled(twins, t.double(), y, 1.0))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    wanted.sum().backward()
    assert ours.grad is not None
    assert twins.grad is not None
    torch.testing.assert_close(ours.grad.double(), twins.grad, rtol=1e-5, atol=1e-6)


def test_the_target_class_is_left_out_wherever_the_logits_lie() -> None:
    torch.manual_seed(0)
    s, t, y = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.arange(6) % 5
    moved = torch.stack(decoupled_kl(s - 4000, t - 4000, y, 1.0))
    torch.testing.assert_close(moved, torch.stack(decoupled_kl(s, t, y, 1.0)))


def test_a_warm_up_rises_by_the_epoch_and_then_stays() -> None:
    epochs = torch.arange(1, 8)
    assert schedules.rise(epochs, 4, torch.float32).tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert schedules.rise(epochs, 0, torch.float32).tolist() == [1.0] * 7


@pytest.mark.parametrize(
    "values", [[3.0], [1.0, 2.0], [1, 2, 3], [5, 5, 5, 5], [1, 2, 2, 3], [4, 1, 3, 9, 9, 2]]
)
def test_up_to_the_median_as_numpy_has_it(values: list[float]) -> None:
    x = np.array(values, dtype=np.float64)
    assert up_to_median(torch.from_numpy(x)).tolist() == (x <= np.percentile(x, 50)).tolist()


@pytest.mark.parametrize("of", ["kd", "dkd"])
def test_the_temperature_climbs_what_the_student_descends(of: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 9, 5)
    nets = said(logits[0]), said(logits[1])
    method = made("ctkd", *nets, of=of)
    clock = Clock.start(CPU)
    clock.epoch.fill_(10)  # strength -1

    def loss() -> Tensor:
        terms: Terms = method.terms(*(net.outputs for net in nets), batch(9, torch.arange(9) % 5), clock)
        return terms["ctkd"]

    before = loss()
    before.backward()
    with torch.no_grad():
        method.global_T -= 0.5 * method.global_T.grad  # as the optimizer does
    assert loss() > before


# ---- a method within a method


@pytest.mark.parametrize("of", ["kd", "dkd", "ctkd", "mlkd"])
def test_a_wrapper_s_numbers_are_written_out_and_read_back(of: str) -> None:
    asked = {"of": of, "kd_temperature": "3", "inner": {"beta": "2"} if of == "dkd" else {}}
    made: LSKD.Config = config.build(LSKD.Config, asked, "method")
    assert config.build(LSKD.Config, dataclasses.asdict(made), "method") == made
    own = {f.name for f in dataclasses.fields(methods.load(of).Config)}
    assert set(made.inner) < own
    assert made.built().kd_temperature == 3.0
    if of == "dkd":
        assert made.inner == {"alpha": 1.0, "beta": 2.0, "warmup": 20}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"of": "kdd"}, "unknown method 'kdd'"),
        (
            {"of": "dkd", "inner": {"betta": 2}},
            "method.inner.betta cannot be set for dkd; its own numbers: alpha",
        ),
        ({"of": "kd", "inner": {"beta": 2}}, "it has no numbers of its own"),
        ({"of": "dkd", "inner": {"kd_temperature": 2}}, "method.inner.kd_temperature"),
        ({"of": "mlkd", "inner": {"standardise": False}}, "method.inner.standardise"),
        ({"of": "dkd", "inner": {"beta": "many"}}, "method.inner.beta is 'many'"),
        ({"of": "dkd", "inner": {"beta": -1}}, "beta is -1"),
    ],
)
def test_a_wrapper_refuses_what_the_method_within_cannot_read(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        config.build(LSKD.Config, asked, "method")


def test_a_method_that_reads_no_logits_cannot_be_standardised() -> None:
    nets = said(torch.zeros(2, 3), torch.zeros(2, 4)), said(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UserError, match="does not read the teacher's logits"):
        made("lskd", *nets, of="rrd", inner={"nce_k": 4, "feat_dim": 2})


def test_what_is_trained_and_needed_is_the_inner_method_s() -> None:
    nets = said(torch.zeros(2, 3)), said(torch.zeros(2, 3))
    assert [n for n, _ in made("lskd", *nets, of="ctkd").named_parameters()] == ["inner.global_T"]
    assert made("lskd", *nets, of="mlkd").needs.views == 2


def test_standardised_logits_forget_shift_and_scale_of_a_row() -> None:
    torch.manual_seed(0)
    s, t = torch.randn(2, 8, 5)
    moved = t * torch.rand(8, 1).add(0.5) + torch.randn(8, 1)
    for of in ("kd", "dkd", "ctkd"):
        values = []
        for taught in (t, moved):
            method = made("lskd", said(s), said(taught), of=of)
            clock, samples = Clock.start(CPU), batch(8, torch.arange(8) % 5)
            terms = method.terms(said(s).outputs, said(taught).outputs, samples, clock)
            values.append(torch.stack([*terms.values()]))
        torch.testing.assert_close(*values)


def test_float32_logits_give_a_learned_temperature_its_slope_to_float32() -> None:
    """That slope is what is left of parts a hundred times its size: z-scores rounded to float32 lose digits of it."""
    torch.manual_seed(0)
    nobody = said(torch.zeros(4, 5))
    method, samples, clock = made("lskd", nobody, nobody, of="ctkd"), batch(4), Clock.start(CPU)
    for s, t in torch.randn(100, 2, 4, 5) * 3:
        slopes = []
        for dtype in (torch.float32, torch.float64):
            nets = said(s.to(dtype)), said(t.to(dtype))
            terms = method.terms(*(net.outputs for net in nets), samples, clock)
            slopes += torch.autograd.grad(terms["ctkd"], method.inner.global_T)
        torch.testing.assert_close(*slopes, rtol=1e-6, atol=0.0)


# ---- published numbers


def resolved(name: str, **keys: Any) -> dict[str, Any]:
    """The method's numbers as a run would have them."""
    asked = {key.replace("__", "."): value for key, value in keys.items()}
    request = recipes.resolve("student", {"method.name": name, **asked})
    completed, _, _ = build.complete(request)
    return dict(completed.method) | {"lr": completed.optim.lr}


PAIR = {"teacher__model": "resnet56", "student__model": "resnet20"}
WRN = {"teacher__model": "wrn_40_2", "student__model": "wrn_40_1"}


@pytest.mark.parametrize(
    ("name", "keys", "wanted"),
    [
        ("dkd", {"student__model": "resnet8x4"}, {"beta": 8.0, "kd_temperature": 4.0, "warmup": 20, "weight": 1.0}),
        ("dkd", PAIR, {"beta": 2.0}),
        ("dkd", WRN, {"beta": 6.0}),
        ("dkd", PAIR | {"method__beta": "3"}, {"beta": 3.0}),
        ("dkd", {"data__dataset": "imagefolder"}, {"beta": 0.5, "kd_temperature": 1.0, "warmup": 1}),
        ("nkd", {}, {"gamma": 3.5, "kd_temperature": 3.0}),
        ("nkd", {"data__dataset": "imagefolder"}, {"gamma": 1.5, "kd_temperature": 1.0}),
        ("dist", {}, {"weight": 2.0, "kd_temperature": 4.0}),
        ("dist", {"data__dataset": "imagefolder"}, {"kd_temperature": 1.0}),
        ("ctkd", {}, {"task_weight": 0.1, "kd_weight": 0.9, "decay_loops": 10}),
        ("ctkd", {"method__of": "dkd"}, {"task_weight": 1.0, "kd_weight": 1.0, "beta": 2.0}),
        ("ctkd", {"data__dataset": "imagefolder"}, {"task_weight": 1.0, "kd_weight": 1.0, "decay_loops": 5}),
        ("mlkd", {"student__model": "resnet8x4"}, {"task_weight": 0.1, "weight": 0.9, "lr": 0.025}),
        ("mlkd", {"data__dataset": "imagefolder"}, {"task_weight": 0.5, "weight": 0.5, "kd_temperature": 1.0}),
        ("lskd", PAIR, {"of": "kd", "task_weight": 0.1, "kd_weight": 9.0, "kd_temperature": 2.0}),
        ("lskd", {"teacher__model": "vgg13", "student__model": "vgg8"}, {"kd_weight": 9.0, "kd_temperature": 3.0}),
        ("lskd", {"data__dataset": "imagefolder"}, {"task_weight": 1.0, "kd_weight": 9.0}),
        (
            "lskd",
            PAIR | {"method__of": "DKD"},
            {
                "of": "dkd", "task_weight": 1.0, "kd_weight": 18.0, "kd_temperature": 3.0,
                "inner": {"alpha": 1.0, "beta": 2.0, "warmup": 20},
            },
        ),
        (
            "lskd",
            WRN | {"method__of": "dkd", "method__inner__warmup": "5"},
            {"kd_weight": 12.0, "inner": {"alpha": 1.0, "beta": 2.0, "warmup": 5}},
        ),
        ("lskd", {"method__of": "mlkd", "student__model": "resnet20"}, {"kd_weight": 9.0, "lr": 0.025}),
    ],
)  # fmt: skip
def test_published_numbers(name: str, keys: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = resolved(name, **keys)
    assert {key: found[key] for key in wanted} == wanted
