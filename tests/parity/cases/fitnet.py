from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastkd.methods.fitnet import FitNet
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, fill, leaf, output_of, said


def case(v: Vector) -> Case:
    name = "feat_s" if "in/feat_s" in v else "feats_s_0"
    layer = v.number("hp/hint_layer") if "hp/hint_layer" in v else 2
    tap = f"stage{layer}" if layer else "stem"
    s_BCHW, t_BCHW = leaf(v[f"in/{name}"]), v[f"in/{name.replace('_s', '_t')}"]
    student, teacher = said(taps={tap: s_BCHW}), said(taps={tap: t_BCHW})
    method = build(
        "fitnet", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0, hint_layer=layer
    ).to(v.dtype)
    assert isinstance(method, FitNet)
    weights, buffers = fill(method.regress, v, "conv_reg.")
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "fitnet",
        "regressed": output_of(method.regress),
        "target_feat": lambda _: method.regress.target(t_BCHW),
    }
    return Case(method, student, teacher, batch(len(s_BCHW)), {name: s_BCHW}, outputs, weights, buffers)


CASES = {"fitnet__*": case, "mdistiller_fitnet*": case}
