from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastkd.methods.srrl import SRRL
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, fill, leaf, linear, output_of, said


def case(v: Vector) -> Case:
    s_BD, t_BD = leaf(v["in/feat_s"]), v["in/feat_t"]
    student, teacher = said(pooled=s_BD), said(v["in/logits_t"], t_BD, head=linear(v, "cls_t"))
    method = build("srrl", student, teacher, batch(1).targets, 2, task_weight=0.0, kd_weight=0.0).to(v.dtype)
    assert isinstance(method, SRRL)
    method.head.requires_grad_()  # the reference stores its gradient, though it never steps it
    weights, buffers = fill(method.connect, v, "srrl.transfer.")
    weights |= {f"cls_t.{name}": parameter for name, parameter in method.head.named_parameters()}
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "loss",
        "part_feat": "srrl_feature",
        "part_logit": "srrl_logit",
        "trans_feat_s": output_of(method.connect),
        "pred_feat_s": output_of(method.head),
    }
    return Case(method, student, teacher, batch(len(s_BD)), {"feat_s": s_BD}, outputs, weights, buffers)


CASES = {"srrl__*": case}
