"""The optimizer and its learning rate, which is a tensor on the device: a captured step reads it there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from fastkd.config import OptimConfig
from fastkd.engine.dot import DOT
from fastkd.outputs import Clock
from loaders.errors import UserError


def rate(optim: OptimConfig, epoch: int, progress: float) -> float:
    """The learning rate within epoch `epoch` (from 1) when `progress` of that epoch is done."""
    done = epoch - 1 + progress
    if done < optim.warmup_epochs:
        return optim.lr * done / optim.warmup_epochs
    if optim.schedule == "cosine":
        left = (done - optim.warmup_epochs) / max(optim.epochs - optim.warmup_epochs, 1e-12)
        return optim.lr * 0.5 * (1 + math.cos(math.pi * min(left, 1.0)))
    return optim.lr * optim.decay_rate ** sum(epoch > e for e in optim.decay_epochs)


class LearningRate:
    """The rate of every step of the run, worked out beforehand; the step looks its own up by the clock."""

    def __init__(self, optim: OptimConfig, steps_per_epoch: int, device: torch.device) -> None:
        # the middle of a step stands for it, so that a warm-up does not waste its first step at rate 0
        table = [
            rate(optim, epoch, (step + 0.5) / steps_per_epoch)
            for epoch in range(1, optim.epochs + 1)
            for step in range(steps_per_epoch)
        ]
        self.table = torch.tensor(table, dtype=torch.float32, device=device)
        self.value = torch.tensor(optim.lr, dtype=torch.float32, device=device)

    def update(self, clock: Clock) -> None:
        self.value.copy_(self.table.index_select(0, clock.step.view(1))[0])


def optimizer(optim: OptimConfig, module: nn.Module, lr: Tensor) -> Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if optim.optimizer == "sgd":
        return SGD(parameters, lr=lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True)
    if optim.optimizer == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=optim.weight_decay, fused=True)
    if optim.optimizer == "dot":
        return DOT(parameters, lr, optim.momentum, optim.dot_delta, optim.weight_decay)
    raise UserError(
        f"optim.optimizer {optim.optimizer} is not part of this version yet; use sgd, adamw or dot"
    )


def load_state(opt: Optimizer, state: dict[str, object], lr: Tensor) -> None:
    """`Optimizer.load_state_dict` replaces the rate by a copy: bind it to the run's tensor again."""
    opt.load_state_dict(state)
    lr.copy_(opt.param_groups[0]["lr"])
    for group in opt.param_groups:
        group["lr"] = lr
