"""How the samples of a batch stand to each other."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_length(x: Tensor, floor: float, eps: float = 0.0) -> Tensor:
    """1 / (|x| + eps) along the last dimension, which stays; 0 where |x| <= floor.

    There the gradient is 0 too: that of x / |x| grows with 1 / |x|, and a vector without a direction has none to learn.
    """
    square = x.square().sum(-1, keepdim=True)
    alive = square > floor**2
    length = torch.where(alive, square, torch.ones_like(square)).sqrt()
    return torch.where(alive, 1 / (length + eps), torch.zeros_like(length))


def directions(x: Tensor) -> Tensor:
    """x / |x| along the last dimension; 0, in value and in gradient, for a vector without length."""
    return x * inverse_length(x, floor=1e-12)
