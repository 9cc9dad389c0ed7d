"""One step of training: forward, losses, backward, update."""

from __future__ import annotations

import torch
from torch import nn

from fastkd.engine import parallel
from fastkd.engine.build import Run
from fastkd.engine.distiller import TASK
from fastkd.engine.dot import DOT
from fastkd.engine.meters import Meters
from fastkd.outputs import Clock, Terms
from loaders.contract import Batch


class Step:
    """One optimizer step, free of host syncs."""

    def __init__(self, run: Run, clock: Clock, meters: Meters) -> None:
        self.run, self.clock, self.meters = run, clock, meters
        self.apart = run.optimizer if isinstance(run.optimizer, DOT) else None
        self.module: nn.Module = run.distiller
        if self.apart is None:
            self.module = parallel.synchronised(run.distiller, run.device, run.distiller.trains_all)
        scales = run.precision.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=scales)

    def __call__(self, batch: Batch) -> None:
        run = self.run
        run.lr.update(self.clock)
        terms, logits = self.module(batch, run.teacher(batch), self.clock)
        if self.apart is not None:
            self._apart(self.apart, terms)
        else:
            self.scaler.scale(terms["loss"]).backward()
            self.scaler.step(run.optimizer)
            self.scaler.update()
        run.optimizer.zero_grad(set_to_none=True)
        self.meters.add(terms, logits, batch.targets, self.clock)
        self.clock.step.add_(1)

    def _apart(self, optimizer: DOT, terms: Terms) -> None:
        """Two backwards of one forward, which DDP does not do."""
        distiller = self.run.distiller
        distilled = {name: term for name, term in terms.items() if name not in ("loss", TASK)}
        torch.autograd.backward(distiller.weighed(distilled), retain_graph=True)
        parallel.average_gradients(distiller)
        optimizer.hold()
        torch.autograd.backward(distiller.weighed({TASK: terms[TASK]}))
        parallel.average_gradients(distiller)
        optimizer.step()
