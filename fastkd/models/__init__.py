"""The model registry: names, built networks, and which network a file of weights belongs to.

Importing this package does not import torch; the tables are data in sizes.py, torch comes with a build.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fastkd.models.sizes import ALIASES, FAMILIES
from loaders.errors import UserError, nearest

if TYPE_CHECKING:
    from fastkd.models.base import StagedNet

__all__ = ["build", "canonical", "identify", "names", "num_classes_of"]


def fold(name: str) -> str:
    """WRN-40-2, wrn40-2 and wrn_40_2 are one name."""
    return name.lower().replace("-", "").replace("_", "")


def merge(
    families: Mapping[str, Mapping[str, object]], aliases: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Folded spelling -> (family, model). Two models that differ in case, '-' or '_' only are refused."""
    table: dict[str, tuple[str, str]] = {}
    rows = [(name, family, name) for family, sizes in families.items() for name in sizes]
    home = {name: family for name, family, _ in rows}
    rows += [(alias, home[name], name) for alias, name in aliases.items()]
    for spelling, family, name in rows:
        taken = table.setdefault(fold(spelling), (family, name))
        if taken != (family, name):
            raise ValueError(f"'{spelling}' would name both {family}/{name} and {taken[0]}/{taken[1]}")
    return table


_TABLE = merge(FAMILIES, ALIASES)


def names() -> list[str]:
    """Every model, family by family."""
    return [name for sizes in FAMILIES.values() for name in sizes]


def canonical(name: str) -> str:
    """The registry's spelling of a model's name."""
    return _find(name)[1]


def build(name: str, num_classes: int, image_size: int = 32) -> StagedNet:
    """A fresh network on torch's default device, drawn from torch's global generator."""
    family, model = _find(name)
    module = importlib.import_module(f"fastkd.models.{family}")
    net: StagedNet = module.build(model, FAMILIES[family][model], num_classes, image_size)
    return net


def identify(state_dict: Mapping[str, object]) -> list[str]:
    """The models whose keys and shapes are those of `state_dict`, for whatever number of classes it has."""
    found = _shapes(state_dict)
    return [name for name in names() if _signature(name).classes_in(found) is not None]


def num_classes_of(state_dict: Mapping[str, object]) -> int:
    """The number of classes of the head in `state_dict`."""
    found = _shapes(state_dict)
    for name in names():
        classes = _signature(name).classes_in(found)
        if classes is not None:
            return classes
    raise UserError(f"these {len(found)} entries fit no known model; known: {', '.join(names())}")


def _shapes(state_dict: Mapping[str, object]) -> dict[str, tuple[int, ...] | None]:
    """None for what is no tensor: a whole checkpoint, with its epoch and options, fits no model."""
    from torch import Tensor  # here: names() must not pay for it

    return {key: tuple(v.shape) if isinstance(v, Tensor) else None for key, v in state_dict.items()}


class _Signature(NamedTuple):
    """Shapes by key of everything but the head, whose rows depend on the data set."""

    body: dict[str, tuple[int, ...] | None]
    head: str  # prefix of the head's keys
    width: int

    def classes_in(self, found: Mapping[str, tuple[int, ...] | None]) -> int | None:
        weight, bias = f"{self.head}.weight", f"{self.head}.bias"
        rows = found.get(bias)
        if rows is None or len(rows) != 1 or found.get(weight) != (rows[0], self.width):
            return None
        rest = {key: shape for key, shape in found.items() if key not in (weight, bias)}
        return rows[0] if rest == self.body else None


@functools.cache
def _signature(name: str) -> _Signature:
    import torch  # here for the same reason

    with torch.device("meta"):  # shapes without memory and without drawing random numbers
        net = build(name, num_classes=1)
    head = next(key for key, module in net.named_modules() if module is net.head)
    body = {key: shape for key, shape in _shapes(net.state_dict()).items() if key.rpartition(".")[0] != head}
    return _Signature(body, head, net.head.in_features)


def _find(name: str) -> tuple[str, str]:
    found = _TABLE.get(fold(name))
    if found is None:
        raise UserError(f"unknown model '{name}'{nearest(name, [*names(), *ALIASES])}")
    return found
