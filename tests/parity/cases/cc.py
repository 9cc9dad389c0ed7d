from __future__ import annotations

import torch

from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    feat_s = leaf(v["in/feat_s"])
    student, teacher = said(pooled=feat_s), said(pooled=v["in/feat_t"])
    method = build(
        "cc", student, teacher, batch(1).targets, 2, task_weight=0.0, feat_dim=v.number("hp/feat_dim")
    )
    method = method.to(v.dtype)
    theirs = {"embed_student": "embed_s.linear", "embed_teacher": "embed_t.linear"}
    weights = {}
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            module, _, kind = name.partition(".")
            weights[f"{theirs[module]}.{kind}"] = parameter.copy_(v[f"w/{theirs[module]}.{kind}"])
    return Case(method, student, teacher, batch(len(feat_s)), {"feat_s": feat_s}, {"loss": "cc"}, weights)


CASES = {"cc__*": case}
