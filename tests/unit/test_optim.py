from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fastkd.config import OptimConfig
from fastkd.engine import optim
from fastkd.outputs import Clock

CPU = torch.device("cpu")


def test_warm_up_rises_to_the_rate_and_cosine_falls_to_nothing() -> None:
    settings = OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=2, epochs=10)
    rates = [optim.rate(settings, epoch, 0.0) for epoch in range(1, 11)]
    assert rates[0] == 0
    assert rates[1] == 0.5
    assert rates[2] == 1.0
    assert rates[6] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[2:]))
    assert optim.rate(settings, 10, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_rate_on_the_device_trains_as_a_number_would(name: str) -> None:
    settings = OptimConfig(optimizer=name, lr=0.1, decay_epochs=(1,), epochs=2)  # type: ignore[arg-type]
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    lr, clock = optim.LearningRate(settings, 4, CPU), Clock.start(CPU)
    opt = optim.optimizer(settings, ours, lr.value)
    if name == "sgd":
        usual = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    else:
        usual = torch.optim.AdamW(plain.parameters(), 0.1, weight_decay=5e-4)  # type: ignore[assignment]
    for k in range(8):
        x = torch.randn(7, 5)
        lr.update(clock)
        usual.param_groups[0]["lr"] = 0.1 if k < 4 else 0.01
        for net, by in ((ours, opt), (plain, usual)):
            by.zero_grad()
            net(x).square().mean().backward()
            by.step()
        clock.step.add_(1)
    torch.testing.assert_close(ours.weight, plain.weight)


def test_restored_state_keeps_the_run_s_own_rate() -> None:
    settings = OptimConfig(epochs=1)
    net, lr = nn.Linear(2, 2), optim.LearningRate(settings, 1, CPU)
    opt = optim.optimizer(settings, net, lr.value)
    optim.load_state(opt, opt.state_dict(), lr.value)
    assert opt.param_groups[0]["lr"] is lr.value
