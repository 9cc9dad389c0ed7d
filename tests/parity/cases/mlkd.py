from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

from fastkd.methods.lskd import LSKD
from fastkd.methods.mlkd import MLKD
from fastkd.outputs import Outputs
from tests.parity.case import Case, Said, Vector, batch, build, leaf, said
from tests.parity.cases.soft_labels import Output, always, times


class InTurn(Said):
    """Asked for one view after the other."""

    def __init__(self, views: Sequence[Tensor]) -> None:
        super().__init__(said(torch.cat([*views])).outputs)
        self.turns = cycle(views)

    def forward(self, _images: Tensor, _taps: tuple[str, ...] = ()) -> Outputs:
        return said(next(self.turns)).outputs


def case(v: Vector) -> Case:
    views = [leaf(v[f"in/logits_s_{view}"]) for view in ("weak", "strong")]
    t_weak = v["in/logits_t_weak"]
    student, teacher = InTurn(views), said(torch.cat([t_weak, v["in/logits_t_strong"]]))
    task, kd = v.number("hp/ce_weight"), v.number("hp/kd_weight")
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
    samples = batch(len(t_weak), v["in/target"])
    samples = samples._replace(images=samples.images.repeat(2, 1, 1, 1))
    inputs = dict(zip(("logits_s_weak", "logits_s_strong"), views, strict=True))
    return Case(method, student, teacher, samples, inputs, outputs)


CASES = {"mlkd": case, "mlkd__*": case, "logit_std_mlkd": case, "logit_std_mlkd__*": case}
