from __future__ import annotations

import torch
from torch import Tensor

from fastkd.methods.crd import CRD
from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    feat_s = leaf(v["in/feat_s"])
    student, teacher = said(pooled=feat_s), said(pooled=v["in/feat_t"])
    bank = "in/contrast_idx" in v
    hyper = {name: v.number(f"hp/{name}") for name in ("feat_dim", "nce_k", "nce_t")}
    samples = batch(len(feat_s))
    if bank:
        drawn, index = v["in/contrast_idx"], v["in/index"]
        samples = batch(len(feat_s), indices=index)
        hyper |= {
            "nce_m": v.number("hp/nce_m"),
            "mode": "exact" if torch.equal(drawn[:, 0], index) else "relax",
        }
    else:
        hyper["memory_type"] = "fifo"
    labels = torch.arange(v.number("hp/n_data") if bank else 2) % 2
    method = build("crd", student, teacher, labels, 2, task_weight=0.0, **hyper).to(v.dtype)
    assert isinstance(method, CRD)

    def names(part: str) -> dict[str, str]:
        """The reference's names that hold `part`, by how they end."""
        return {name.rsplit(".", 1)[1]: name for name in v.names("w/") if part in name}

    weights, buffers = {}, dict[str, Tensor]()
    with torch.no_grad():
        for embed, theirs in ((method.embed_student, "embed_s"), (method.embed_teacher, "embed_t")):
            for end, name in names(theirs).items():
                weights[name] = embed.get_parameter(end).copy_(v[f"w/{name}"])
        if bank:
            ours = {"memory_v1": method.bank.student_rows, "memory_v2": method.bank.teacher_rows}
        else:
            ours = {"queue": method.queue.rows, "queue_ptr": method.queue.pointer}
        for end, buffer in ours.items():
            name = names(end)[end]
            buffers[name] = buffer.copy_(v[f"w/{name}"])
        if bank:
            method.sampler.same = lambda targets_B: drawn[:, 0]  # type: ignore[method-assign]
            method.sampler.others = lambda targets_B, num: drawn[:, 1:]  # type: ignore[method-assign]
            params = names("params")["params"]  # [K, T, Z1, Z2, momentum]
            method.bank.z.copy_(v[f"w/{params}"][2:4])
            if f"after/{params}" in v:
                buffers[f"{params}[2:4]"] = method.bank.z
                v.arrays[f"after/{params}[2:4]"] = v.arrays.pop(f"after/{params}")[2:4]
    return Case(method, student, teacher, samples, {"feat_s": feat_s}, {"loss": "crd"}, weights, buffers)


CASES = {"crd__*": case}
