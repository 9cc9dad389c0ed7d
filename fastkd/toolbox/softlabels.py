"""Losses between two sets of logits. Gradients reach the student's, and a temperature that is a tensor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_label_kl(s_BK: Tensor, t_BK: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 * mean_B KL(softmax(t / T) || softmax(s / T))"""
    log_s = F.log_softmax(s_BK / temperature, dim=1)
    log_t = F.log_softmax(t_BK.detach() / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2


def target_against_rest(x_BK: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
    """B: the target class's log odds. BK: log-softmax over the other classes, 0 in the target's place.

    The target is left out, not pushed down by a large number, and probabilities appear as logarithms only, so any
    gap between logits is finite.
    """
    is_target = torch.arange(x_BK.shape[1], device=x_BK.device) == targets_B[:, None]
    above = x_BK - x_BK.masked_fill(is_target, -math.inf).logsumexp(1, keepdim=True)
    return above.gather(1, targets_B[:, None])[:, 0], above.masked_fill(is_target, 0.0)


def decoupled_kl(
    s_BK: Tensor, t_BK: Tensor, targets_B: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of the soft-label KL, each T^2 * mean_B: target against the rest, and among the rest."""
    s_odds, s_rest = target_against_rest(s_BK / temperature, targets_B)
    t_odds, t_rest = target_against_rest(t_BK.detach() / temperature, targets_B)
    on_target = F.sigmoid(t_odds) * (F.logsigmoid(t_odds) - F.logsigmoid(s_odds))
    off_target = F.sigmoid(-t_odds) * (F.logsigmoid(-t_odds) - F.logsigmoid(-s_odds))
    among_rest = (t_rest.exp() * (t_rest - s_rest)).sum(1)
    return (on_target + off_target).mean() * temperature**2, among_rest.mean() * temperature**2


def power_kl(s_BK: Tensor, t_BK: Tensor, power: float) -> Tensor:
    """B: KL(softmax(t)^power, normalised || softmax(s)). The power of a softmax is the softmax of power * t."""
    log_s, log_t = F.log_softmax(s_BK, dim=1), F.log_softmax(t_BK.detach() * power, dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def standardised(x_BK: Tensor) -> Tensor:
    """Each row to mean 0 and (unbiased) standard deviation 1."""
    return (x_BK - x_BK.mean(1, keepdim=True)) / (x_BK.std(1, keepdim=True) + 1e-7)
