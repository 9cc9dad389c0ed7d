"""The optimizer with two momenta against its reference, and what only a GPU can show of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastkd.engine import optim
from fastkd.engine.dot import DOT
from loaders.errors import UserError
from tests.contract.no_host_sync import NoHostSync

VECTORS = Path(os.environ.get("FASTKD_ORACLES", Path(__file__).parent / "vectors"))
FILES = sorted(VECTORS.glob("dot_optimizer*.npz"))


def replay(v: dict[str, np.ndarray], dtype: torch.dtype, device: str = "cpu") -> list[dict[str, Tensor]]:
    """The parameters after each step, under the vector's names."""

    def tensor(key: str) -> Tensor:
        return torch.from_numpy(v[key]).to(device, dtype)

    names = [key.removeprefix("in/param_") for key in v if key.startswith("in/param_")]
    params = {name.removeprefix("kd_"): nn.Parameter(tensor(f"in/param_{name}")) for name in names}
    # of the fused kernel on a GPU the rate is float32
    lr = torch.tensor(v["hp/lr"].item(), dtype=dtype if device == "cpu" else torch.float32, device=device)
    momentum, delta, decay = (v[f"hp/{name}"].item() for name in ("momentum", "delta", "weight_decay"))
    dot = DOT(params.values(), lr, momentum, delta, decay)
    seen = []
    for step in range(v["hp/steps"].item()):
        for kind, done in (("kd", dot.hold), ("ce", dot.step)):
            for name, p in params.items():
                key = f"in/grad_{kind}_{step}_{name}"
                p.grad = tensor(key) if key in v else None
            done()
        seen.append({name: p.detach().clone() for name, p in params.items()})
    return seen


def compare(v: dict[str, np.ndarray], seen: list[dict[str, Tensor]], tolerance: float) -> None:
    compared = 0
    for step, params in enumerate(seen):
        for name, p in params.items():
            expected = torch.from_numpy(v[f"out/param_{step}_{name}"])
            error = (p.double().cpu() - expected).abs().max() / expected.abs().max()
            assert error <= tolerance, f"{name} after step {step}: {error:.1e}"
            compared += 1
    assert compared == sum(key.startswith("out/param_") for key in v)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_reference(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    v = dict(np.load(path))
    compare(v, replay(v, dtype), tolerance)


@pytest.mark.parametrize(
    "key", ["hp/delta", "hp/momentum", "hp/weight_decay", "hp/lr", "in/grad_kd_0_0", "in/grad_ce_0_0"]
)
def test_a_changed_number_goes_red(key: str) -> None:
    v = dict(np.load(FILES[0]))
    v[key] = v[key] * 1.01
    with pytest.raises(AssertionError, match="after step"):
        compare(v, replay(v, torch.float64), 1e-9)


def two_losses(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net(x)
    return y.square().mean(), (y - 1).abs().mean()


def one_step(dot: DOT, net: nn.Module, x: Tensor) -> None:
    task, distillation = two_losses(net, x)
    distillation.backward(retain_graph=True)
    dot.hold()
    task.backward()
    dot.step()
    dot.zero_grad(set_to_none=True)


def test_without_delta_it_is_plain_momentum() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    dot = DOT(ours.parameters(), torch.tensor(0.1), 0.9, 0.0, 5e-4)
    usual = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(4):
        x = torch.randn(7, 5)
        one_step(dot, ours, x)
        usual.zero_grad()
        sum(two_losses(plain, x), torch.zeros(())).backward()
        usual.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def test_restored_state_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(0)
    batches, ends = torch.randn(6, 7, 5), []
    for pause in (False, True):
        torch.manual_seed(1)
        net, lr = nn.Linear(5, 3), torch.tensor(0.1)
        dot = DOT(net.parameters(), lr, 0.9, 0.075, 5e-4)
        for k, x in enumerate(batches):
            if pause and k == 3:
                state = dot.state_dict()
                dot = DOT(net.parameters(), lr, 0.9, 0.075, 5e-4)
                optim.load_state(dot, state, lr)
            one_step(dot, net, x)
        ends.append(net.weight.detach())
    assert torch.equal(*ends)


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the fused update itself reads the rate on the host, on a GPU it does not."""
    update: Callable[..., None] = torch._fused_sgd_

    def unwatched(*args: object, **named: object) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            update(*args, **named)

    monkeypatch.setattr(torch, "_fused_sgd_", unwatched)
    net, x = nn.Linear(5, 3), torch.randn(7, 5)
    dot = DOT(net.parameters(), torch.tensor(0.1), 0.9, 0.075, 5e-4)
    for _ in range(2):
        with NoHostSync():
            one_step(dot, net, x)


@pytest.mark.parametrize(("momentum", "delta"), [(0.9, -0.1), (0.9, 0.1), (0.05, 0.075), (0.9, float("nan"))])
def test_momenta_that_cannot_be_are_refused(momentum: float, delta: float) -> None:
    with pytest.raises(UserError, match="delta"):
        DOT([nn.Parameter(torch.zeros(1))], torch.tensor(0.1), momentum, delta, 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equals_the_reference_on_a_gpu(path: Path) -> None:
    v = dict(np.load(path))
    compare(v, replay(v, torch.float32, "cuda"), 1e-5)


@pytest.mark.gpu
def test_a_replayed_graph_equals_the_steps_one_by_one() -> None:
    """The rate too is read anew by each replay."""
    torch.manual_seed(0)
    rates, x = (0.1, 0.05, 0.2, 0.01), torch.randn(7, 5, device="cuda")
    ends = []
    for replayed in (False, True):
        torch.manual_seed(1)
        net, lr = nn.Linear(5, 3).cuda(), torch.tensor(0.1, device="cuda")
        dot = DOT(net.parameters(), lr, 0.9, 0.075, 5e-4)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            one_step(dot, net, x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        if replayed:
            with torch.cuda.graph(graph):
                one_step(dot, net, x)
        for rate in rates:
            lr.fill_(rate)
            graph.replay() if replayed else one_step(dot, net, x)
        ends.append(net.weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])
