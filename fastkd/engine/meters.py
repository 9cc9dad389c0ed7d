"""Sums kept on the device; `read` is the only place where training waits for a number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastkd.engine import parallel
from fastkd.outputs import Clock, Terms


class Meters:
    """Sums of an epoch's terms and hits, and the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.steps = 0
        self.samples = 0

    def add(self, terms: Terms, logits: Tensor, targets: Tensor, clock: Clock) -> None:
        # a phase that does not ask the student has no logits
        hits = (logits.detach().argmax(1) == targets).sum() if len(logits) else targets.new_zeros(())
        values = torch.stack([*(term.detach() for term in terms.values()), hits])
        if not self.names:
            self.names = [*terms, "hits"]
            self.sums = torch.zeros(len(values), dtype=torch.float64, device=values.device)
        self.sums += values
        bad = ~torch.isfinite(values[0])
        self.first_bad.copy_(torch.where(bad & (self.first_bad < 0), clock.step, self.first_bad))
        self.steps += 1
        self.samples += len(logits)

    def read(self) -> dict[str, float]:
        """Means over the epoch so far and over ranks: loss, each term, top1 in percent; first_bad as counted."""
        packed = torch.cat([self.sums, torch.tensor([self.steps, self.samples], device=self.sums.device)])
        *sums, steps, samples = parallel.total(packed).tolist()
        means = {name: value / max(steps, 1) for name, value in zip(self.names, sums, strict=True)}
        means["top1"] = 100 * sums[-1] / samples if samples else math.nan
        bad = [step for step in parallel.gather(self.first_bad[None]).tolist() if step >= 0]
        return means | {"first_bad": float(min(bad, default=-1))}

    def clear(self) -> None:
        self.sums.zero_()
        self.steps = self.samples = 0

    def state(self) -> dict[str, object]:
        """Sums over ranks, too."""
        counts = parallel.total(torch.tensor([self.steps, self.samples], device=self.sums.device))
        steps, samples = counts.tolist()
        return {
            "names": self.names,
            "sums": parallel.total(self.sums.clone()),
            "steps": steps,
            "samples": samples,
        }

    def load(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
