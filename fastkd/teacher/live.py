"""Who answers for the teacher. A live one is asked anew for every batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.method import LOGITS, POOLED
from fastkd.models.base import StagedNet
from fastkd.outputs import Outputs
from loaders.contract import Batch


@dataclass
class Counts:
    """Pictures, on this rank."""

    forwards: int = 0  # the network was run on
    hits: int = 0  # answered from a cache
    misses: int = 0  # not in the cache when asked for


class Teacher(ABC):
    counts: Counts

    @abstractmethod
    def __call__(self, batch: Batch) -> Outputs: ...

    def expect(self, indices: Tensor, aug_ids: Tensor) -> None:  # noqa: B027 - a live teacher has nothing to prepare
        """The views of the coming epoch."""

    def keep(self) -> None:  # noqa: B027 - and nothing to keep
        """Put what was learned on disk, where there is a place for it."""


class LiveTeacher(Teacher):
    """A frozen network in evaluation mode, asked for the taps a run needs and no others."""

    def __init__(
        self, net: StagedNet, needs: tuple[str, ...], precision: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.needs = needs
        self.taps = tuple(name for name in needs if name not in (LOGITS, POOLED))
        self.precision = precision
        self.counts = Counts()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        self.counts.forwards += len(batch.images)
        with self.precision():
            out: Outputs = self.net(batch.images, self.taps)
        return out


class NoTeacher(Teacher):
    """For runs that ask a teacher nothing."""

    def __init__(self) -> None:
        self.counts = Counts()

    def __call__(self, batch: Batch) -> Outputs:
        nothing = batch.images.new_empty(0)
        return Outputs(nothing, nothing, {})
