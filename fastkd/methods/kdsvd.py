"""Distillation by singular value decomposition."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.method import Method, MethodConfig, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.spatial import needs_of, stage_pairs
from loaders.contract import Batch
from loaders.errors import UserError

STUDENT_EXTRA = 3  # the student offers so many vectors more, for the teacher's to choose from


class RightVectors(torch.autograd.Function):
    """BNk: the first k right singular vectors of BMN, with a gradient that stays finite.

    They are eigenvectors of x^T x with eigenvalues s^2, so v_j turns towards v_i by 1 / (s_j^2 - s_i^2). torch's own
    gradient divides by that for every pair and is not finite for a map of low rank, whose vectors of value 0 are any;
    here a pair that is equal up to rounding does not turn.
    """

    @staticmethod
    def forward(ctx: Any, x_BMN: Tensor, k: int) -> Tensor:
        u_BMR, s_BR, vh_BRN = torch.linalg.svd(x_BMN, full_matrices=False)
        ctx.save_for_backward(u_BMR, s_BR, vh_BRN.mT)
        v_BNk: Tensor = vh_BRN.mT[:, :, :k].contiguous()
        return v_BNk

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad_BNk = grads[0]
        u_BMR, s_BR, v_BNR = ctx.saved_tensors
        k = grad_BNk.shape[2]
        vk_BNk, us_BMR = v_BNR[:, :, :k], u_BMR * s_BR[:, None]
        values_BR = s_BR.square()
        rounding_B11 = values_BR[:, :1, None] * (
            torch.finfo(s_BR.dtype).eps * max(u_BMR.shape[1], v_BNR.shape[1])
        )
        # towards the other kept vectors
        inner_BRk = v_BNR.mT @ grad_BNk
        apart_BRk = values_BR[:, None, :k] - values_BR[:, :, None]
        turn_BRk = torch.where(apart_BRk.abs() > rounding_B11, inner_BRk / apart_BRk, 0)
        grad_BMN = us_BMR @ turn_BRk @ vk_BNk.mT + us_BMR[:, :, :k] @ turn_BRk.mT @ v_BNR.mT
        # towards what no kept vector reaches, where x has more columns than rows
        outer_BNk = grad_BNk - v_BNR @ inner_BRk
        alone_B1k = values_BR[:, None, :k]
        outer_BNk = torch.where(alone_B1k > rounding_B11, outer_BNk / alone_B1k, 0)
        return grad_BMN + us_BMR[:, :, :k] @ outer_BNk.mT, None


def canonical(v_BNk: Tensor) -> Tensor:
    """Each vector with the sign that makes its largest entry positive: a decomposition leaves the sign open."""
    largest_B1k = v_BNk.gather(1, v_BNk.abs().argmax(1, keepdim=True))
    return torch.where(largest_B1k < 0, -v_BNk, v_BNk)


def aligned(s_BNj: Tensor, t_BNk: Tensor) -> Tensor:
    """BNk: for each vector of the teacher the student's with the largest |cosine|, in the teacher's sense."""
    cosine_Bjk = s_BNj.mT @ t_BNk
    chosen_B1k = cosine_Bjk.abs().argmax(1, keepdim=True)
    sign_B1k = torch.where(cosine_Bjk.gather(1, chosen_B1k) < 0, -1.0, 1.0).to(s_BNj.dtype)
    return s_BNj.gather(2, chosen_B1k.expand(-1, s_BNj.shape[1], -1)) * sign_B1k


def relation(v_BNk: Tensor, before_BMk: Tensor) -> Tensor:
    """BNMk: how close the entries of two stages' vectors are."""
    return torch.exp(-(v_BNk[:, :, None] - before_BMk[:, None]).square() / 8)


@final
class KDSVD(Method):
    """Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition (2018).

    Each map becomes a matrix a sample; v_t its first k right singular vectors, times its first k singular values scaled
    to length 1; v_s of the student's k + 3 those that lie closest to v_t, in its sense and times the same values.
    kdsvd = sum over neighbouring stages of sum over all entries, a sample, of
            (exp(-(v_s - v_s of the stage before)^2 / 8) - the same of v_t)^2, each entry against each.

    layout width (default): MDistiller's KDSVD, rows channels and heights, columns widths; both nets' maps must be
      equally wide.
    layout channels: RepDistiller's KDSVD, rows positions, columns channels; both nets must have equal channels.
    Differs: the sign of a singular vector is open, and the references' values change several times over with the one
    that their library happens to pick. Here the teacher's largest entry is positive; after a ReLU, where the first vector
    has entries of one sign, all are. Gradients stay finite for maps of low rank. Stages are paired from the deep end.

    Not graph_safe: torch.linalg.svd reads on the host whether it converged.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        k: int = 1
        layout: Literal["width", "channels"] = "width"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.k < 1:
                raise UserError(f"method.k is {self.k}; it must be at least 1")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.pairs = stage_pairs(setting.student, setting.teacher)
        self.needs = dataclasses.replace(needs_of(self.pairs), graph_safe=False)
        if len(self.pairs) < 2:
            raise UserError("kdsvd compares neighbouring stages; a net here has only one")
        for pair in self.pairs:
            s, t = setting.student.taps[pair.student], setting.teacher.taps[pair.teacher]
            columns = (s.width, t.width) if config.layout == "width" else (s.channels, t.channels)
            if columns[0] != columns[1]:
                raise UserError(
                    f"method.layout {config.layout} needs equal {config.layout}, but the student's {pair.student} has "
                    f"{columns[0]} and the teacher's {pair.teacher} {columns[1]}; take the other layout or another method"
                )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        weighed = []
        for pair in self.pairs:
            s_BNk, t_BNk, values_B1k = self.vectors(
                student.taps[pair.student], teacher.taps[pair.teacher], pair.teacher
            )
            weighed.append((s_BNk * values_B1k, t_BNk * values_B1k))
        terms: Terms = {}
        for pair, (before, now) in zip(self.pairs[1:], itertools.pairwise(weighed), strict=True):
            s_BNMk, t_BNMk = (relation(*of_net) for of_net in zip(now, before, strict=True))
            terms[f"kdsvd_{pair.stage}"] = (s_BNMk - t_BNMk).square().sum() / len(s_BNMk)
        return terms

    def vectors(self, s_BCHW: Tensor, t_BCHW: Tensor, tap: str) -> tuple[Tensor, Tensor, Tensor]:
        """The student's chosen vectors, the teacher's, and the values that weigh both."""
        k = self.config.k
        _, values_BR, vh_BRN = torch.linalg.svd(self.matrix(t_BCHW), full_matrices=False)
        t_BNk = self.oriented(vh_BRN.mT[:, :, :k], tap)
        s_BNj: Tensor = RightVectors.apply(self.matrix(s_BCHW), k + STUDENT_EXTRA)  # type: ignore[no-untyped-call]  # torch's
        return aligned(s_BNj, t_BNk), t_BNk, F.normalize(values_BR[:, None, :k], dim=2)

    def matrix(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.flatten(1, 2) if self.config.layout == "width" else x_BCHW.flatten(2).mT

    def oriented(self, t_BNk: Tensor, tap: str) -> Tensor:
        """The teacher's vectors with their signs. `tap`: whose they are, for tests that know other signs."""
        return canonical(t_BNk)


METHOD = KDSVD
