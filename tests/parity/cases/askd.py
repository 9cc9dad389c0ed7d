from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.methods.askd import ASKD
from fastkd.outputs import Terms
from fastkd.toolbox.softlabels import soft_label_kl
from tests.parity.case import Case, Said, Vector, batch, build, fill, leaf, said

# the reference takes sqrt(a^2 + b^2 - 2ab) for |a - b|, which keeps so much of a small distance in float64
REACHED = 1e-7
Outs = dict[str, str | Callable[[Terms], Tensor]]


def method_of(v: Vector, student: Said, teacher: Said, **hyper: Any) -> ASKD:
    method = build("askd", student, teacher, batch(1).targets, 2, **({"task_weight": 0.0} | hyper)).to(
        v.dtype
    )
    assert isinstance(method, ASKD)
    return method


def features(v: Vector, net: str) -> dict[str, Tensor]:
    """The vector's list: maps, and in the whole loss the pooled features at its end."""
    count = sum(f"in/feats_{net}_{k}" in v for k in range(len(v.arrays)))
    return {f"feats_{net}_{k}": leaf(v[f"in/feats_{net}_{k}"]) for k in range(count)}


def taps(found: dict[str, Tensor]) -> dict[str, Tensor]:
    maps = [x for x in found.values() if x.dim() == 4]
    return {f"stage{k}" if k else "stem": x for k, x in enumerate(maps)}


def of_classes(v: Vector) -> Case:
    logits = leaf(v["in/logits_s"])
    student, teacher = said(logits), said(v["in/logits_t"])
    method = method_of(v, student, teacher, region_weight=0.0, class_weight=1.0)
    return Case(
        method,
        student,
        teacher,
        batch(len(logits)),
        {"logits_s": logits},
        {"loss": "askd_class"},
        reached=REACHED,
    )


def of_regions(v: Vector) -> Case:
    """The loss alone, of maps that were embedded before: the embedding is the identity."""
    s_maps, t_maps = features(v, "s"), features(v, "t")
    student, teacher = (
        said(taps=taps(s_maps)),
        said(taps={tap: x.detach() for tap, x in taps(t_maps).items()}),
    )
    method = method_of(
        v, student, teacher, region_weight=1.0, class_weight=0.0, grid=v.number("hp/r"), small_maps="inherit",
        layers=list(range(len(s_maps))),
    )  # fmt: skip
    for embed in method.embeds:
        assert isinstance(embed, nn.Conv2d)
        assert embed.bias is not None
        nn.init.dirac_(embed.weight)
        nn.init.zeros_(embed.bias)
    outputs: Outs = {"loss": "loss", "r_after": lambda _: torch.tensor(method.grids[-1])}
    outputs |= {f"loss_{k}": f"askd_region_{pair.stage}" for k, pair in enumerate(method.pairs)}
    return Case(
        method, student, teacher, batch(len(s_maps["feats_s_0"])), dict(s_maps), outputs, reached=REACHED
    )


def whole(v: Vector) -> Case:
    found, logits = features(v, "s"), leaf(v["in/logits_s"])
    student = said(logits, taps=taps(found))
    teacher = said(v["in/logits_t"], taps={tap: x.detach() for tap, x in taps(features(v, "t")).items()})
    w_rs, w_cs, alpha = (v.number(f"hp/{name}") for name in ("w_rs", "w_cs", "alpha"))
    method = method_of(
        v, student, teacher, region_weight=w_rs, class_weight=w_cs, grid=v.number("hp/r"), small_maps="inherit",
        layers=v["hp/layers"].tolist(), task_weight=v.number("hp/gamma"), kd_weight=alpha, weight=v.number("hp/beta"),
        kd_temperature=v.number("hp/T"),
    )  # fmt: skip
    weights: dict[str, Tensor] = {}
    for k, embed in enumerate(method.embeds):
        weights |= fill(embed, v, f"embed_{k}.")[0]

    def regions(terms: Terms) -> Tensor:
        return torch.stack([terms[f"askd_region_{pair.stage}"] for pair in method.pairs]).sum()

    outputs: Outs = {
        "loss": "loss", "loss_ce": "task", "loss_class": lambda terms: terms["askd_class"] / w_cs,
        "loss_region": lambda terms: regions(terms) / w_rs,
        # a term of weight 0, as in one of the files, is not computed: the function that computes it is asked
        "loss_div": lambda _: soft_label_kl(logits, v["in/logits_t"], method.config.kd_temperature),
        "loss_kd": lambda terms: terms["askd_class"] + regions(terms),
    }  # fmt: skip
    inputs = found | {"logits_s": logits}
    return Case(
        method,
        student,
        teacher,
        batch(len(logits), v["in/target"]),
        inputs,
        outputs,
        weights,
        reached=REACHED,
    )


CASES = {
    "askd_class": of_classes, "askd_class__*": of_classes, "askd_region": of_regions, "askd_region__*": of_regions,
    "askd": whole, "askd__*": whole,
}  # fmt: skip
