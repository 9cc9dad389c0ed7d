from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    feat_s = leaf(v["in/feats_s_0"])
    student, teacher = said(pooled=feat_s), said(pooled=v["in/feats_t_0"])
    hyper: dict[str, Any] = {
        name: float(v.number(f"hp/{name}")) for name in ("lambda_corr", "lambda_mutual", "alpha_it")
    }
    method = build("itrd", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0, **hyper)
    method = method.to(v.dtype)
    weights = {}
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            key = name.replace("embed.", "embed.linear.")
            weights[key] = parameter.copy_(v[f"w/{key}"])
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "loss",
        "correlation": lambda terms: terms["correlation"] / hyper["lambda_corr"],
        "mutual": lambda terms: terms["mutual"] / hyper["lambda_mutual"],
    }
    return Case(method, student, teacher, batch(len(feat_s)), {"feats_s_0": feat_s}, outputs, weights)


CASES = {"itrd": case, "itrd__*": case}
