"""Loaders know nothing of distillation. `build` is the one place that picks a backend; importing this loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loaders.errors import UserError

if TYPE_CHECKING:
    from loaders.contract import Loader, Plan, Split
    from loaders.views import View

BACKENDS = ("device", "torch")
LATER = ("ffcv", "dali")


def check(name: str) -> None:
    if name in LATER:
        raise UserError(
            f"--loader {name} is not part of this version yet; use --loader {' or '.join(BACKENDS)}"
        )


def build(name: str, split: Split, view: View, plan: Plan) -> Loader:
    from loaders.contract import ArraySplit
    from loaders.device import DeviceLoader
    from loaders.torch_workers import TorchLoader
    from loaders.views import ShiftFlip, Whole

    check(name)
    in_memory = isinstance(split, ArraySplit) and isinstance(view, ShiftFlip | Whole)
    if name == "auto":
        name = "device" if in_memory else "torch"
    if name == "torch":
        return TorchLoader(split, view, plan)
    if not (isinstance(split, ArraySplit) and isinstance(view, ShiftFlip | Whole)):
        raise UserError(
            f"--loader device keeps pictures of one size in memory; {split.name} has files: use --loader torch"
        )
    return DeviceLoader(split, view, plan)
