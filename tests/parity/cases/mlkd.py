from __future__ import annotations

import torch

from fastkd.methods.lskd import LSKD
from fastkd.methods.mlkd import MLKD
from tests.parity.case import Case, Vector, batch, build, leaf, said
from tests.parity.cases.soft_labels import Output, always, times


def case(v: Vector) -> Case:
    """The targets are given once a view, as the task loss over both views reads them; the method reads none."""
    views = [leaf(v[f"in/logits_s_{view}"]) for view in ("weak", "strong")]
    t_weak = v["in/logits_t_weak"]
    student, teacher = said(torch.cat(views)), said(torch.cat([t_weak, v["in/logits_t_strong"]]))
    task, kd = 2 * v.number("hp/ce_weight"), v.number("hp/kd_weight")
    hyper = {"task_weight": task, "kd_temperature": v.number("hp/T")}
    if v.arrays["name"].item().startswith("logit_std_"):
        name, hyper = "lskd", hyper | {"of": "mlkd", "kd_weight": kd}
    else:
        name, hyper = "mlkd", hyper | {"weight": kd}
    method = build(name, student, teacher, batch(1).targets, t_weak.shape[1], **hyper).to(v.dtype)
    mlkd = method.inner if isinstance(method, LSKD) else method
    assert isinstance(mlkd, MLKD)
    mask, class_mask = mlkd.masks(t_weak)
    outputs: dict[str, Output] = {"loss": "loss", "loss_ce": times(task, "task"), "mask": always(mask),
                                  "class_mask": always(class_mask)}  # fmt: skip
    outputs |= {f"loss_{part}": times(kd, part) for part in ("kd", "cc", "bc")}
    samples = batch(len(t_weak), v["in/target"].repeat(2))
    inputs = dict(zip(("logits_s_weak", "logits_s_strong"), views, strict=True))
    return Case(method, student, teacher, samples, inputs, outputs)


CASES = {"mlkd": case, "mlkd__*": case, "logit_std_mlkd": case, "logit_std_mlkd__*": case}
