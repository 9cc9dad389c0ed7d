"""Methods that read two sets of logits and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, leaf, said

Output: TypeAlias = str | Callable[[Terms], Tensor]


def numbers(v: Vector, **ours: str) -> dict[str, Any]:
    """Our field -> its value in the file, for those that the file has."""
    return {field: v.number(f"hp/{name}") for field, name in ours.items() if f"hp/{name}" in v}


def made(
    name: str, v: Vector, hyper: Mapping[str, Any], outputs: Mapping[str, Output], **of_case: Any
) -> Case:
    s_BK, t_BK = leaf(v["in/logits_s"]), v["in/logits_t"]
    student, teacher = said(s_BK), said(t_BK)
    hyper = {"task_weight": 0.0} | dict(hyper)
    method = build(name, student, teacher, batch(1).targets, s_BK.shape[1], **hyper).to(v.dtype)
    samples = batch(len(s_BK), v.get("in/target"))
    return Case(method, student, teacher, samples, {"logits_s": s_BK}, outputs, **of_case)


def times(factor: float, *names: str) -> Output:
    """A sum of our terms, as the file weighs it."""
    return lambda terms: torch.stack([terms[name] for name in names]).sum() * factor


def always(value: Tensor) -> Output:
    """What is no term of ours."""
    return lambda _terms: value


def plain(name: str, outputs: Mapping[str, Output], **fields: str) -> Callable[[Vector], Case]:
    """A case whose terms, at weight 1, are the loss; `fields`: ours -> the file's."""

    def case(v: Vector) -> Case:
        hyper = {"weight": 1.0, **numbers(v, **fields)}
        return made(name, v, hyper, {"loss": "loss", **outputs})

    return case


def dkd(v: Vector) -> Case:
    hyper = {"weight": 1.0, "warmup": 0, "task_weight": 0.0} | numbers(
        v, alpha="alpha", beta="beta", kd_temperature="T", task_weight="ce_weight", warmup="warmup"
    )
    outputs: dict[str, Output] = {
        "loss": "loss",
        "loss_ce": times(hyper["task_weight"], "task"),
        "loss_kd": times(1.0, "tckd", "nckd"),
        "tckd": times(1 / hyper["alpha"], "tckd"),
        "nckd": times(1 / hyper["beta"], "nckd"),
    }
    return made("dkd", v, hyper, outputs, epoch=v.number("hp/epoch") if "hp/epoch" in v else 1)


def dist(v: Vector) -> Case:
    hyper = {
        "weight": 1.0,
        "kd_temperature": 1.0,
        **numbers(v, kd_temperature="tau", beta="beta", gamma="gamma"),
    }
    outputs: dict[str, Output] = {
        "loss": "loss",
        "inter": times(1 / hyper["beta"], "inter"),
        "intra": times(1 / hyper["gamma"], "intra"),
    }
    return made("dist", v, hyper, outputs)


nkd = plain("nkd", {"target_part": "target"}, kd_temperature="temp", gamma="gamma")
ttm, wttm = (plain(name, {}, ttm_l="ttm_l") for name in ("ttm", "wttm"))
CASES = {
    "dkd": dkd, "dkd__*": dkd, "nkd": nkd, "nkd__*": nkd, "dist": dist, "dist__*": dist,
    "ttm": ttm, "ttm__*": ttm, "wttm": wttm, "wttm__*": wttm,
}  # fmt: skip
