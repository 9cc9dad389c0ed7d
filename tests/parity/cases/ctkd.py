from __future__ import annotations

import torch

from fastkd.methods.ctkd import CTKD
from tests.parity.case import Case, Vector
from tests.parity.cases.soft_labels import always, made, numbers

NUMBERS = ("t_start", "t_end", "decay_max", "decay_min", "decay_loops")


def with_temperature(case: Case, method: torch.nn.Module, v: Vector) -> Case:
    assert isinstance(method, CTKD)
    with torch.no_grad():
        method.global_T.copy_(v["w/global_T"])
    if "gradw/global_T" in v:
        case.weights["global_T"] = method.global_T
    case.epoch = v.number("hp/epoch")
    epoch = torch.tensor(case.epoch)
    found = {"temp": always(method.temperature(epoch)), "lam": always(method.strength(epoch))}
    case.outputs = {**case.outputs, **found}
    return case


def case(v: Vector) -> Case:
    of = {"of": "dkd", **numbers(v, alpha="dkd_alpha", beta="dkd_beta")} if "hp/dkd_alpha" in v else {}
    hyper = {"kd_weight": 1.0, **of, **numbers(v, **{name: name for name in NUMBERS})}
    found = made("ctkd", v, hyper, {"loss": "ctkd"})
    return with_temperature(found, found.method, v)


CASES = {"ctkd": case, "ctkd__*": case}
