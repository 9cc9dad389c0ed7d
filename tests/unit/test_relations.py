"""Where the references' gradients end: samples that coincide, rows of zeros, columns that are constant, one sample."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkd.method import Method
from fastkd.outputs import Clock
from fastkd.toolbox.relations import directions
from loaders.errors import UserError
from tests.parity.case import CPU, batch, build, said


def made(name: str, s_BD: Tensor, t_BD: Tensor, **hyper: Any) -> Method:
    torch.manual_seed(0)
    return build(name, said(pooled=s_BD), said(pooled=t_BD), torch.arange(8) % 2, 2, **hyper).to(s_BD.dtype)


def loss(name: str, s_BD: Tensor, t_BD: Tensor, **hyper: Any) -> Tensor:
    method, student, teacher = made(name, s_BD, t_BD, **hyper), said(pooled=s_BD), said(pooled=t_BD)
    terms = method.terms(student.outputs, teacher.outputs, batch(len(s_BD)), Clock.start(CPU))
    return torch.stack(list(terms.values())).sum()


def features(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return tuple(torch.rand(rows, width, generator=made, dtype=dtype) for width in (5, 7))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["rkd", "pkt", "cc", "dcd", "itrd"])
def test_one_sample_has_no_relations(name: str) -> None:
    s, t = features(1)
    s.requires_grad_()
    value = loss(name, s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert value.isfinite()
    assert not gradient.any()


@pytest.mark.parametrize("squared", [False, True])
def test_samples_that_coincide_do_not_push(squared: bool) -> None:
    """Two equal rows of the student that the teacher tells apart: |x|^-1 in the gradient, were it taken there."""
    s, t = features(6, torch.float32)
    s[1] = s[0]
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(loss("rkd", s, t, squared=squared), s)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 1e3
    same, _ = features(6, torch.float32)
    same[:] = same[0]
    same.requires_grad_()
    value = loss("rkd", same, t, squared=squared)
    (gradient,) = torch.autograd.grad(value, same)
    assert value.isfinite()
    assert not gradient.any()


@pytest.mark.parametrize("name", ["rkd", "pkt", "itrd"])
def test_a_row_of_zeros_gets_a_bounded_gradient_and_the_others_their_own(name: str) -> None:
    s, t = features(6)
    s[2], t[4] = 0, 0
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(name, s, t), s)
    assert gradient.isfinite().all()
    others = [0, 1, 3, 4, 5]
    assert gradient[2].abs().max() < 10 * gradient[others].abs().max()
    rest = s.detach()[others].requires_grad_()

    def of_the_others(rest: Tensor) -> Tensor:
        return loss(name, torch.cat([rest[:2], torch.zeros_like(rest[:1]), rest[2:]]), t)

    assert torch.autograd.gradcheck(of_the_others, rest)


def test_a_constant_column_correlates_with_nothing() -> None:
    s, t = features(6)
    t[:, 3] = 0.1
    s.requires_grad_()
    value = loss("itrd", s, t, lambda_mutual=0.0)
    gone = t.clone()
    gone[:, 3] = 0
    torch.testing.assert_close(value, loss("itrd", s, gone, lambda_mutual=0.0), rtol=1e-12, atol=0)
    same = s.detach()[:1].expand(6, -1).clone().requires_grad_()  # every column of the embedding
    (gradient,) = torch.autograd.grad(loss("itrd", same, t, lambda_mutual=0.0), same)
    assert not gradient.any()


def test_a_direction_of_nothing_is_nothing() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    found = directions(x)
    torch.testing.assert_close(found.detach(), torch.tensor([[0.6, 0.8], [0, 0], [0, 0]]))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[1:].any()


def test_nets_of_one_width_are_compared_without_the_embedding() -> None:
    (s, t), (other, _) = features(6), features(8)
    wide = torch.cat([s, other[:6, :2]], 1)
    cosine_s, cosine_t = (
        torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2) for x in (wide, t)
    )
    both = cosine_s * cosine_t
    wanted = ((cosine_s / 6) ** 2 - (both / both.trace()) ** 2).sum()
    torch.testing.assert_close(loss("itrd", wide, t, lambda_corr=0.0), wanted, rtol=1e-12, atol=0)
    assert not torch.isclose(loss("itrd", s, t, lambda_corr=0.0), wanted)


def test_a_temperature_past_the_largest_stops_there() -> None:
    s, t = features(6)
    method = made("dcd", s, t, init_tau=800.0)
    outputs = said(pooled=s).outputs, said(pooled=t).outputs
    terms = method.terms(*outputs, batch(6), Clock.start(CPU))
    sum(terms.values(), torch.zeros(())).backward()
    assert all(term.isfinite() for term in terms.values())
    assert not method.get_parameter("tau").grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "numbers", "why"),
    [
        ("rkd", {"eps": 0.0}, "eps is 0.0; it must be a number between 0 and 1"),
        ("rkd", {"angle_weight": -1.0}, "angle_weight is -1.0"),
        ("pkt", {"eps": -1e-7}, "eps is -1e-07"),
        ("cc", {"feat_dim": 0}, "feat_dim is 0; it must be at least 1"),
        ("crd", {"nce_k": 0}, "nce_k is 0"),
        ("crd", {"nce_m": 1.0}, "nce_m is 1.0; a momentum must be in"),
        ("crd", {"nce_t": 0.01}, "nce_t is 0.01; it must be a number >= 0.02"),
        ("crd", {"nce_t": 0.0, "memory_type": "fifo"}, "nce_t is 0.0; it must be a number > 0"),
        ("crd", {"mode": "relax", "memory_type": "fifo"}, "a queue has no classes; use memory_type momentum"),
        ("dcd", {"max_tau": 0.0}, "max_tau is 0.0; it must be a number > 0"),
        ("dcd", {"alpha": -0.5}, "alpha is -0.5; a weight must be"),
        ("dcd", {"init_tau": float("nan")}, "init_tau is nan"),
        ("itrd", {"alpha_it": 0.4}, "alpha_it is 0.4; it must be a number >= 0.5"),
        ("itrd", {"lambda_corr": float("inf")}, "lambda_corr is inf"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, numbers: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        made(name, *features(2), **numbers)
