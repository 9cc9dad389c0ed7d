"""The counter hash and what is drawn from it and dealt out: the same in every form, even, without memory."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from loaders.contract import Plan
from loaders.deal import deck, hand, num_batches
from loaders.views import (
    MASK64,
    CentreCrop,
    Recorded,
    ResizedCropFlip,
    ShiftFlip,
    View,
    Whole,
    describe,
    draw,
    mix,
    mix_tensor,
    numbered,
    order,
    pick,
)


def test_mix_is_the_same_for_ints_and_tensors() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF  # splitmix64's published first output from state 0
    words = [0, 1, 2, 63, 2**31, 2**32 + 7, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    words += [mix(n) for n in range(200)]
    signed = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words])
    assert [w & MASK64 for w in mix_tensor(signed).tolist()] == [mix(w) for w in words]


def chi_square(found: Tensor, bins: int) -> float:
    counts = torch.bincount(found, minlength=bins).double()
    expected = len(found) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_views_are_drawn_evenly() -> None:
    """Chi-square over 162 views has mean 161 and deviation 18: 250 is five deviations off."""
    view, samples = ShiftFlip(32), torch.arange(50_000)
    for epoch in range(3):
        assert chi_square(pick(view, 0, epoch, samples), 162) < 250
    of_one_sample = torch.cat([pick(view, 0, epoch, torch.tensor([17])) for epoch in range(4000)])
    assert chi_square(of_one_sample, 162) < 250
    by_seed = torch.cat([pick(view, seed, 0, torch.tensor([17])) for seed in range(4000)])
    assert chi_square(by_seed, 162) < 250
    # Nor does a view foretell the same sample's next one, nor its place in the order.
    now, then = pick(view, 0, 0, samples), pick(view, 0, 1, samples)
    assert chi_square(now // 18 * 9 + then // 18, 81) < 80 + 5 * 12.7
    assert bool((draw(0, 0, 1, samples) != draw(0, 0, 2, samples)).all())


def test_an_order_is_a_shuffle() -> None:
    places = torch.stack([order(seed, 0, 20, torch.device("cpu")) for seed in range(2000)])
    assert all(sorted(row) == list(range(20)) for row in places.tolist())
    for sample in (0, 7, 19):
        where = (places == sample).nonzero()[:, 1]
        assert chi_square(where, 20) < 19 + 5 * 6.2


def test_a_resized_crop_stays_inside_and_flips_half_the_time() -> None:
    view = ResizedCropFlip(32)
    flips: Counter[bool] = Counter()
    areas = []
    for aug_id in draw(0, 0, 2, torch.arange(2000)).tolist():
        top, left, height, width, flip = view.window(aug_id, 50, 70)
        assert 0 <= top <= top + height <= 50
        assert 0 <= left <= left + width <= 70
        assert height > 0 < width
        flips[flip] += 1
        areas.append(height * width / 3500)
    assert 900 < flips[True] < 1100
    assert 0.07 < min(areas) < 0.1
    assert max(areas) > 0.9
    assert view.window(5, 4, 400)[:4] == (0, 197, 4, 5)  # too long for any window: the centre, at ratio 4/3


def test_deal() -> None:
    plan = Plan(
        batch_size=16, seed=3, train=True, device=torch.device("cpu"), dtype=torch.float32, channels_last=True
    )  # fmt: skip
    assert [num_batches(n, plan) for n in (0, 15, 16, 47)] == [0, 0, 1, 2]
    assert [num_batches(n, replace(plan, train=False)) for n in (0, 15, 16, 47)] == [0, 1, 1, 3]
    wide = replace(plan, world=3, rank=2)
    assert [num_batches(n, wide) for n in (47, 48)] == [0, 1]
    assert hand(wide, 1) == slice(80, 96)
    indices, aug_ids = deck(ShiftFlip(8), 100, plan, 5, torch.device("cpu"))
    assert torch.equal(indices, order(3, 5, 100, torch.device("cpu")))
    assert torch.equal(aug_ids, pick(ShiftFlip(8), 3, 5, indices))


def test_recorded_views_are_few_and_always_the_same() -> None:
    view = Recorded(ResizedCropFlip(32), 5)
    samples = torch.arange(20_000)
    by_epoch = [pick(view, 0, epoch, samples) for epoch in range(40)]
    of_each = torch.stack(by_epoch)
    assert max(len(set(column)) for column in of_each[:, :200].T.tolist()) <= 5
    numbers = by_epoch[0] % 5
    assert torch.equal(
        numbered(view, samples, numbers), by_epoch[0]
    )  # the number leads back to the very view
    assert chi_square(numbers, 5) < 4 + 5 * 2.9
    assert len(set(by_epoch[0].tolist())) == 20_000  # no two pictures are cropped alike
    assert int(by_epoch[0].min()) >= 0
    windows = [view.view.window(aug_id, 50, 70) for aug_id in by_epoch[0][:500].tolist()]
    assert 200 < sum(window[4] for window in windows) < 300
    assert torch.equal(pick(Recorded(ResizedCropFlip(32), 5), 7, 3, samples) % 5, draw(7, 3, 2, samples) % 5)


def test_a_description_tells_views_apart() -> None:
    views: list[View] = [
        ShiftFlip(32),
        ShiftFlip(32, pad=2),
        ShiftFlip(64),
        Whole(32),
        CentreCrop(32),
        ResizedCropFlip(32),
    ]
    recorded = [
        Recorded(ResizedCropFlip(32), 5),
        Recorded(ResizedCropFlip(32), 6),
        Recorded(ResizedCropFlip(32, (0.1, 1.0)), 5),
    ]
    told = [json.dumps(describe(view)) for view in [*views, *recorded]]
    assert len(set(told)) == len(told)
    assert json.loads(told[6])["view"]["scale"] == [0.08, 1.0]
