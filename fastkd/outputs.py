"""What travels between the layers: a network's outputs, named loss terms, the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """Floats in float32 whatever the network ran in: losses are computed in float32."""

    logits: Tensor  # BK
    pooled: Tensor  # BD, the input of the head
    taps: Mapping[str, Tensor]  # only the taps asked for, by name: "stem", "stage1", "stage1.pre", ...


class TapShape(NamedTuple):
    channels: int
    height: int
    width: int


class Clock(NamedTuple):
    """0-d int64 tensors on the device, written in place, so that schedules survive a graph replay."""

    epoch: Tensor  # counted from 1
    step: Tensor  # optimizer steps taken since the run began

    @staticmethod
    def start(device: torch.device) -> Clock:
        return Clock(
            torch.ones((), dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )


Terms: TypeAlias = dict[str, Tensor]  # named scalars


class Network(Protocol):
    """A classifier whose insides have names. `taps` holds the shape of each tap at the input size it was built for."""

    taps: Mapping[str, TapShape]
    pooled_width: int

    @property
    def head(self) -> nn.Linear: ...

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        """The batch norm whose output, but for a shortcut, is the tap "stageK.pre"."""
        ...

    def __call__(self, images: Tensor, taps: Sequence[str] = ()) -> Outputs: ...

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Segments start..stop-1 of (stem, stage1, .., stageN, head) applied to x."""
        ...
