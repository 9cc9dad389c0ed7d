"""Every network of the registry against the references: checkpoint layout, shapes, golden forwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fastkd import models
from fastkd.models.base import StagedNet
from fastkd.outputs import Outputs
from tests.parity.fill import fill_, image

VECTORS = Path(os.environ.get("FASTKD_ORACLES", Path(__file__).parent / "vectors"))
TOLERANCE = 1e-9  # float64, relative to the largest entry


class Measured(NamedTuple):
    """What the reference's network of this name was found to be."""

    repo: str
    name: str
    facts: dict

    def __str__(self) -> str:
        return f"{self.repo}-{self.name}"


def _measured() -> list[Measured]:
    repos = json.loads((VECTORS / "models_cifar.json").read_text())
    return [
        Measured(repo, name, facts)
        for repo, entries in repos.items()
        if repo != "_about"
        for name, facts in entries.items()
        if name in models.names()
    ]


MEASURED = _measured()
FORWARDS = dict(np.load(VECTORS / "models_cifar_forward.npz"))
FORWARD_NAMES = [name for name in models.names() if f"out/{name}/logits" in FORWARDS]
CORNERS = [
    path
    for path in sorted(VECTORS.glob("model_forward__*.npz"))
    if path.stem.removeprefix("model_forward__") in models.names()
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A thread pool costs these few images more than it brings, several times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_model_is_measured() -> None:
    assert set(models.names()) == {case.name for case in MEASURED} == set(FORWARD_NAMES)
    assert CORNERS


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_checkpoints_of_the_reference_fit(case: Measured) -> None:
    with torch.device("meta"):
        net = models.build(case.name, case.facts["num_classes"], case.facts["input"][-1])
    rows = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in net.state_dict().items()
    ]
    expected = [[key, shape, dtype.removeprefix("torch.")] for key, shape, dtype in case.facts["state_dict"]]
    assert rows == expected
    assert sum(p.numel() for p in net.parameters()) == case.facts["num_parameters"]


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_tap_shapes(case: Measured) -> None:
    """Declared, computed and the reference's shapes are the same, before the activation too."""
    batch, _, _, size = case.facts["input"]
    with torch.device("meta"):
        net = models.build(case.name, case.facts["num_classes"], size)
        out = net(torch.empty(case.facts["input"]), tuple(net.taps))
    declared = {name: [batch, *shape] for name, shape in net.taps.items()}
    assert {name: list(tap.shape) for name, tap in out.taps.items()} == declared
    *maps, pooled = case.facts["feat_shapes"]
    assert [declared[segment] for segment in net.segments[:-1]] == maps
    assert list(out.pooled.shape) == pooled == [batch, net.pooled_width]
    assert list(out.logits.shape) == [batch, case.facts["num_classes"]] == [batch, net.num_classes]
    if case.facts.get("preact_feat_shapes"):
        _, *pre, _ = case.facts["preact_feat_shapes"]
        assert [declared[f"{stage}.pre"] for stage in net.segments[1:-1]] == pre


@pytest.mark.parametrize("name", FORWARD_NAMES)
def test_golden_forward(name: str) -> None:
    expected = {
        key.rpartition("/")[2]: value for key, value in FORWARDS.items() if key.startswith(f"out/{name}/")
    }
    net = _filled(name, expected["logits"].shape[1], int(FORWARDS["hp/weight_seed"]))
    out = _forward(net, image(int(FORWARDS["hp/batch"]), int(FORWARDS["hp/input_seed"])))
    _assert_close(out.logits, expected["logits"])
    features = _features(net, out)
    # a mean can be near 0: its error is measured against the mean of the absolute values
    scale = expected["feat_absmean"]
    for statistic, found in (
        ("feat_mean", [f.mean().item() for f in features]),
        ("feat_absmean", [f.abs().mean().item() for f in features]),
    ):
        assert len(found) == len(scale)
        assert np.all(np.abs(np.array(found) - expected[statistic]) <= TOLERANCE * scale), statistic
    first = expected["pooled_feat"]
    _assert_close(out.pooled[:, : first.shape[1]], first)


@pytest.mark.parametrize("path", CORNERS, ids=lambda path: path.stem)
def test_golden_corner_of_each_feature(path: Path) -> None:
    golden = dict(np.load(path))
    seed, batch = int(golden["hp/weight_seed"]), int(golden["hp/batch"])
    net = _filled(path.stem.removeprefix("model_forward__"), golden["out/logits"].shape[1], seed)
    weights = net.state_dict()
    for key in (key for key in golden if key.startswith("w_head/")):
        filled = weights[key.removeprefix("w_head/")].flatten()[: golden[key].size]
        assert np.array_equal(filled.float().numpy(), golden[key]), key
    assert np.array_equal(
        image(batch, seed).flatten()[: golden["in/x_head"].size].numpy(), golden["in/x_head"]
    )

    out = _forward(net, image(batch, seed))
    _assert_close(out.logits, golden["out/logits"])
    for index, feature in enumerate(_features(net, out)):
        mean, corner = golden[f"out/feat_{index}_mean"], golden[f"out/feat_{index}_corner"]
        assert abs(feature.mean().item() - mean) <= TOLERANCE * feature.abs().mean().item()
        _assert_close(feature.flatten(1)[:, : corner.shape[1]], corner)
    assert f"out/feat_{index + 1}_mean" not in golden


def test_a_perturbed_weight_is_noticed() -> None:
    name = FORWARD_NAMES[0]
    expected = FORWARDS[f"out/{name}/logits"]
    net = _filled(name, expected.shape[1], int(FORWARDS["hp/weight_seed"]))
    with torch.no_grad():
        next(net.parameters())[0, 0, 0, 0] += 1e-6
    out = _forward(net, image(int(FORWARDS["hp/batch"]), int(FORWARDS["hp/input_seed"])))
    with pytest.raises(AssertionError):
        _assert_close(out.logits, expected)


def _filled(name: str, num_classes: int, seed: int) -> StagedNet:
    """Filled in float32, run in float64, as the golden forwards were."""
    with torch.device("meta"):
        net = models.build(name, num_classes)
    net = net.to_empty(device="cpu").eval()  # every entry is about to be written: drawing them is wasted
    fill_(net, seed)
    return net.double()


@torch.no_grad()
def _forward(net: StagedNet, images: Tensor) -> Outputs:
    out: Outputs = net(images, net.segments[:-1])
    return out


def _features(net: StagedNet, out: Outputs) -> list[Tensor]:
    """In the references' order: stem, stages, pooled."""
    return [*(out.taps[segment] for segment in net.segments[:-1]), out.pooled]


def _assert_close(found: Tensor, expected: np.ndarray) -> None:
    assert tuple(found.shape) == expected.shape
    assert found.dtype == torch.float64
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, error
