from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastkd.methods.reviewkd import ReviewKD
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, fill, leaf, maps, output_of, said


def case(v: Vector) -> Case:
    """The detection file has neither pooled features nor tables; its width in the middle is given."""
    pooled = "in/pooled_s" in v
    preactivation = bool(v.number("hp/stu_preact")) if "hp/stu_preact" in v else False
    epochs = v.number("hp/warmup_epochs") if "hp/warmup_epochs" in v else 1
    s_maps, t_maps = maps(v, "feats_s", ".pre" if preactivation else ""), maps(v, "feats_t", ".pre")
    inputs = {f"feats_s_{k}": x for k, x in enumerate(s_maps.values())}
    if pooled:
        inputs["pooled_s"] = leaf(v["in/pooled_s"])
    student = said(pooled=inputs.get("pooled_s"), taps=s_maps)
    teacher = said(pooled=v.get("in/pooled_t"), taps={tap: x.detach() for tap, x in t_maps.items()})
    method = build(
        "reviewkd", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0, warmup_epochs=epochs,
        student_preactivation=preactivation, pooled=pooled,
        max_mid_channels=v.number("hp/mid_channel") if "hp/mid_channel" in v else 512,
    ).to(v.dtype)  # fmt: skip
    assert isinstance(method, ReviewKD)
    made = Case(
        method, student, teacher, batch(len(s_maps["stage1.pre" if preactivation else "stage1"])), inputs,
        {"loss": "loss"}, epoch=epochs,
    )  # fmt: skip
    levels = [f"reviewkd_{pair.stage}" for pair in method.pairs] + (["reviewkd_pooled"] if pooled else [])
    outputs: dict[str, str | Callable[[Terms], Tensor]] = {f"part_{k}": term for k, term in enumerate(levels)}
    for k, fusion in enumerate(method.fusions):  # deepest first, the files' maps shallowest first
        weights, buffers = fill(fusion, v, f"abfs.{k}.")
        made.weights |= weights
        made.buffers |= buffers
        said_by = output_of(fusion)
        outputs[f"fused_{len(levels) - 1 - k}"] = lambda terms, said_by=said_by: said_by(terms)[0]  # type: ignore[misc]
    made.outputs = {**made.outputs, **outputs}
    return made


CASES = {"reviewkd": case, "reviewkd__*": case}
