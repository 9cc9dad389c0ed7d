"""Banks of embeddings that outlive a batch. All state is on the device and nothing here waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loaders.contract import DataSpec


class Queue(nn.Module):
    """The last `size` keys, first in first out. Any batch size: the pointer wraps, and of a batch larger than the
    queue the last `size` rows stay."""

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        # The published queue starts as columns, not rows, of unit length; it is overwritten within size/B steps.
        start = F.normalize(torch.randn(size, width, generator=generator), dim=0)
        self.register_buffer("rows", start)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys_BD: Tensor) -> None:
        size, count = len(self.rows), len(keys_BD)
        keep = keys_BD[-size:].to(self.rows.dtype)
        first = self.pointer + (count - len(keep))
        slots = (first + torch.arange(len(keep), device=keys_BD.device)) % size
        self.rows.index_copy_(0, slots, keep)
        self.pointer.add_(count).remainder_(size)


class PairedBank(nn.Module):
    """One student and one teacher embedding for each sample of the data set, moved towards each new one (CRD's bank).

    Z, the constant that turns scores into probabilities, is set from the first batch and then kept, as published.
    """

    student_rows: Tensor
    teacher_rows: Tensor
    z: Tensor

    def __init__(
        self, num_samples: int, width: int, temperature: float, momentum: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width / 3)
        for name in ("student_rows", "teacher_rows"):
            start = torch.rand(num_samples, width, generator=generator).mul_(2 * bound).sub_(bound)
            self.register_buffer(name, start)
        self.register_buffer(
            "z", torch.full((2,), -1.0)
        )  # student side, teacher side; negative = not set yet
        self.temperature, self.momentum = temperature, momentum

    def scores(
        self, s_BD: Tensor, t_BD: Tensor, rows_BM: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """exp(similarity / temperature) / Z: the student against teacher rows, the teacher against student rows."""
        student_side = self._similar(self.teacher_rows, s_BD, rows_BM)
        teacher_side = self._similar(self.student_rows, t_BD, rows_BM)
        with torch.no_grad():
            means = torch.stack([student_side.mean(), teacher_side.mean()])
            estimate = gather(means[None]).mean(0) * len(self.student_rows)
            self.z.copy_(torch.where(self.z < 0, estimate.to(self.z.dtype), self.z))
        return student_side / self.z[0], teacher_side / self.z[1]

    def _similar(self, bank_ND: Tensor, anchor_BD: Tensor, rows_BM: Tensor) -> Tensor:
        # One product with the whole bank and a gather of scores: B*N numbers where gathering rows takes B*M*D. The
        # clone is what backward reads, for `move` writes into the bank before that.
        similar_BN = anchor_BD @ bank_ND.to(anchor_BD.dtype, copy=True).T
        return similar_BN.gather(1, rows_BM).div(self.temperature).exp()

    @torch.no_grad()
    def move(self, indices_B: Tensor, s_BD: Tensor, t_BD: Tensor) -> None:
        for bank, new in ((self.student_rows, s_BD), (self.teacher_rows, t_BD)):
            mixed = bank[indices_B] * self.momentum + new.to(bank.dtype) * (1 - self.momentum)
            bank.index_copy_(0, indices_B, mixed / mixed.norm(dim=1, keepdim=True).clamp_min(1e-12))


class OtherClassSampler(nn.Module):
    """For each sample, rows of samples of other classes, drawn uniformly with replacement on the device.

    The data set is sorted by class once; a draw from everything outside a class is one integer below N - n_class,
    moved past that class's block.
    """

    by_class: Tensor
    first: Tensor
    count: Tensor

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        count = torch.bincount(data.labels, minlength=data.num_classes)
        self.register_buffer("by_class", torch.argsort(data.labels, stable=True), persistent=False)
        self.register_buffer("first", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def draw(self, targets_B: Tensor, num: int) -> Tensor:
        first, count = self.first[targets_B, None], self.count[targets_B, None]
        others = len(self.by_class) - count
        uniform = torch.rand(len(targets_B), num, dtype=torch.float64, device=targets_B.device)
        place = (uniform * others).to(torch.int64)
        place = torch.where(place >= first, place + count, place)
        return self.by_class[place.clamp_max(len(self.by_class) - 1)]
