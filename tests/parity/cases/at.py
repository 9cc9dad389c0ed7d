from __future__ import annotations

from tests.parity.case import Case, Vector, pairwise


def case(v: Vector) -> Case:
    return pairwise("at", v, power=v.number("hp/p"))


CASES = {"at__*": case, "mdistiller_at*": case}
