from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastkd.methods.ft import FT, Paraphrasing
from fastkd.outputs import Terms
from tests.parity.case import Case, Said, Vector, batch, build, fill, leaf, output_of, said


def built(v: Vector, s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[FT, Said, Said]:
    student, teacher = said(taps={"stage1": s_BCHW}), said(taps={"stage1": t_BCHW})
    hyper = {"rate": "hp/k", "power": "hp/p1", "norm": "hp/p2"}
    method = build(
        "ft", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0,
        **{ours: v.number(key) for ours, key in hyper.items() if key in v},
    ).to(v.dtype)  # fmt: skip
    assert isinstance(method, FT)
    return method, student, teacher


def case(v: Vector) -> Case:
    s_BCHW, t_BCHW = leaf(v["in/feat_s"]), v["in/feat_t"]
    method, student, teacher = built(v, s_BCHW, t_BCHW)
    weights, buffers = fill(method.translator, v, "translator.encoder.")
    fill(method.paraphraser, v, "paraphraser.")
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "ft", "factor_s": output_of(method.translator), "factor_t": output_of(method.paraphraser.encoder),
    }  # fmt: skip
    return Case(method, student, teacher, batch(len(s_BCHW)), {"feat_s": s_BCHW}, outputs, weights, buffers)


def paraphrasing(v: Vector) -> Case:
    """The objective of the first phase."""
    t_BCHW = v["in/feat_t"]
    method, student, teacher = built(v, t_BCHW, t_BCHW)
    objective = method.phases()[0].objective.requires_grad_(True)  # as the engine does
    assert isinstance(objective, Paraphrasing)
    weights, _ = fill(objective.paraphraser, v, "paraphraser.")
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {
        "loss": "ft_reconstruction", "factor": output_of(method.paraphraser.encoder),
        "rec": output_of(method.paraphraser.decoder),
    }  # fmt: skip
    return Case(objective, student, teacher, batch(len(t_BCHW)), {}, outputs, weights)


CASES = {"ft__*paraphraser": paraphrasing, "ft__*": case}
