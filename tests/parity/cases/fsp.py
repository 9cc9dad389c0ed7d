from __future__ import annotations

from tests.parity.case import Case, Vector, pairwise


def case(v: Vector) -> Case:
    """The objective of the first phase. part_k is what lies between maps k and k + 1."""
    made = pairwise("fsp", v, kd_weight=1.0)  # after its phase the method has nothing of its own
    made.method = made.method.phases()[0].objective
    parts = {f"part_{k}": f"fsp_stage{k + 2}" for k in range(len(made.inputs) - 1)}
    made.outputs = {"loss": "loss", **parts}
    return made


CASES = {"fsp__*": case}
