"""How an epoch is dealt out: which samples and views batch k of rank r holds, the same for every backend.

The epoch's order is one deck; each step takes batch_size * world cards from its top, and rank r gets the r-th
hand of them. So the batches of all ranks together are those of one rank with the whole batch, and any batch
can be had without dealing those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loaders.contract import Plan
from loaders.views import View, order, pick


def num_batches(num_samples: int, plan: Plan) -> int:
    """Batches an epoch, as many on every rank: training drops the last partial step, evaluation keeps it."""
    per_step = plan.batch_size * plan.world
    return num_samples // per_step if plan.train else -(-num_samples // per_step)


def deck(view: View, num_samples: int, plan: Plan, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(indices, aug_ids) of the whole epoch, all ranks', N int64 each."""
    samples = torch.arange(num_samples, device=device)
    indices = order(plan.seed, epoch, num_samples, device) if plan.train else samples
    return indices, pick(view, plan.seed, epoch, indices)


def dealt(
    view: View, num_samples: int, plan: Plan, epoch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The cards of all of this rank's batches of an epoch, one hand after another."""
    indices, aug_ids = deck(view, num_samples, plan, epoch, device)
    hands = [hand(plan, number) for number in range(num_batches(num_samples, plan))]
    return torch.cat([indices[rows] for rows in hands]), torch.cat([aug_ids[rows] for rows in hands])


def hand(plan: Plan, number: int) -> slice:
    """The cards of the deck that are this rank's batch `number`. In the last step of an evaluation there may
    be fewer than batch_size of them, or none."""
    first = (number * plan.world + plan.rank) * plan.batch_size
    return slice(first, first + plan.batch_size)
