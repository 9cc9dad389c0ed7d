"""What every loader gives and every user of a loader may rely on.

Shape letters used throughout: B batch, H W height and width, N samples of the data set, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from loaders.views import View


class Batch(NamedTuple):
    """One batch, on the device. Shapes are the same for every training batch of a run."""

    images: Tensor  # B3HW, normalised, in the run's dtype and memory format; of two views B weak ones, then B strong
    targets: Tensor  # B int64
    indices: Tensor  # B int64: position in the data set; the same sample has the same index in every backend
    aug_ids: Tensor  # B int64: which view of that sample this is; of two views the weak one


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Facts about one split of a data set."""

    name: str
    num_samples: int
    num_classes: int
    image_size: int
    labels: Tensor  # N int64, on the CPU
    views: int | None  # distinct aug_ids a sample can have; None = unbounded
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]


class Split(Protocol):
    """One split of a data set, before any view is taken: where loaders read from."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Tensor:
        """N int64"""
        ...

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """The picture as HW3 uint8."""
        ...

    def where(self, index: int) -> str:
        """Its file, or its place in the split: for messages."""
        ...

    def fingerprint(self) -> str:
        """Hex digits that change with the pictures or their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArraySplit:
    """Pictures of one size, all in memory."""

    name: str
    images: np.ndarray  # N,H,W,3 uint8, H == W
    labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.images[index])

    def where(self, index: int) -> str:
        return f"{self.name}, picture {index}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a loader deals its split out: everything the order and the views of a run depend on."""

    batch_size: int  # on this rank
    seed: int
    train: bool  # shuffled, last partial batch dropped; otherwise in order, every sample once
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    rank: int = 0
    world: int = 1
    num_workers: int = 0
    views: int = 1  # of a sample in a batch: 2 = a strong one beside the view as ever


class Loader(Protocol):
    spec: DataSpec

    @property
    def split(self) -> Split: ...
    @property
    def view(self) -> View: ...
    @property
    def plan(self) -> Plan: ...

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches start, start+1, .. of an epoch. Depends on (seed, epoch, rank) only."""
        ...

    def dealt(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(indices, aug_ids) of all batches of an epoch, one after another, without making them."""
        ...

    def visit(self, indices: Tensor, aug_ids: Tensor, batch_size: int) -> Iterator[Batch]:
        """The named views of the named samples, in this order, and no strong ones. The last batch may be smaller."""
        ...
