"""The feature maps of two networks: which belong together, and how their sizes are made to agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastkd.method import Needs
from fastkd.outputs import Network


class Pair(NamedTuple):
    """Two taps that are compared."""

    student: str
    teacher: str

    @property
    def stage(self) -> str:
        """The student's stage, to name a term after."""
        return self.student.partition(".")[0]


def stages(network: Network, kind: str = "") -> tuple[str, ...]:
    """The taps of the stages, shallow to deep. kind "pre": as they are before the activation."""
    return tuple(tap for tap in network.taps if tap.startswith("stage") and tap.partition(".")[2] == kind)


def from_the_deep_end(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    """Pairs of as many taps as both have; the shallowest of the longer list stay alone.

    Deep stages mean the same in any two networks, shallow ones do not: of four stages against three it is the first
    of the four that has no counterpart.
    """
    count = min(len(student), len(teacher))
    return tuple(map(Pair, student[len(student) - count :], teacher[len(teacher) - count :]))


def stage_pairs(
    student: Network, teacher: Network, student_kind: str = "", teacher_kind: str = ""
) -> tuple[Pair, ...]:
    return from_the_deep_end(stages(student, student_kind), stages(teacher, teacher_kind))


def needs_of(pairs: Iterable[Pair]) -> Needs:
    students, teachers = zip(*pairs, strict=True)
    return Needs(student=students, teacher=teachers)


def same_size(s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The larger map averaged down to the smaller one's height and width."""
    height, width = (min(s, t) for s, t in zip(s_BCHW.shape[2:], t_BCHW.shape[2:], strict=True))
    return averaged(s_BCHW, (height, width)), averaged(t_BCHW, (height, width))


def averaged(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The map at another height and width."""
    return x_BCHW if x_BCHW.shape[2:] == size else F.adaptive_avg_pool2d(x_BCHW, size)
