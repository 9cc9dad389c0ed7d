"""The net that answers: the student, or what its method makes of it, put together again from a file."""

from __future__ import annotations

from torch import nn

from fastkd import config as configs
from fastkd import methods, models
from fastkd.engine.teachers import Weights
from fastkd.method import Setting
from fastkd.models.base import StagedNet
from loaders.contract import DataSpec
from loaders.errors import UserError


def of(student: StagedNet, weights: Weights, data: DataSpec) -> nn.Module:
    if not weights.method:
        return student
    section = dict(weights.about["method"])
    name = str(section.pop("name"))
    if name not in methods.names():
        raise UserError(
            f"{weights.path}: its net answers through the method {name}, which is none of ours; a file does not get to "
            "name code to run"
        )
    cls = methods.load(name)
    setting = Setting(
        student=student, teacher=models.build(str(weights.about["teacher"]), data.num_classes, data.image_size),
        data=data, batch_size=1, gather=lambda rows: rows,
    )  # fmt: skip
    method = cls(configs.build(cls.Config, section, "method"), setting)
    try:
        method.load_state_dict(dict(weights.method))
    except RuntimeError:
        raise UserError(
            f"{weights.path}: its parts of {name} do not fit; the file is damaged or of another version"
        ) from None
    return method.deployed(student)
