from __future__ import annotations

from tests.parity.case import Case, Vector, batch, build, leaf, said


def case(v: Vector) -> Case:
    """RepDistiller's names, or MDistiller's for the same."""
    name = "feat_s" if "in/feat_s" in v else "feats_s_0"
    feat_s, feat_t = leaf(v[f"in/{name}"]), v[f"in/{name.replace('_s', '_t')}"]
    student, teacher = said(pooled=feat_s), said(pooled=feat_t)
    weights = ("w_d", "w_a") if "hp/w_d" in v else ("distance_weight", "angle_weight")
    distance, angle = (float(v.number(f"hp/{key}")) for key in weights)
    hyper = (
        {} if "hp/squared" not in v else {"squared": bool(v.number("hp/squared")), "eps": v.number("hp/eps")}
    )
    method = build("rkd", student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0,
                   distance_weight=distance, angle_weight=angle, **hyper)  # fmt: skip
    return Case(
        method,
        student,
        teacher,
        batch(len(feat_s)),
        {name: feat_s},
        {
            "loss": "loss",
            "distance": lambda terms: terms["distance"] / distance,
            "angle": lambda terms: terms["angle"] / angle,
        },
    )


CASES = {"rkd__*": case, "mdistiller_rkd": case, "mdistiller_rkd__*": case}
