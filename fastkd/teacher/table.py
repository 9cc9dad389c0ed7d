"""What the teacher said about every view of every sample, in memory: a batch's answers are one gather a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastkd.method import LOGITS, POOLED
from fastkd.outputs import Outputs


class Table:
    """Row index * views + number of the view. Until a row is put its values mean nothing."""

    def __init__(
        self, samples: int, views: int, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype,
        device: torch.device, pinned: bool = False,
    ) -> None:  # fmt: skip
        self.views, self.size, self.device = views, samples * views, device
        where = torch.device("cpu") if pinned else device
        # empty, not zeros: on a CPU a page that was never written costs no memory
        self.values = {
            field: torch.empty(self.size, *shape, dtype=dtype, device=where, pin_memory=pinned)
            for field, shape in shapes.items()
        }
        self.present = torch.zeros(self.size, dtype=torch.bool, device=device)

    def rows(self, indices: Tensor, aug_ids: Tensor) -> Tensor:
        return indices * self.views + aug_ids % self.views

    def put(self, field: str, rows: Tensor, values: Tensor) -> None:
        """`present` is the caller's to set once all fields of a row are there."""
        into = self.values[field]
        into[rows.to(into.device)] = values.to(into.device)

    def take(self, rows: Tensor) -> Outputs:
        """In float32, without a host sync where the values are on the rows' device."""
        found = {field: self._gather(values, rows) for field, values in self.values.items()}
        nothing = torch.empty(0, device=self.device)
        logits, pooled = (found.pop(field, nothing) for field in (LOGITS, POOLED))
        return Outputs(logits, pooled, found)

    def _gather(self, values: Tensor, rows: Tensor) -> Tensor:
        taken = values.index_select(0, rows.to(values.device))
        return taken.to(self.device, non_blocking=True).float()

    @staticmethod
    def bytes_of(rows: int, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> int:
        return rows * sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize
