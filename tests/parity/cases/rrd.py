from __future__ import annotations

import torch

from fastkd.methods.rrd import RRD
from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    feat_s, feat_t = leaf(v["in/feat_s"]), v["in/feat_t"]
    student, teacher = said(pooled=feat_s), said(pooled=feat_t)
    momentum = "in/contrast_idx" in v
    number = v.number("hp/n_data") if momentum else 2
    labels = torch.arange(number) % 2
    prefix = next(name for name in v.names("w/") if name.endswith("embed_s.weight")).removesuffix(
        "embed_s.weight"
    )
    hyper = {name: v.number(f"hp/{name}") for name in ("feat_dim", "nce_k", "nce_t_s", "nce_t_t")}
    if momentum:
        hyper |= {name: v.number(f"hp/{name}") for name in ("nce_t", "nce_m")} | {"memory_type": "momentum"}
    # the older code is the published one; its keys lack the memory module the later repository put them in
    hyper["variant"] = "repository" if "memory" in prefix else "published"
    method = build("rrd", student, teacher, labels, 2, task_weight=0.0, **hyper).to(v.dtype)
    assert isinstance(method, RRD)
    weights = {}
    with torch.no_grad():
        for ours, theirs in ((method.embed_student, "embed_s"), (method.embed_teacher, "embed_t")):
            for name, parameter in ours.named_parameters():
                weights[f"{prefix}{theirs}.{name}"] = parameter.copy_(v[f"w/{prefix}{theirs}.{name}"])
        if not momentum:
            buffers = {f"{prefix}queue": method.queue.rows, f"{prefix}queue_ptr": method.queue.pointer}
            for name, buffer in buffers.items():
                buffer.copy_(v[f"w/{name}"])
            return Case(
                method,
                student,
                teacher,
                batch(len(feat_s)),
                {"feat_s": feat_s},
                {"loss": "rrd"},
                weights,
                buffers,
            )
        bank = f"{prefix}contrast."
        buffers = {f"{bank}memory_v1": method.bank.student_rows, f"{bank}memory_v2": method.bank.teacher_rows}
        for name, buffer in buffers.items():
            buffer.copy_(v[f"w/{name}"])
        method.bank.z.copy_(v[f"w/{bank}params"][2:4])
        if f"after/{bank}params" in v:  # [K, T, Z1, Z2, momentum]
            buffers[f"{bank}params[2:4]"] = method.bank.z
            v.arrays[f"after/{bank}params[2:4]"] = v.arrays.pop(f"after/{bank}params")[2:4]
    drawn = v["in/contrast_idx"]
    assert torch.equal(drawn[:, 0], v["in/index"])
    method.sampler.others = lambda targets_B, num: drawn[:, 1:]  # type: ignore[method-assign]
    samples = batch(len(feat_s), indices=v["in/index"])
    return Case(method, student, teacher, samples, {"feat_s": feat_s}, {"loss": "rrd"}, weights, buffers)


CASES = {"rrd__*": case}
