from __future__ import annotations

from fastkd.methods.ab import Boundaries
from tests.parity.case import Case, Vector, fill, pairwise


def case(v: Vector) -> Case:
    """The objective of the first phase."""
    made = pairwise("ab", v, ".pre", kd_weight=1.0, margin=v.number("hp/margin"))
    objective = made.method.phases()[0].objective.to(v.dtype)
    assert isinstance(objective, Boundaries)
    made.method = objective
    for k, connect in enumerate(objective.connectors):
        weights, buffers = fill(connect, v, f"connector.connectors.{k}.")
        made.weights |= weights
        made.buffers |= buffers
    return made


CASES = {"ab__*": case}
