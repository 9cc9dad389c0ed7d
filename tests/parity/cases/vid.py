from __future__ import annotations

import torch

from fastkd.methods.vid import VID, Regression, first_log_scale
from tests.parity.case import Case, Vector, fill, pairwise


def case(v: Vector) -> Case:
    """RepDistiller's file holds a log_scale for each stage, MDistiller's the constant."""
    trained = "w/vid.0.log_scale" in v
    variance, eps = v.number("hp/init_pred_var"), v.number("hp/eps")
    case = pairwise("vid", v, init_pred_var=variance, eps=eps, variance="trained" if trained else "constant")
    assert isinstance(case.method, VID)
    for k, regression in enumerate(case.method.regressions):
        assert isinstance(regression, Regression)
        loaded = fill(regression, v, f"vid.{k}.") if trained else fill(regression.mean, v, f"regressors.{k}.")
        case.weights |= loaded[0]
        channels = case.teacher.taps[f"stage{k + 1}"].channels
        start = torch.full((channels,), first_log_scale(variance, eps), dtype=torch.float64)
        case.outputs = {**case.outputs, f"log_scales_{k}": lambda _, start=start: start}  # type: ignore[misc]
    return case


CASES = {"vid__*": case, "mdistiller_vid*": case}
