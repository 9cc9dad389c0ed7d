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
        self.norms: dict[str, nn.BatchNorm2d] = {}
        self.pooled_width = outputs.pooled.shape[1] if outputs.pooled.dim() == 2 else 0

    @property
    def head(self) -> nn.Linear:
        assert self._head is not None, "the vector has no head"
        return self._head

    def forward(self, _images: Tensor, _taps: tuple[str, ...] = ()) -> Outputs:
        return self.outputs

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        return self.norms[tap]

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
    reached: float = 0.0  # what the reference itself was computed to, where that is less than our tolerance

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


def maps(v: Vector, key: str, kind: str = "") -> dict[str, Tensor]:
    """in/KEY_0, in/KEY_1, .. as taps: stage1, stage2, .."""
    count = sum(f"in/{key}_{k}" in v for k in range(len(v.arrays)))
    return {f"stage{k + 1}{kind}": leaf(v[f"in/{key}_{k}"]) for k in range(count)}


def pairwise(name: str, v: Vector, kind: str = "", **hyper: Any) -> Case:
    """A method of pairs of maps with one term each: feats_s_k against feats_t_k gives part_k."""
    s_maps, t_maps = maps(v, "feats_s", kind), maps(v, "feats_t", kind)
    student, teacher = said(taps=s_maps), said(taps={tap: x.detach() for tap, x in t_maps.items()})
    first = next(iter(s_maps.values()))
    method = build(name, student, teacher, batch(1).targets, 2, task_weight=0.0, weight=1.0, **hyper).to(
        v.dtype
    )
    outputs = {"loss": "loss"} | {f"part_{k}": f"{name}_stage{k + 1}" for k in range(len(s_maps))}
    inputs = {f"feats_s_{k}": x for k, x in enumerate(s_maps.values())}
    return Case(method, student, teacher, batch(len(first)), inputs, outputs)


def fill(module: nn.Module, v: Vector, prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Loads w/PREFIX* in order, whatever we call the entries. Our parameters and buffers by the vector's names."""
    names = [name for name in v.names("w/") if name.startswith(prefix)]
    ours = list(module.state_dict(keep_vars=True).items())
    if not any(name.endswith("num_batches_tracked") for name in names):
        ours = [(key, tensor) for key, tensor in ours if not key.endswith("num_batches_tracked")]
    weights: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, (key, tensor) in zip(names, ours, strict=True):
        assert name.rpartition(".")[2] == key.rpartition(".")[2], f"{name} is not our {key}"
        with torch.no_grad():
            tensor.copy_(v[f"w/{name}"].reshape(tensor.shape))
        (weights if isinstance(tensor, nn.Parameter) else buffers)[name] = tensor
    return weights, buffers


def linear(v: Vector, name: str) -> nn.Linear:
    """The classifier w/NAME."""
    weight = v[f"w/{name}.weight"]
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=v.dtype)
    made.load_state_dict({"weight": weight, "bias": v[f"w/{name}.bias"]})
    return made


def output_of(module: nn.Module) -> Callable[[Terms], Tensor]:
    """What `module` said last, for a Case's outputs."""
    last: list[Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: last.append(output))
    return lambda _terms: last[-1]


def build(
    name: str,
    student: Said,
    teacher: Said,
    labels: Tensor,
    num_classes: int,
    batch_size: int = 1,
    **hyper: Any,
) -> Method:
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
        batch_size=batch_size,
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
