from __future__ import annotations

from tests.parity.case import Case, Vector, pairwise


def case(v: Vector) -> Case:
    return pairwise("nst", v)


CASES = {"nst__*": case, "mdistiller_nst*": case}
