from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastkd.methods.ofd import OFD, Stage
from fastkd.outputs import Terms
from tests.parity.case import Case, Vector, batch, build, fill, maps, output_of, said


def norm(v: Vector, k: int) -> nn.BatchNorm2d:
    """The teacher's batch norm of stage k."""
    made = nn.BatchNorm2d(len(v[f"in/bn_weight_{k}"]), dtype=v.dtype)
    made.load_state_dict({"weight": v[f"in/bn_weight_{k}"], "bias": v[f"in/bn_bias_{k}"]}, strict=False)
    return made


def case(v: Vector) -> Case:
    """The paper's repository sums over the batch, and divides by it where the loss is put together."""
    s_maps, t_maps = maps(v, "feats_s", ".pre"), maps(v, "feats_t", ".pre")
    size = len(next(iter(s_maps.values())))
    student, teacher = said(taps=s_maps), said(taps={tap: x.detach() for tap, x in t_maps.items()})
    teacher.norms = {f"stage{k + 1}.pre": norm(v, k) for k in range(len(t_maps))}
    summed = "hp/divisor" in v
    kernel = v.number("hp/kernel_size") if "hp/kernel_size" in v else 1
    method = build(
        "ofd", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=size if summed else 1.0,
        kernel_size=kernel,
    ).to(v.dtype)  # fmt: skip
    assert isinstance(method, OFD)
    made = Case(
        method, student, teacher, batch(size), {f"feats_s_{k}": x for k, x in enumerate(s_maps.values())},
        {"loss": "loss"},
    )  # fmt: skip
    outputs: dict[str, Callable[[Terms], Tensor]] = {
        "loss_scaled": lambda terms: terms["loss"] / size / v.number("hp/divisor")
    }
    for k, stage in enumerate(method.stages):
        assert isinstance(stage, Stage)
        prefix = f"Connectors.{k}." if summed else f"connectors.connectors.{k}."
        weights, buffers = fill(stage.connect, v, prefix)
        made.weights |= weights
        made.buffers |= buffers

        def margin(_terms: object, margin_C11: Tensor = stage.margin_C11) -> Tensor:
            return margin_C11

        outputs |= {f"part_{k}": output_of(stage), f"margin_{k}": margin}
        if summed:  # the same numbers under another name
            v.arrays[f"out/margin_{k}"] = v.arrays[f"w/margin{k + 1}"]
    made.outputs = {**made.outputs, **outputs}
    return made


CASES = {"ofd": case, "ofd__*": case}
