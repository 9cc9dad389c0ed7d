"""What of the curriculum temperature's reference is no loss: its schedule, and the slope that a gradient of nan hides."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastkd.methods.ctkd import CTKD
from tests.parity.case import CPU, batch, build, said
from tests.parity.cases.ctkd import case as case_of
from tests.parity.cases.soft_labels import numbers
from tests.parity.test_methods import load

VECTORS = Path(os.environ.get("FASTKD_ORACLES", Path(__file__).parent / "vectors"))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("path", sorted(VECTORS.glob("ctkd_schedule*.npz")), ids=lambda path: path.stem)
def test_the_strength_of_every_epoch(path: Path, schedule: str) -> None:
    v = load(path, torch.float64)
    nobody = said(torch.zeros(1, 2))
    hyper = numbers(v, decay_max="decay_max", decay_min="decay_min", decay_loops="decay_loops")
    method = build("ctkd", nobody, nobody, batch(1).targets, 2, schedule=schedule, **hyper)
    assert isinstance(method, CTKD)
    found = [method.strength(epoch).item() for epoch in v["in/epoch"]]
    np.testing.assert_allclose(found, v.arrays[f"out/{schedule}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("path", sorted(VECTORS.glob("ctkd__dkd*.npz")), ids=lambda path: path.stem)
def test_the_slope_over_the_temperature_is_the_measured_one(path: Path, dtype: torch.dtype) -> None:
    v = load(path, dtype)
    case = case_of(v)
    method = case.method
    assert isinstance(method, CTKD)
    case.run()["loss"].backward()
    epoch = torch.tensor(case.epoch, device=CPU)
    (to_knob,) = torch.autograd.grad(method.temperature(epoch), method.global_T)  # the strength is in both
    assert method.global_T.grad is not None
    slope = method.global_T.grad / to_knob
    np.testing.assert_allclose(slope.numpy(), v.arrays["out/dloss_dtemp_fd"], rtol=1e-5)
