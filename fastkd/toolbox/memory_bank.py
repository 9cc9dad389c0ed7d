"""Banks of embeddings that outlive a batch. All state is on the device and nothing here waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loaders.contract import DataSpec

PIECE = 1 << 24  # numbers of a product with a whole bank that exist at a time: 64 MiB


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


def pieces(count: int, bank_ND: Tensor) -> Iterator[slice]:
    """Slices of `count` samples whose product with the whole bank has at most PIECE entries."""
    step = max(1, PIECE // len(bank_ND))
    return (slice(start, start + step) for start in range(0, count, step))


@torch.no_grad()
def similarities(anchor_BD: Tensor, bank_ND: Tensor, rows_BM: Tensor) -> Tensor:
    """anchor . bank[rows], BM: entries of one product with the whole bank. For 16384 of 50000 rows that is three times
    the arithmetic, all of it in a matrix product, and a D-th of the memory."""
    bank_DN = bank_ND.to(anchor_BD.dtype).T
    return torch.cat(
        [(anchor_BD[at] @ bank_DN).gather(1, rows_BM[at]) for at in pieces(len(anchor_BD), bank_ND)]
    )


@torch.no_grad()
def weighted_rows(weight_BM: Tensor, bank_ND: Tensor, rows_BM: Tensor) -> Tensor:
    """sum_M weight * bank[rows], BD, in the same way: the weights spread over the whole bank, and one product."""
    parts = []
    for at in pieces(len(weight_BM), bank_ND):
        weight = weight_BM[at]
        spread_BN = weight.new_zeros(len(weight), len(bank_ND)).scatter_add_(1, rows_BM[at], weight)
        parts.append(spread_BN @ bank_ND.to(weight.dtype))
    return torch.cat(parts)


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

    def contrast(
        self,
        s_BD: Tensor,
        t_BD: Tensor,
        rows_BM: Tensor,
        gather: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """`loss` of two tables of scores, exp(similarity / temperature) / Z: the student's embeddings against the bank's
        teacher rows, the teacher's against its student rows.

        The rows of the bank, B*M*D numbers, are never gathered: see `similarities`. What the embeddings' gradient needs
        of the bank is taken at once, for `move` writes into it before backward runs; so there is no second derivative.
        """
        anchors, banks = (s_BD, t_BD), (self.teacher_rows, self.student_rows)
        similar_BM = [
            similarities(anchor.detach(), bank, rows_BM).requires_grad_(anchor.requires_grad)
            for anchor, bank in zip(anchors, banks, strict=True)
        ]
        scores_BM = [similar.div(self.temperature).exp() for similar in similar_BM]
        with torch.no_grad():
            means = torch.stack([scores.mean() for scores in scores_BM])
            estimate = gather(means[None]).mean(0) * len(self.student_rows)
            self.z.copy_(torch.where(self.z < 0, estimate.to(self.z.dtype), self.z))
        value = loss(scores_BM[0] / self.z[0], scores_BM[1] / self.z[1])
        learning = [side for side in (0, 1) if anchors[side].requires_grad]
        slopes = torch.autograd.grad(value, [similar_BM[side] for side in learning]) if learning else ()
        value = value.detach()
        for side, slope_BM in zip(learning, slopes, strict=True):
            step = (anchors[side] * weighted_rows(slope_BM, banks[side], rows_BM)).sum()
            value = value + (step - step.detach())  # adds a gradient and nothing else
        return value

    @torch.no_grad()
    def move(self, indices_B: Tensor, s_BD: Tensor, t_BD: Tensor) -> None:
        for bank, new in ((self.student_rows, s_BD), (self.teacher_rows, t_BD)):
            mixed = bank[indices_B] * self.momentum + new.to(bank.dtype) * (1 - self.momentum)
            bank.index_copy_(0, indices_B, mixed / mixed.norm(dim=1, keepdim=True).clamp_min(1e-12))


class ClassSampler(nn.Module):
    """For each sample, rows of the data set by class, drawn uniformly with replacement on the device.

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

    def others(self, targets_B: Tensor, num: int) -> Tensor:
        """BM: samples of other classes."""
        first, count = self.first[targets_B, None], self.count[targets_B, None]
        place = self._below(len(self.by_class) - count, num)
        return self._at(torch.where(place >= first, place + count, place))

    def same(self, targets_B: Tensor) -> Tensor:
        """B: one of the sample's own class, the sample itself as likely as any."""
        return self._at(self.first[targets_B, None] + self._below(self.count[targets_B, None], 1))[:, 0]

    def _below(self, limit_B1: Tensor, num: int) -> Tensor:
        uniform = torch.rand(len(limit_B1), num, dtype=torch.float64, device=limit_B1.device)
        return (uniform * limit_B1).to(torch.int64)

    def _at(self, place: Tensor) -> Tensor:
        return self.by_class[place.clamp_max(len(self.by_class) - 1)]
