"""The teacher, asked anew for every batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from fastkd.method import LOGITS, POOLED
from fastkd.models.base import StagedNet
from fastkd.outputs import Outputs
from loaders.contract import Batch


class Teacher(Protocol):
    forwards: int  # images the network was run on

    def __call__(self, batch: Batch) -> Outputs: ...


class LiveTeacher:
    """A frozen network in evaluation mode, asked for the taps a run needs and no others."""

    def __init__(
        self, net: StagedNet, needs: tuple[str, ...], precision: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.net = net.eval().requires_grad_(False)
        self.taps = tuple(name for name in needs if name not in (LOGITS, POOLED))
        self.precision = precision
        self.forwards = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        self.forwards += len(batch.indices)
        with self.precision():
            out: Outputs = self.net(batch.images, self.taps)
        return out


class NoTeacher:
    """For runs that ask a teacher nothing."""

    forwards = 0

    def __call__(self, batch: Batch) -> Outputs:
        nothing = batch.images.new_empty(0)
        return Outputs(nothing, nothing, {})
