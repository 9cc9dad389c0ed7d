"""Fast or safe forms of what is computed from feature maps, against the plain ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from fastkd import methods, models
from fastkd.method import Setting
from fastkd.methods.kdsvd import RightVectors
from fastkd.methods.nst import mean_kernel
from loaders.contract import DataSpec
from loaders.errors import UserError


def kdsvd(teacher: str, **hyper: Any) -> Any:
    nets = models.build("resnet8", 5, 16), models.build(teacher, 5, 16)
    spec = cast(DataSpec, SimpleNamespace(num_classes=5))
    setting = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda rows: rows)
    cls = methods.load("kdsvd")
    return cls(cls.Config(**hyper), setting)


@pytest.mark.parametrize(("channels", "positions"), [((5, 7), 3), ((2, 3), 16)], ids=["deep", "shallow"])
def test_nst_equals_the_kernel_written_out(channels: tuple[int, int], positions: int) -> None:
    a, b = (torch.randn(2, width, positions, dtype=torch.float64) for width in channels)
    sums = [
        (a[n, c] * b[n, d]).sum() ** 2
        for n in range(2)
        for c in range(channels[0])
        for d in range(channels[1])
    ]
    torch.testing.assert_close(mean_kernel(a, b), torch.stack(sums).mean())


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 5)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_gradient_of_singular_vectors(rows: int, columns: int, k: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, rows, columns, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(2, columns, min(k, rows, columns), dtype=torch.float64, generator=generator)

    def without_sign(x: Tensor) -> Tensor:
        v: Tensor = RightVectors.apply(x, k)
        return (v[:, :, None] * v[:, None] * weights[:, None]).sum((0, 3))

    assert torch.autograd.gradcheck(without_sign, (x,))


def test_the_signs_a_library_picks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    method = kdsvd("wrn_16_1", k=2)
    sizes = {"stage1": (16, 16), "stage2": (32, 8), "stage3": (64, 4)}
    nets: list[Any] = [
        SimpleNamespace(taps={tap: torch.randn(3, width, side, side) for tap, (width, side) in sizes.items()})
        for _ in range(2)
    ]
    before = method.terms(*nets, None, None)
    plain = torch.linalg.svd

    def other_signs(x: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = plain(x, full_matrices=full_matrices)
        signs = torch.randint(0, 2, s.shape) * 2.0 - 1
        return u * signs[:, None], s, vh * signs[:, :, None]

    monkeypatch.setattr(torch.linalg, "svd", other_signs)
    for _ in range(3):
        torch.testing.assert_close(method.terms(*nets, None, None), before)


@pytest.mark.parametrize(
    ("teacher", "layout", "why"),
    [
        ("wrn_16_2", "channels", "student's stage1 has 16 and the teacher's stage1 32"),
        ("vgg8", "width", "student's stage1 has 16 and the teacher's stage2 4"),
    ],
)
def test_kdsvd_refuses_matrices_of_other_columns(teacher: str, layout: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        kdsvd(teacher, layout=layout)
