from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastkd.methods.kdsvd import KDSVD, STUDENT_EXTRA, RightVectors
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, pairwise


def case(v: Vector, layout: str) -> Case:
    """With the signs that were in force when the file was made; they are open, and the value depends on them."""
    made = pairwise("kdsvd", v, layout=layout, k=v.number("hp/k"))
    assert isinstance(made.method, KDSVD)
    parts = {f"part_{k}": f"kdsvd_stage{k + 2}" for k in range(len(made.inputs) - 1)}
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {"loss": "loss", **parts}

    def signed(found: Tensor, name: str) -> Tensor:
        """Each vector in the sense that the file gives it."""
        return torch.where((found * v[name]).sum(1, keepdim=True) < 0, -found, found)

    method = made.method
    method.oriented = lambda t_BNk, tap: signed(t_BNk, f"out/v_t_{int(tap.removeprefix('stage')) - 1}")  # type: ignore[method-assign]
    for stage, tap in enumerate(made.student.taps):
        s_BCHW, t_BCHW = made.student.outputs.taps[tap], made.teacher.outputs.taps[tap]
        found = [x.detach() for x in method.vectors(s_BCHW, t_BCHW, tap)]
        offered = RightVectors.apply(method.matrix(s_BCHW.detach()), found[0].shape[2] + STUDENT_EXTRA)
        outputs |= {
            f"{name}_{stage}": lambda _terms, x=x: x  # type: ignore[misc]
            for name, x in (
                ("v_s_aligned", found[0]),
                ("v_t", found[1]),
                ("sing_t", found[2]),
                ("v_s", signed(offered, f"out/v_s_{stage}")),
            )
        }
    made.outputs = outputs
    if torch.float32 in (v.dtype, torch.from_numpy(v.arrays["out/loss"]).dtype):
        made.reached = 1e-4  # the reference's own float32 gradient differs so much from its float64
    return made


CASES = {
    "kdsvd__*": lambda v: case(v, "channels"),
    "mdistiller_kdsvd*": lambda v: case(v, "width"),
}
