"""Weights that change over training, read from the clock on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def rise(epoch: Tensor, epochs: int, dtype: torch.dtype) -> Tensor:
    """epoch / epochs, at most 1; epochs are counted from 1. 0 epochs: 1 from the start."""
    return (epoch.to(dtype) / max(epochs, 1)).clamp_max(1.0)
