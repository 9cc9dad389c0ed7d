from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    """RepDistiller's names, or MDistiller's for the same."""
    name = "feat_s" if "in/feat_s" in v else "feats_s_0"
    teacher = said(pooled=v[f"in/{name.replace('_s', '_t')}"])
    hyper = {"eps": v.number("hp/eps")} if "hp/eps" in v else {}

    def of(feat_s: Tensor, outputs: Mapping[str, str | Callable[[Terms], Tensor]]) -> Case:
        student = said(pooled=feat_s)
        method = build("pkt", student, teacher, batch(1).targets, 2, task_weight=0.0, **hyper)
        return Case(method, student, teacher, batch(len(feat_s)), {name: feat_s}, outputs)

    def with_a_zero_row(_terms: Terms) -> Tensor:
        return of(v["in/feats_s_zero"], {}).run()["pkt"]

    # where a student's row is zero the reference has no gradient, and none is stored
    feat_s = leaf(v[f"in/{name}"]) if f"grad/{name}" in v else v[f"in/{name}"]
    return of(feat_s, {"loss": "pkt", "loss_student_zero_row": with_a_zero_row})


CASES = {"pkt__*": case, "mdistiller_pkt": case, "mdistiller_pkt__*": case}
