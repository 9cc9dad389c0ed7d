"""The registry: names, initial weights, and which network a file of weights belongs to."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastkd import models
from fastkd.models.resnet import ResNet
from fastkd.models.sizes import FAMILIES
from fastkd.models.vgg import VGG
from loaders.errors import UserError

# the smallest of each family
SAMPLES = [next(iter(sizes)) for sizes in FAMILIES.values()]
every_sample = pytest.mark.parametrize("name", SAMPLES)


# ---- initialisation


@every_sample
def test_initialisation_follows_torchs_generator_alone(name: str) -> None:
    elsewhere = random.getstate(), repr(np.random.get_state())
    first, second, third = (_drawn(name, seed) for seed in (5, 5, 6))
    assert elsewhere == (random.getstate(), repr(np.random.get_state()))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["stem"], third["stem"])


def _drawn(name: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    net = models.build(name, 7)
    return {**net.state_dict(), "stem": next(net.parameters())}


@every_sample
def test_initial_scales(name: str) -> None:
    torch.manual_seed(0)
    net = models.build(name, 100)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        expected = math.sqrt(2 / (conv.out_channels * math.prod(conv.kernel_size)))
        spread = (
            4 * expected / math.sqrt(2 * conv.weight.numel())
        )  # four standard errors of a standard deviation
        assert abs(conv.weight.std().item() - expected) < spread
        assert conv.bias is None or not conv.bias.any()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()
    bound = 1 / math.sqrt(net.head.in_features)  # torch's own choice for a linear layer: uniform in +-bound
    std = 0.01 if isinstance(net, VGG) else bound / math.sqrt(3)
    assert net.head.weight.std().item() == pytest.approx(std, rel=0.03)
    assert bool(net.head.bias.any()) is isinstance(net, ResNet)


# ---- the registry


def test_names_come_without_torch() -> None:
    program = "import sys; from fastkd import models; models.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(UserError) as refusal:
        models.build("resnet9", 100)
    assert str(refusal.value) == "unknown model 'resnet9'; did you mean 'resnet8'?"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("WRN-16-2", "wrn_16_2"), ("wrn40-1", "wrn_40_1"), ("ResNet8x4", "resnet8x4"), ("vgg13_bn", "vgg13")],
)
def test_other_spellings(spelling: str, name: str) -> None:
    assert models.canonical(spelling) == name
    assert models.build(spelling, 10).name == name


@pytest.mark.parametrize(
    ("families", "aliases"),
    [
        ({"a": {"net8": 1}, "b": {"net8": 1}}, {}),
        ({"a": {"net8": 1}, "b": {"Net_8": 1}}, {}),
        ({"a": {"net8": 1, "NET8": 1}}, {}),
        ({"a": {"net8": 1, "net9": 1}}, {"net-8": "net9"}),
    ],
)
def test_two_models_of_one_name_are_refused(families: dict, aliases: dict) -> None:
    with pytest.raises(ValueError, match="would name both"):
        models.merge(families, aliases)


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("num_classes", [10, 100])
def test_weights_are_identified(name: str, num_classes: int) -> None:
    with torch.device("meta"):
        state = models.build(name, num_classes).state_dict()
    assert models.identify(state) == [name]
    assert models.num_classes_of(state) == num_classes


def test_foreign_weights_are_not_identified() -> None:
    net = models.build("resnet8", 10)
    state = net.state_dict()
    key = "layer1.0.conv1.weight"
    headless = {k: v for k, v in state.items() if k != "fc.bias"}
    reshaped = {**state, key: torch.zeros(16, 16, 1, 1)}
    lacking = {k: v for k, v in state.items() if k != key}
    extra = {**state, "layer4.weight": torch.zeros(1)}
    checkpoint = {"epoch": 240, "model": state}
    uneven = {**state, "fc.bias": torch.zeros(11)}
    for foreign in ({}, headless, reshaped, lacking, extra, uneven, nn.Linear(3, 2).state_dict(), checkpoint):
        assert models.identify(foreign) == []
        with pytest.raises(UserError, match="fit no known model"):
            models.num_classes_of(foreign)


def test_identifying_draws_no_random_numbers() -> None:
    models._signature.cache_clear()
    before = torch.get_rng_state()
    models.identify({})
    assert torch.equal(before, torch.get_rng_state())
