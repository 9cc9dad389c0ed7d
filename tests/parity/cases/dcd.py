from __future__ import annotations

import torch

from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    feat_s = leaf(v["in/feat_s"])
    student, teacher = said(pooled=feat_s), said(pooled=v["in/feat_t"])
    hyper = {
        name: v.number(f"hp/{name}")
        for name in ("feat_dim", "max_tau", "alpha", "init_tau", "init_b", "nce_t")
    }
    imagenet = v.arrays["name"].item().endswith("imagenet")
    trained = "imagenet" if imagenet else "trained"
    method = build("dcd", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0,
                   variant=trained if v.number("hp/trainable") else "fixed", **hyper)  # fmt: skip
    method = method.to(v.dtype)
    if (
        imagenet
    ):  # its trainer leaves tau and b out of the optimizer; the file holds their gradients all the same
        method.requires_grad_()
    theirs = {"tau": "params.tau", "b": "params.b", "embed_student": "embed_s", "embed_teacher": "embed_t"}
    weights = {}
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            module, dot, part = name.partition(".")
            key = f"crit.{theirs[module]}{dot}{part}"
            weights[key] = parameter.copy_(v[f"w/{key}"])
    return Case(method, student, teacher, batch(len(feat_s)), {"feat_s": feat_s}, {"loss": "loss"}, weights)


CASES = {"dcd__*": case}
