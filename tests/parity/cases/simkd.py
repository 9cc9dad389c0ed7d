from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastkd.methods.simkd import SimKD
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, fill, leaf, linear, output_of, said


def case(v: Vector) -> Case:
    s_BCHW, t_BCHW = leaf(v["in/feat_s"]), v["in/feat_t"]
    student = said(taps={"stage1": s_BCHW})
    teacher = said(taps={"stage1.pre": t_BCHW}, head=linear(v, "cls_t"))
    method = build("simkd", student, teacher, batch(1).targets, 2, factor=v.number("hp/factor")).to(v.dtype)
    assert isinstance(method, SimKD)
    reuse = method.reuse
    weights, buffers = fill(reuse.projector, v, "simkd.transfer.")
    projected = output_of(reuse.projector)
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "simkd",
        "trans_feat_s": projected,
        "trans_feat_t": lambda _: method.target(t_BCHW),
        "pred_logits": lambda terms: reuse(projected(terms))[1],
    }
    return Case(method, student, teacher, batch(len(s_BCHW)), {"feat_s": s_BCHW}, outputs, weights, buffers)


CASES = {"simkd__*": case}
