"""Losses between two sets of logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_label_kl(s_BK: Tensor, t_BK: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_B KL(softmax(t / T) || softmax(s / T)). Gradients reach the student only."""
    log_s = F.log_softmax(s_BK / temperature, dim=1)
    log_t = F.log_softmax(t_BK.detach() / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2
