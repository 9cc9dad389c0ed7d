"""An optimizer that gives the task and distillation momentum of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from loaders.errors import UserError

TASK, DISTILLATION = "task_momentum", "distillation_momentum"


class DOT(Optimizer):
    """Zhao, Cui, Song, Liang: DOT: A Distillation-Oriented Trainer (2023).

    v = (momentum - delta) * v + task gradient + weight_decay * p
    u = (momentum + delta) * u + distillation gradient
    p = p - lr * v - lr * u

    A step is: backward of distillation's loss, `hold()`, backward of the task's, `step()`. As in the reference, a
    parameter that only one of the two reaches has plain momentum, and one that only distillation reaches weight decay
    from its second step on.

    lr is a tensor on the device, read there. Buffers start at zero, so no step differs from the others. Gradients must
    not be scaled: a GradScaler would unscale the task's alone.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: Tensor, momentum: float, delta: float, weight_decay: float
    ) -> None:
        if not 0 <= delta <= momentum < 1 - delta:
            raise UserError(
                f"DOT with momentum {momentum:g} and delta {delta:g}: momentum - delta must be at least 0 and "
                "momentum + delta below 1"
            )
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        )
        self._held: dict[Tensor, Tensor] = {}

    def hold(self) -> None:
        """What .grad holds now is distillation's; .grad is free for the task's."""
        assert not self._held, "hold() comes once between two steps"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._held[p] = p.grad
                    p.grad = None

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure: there are two losses
        for group in self.param_groups:
            task = {p: p.grad for p in group["params"] if p.grad is not None}
            distillation = {p: self._held[p] for p in group["params"] if p in self._held}
            momentum, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            # Who has which gradient, and whether a buffer exists, is known on the host.
            both = task.keys() & distillation.keys()
            fresh = {p for p in distillation if DISTILLATION not in self.state[p]}
            for grads, of, buffer, factor, weight_decay in (
                (task, both, TASK, momentum - delta, decay),
                (task, task.keys() - both, TASK, momentum, decay),
                (distillation, both, DISTILLATION, momentum + delta, 0.0),
                (distillation, distillation.keys() - both - fresh, DISTILLATION, momentum, decay),
                (distillation, fresh - both, DISTILLATION, momentum, 0.0),
            ):
                params = [p for p in grads if p in of]
                self._move(params, [grads[p] for p in params], buffer, group["lr"], factor, weight_decay)
        self._held.clear()

    def _move(
        self, params: list[Any], grads: list[Tensor], name: str, lr: Tensor, momentum: float, weight_decay: float
    ) -> None:  # fmt: skip
        if not params:
            return
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        buffers = [self.state[p][name] for p in params]
        sgd(
            params, grads, buffers, fused=True, weight_decay=weight_decay, momentum=momentum,
            lr=lr, dampening=0.0, nesterov=False, maximize=False,  # type: ignore[arg-type]  # a tensor, as SGD passes it
        )  # fmt: skip
