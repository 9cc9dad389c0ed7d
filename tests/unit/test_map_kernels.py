"""Fast or safe forms of what is computed from feature maps, against the plain ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd import methods, models
from fastkd.method import Setting
from fastkd.methods.askd import regions, structure_distance
from fastkd.methods.kdsvd import RightVectors
from fastkd.methods.nst import mean_kernel
from loaders.contract import DataSpec
from loaders.errors import UserError
from tests.unit.written_out import kernel_of_all_products, nst_of_all_products, structure_of_all_pairs


def make(name: str, teacher: str, **hyper: Any) -> Any:
    nets = models.build("resnet8", 5, 16), models.build(teacher, 5, 16)
    spec = cast(DataSpec, SimpleNamespace(num_classes=5))
    setting = Setting(student=nets[0], teacher=nets[1], data=spec, batch_size=4, gather=lambda rows: rows)
    cls = methods.load(name)
    return cls(cls.Config(**hyper), setting)


@pytest.mark.parametrize(("channels", "positions"), [((5, 7), 3), ((2, 3), 16)], ids=["deep", "shallow"])
def test_nst_equals_the_kernel_written_out(channels: tuple[int, int], positions: int) -> None:
    a, b = (torch.randn(2, width, positions, dtype=torch.float64) for width in channels)
    torch.testing.assert_close(mean_kernel(a, b), kernel_of_all_products(a, b))


def test_nst_equals_its_stages_written_out() -> None:
    method = make("nst", "wrn_16_1")
    sizes = {"stage1": (16, 8), "stage2": (32, 8), "stage3": (64, 2)}
    s_maps, t_maps = (
        {
            tap: torch.randn(3, width, side, side, dtype=torch.float64).requires_grad_()
            for tap, (width, side) in sizes.items()
        }
        for _ in range(2)
    )
    nets: list[Any] = [SimpleNamespace(taps=taps) for taps in (s_maps, t_maps)]
    leaves = list(s_maps.values())
    ours = torch.stack(list(method.terms(*nets, None, None).values())).sum()
    plain = nst_of_all_products(leaves, list(t_maps.values()))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    for gradient, like in zip(*(torch.autograd.grad(loss, leaves) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(gradient, like, rtol=1e-9, atol=1e-12)


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
    method = make("kdsvd", "wrn_16_1", k=2)
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
        make("kdsvd", teacher, layout=layout)


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 4)], ids=["classes", "regions"])
def test_askd_equals_the_structure_written_out(shape: tuple[int, ...]) -> None:
    s = torch.randn(shape, dtype=torch.float64)
    s[..., 1] = s[..., 0]  # a tie: a distance of 1e-6, without gradient
    both = [s.clone().requires_grad_() for _ in range(2)]
    t = torch.randn(shape, dtype=torch.float64)
    ours = structure_distance(both[0], t)
    plain = F.smooth_l1_loss(structure_of_all_pairs(both[1]), structure_of_all_pairs(t))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, x)[0] for loss, x in ((ours, both[0]), (plain, both[1]))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("sides", "grid", "cells"), [((8, 4), 2, 2), ((7, 7), 2, 2), ((6, 6), 4, 6), ((6, 8), 4, 4)]
)
def test_askd_regions_agree_in_number(sides: tuple[int, int], grid: int, cells: int) -> None:
    """Windows of side // grid, as published, while they give both nets the same grid."""
    maps = [torch.randn(2, 3, side, side) for side in sides]
    s, t = regions(maps[0], maps[1], grid)
    assert s.shape == t.shape == (2, 3, cells**2)


def test_askd_shrinks_the_grid_for_a_small_map() -> None:
    assert make("askd", "wrn_16_1", layers=(1, 3, 1), grid=8).grids == [8, 4, 8]
    assert make("askd", "wrn_16_1", layers=(1, 3, 1), grid=8, small_maps="inherit").grids == [8, 4, 4]


@pytest.mark.parametrize("layer", [4, -5])
def test_askd_refuses_layers_that_a_net_lacks(layer: int) -> None:
    with pytest.raises(UserError, match=r"layers has .*; the student has 0 \(its stem\) to 3"):
        make("askd", "vgg8", layers=(layer,))
