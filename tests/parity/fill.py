"""Weights and images as a formula, so that a golden forward needs no stored weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_WORD = 0xFFFFFFFF
_IMAGE = 999983  # the k of images, far from any tensor's


def uniform(count: int, k: int, seed: int) -> NDArray[np.float64]:
    """u(i, k, seed) in [0, 1) for i = 0 .. count-1: the 32-bit murmur3 finaliser of a counter."""
    offset = (k * 0x9E3779B9 + seed * 0x85EBCA77) & _WORD
    x = np.arange(count, dtype=np.uint32)
    x += np.uint32(offset)  # array arithmetic wraps at 2^32
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x.astype(np.float64) / 2.0**32


def fill_(module: nn.Module, seed: int, start_k: int = 0) -> int:
    """Fill every parameter and buffer in state_dict order; returns the k after the last, to go on from."""
    state = module.state_dict()
    k = start_k
    with torch.no_grad():
        for key, value in state.items():
            value.copy_(torch.from_numpy(_values(key, value, state, k, seed)).view_as(value))
            k += 1
    return k


def image(batch: int, seed: int, dtype: torch.dtype = torch.float64, size: int = 32) -> Tensor:
    """[batch, 3, size, size] in [-1.5, 1.5)."""
    u = uniform(batch * 3 * size * size, _IMAGE, seed)
    x = (2 * u - 1).astype(np.float32) * np.float32(1.5)
    return torch.from_numpy(x).view(batch, 3, size, size).to(dtype)


def _values(key: str, value: Tensor, state: dict[str, Tensor], k: int, seed: int) -> NDArray[np.float32]:
    owner, _, leaf = key.rpartition(".")
    prefix = f"{owner}." if owner else ""
    if leaf == "num_batches_tracked":
        return np.zeros(value.numel(), np.float32)
    u = uniform(value.numel(), k, seed)
    signed = 2 * u - 1
    if leaf == "running_var":
        filled = 1 + 0.5 * u
    elif leaf in ("running_mean", "bias"):
        filled = 0.1 * signed
    elif leaf == "weight" and f"{prefix}running_mean" in state:
        filled = 1 + 0.2 * signed
    else:
        filled = math.sqrt(6 / math.prod(value.shape[1:])) * signed
    return filled.astype(np.float32)
