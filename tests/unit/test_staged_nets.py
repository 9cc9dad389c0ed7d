"""What a network promises whatever its family: taps, partial runs, precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastkd import models
from fastkd.models.base import StagedNet
from fastkd.models.resnet import ResNet
from fastkd.models.sizes import FAMILIES
from fastkd.models.vgg import VGG
from fastkd.models.wrn import WideResNet
from loaders.errors import UserError

# the smallest of each family, and one whose first stage widens
SAMPLES = [*(next(iter(sizes)) for sizes in FAMILIES.values()), "resnet8x4", "wrn_16_2"]
every_sample = pytest.mark.parametrize("name", SAMPLES)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A thread pool costs these few images more than it brings, several times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name: str, image_size: int = 16, batch: int = 3) -> tuple[StagedNet, Tensor]:
    """A float64 network whose batch norms are not the identity, and images for it."""
    torch.manual_seed(0)
    net = models.build(name, num_classes=7, image_size=image_size).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net, torch.randn(batch, 3, image_size, image_size, dtype=torch.float64)


# ---- taps


@every_sample
def test_only_the_taps_asked_for_come_back(name: str) -> None:
    net, images = make(name)
    net.eval()
    assert net(images).taps == {}
    asked = ("stage3", "stem", "stage1.pre")
    assert tuple(net(images, asked).taps) == asked


def test_an_unknown_tap_is_refused_with_the_known_ones() -> None:
    net, images = make("resnet8")
    with pytest.raises(
        UserError, match=r"model 'resnet8' has no tap 'stage4'; its taps: stem, stage1, stage1\.pre"
    ):
        net(images, ("stem", "stage4"))


@every_sample
@pytest.mark.parametrize("image_size", [15, 16, 64])
def test_declared_shapes_are_the_computed_ones(name: str, image_size: int) -> None:
    with torch.device("meta"):
        net = models.build(name, 7, image_size)
        out = net(torch.empty(2, 3, image_size, image_size), tuple(net.taps))
    assert {tap: tuple(x.shape[1:]) for tap, x in out.taps.items()} == dict(net.taps)
    assert out.pooled.shape == (2, net.pooled_width) == (2, net.head.in_features)


def test_vgg_pools_a_fourth_time_at_64_only() -> None:
    last_two = ["stage3", "stage4"]
    sides = {
        size: [models.build("vgg8", 7, size).taps[tap].height for tap in last_two] for size in (32, 64, 96)
    }
    assert sides == {32: [4, 4], 64: [8, 4], 96: [12, 12]}


def naive_taps(net: StagedNet, x: Tensor) -> dict[str, Tensor]:
    """Every tap from the net's own layers, nothing in place; wrn runs the batch norms of its taps again."""
    taps: dict[str, Tensor] = {}
    block: Any
    norm: Any
    before = x
    if isinstance(net, ResNet):
        x = taps["stem"] = F.relu(net.bn1(net.conv1(x)))
        for stage, layer in enumerate((net.layer1, net.layer2, net.layer3), 1):
            for block in layer:
                shortcut = x if block.downsample is None else block.downsample(x)
                before = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + shortcut
                x = F.relu(before)
            taps |= {f"stage{stage}": x, f"stage{stage}.pre": before}
    elif isinstance(net, WideResNet):
        x = taps["stem"] = net.conv1(x)
        after = (net.block2.layer[0].bn1, net.block3.layer[0].bn1, net.bn1)
        for stage, (group, norm) in enumerate(
            zip((net.block1, net.block2, net.block3), after, strict=True), 1
        ):
            for block in group.layer:
                active = F.relu(block.bn1(x))
                shortcut = x if block.convShortcut is None else block.convShortcut(active)
                x = block.conv2(F.relu(block.bn2(block.conv1(active)))) + shortcut
            taps |= {f"stage{stage}": x, f"stage{stage}.pre": norm(x)}
    else:
        assert isinstance(net, VGG)
        x = taps["stem"] = F.relu(net.block0(x))
        for stage, block in enumerate((net.block1, net.block2, net.block3, net.block4), 1):
            before = block(F.max_pool2d(x, 2) if stage < 4 else x)
            x = F.relu(before)
            taps |= {f"stage{stage}": x, f"stage{stage}.pre": before}
    return taps


@every_sample
@pytest.mark.parametrize("training", [False, True])
def test_taps_and_their_gradients_equal_a_plain_recomputation(name: str, training: bool) -> None:
    net, images = make(name)
    net.train(training)
    twin = copy.deepcopy(net)
    out, expected = net(images, tuple(net.taps)), naive_taps(twin, images)
    assert out.taps.keys() == expected.keys()
    for tap, value in expected.items():
        torch.testing.assert_close(out.taps[tap], value, rtol=1e-10, atol=1e-10, msg=tap)
    # odd powers keep the sign: an activation written over a .pre tap would show here
    for taps in (out.taps, expected):
        torch.stack([x.pow(3).mean() for x in taps.values()]).sum().backward()
    for (key, found), (_, wanted) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        if found.grad is not None or wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-8, atol=1e-10, msg=key)


@every_sample
def test_a_training_forward_updates_each_batch_norm_once(name: str) -> None:
    net, images = make(name)
    net.train()
    net(images, tuple(net.taps))
    net(images)
    counts = {key: int(n) for key, n in net.state_dict().items() if key.endswith("num_batches_tracked")}
    assert set(counts.values()) == {2}, counts


# ---- partial runs


@every_sample
def test_partial_runs_meet_at_the_taps(name: str) -> None:
    net, images = make(name)
    net.eval()
    before = images.clone()
    n = net.n_segments
    with torch.no_grad():
        out = net(images, net.segments[:-1])
        assert torch.equal(net.run(images, 0, n), out.logits)
        assert torch.equal(net.head(out.pooled), out.logits)
        for k, segment in enumerate(net.segments[:-1], 1):
            part = net.run(images, 0, k)
            assert torch.equal(part, out.taps[segment]), segment
            assert torch.equal(net.run(part, k, n), out.logits), segment
            assert torch.equal(part, out.taps[segment]), f"{segment} was written over"
            assert net.run(part, k, k) is part
    assert torch.equal(images, before)


def test_a_run_outside_the_segments_is_refused() -> None:
    net, images = make("resnet8")
    for start, stop in ((-1, 2), (0, 6), (3, 2)):
        with pytest.raises(UserError, match=r"it has 0 stem, 1 stage1, 2 stage2, 3 stage3, 4 head"):
            net.run(images, start, stop)


def test_images_of_another_size_are_refused() -> None:
    net = models.build("vgg8", 7)
    images = torch.zeros(1, 3, 16, 16)
    message = "model 'vgg8' was built for 32x32 images, got 16x16"
    with pytest.raises(UserError, match=message):
        net(images)
    with pytest.raises(UserError, match=message):
        net.run(images, 0, 2)
    with pytest.raises(UserError, match="model 'vgg8' shrinks 7x7 images to nothing"):
        models.build("vgg8", 7, image_size=7)


# ---- precision and layout


@every_sample
def test_outputs_are_float32_whatever_the_network_runs_in(name: str) -> None:
    net, images = make(name)
    taps = tuple(net.taps)
    for tensor in _tensors(net(images, taps)):
        assert tensor.dtype == torch.float64
    net, images = net.float(), images.float()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = net(images, taps)
        assert net.run(images, 0, 2).dtype == torch.bfloat16  # the premise: it did run in half precision
        assert net.run(images, 0, net.n_segments).dtype == torch.float32
    for tensor in (*_tensors(autocast), *_tensors(net.bfloat16()(images.bfloat16(), taps))):
        assert tensor.dtype == torch.float32


@every_sample
def test_channels_last_gives_the_same_and_stays_so(name: str) -> None:
    net, images = make(name)
    taps = tuple(net.taps)
    plain = net(images, taps)
    last = torch.channels_last
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=last)
    turned = net(images.contiguous(memory_format=last), taps)
    for found, wanted in zip(_tensors(turned), _tensors(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert all(x.is_contiguous(memory_format=last) for x in turned.taps.values())


def _tensors(out) -> list[Tensor]:
    return [out.logits, out.pooled, *out.taps.values()]


# ---- batch norms


@every_sample
def test_norm_of_is_what_shifts_the_tap(name: str) -> None:
    net, images = make(name)
    net.eval()
    before = net(images, [tap for tap in net.taps if tap.endswith(".pre")]).taps
    for tap in before:
        norm = net.norm_of(tap)
        with torch.no_grad():
            norm.bias.add_(1)
            torch.testing.assert_close(net(images, [tap]).taps[tap], before[tap] + 1)
            norm.bias.sub_(1)


def test_a_net_that_names_no_norm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = make(SAMPLES[0])
    monkeypatch.delattr(type(net), "norm_of")
    with pytest.raises(UserError, match=r"does not say which batch norm makes its tap 'stage1\.pre'"):
        net.norm_of("stage1.pre")
