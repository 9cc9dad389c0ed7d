"""The strong view of a picture: what is drawn for it, what is done to it, and the two forms that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loaders.contract import ArraySplit, Plan
from loaders.device import DeviceLoader
from loaders.strong import COLOUR, LEVELS, OPERATIONS, Choices, Strong, change, pick_strong
from loaders.strong_tensors import StrongTensors
from loaders.views import Recorded, ResizedCropFlip, ShiftFlip, Whole, normalisation_table, pick
from tests.contract.no_host_sync import NoHostSync

SIZE, COUNT = 12, 50
CPU = torch.device("cpu")
PLAN = Plan(
    batch_size=16, seed=3, train=True, device=CPU, dtype=torch.float32, channels_last=True, views=2
)  # fmt: skip
NAMES = list(OPERATIONS)
IDENTITY = NAMES.index("identity")


def pictures(count: int, size: int) -> np.ndarray:
    """Noise, and what makes counts and ranges of bytes degenerate: one tone, two, few, black, white, a ramp."""
    draw = np.random.default_rng(0)
    shape = (size, size, 3)
    ramp = np.arange(size)[:, None, None] * 7 % 256
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: draw.integers(0, 256, shape), lambda: np.full(shape, draw.integers(0, 256)),
        lambda: draw.integers(0, 2, shape) * 255, lambda: draw.integers(100, 110, shape), lambda: np.zeros(shape),
        lambda: np.full(shape, 255), lambda: np.broadcast_to(ramp, shape), lambda: draw.normal(128, 30, shape).clip(0, 255),
    ]  # fmt: skip
    return np.stack([kinds[number % len(kinds)]() for number in range(count)]).astype(np.uint8)


# ---- what is drawn


def chi_square(found: Tensor, bins: int) -> float:
    counts = torch.bincount(found, minlength=bins).double()
    expected = len(found) / bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_all_is_drawn_evenly_and_apart() -> None:
    """Chi-square over n bins has mean n - 1 and variance 2 (n - 1): five deviations are allowed."""
    strong, samples = Strong(ShiftFlip(32)), torch.arange(50_000)
    of_one = torch.cat([pick_strong(0, epoch, torch.tensor([17])) for epoch in range(20_000)])
    by_seed = torch.cat([pick_strong(seed, 0, torch.tensor([17])) for seed in range(20_000)])
    weak = pick(ShiftFlip(32), 0, 0, samples)
    for words in (pick_strong(0, 0, samples), pick_strong(0, 1, samples), of_one, by_seed):
        drawn = strong.choices(words)
        shares = [level // (LEVELS // 8) for level in (drawn.first_level, drawn.second_level, *drawn[5:])]
        pairs: list[tuple[Tensor, int, Tensor, int]] = [
            (drawn.first, 14, drawn.second, 14), (drawn.aug_ids, 162, drawn.first, 14), (shares[0], 8, shares[1], 8),
            (shares[2], 8, shares[3], 8), (shares[3], 8, shares[4], 8), (drawn.first, 14, shares[0], 8),
            (drawn.second, 14, shares[1], 8), (drawn.aug_ids % 2, 2, shares[2], 8),
        ]  # fmt: skip
        if len(words) == len(samples):  # nor does the weak view foretell anything
            pairs += [(weak, 162, drawn.aug_ids % 18, 18), (weak, 162, drawn.first, 14)]
        for one, ones, other, others in pairs:
            freedom = ones * others - 1
            assert chi_square(one * others + other, ones * others) < freedom + 5 * (2 * freedom) ** 0.5
    assert not bool((pick_strong(0, 0, samples) == pick_strong(0, 1, samples)).any())
    assert int(pick_strong(0, 0, samples).min()) >= 0


def test_endless_crops_are_drawn_by_the_word_itself() -> None:
    crop, words = ResizedCropFlip(8), pick_strong(0, 0, torch.arange(2000))
    assert torch.equal(Strong(crop).choices(words).aug_ids, words)
    assert Strong.over(Recorded(crop, 3)) == Strong(crop)
    assert Strong.over(ShiftFlip(8)) == Strong(ShiftFlip(8))
    drawn = Strong(crop).choices(words)
    flips = torch.tensor([crop.window(word, 50, 70)[4] for word in words.tolist()]).long()
    for levels in (
        drawn.side,
        drawn.x,
        drawn.first_level,
        drawn.second_level,
    ):  # from other bits than the mirroring
        assert chi_square(flips * 8 + levels // (LEVELS // 8), 16) < 15 + 5 * 30**0.5


def test_magnitudes_fill_the_published_ranges() -> None:
    wide = {"rotate": (-30.0, 30.0), "posterise": (4.0, 8.0), "solarise": (0.0, 256.0)}
    wide |= dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3))
    wide |= dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), (0.05, 0.95))
    assert len(OPERATIONS) == 14
    assert set(OPERATIONS) - wide.keys() == {"autocontrast", "equalise", "identity"}
    for name, (low, high) in wide.items():
        drawn = [OPERATIONS[name].magnitude(level) for level in range(LEVELS)]
        assert low < drawn[0] < low + (high - low) / LEVELS
        assert high - (high - low) / LEVELS < drawn[-1] < high
        assert np.diff(drawn).max() - np.diff(drawn).min() < 1e-4


# ---- one picture


def chosen(count: int, **numbers: int | Tensor) -> Choices:
    """Two times the identity, the rest at random, but for the given."""
    drawn = [torch.randint(LEVELS, (count,)) for _ in Choices._fields]
    out = Choices(*drawn)._replace(
        first=torch.full((count,), IDENTITY), second=torch.full((count,), IDENTITY)
    )
    return out._replace(**{name: torch.as_tensor(value).expand(count) for name, value in numbers.items()})


def one(choices: Choices, row: int) -> Choices:
    return Choices(*(numbers[row] for numbers in choices))


def shown(name: str, level: int, image: np.ndarray) -> np.ndarray:
    """An operation, before the square is painted."""
    operation = OPERATIONS[name]
    return np.asarray(operation.apply(Image.fromarray(image), operation.magnitude(level))).astype(int)


def test_operations_do_what_they_are_called() -> None:
    image = pictures(1, 32)[0]
    given, top = image.astype(int), LEVELS - 1
    assert shown("brightness", 0, image).mean() < shown("brightness", top, image).mean() < given.mean()
    assert shown("contrast", 0, image).std() < shown("contrast", top, image).std() < given.std()
    assert np.ptp(shown("colour", 0, image), axis=2).mean() < 0.1 * np.ptp(given, axis=2).mean()
    assert (
        np.abs(np.diff(shown("sharpness", 0, image), axis=0)).mean()
        < 0.5 * np.abs(np.diff(given, axis=0)).mean()
    )
    assert set(np.unique(shown("posterise", 0, image))) == set(range(0, 256, 16))
    assert np.array_equal(shown("solarise", 0, image), np.where(given < 1, given, 255 - given))
    assert np.array_equal(shown("identity", 5, image), given)
    few = pictures(4, 32)[3]
    for name in ("autocontrast", "equalise"):
        assert np.ptp(few) == 9
        assert np.ptp(shown(name, 0, few)) == 255
    assert np.array_equal(
        shown("translate_x", top, image)[:, :-9], np.pad(given, ((0, 0), (0, 1), (0, 0)))[:, 10:]
    )
    assert np.array_equal(shown("translate_y", 0, image)[10:], given[:-10])
    assert np.array_equal(shown("shear_x", top, image)[0], given[0])
    assert np.array_equal(shown("shear_y", top, image)[:, 0], given[:, 0])
    dot = np.zeros((33, 33, 3), np.uint8)
    dot[16, 29:32] = 255  # to the right of the middle; Pillow turns against the clock
    ys, xs, _ = np.nonzero(shown("rotate", top, dot))
    assert 5.5 < 16 - ys.mean() < 8.5
    assert 26.5 < xs.mean() < 29.5


def test_the_second_operation_sees_what_the_first_made() -> None:
    image, moves, maps = pictures(1, 32)[0], NAMES.index("translate_x"), NAMES.index("contrast")
    before, after = (
        change(image, one(chosen(1, first=f, first_level=0, second=s, second_level=0, side=0, x=0, y=0), 0))
        for f, s in ((moves, maps), (maps, moves))
    )
    assert (before[2:, :8] > 60).all()  # the black that moved in was made grey
    assert (after[2:, :8] == 0).all()


def test_the_square_is_up_to_half_as_wide_as_the_picture() -> None:
    white, count = np.full((32, 32, 3), 255, np.uint8), 3000
    choices = chosen(count)
    painted = np.stack([(change(white, one(choices, row)) == COLOUR).all(2) for row in range(count)])
    assert painted.reshape(count, -1).any(1).all()
    height, width = painted.any(2).sum(1), painted.any(1).sum(1)
    assert np.array_equal(painted.reshape(count, -1).sum(1), height * width)  # a rectangle
    assert height.max() == width.max() == 16
    whole = (
        painted[:, :, 1:-1].any((1, 2))
        & ~painted[:, [0, -1]].any((1, 2))
        & ~painted[:, :, [0, -1]].any((1, 2))
    )
    assert np.array_equal(height[whole], width[whole])
    assert np.array_equal(width[whole], choices.side.numpy()[whole] // 64 + 1)
    where = painted.mean(0)
    assert where.min() > 0.02
    assert where[16, 16] == pytest.approx(
        64 * 4 / 3 / 31**2, rel=0.3
    )  # the mean of a side's square, by chance there


# ---- two forms


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize(("size", "levels"), [(8, LEVELS), (32, 128)])
def test_a_batch_is_made_of_the_same_bytes(size: int, levels: int, place: str) -> None:
    """Every operation at every level, alone or after a random one."""
    count = len(OPERATIONS) * levels
    choices = chosen(count, **{
        place: torch.arange(count) // levels, f"{place}_level": torch.arange(count) % levels * (LEVELS // levels),
    })  # fmt: skip
    if place == "second":
        choices = choices._replace(first=torch.randint(len(OPERATIONS), (count,)))
    images, made = pictures(count, size), StrongTensors(size, CPU)
    pixels = torch.from_numpy(images)
    found = made.finish(made.taken(pixels, *made.sources(choices.first, choices.first_level)), choices)
    wanted = np.stack([change(image, one(choices, row)) for row, image in enumerate(images)])
    wrong = (found.numpy() != wanted).reshape(count, -1).any(1)
    assert not wrong.any(), {NAMES[int(row) // levels] for row in np.flatnonzero(wrong)}


@pytest.fixture(scope="module")
def array() -> ArraySplit:
    return ArraySplit(
        name="bytes/train", images=pictures(COUNT, SIZE), labels=torch.arange(COUNT) % 5, class_names=tuple("abcde"),
        mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
    )  # fmt: skip


@pytest.mark.parametrize("view", [ShiftFlip(SIZE), Whole(SIZE)], ids=lambda view: view.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_device_shows_any_word_as_the_slow_reference_does(
    array: ArraySplit, view: ShiftFlip | Whole, dtype: torch.dtype
) -> None:
    loader = DeviceLoader(array, view, replace(PLAN, dtype=dtype))
    words = pick_strong(7, 7, torch.arange(1000))
    indices = torch.arange(1000) % COUNT
    found = loader.render_strong(indices, words)
    table = normalisation_table(array.mean, array.std, dtype)
    for image, index, word in zip(found, indices.tolist(), words.tolist(), strict=True):
        pixels = torch.from_numpy(Strong(view).render(array.read(index), word).copy()).long()
        assert torch.equal(image, torch.stack([table[c][pixels[..., c]] for c in range(3)]))


def test_the_device_waits_for_nothing(array: ArraySplit) -> None:
    loader = DeviceLoader(array, ShiftFlip(SIZE), PLAN)
    rows = torch.arange(16)
    with NoHostSync():
        loader.render_strong(rows, pick_strong(0, 0, rows))
