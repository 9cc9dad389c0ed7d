from __future__ import annotations

import itertools
import re

from torch import nn

from fastkd.methods.semckd import Embedding, SemCKD
from tests.parity.case import Case, Vector, batch, build, fill, maps, output_of, said


def parts(method: SemCKD, v: Vector) -> dict[str, nn.Module]:
    """Our modules by the vector's names. SimKD writes query_0, SemCKD query_weight0; the former has unused layers."""
    query, key = (
        ("query_", "key_") if "w/selfa.query_0.linear1.weight" in v else ("query_weight", "key_weight")
    )
    found: dict[str, nn.Module] = {}
    for name, embeddings in ((query, method.attention.queries), (key, method.attention.keys)):
        for k, embedding in enumerate(embeddings):
            assert isinstance(embedding, Embedding)
            found |= {f"{name}{k}.linear1.": embedding.hidden, f"{name}{k}.linear2.": embedding.out}
    indices = itertools.product(range(len(method.attention.queries)), range(len(method.attention.keys)))
    for (i, j), project in zip(indices, method.projectors, strict=True):
        found[f"regressor{i}{j}.regressor."] = project
    return found


def case(v: Vector) -> Case:
    s_maps, t_maps = maps(v, "feats_s"), maps(v, "feats_t")
    student, teacher = said(taps=s_maps), said(taps={tap: x.detach() for tap, x in t_maps.items()})
    size = v.number("hp/batch_size")
    method = build(
        "semckd", student, teacher, batch(1).targets, 2, size, task_weight=0.0, kd_weight=0.0, weight=1.0,
        soft=v.number("hp/soft") if "hp/soft" in v else 1.0,
    ).to(v.dtype)  # fmt: skip
    assert isinstance(method, SemCKD)
    made = Case(
        method, student, teacher, batch(size), {f"feats_s_{k}": x for k, x in enumerate(s_maps.values())},
        {"loss": "semckd", "attention": output_of(method.attention)},
    )  # fmt: skip
    for name, module in parts(method, v).items():
        weights, buffers = fill(module, v, f"selfa.{name}")
        made.weights |= weights
        made.buffers |= buffers
    named = {*made.weights, *made.buffers}
    left = [
        name
        for name in v.names("w/")
        if name not in named and not re.search(r"(query|key)_\d\.regressor", name)
    ]
    assert not left
    return made


CASES = {"semckd__*": case}
