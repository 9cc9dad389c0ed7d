from __future__ import annotations

from tests.parity.case import Case, Vector, batch, build, leaf, pairwise, said


def case(v: Vector) -> Case:
    return pairwise("sp", v, stages="all" if "in/feats_s_1" in v else "last")


def total(v: Vector) -> Case:
    """The whole of a method's loss: cross-entropy, soft labels and its own term, each with its weight."""
    feat_s, logits_s = leaf(v["in/feat_s"]), leaf(v["in/logits_s"])
    student = said(logits_s, taps={"stage1": feat_s})
    teacher = said(v["in/logits_t"], taps={"stage1": v["in/feat_t"]})
    method = build(
        "sp", student, teacher, batch(1).targets, logits_s.shape[1], task_weight=v.number("hp/gamma"),
        kd_weight=v.number("hp/alpha"), weight=v.number("hp/beta"), kd_temperature=v.number("hp/T"),
    )  # fmt: skip
    inputs = {"feat_s": feat_s, "logits_s": logits_s}
    outputs = {"loss": "loss", "ce": "task", "kd": "kl", "sp": "sp_stage1"}
    return Case(method, student, teacher, batch(len(feat_s), v["in/target"]), inputs, outputs)


CASES = {"sp__*": case, "mdistiller_sp": case, "mdistiller_sp__*": case, "total_kd_sp__*": total}
