"""What a golden vector becomes: a method of the registry, its inputs, and where its numbers are to be found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastkd import config, methods
from fastkd.engine.distiller import Distiller, Precision
from fastkd.method import Method, MethodConfig, Setting
from fastkd.models.base import StagedNet
from fastkd.outputs import Clock, Network, Outputs, TapShape, Terms
from loaders.contract import Batch, DataSpec

CPU = torch.device("cpu")


class Vector:
    """An npz file; floats come in the asked dtype."""

    def __init__(self, arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
        self.arrays, self.dtype = dict(arrays), dtype

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(np.array(self.arrays[key]))
        return value.to(self.dtype) if value.is_floating_point() else value

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def get(self, key: str) -> Tensor | None:
        return self[key] if key in self.arrays else None

    def number(self, key: str) -> Any:
        return self.arrays[key].item()

    def names(self, prefix: str) -> list[str]:
        return [key.removeprefix(prefix) for key in self.arrays if key.startswith(prefix)]


class Said(nn.Module):
    """A network that was already run: it says what the vector says."""

    def __init__(self, outputs: Outputs, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.outputs = outputs
        self.taps = {name: TapShape(*tap.shape[1:]) for name, tap in outputs.taps.items() if tap.dim() == 4}
        self._head = head
        self.pooled_width = outputs.pooled.shape[1] if outputs.pooled.dim() == 2 else 0

    @property
    def head(self) -> nn.Linear:
        assert self._head is not None, "the vector has no head"
        return self._head

    def forward(self, _images: Tensor, _taps: tuple[str, ...] = ()) -> Outputs:
        return self.outputs

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        raise AssertionError("no method of the vectors runs a part of this network")


@dataclass
class Case:
    method: Method
    student: Said
    teacher: Said
    batch: Batch
    inputs: dict[str, Tensor]  # the vector's in/ name -> the leaf whose gradient is compared
    # the vector's out/ name -> a term of ours, or what makes it of our terms
    outputs: Mapping[str, str | Callable[[Terms], Tensor]]
    weights: dict[str, Tensor] = field(default_factory=dict)  # w/ name -> our parameter
    buffers: dict[str, Tensor] = field(default_factory=dict)  # after/ name -> our buffer
    factors: dict[str, float] = field(
        default_factory=dict
    )  # out/ name -> what our term is multiplied by there
    values: dict[str, Tensor] = field(default_factory=dict)  # out/ name -> what is no term of ours
    epoch: int = 1

    def run(self) -> Terms:
        distiller = Distiller(cast(StagedNet, self.student), self.method, Precision(CPU, torch.float64))
        clock = Clock.start(CPU)
        clock.epoch.fill_(self.epoch)
        terms, _ = distiller(self.batch, self.teacher.outputs, clock)
        return cast(Terms, terms)

    def output(self, name: str, terms: Terms) -> Tensor:
        found = self.outputs[name]
        return found(terms) if callable(found) else terms[found]


def leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_()


def said(
    logits: Tensor | None = None,
    pooled: Tensor | None = None,
    taps: Mapping[str, Tensor] | None = None,
    head: nn.Linear | None = None,
) -> Said:
    nothing = torch.zeros(0)
    outputs = Outputs(
        nothing if logits is None else logits, nothing if pooled is None else pooled, dict(taps or {})
    )
    return Said(outputs, head)


def build(name: str, student: Said, teacher: Said, labels: Tensor, num_classes: int, **hyper: Any) -> Method:
    """The method as training builds it, in the dtype of the vector."""
    cls = methods.load(name)
    own: MethodConfig = config.build(cls.Config, hyper, "method")
    data = DataSpec(
        name="vector", num_samples=len(labels), num_classes=num_classes, image_size=32, labels=labels, views=1,
        mean=(0, 0, 0), std=(1, 1, 1), class_names=tuple(map(str, range(num_classes))),
    )  # fmt: skip
    setting = Setting(
        student=cast(Network, student),
        teacher=cast(Network, teacher),
        data=data,
        batch_size=1,
        gather=lambda rows: rows,
    )
    return cls(own, setting)


def batch(size: int, targets: Tensor | None = None, indices: Tensor | None = None) -> Batch:
    zeros = torch.zeros(size, dtype=torch.int64)
    return Batch(
        torch.zeros(size, 3, 1, 1),
        zeros if targets is None else targets,
        zeros if indices is None else indices,
        zeros,
    )
