"""Every golden vector of a method: value, parts, gradients, and what the call leaves behind."""

from __future__ import annotations

import fnmatch
import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity import cases
from tests.parity.case import Case, Vector

VECTORS = Path(os.environ.get("FASTKD_ORACLES", Path(__file__).parent / "vectors"))
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # relative to the largest entry
CASES: dict[str, Callable[[Vector], Case]] = {
    pattern: case
    for module in pkgutil.iter_modules(cases.__path__)
    for pattern, case in importlib.import_module(f"tests.parity.cases.{module.name}").CASES.items()
}
OF_OTHER_TESTS = (
    "model_forward__*",
    "models_cifar_forward",
    "lr_schedule__*",
    "trainstep__*",
    "ctkd_schedule",
    "dot_optimizer",
)


def find(stem: str) -> Callable[[Vector], Case] | None:
    return next((case for pattern, case in CASES.items() if fnmatch.fnmatchcase(stem, pattern)), None)


PENDING = ("sakd_*", "adist_*", "dcgd_*")  # systems that wrap other methods, not there yet
FILES = sorted(path for path in VECTORS.glob("*.npz") if find(path.stem))


def load(path: Path, dtype: torch.dtype) -> Vector:
    with np.load(path, allow_pickle=False) as arrays:
        # one family writes grad_w/ where the others write gradw/
        return Vector({key.replace("grad_w/", "gradw/"): arrays[key] for key in arrays.files}, dtype)


def close(found: Tensor, wanted: np.ndarray, tolerance: float, name: str) -> None:
    expected = torch.from_numpy(np.array(wanted, dtype=np.float64)).reshape(found.shape)
    scale = expected.abs().max()
    if scale < 1e-12:  # zero, or the rounding of one
        scale = torch.ones_like(scale)
    error = ((found.detach().double() - expected).abs().max() / scale).item()
    assert error <= tolerance, f"{name}: {error:.2e} relative to its largest entry"


def case_of(v: Vector) -> Case:
    made = find(v.arrays["name"].item())
    assert made
    return made(v)


def check(v: Vector) -> None:
    case = case_of(v)
    tolerance = max(TOLERANCE[v.dtype], case.reached)
    terms = case.run()
    weight_of_ce = case.method.config.task_weight
    for out, term in case.outputs.items():
        if f"out/{out}" in v:
            value = case.output(out, terms)
            if out.startswith("weighted_"):
                value = value * (weight_of_ce if term == "task" else case.method.config.kd_weight)
            close(value, v.arrays[f"out/{out}"], tolerance, out)
    graded = {f"grad/{name}": x for name, x in case.inputs.items()}
    graded |= {f"gradw/{name}": x for name, x in case.weights.items()}
    wanted = [key for key in v.arrays if key.startswith(("grad/", "gradw/"))]
    assert set(wanted) <= set(graded), "a stored gradient is compared with nothing"
    differentiable = {key: x for key, x in graded.items() if x.requires_grad}
    assert set(wanted) <= set(differentiable)
    gradients: tuple[Tensor | None, ...] = ()
    if differentiable:
        gradients = torch.autograd.grad(
            case.output("loss", terms), list(differentiable.values()), allow_unused=True
        )
    for key, gradient in zip(differentiable, gradients, strict=True):
        if key in wanted:
            none = torch.zeros_like(differentiable[key])
            close(none if gradient is None else gradient, v.arrays[key], tolerance, key)
        else:
            assert gradient is None or not gradient.any(), f"{key} has a gradient, the reference has none"
    for name in v.names("after/"):
        close(case.buffers[name], v.arrays[f"after/{name}"], tolerance, f"after/{name}")


def named(path: Path, dtype: torch.dtype) -> Vector:
    v = load(path, dtype)
    v.arrays["name"] = np.array(path.stem)
    return v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_reference(path: Path, dtype: torch.dtype) -> None:
    check(named(path, dtype))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_changed_input_or_weight_goes_red(path: Path) -> None:
    v = named(path, torch.float64)
    pairs = [("grad/", "in/"), ("gradw/", "w/")]
    keys = [
        into + key for of, into in pairs for key in v.names(of) if np.abs(v.arrays[of + key]).max() > 1e-9
    ]
    keys = keys or ["in/" + key for key in case_of(v).inputs]  # a file without gradients
    assert keys
    for key in keys:
        changed = named(path, torch.float64)
        of = ("grad/" if key.startswith("in/") else "gradw/") + key.split("/", 1)[1]
        largest = np.abs(v.arrays[of if of in v else key]).argmax()
        moved = changed.arrays[key].astype(np.float64)
        moved.flat[largest] += 1e-3
        changed.arrays[key] = moved
        with pytest.raises(AssertionError, match="relative to its largest entry"):
            check(changed)


def test_every_vector_has_a_case() -> None:
    found = [path.stem for path in VECTORS.glob("*.npz")]
    elsewhere = (*OF_OTHER_TESTS, *PENDING)
    assert found
    assert not [
        stem for stem in found if not find(stem) and not any(fnmatch.fnmatchcase(stem, o) for o in elsewhere)
    ]


def test_no_two_methods_share_a_value() -> None:
    values: dict[float, str] = {}
    for path in FILES:
        with np.load(path) as arrays:
            value = round(arrays["out/loss"].item(), 9)
        assert values.setdefault(value, path.stem) == path.stem
