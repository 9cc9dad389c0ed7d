from __future__ import annotations

from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    logits_s, logits_t = leaf(v["in/logits_s"]), v["in/logits_t"]
    task = v.number("hp/ce_weight") if "hp/ce_weight" in v else 1.0
    kd = v.number("hp/kd_weight") if "hp/kd_weight" in v else 1.0
    targets = v.get("in/target")
    outputs = {"loss": "kd", "ce": "task", "weighted_loss_kd": "kd", "weighted_loss_ce": "task"}
    method = build(
        "kd", said(logits_s), said(logits_t), batch(1).targets, logits_s.shape[1],
        task_weight=task if targets is not None else 0.0, kd_weight=kd, kd_temperature=v.number("hp/T"),
    )  # fmt: skip
    return Case(
        method, said(logits_s), said(logits_t), batch(len(logits_s), targets), {"logits_s": logits_s}, outputs
    )


CASES = {"kd__*": case, "mdistiller_kd": case, "mdistiller_kd__*": case}
