from __future__ import annotations

from fastkd.methods.lskd import LSKD
from fastkd.toolbox.softlabels import standardised
from tests.parity.case import Case, Vector
from tests.parity.cases.ctkd import NUMBERS, with_temperature
from tests.parity.cases.soft_labels import always, made, numbers


def of_kd(v: Vector) -> Case:
    hyper = numbers(v, kd_temperature="T", kd_weight="kd_weight", task_weight="ce_weight")
    case = made("lskd", v, {"of": "kd"} | hyper, {"loss": "kd", "total": "loss"})
    z_s, z_t = always(standardised(case.inputs["logits_s"])), always(standardised(v["in/logits_t"]))
    case.outputs = {**case.outputs, "z_s": z_s, "z_t": z_t}
    return case


def of_dkd(v: Vector) -> Case:
    inner = {"warmup": 0, **numbers(v, alpha="alpha", beta="beta")}
    hyper = {"of": "dkd", "kd_weight": 1.0, "inner": inner, **numbers(v, kd_temperature="T")}
    return made("lskd", v, hyper, {"loss": "loss"})


def of_ctkd(v: Vector) -> Case:
    inner = numbers(v, **{name: name for name in NUMBERS})
    case = made("lskd", v, {"of": "ctkd", "kd_weight": 1.0, "inner": inner}, {"loss": "ctkd"})
    assert isinstance(case.method, LSKD)
    return with_temperature(case, case.method.inner, v)


CASES = {"logit_std_kd": of_kd, "logit_std_kd__*": of_kd, "logit_std_dkd": of_dkd, "logit_std_dkd__*": of_dkd,
         "logit_std_ctkd": of_ctkd, "logit_std_ctkd__*": of_ctkd}  # fmt: skip
