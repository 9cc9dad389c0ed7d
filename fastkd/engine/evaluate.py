"""One exact pass over a test set: every sample once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.engine import parallel
from fastkd.engine.distiller import Precision
from loaders.contract import Batch, Loader


class Score(NamedTuple):
    loss: float
    top1: float  # percent
    top5: float


def evaluate(net: nn.Module, loader: Loader, precision: Precision) -> Score:
    was_training = net.training
    net.eval()

    def answer(batch: Batch) -> Tensor:
        with precision():
            logits: Tensor = net(batch.images).logits
        return logits

    found = score(answer, loader, precision.device)
    net.train(was_training)
    return found


@torch.no_grad()
def score(answer: Callable[[Batch], Tensor], loader: Loader, device: torch.device) -> Score:
    """Of whoever gives logits for batches."""
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in loader.batches(epoch=0):
        logits = answer(batch)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.targets[:, None]
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        count = torch.full((), len(batch.targets), device=device)
        sums += torch.stack([loss, ranked[:, 0].sum(), ranked.sum(), count])
    loss_sum, top1, top5, samples = parallel.total(sums).tolist()
    return Score(loss_sum / samples, 100 * top1 / samples, 100 * top5 / samples)
