"""What every loader backend gives: the same batches, whatever the backend, the workers, the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import folder
from loaders.contract import ArraySplit, Batch, Loader, Plan, Split
from loaders.device import DeviceLoader
from loaders.torch_workers import TorchLoader
from loaders.views import (
    CentreCrop,
    Recorded,
    ResizedCropFlip,
    ShiftFlip,
    View,
    Whole,
    normalisation_table,
)

SIZE, COUNT = 8, 50
PLAN = Plan(
    batch_size=16, seed=3, train=True, device=torch.device("cpu"), dtype=torch.float32, channels_last=True
)  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core


@pytest.fixture(scope="module")
def array() -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    return ArraySplit(
        name="bytes/train", images=pixels, labels=torch.arange(COUNT) % 5, class_names=tuple("abcde"),
        mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> folder.FolderSplit:
    root = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(1)
    for part, count in (("train", COUNT), ("val", 4)):
        for n in range(count):
            path = root / part / "abcd"[n % 4] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (9 + n % 5, 14 - n % 3, 3), np.uint8)).save(path)
    return folder.load(root)[0]


Make = Callable[..., Loader]
Case = tuple[Make, Split, View]
CASES = [
    "device-shift", "device-whole", "torch-shift", "torch-whole", "torch-crop", "torch-centre", "torch-recorded",
]  # fmt: skip
VIEWS: dict[str, View] = {
    "shift": ShiftFlip(SIZE),
    "whole": Whole(SIZE),
    "crop": ResizedCropFlip(SIZE),
    "centre": CentreCrop(SIZE, resize=10),
    "recorded": Recorded(ResizedCropFlip(SIZE), 5),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, array: ArraySplit, pictures: folder.FolderSplit):
    """(make, split, view) of one backend over one split."""
    backend, _, view_name = request.param.partition("-")
    view = VIEWS[view_name]
    split: Split = array if view_name in ("shift", "whole") else pictures

    def make(**changes: object) -> Loader:
        plan = replace(PLAN, **changes)  # type: ignore[arg-type]
        if backend == "torch":
            return TorchLoader(split, view, plan)
        assert isinstance(view, ShiftFlip | Whole)
        return DeviceLoader(array, view, plan)

    return make, split, view


def equal(first: Batch, second: Batch) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    assert all(map(equal, first, second))


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def test_spec_says_what_the_split_is(case: Case) -> None:
    make, split, view = case
    spec = make().spec
    assert (spec.name, spec.num_samples, spec.image_size) == (split.name, COUNT, SIZE)
    assert (spec.num_classes, spec.class_names) == (len(split.class_names), split.class_names)
    assert (spec.mean, spec.std) == (split.mean, split.std)
    known = {"shift-flip-v1": 162, "whole-v1": 1, "resized-crop-flip-v1": None, "centre-crop-v1": 1}
    known["recorded-v1"] = 5
    assert spec.views == known[view.name]
    assert torch.equal(spec.labels, split.labels)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("train", [True, False])
def test_what_is_dealt_is_what_comes(case: Case, train: bool, world: int) -> None:
    make, _, _ = case
    for rank in range(world):
        loader = make(train=train, rank=rank, world=world, batch_size=5)
        wanted = joined(list(loader.batches(4)))
        indices, aug_ids = loader.dealt(4)
        assert torch.equal(indices, wanted.indices)
        assert torch.equal(aug_ids, wanted.aug_ids)


def test_a_visit_shows_the_named_views(case: Case) -> None:
    make, _, _ = case
    loader = make()
    wanted = joined(list(loader.batches(2)))
    visited = list(loader.visit(wanted.indices, wanted.aug_ids, 7))
    assert [len(batch.targets) for batch in visited[:-1]] == [7] * (len(visited) - 1)
    assert equal(joined(visited), wanted)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_dtypes_strides(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    make, split, _ = case
    loader = make(dtype=dtype, channels_last=channels_last)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader) == 3
    for batch in batches:
        assert batch.images.shape == (16, 3, SIZE, SIZE)
        assert batch.images.dtype == dtype
        area = SIZE * SIZE
        strides = (3 * area, 1, 3 * SIZE, 3) if channels_last else (3 * area, area, SIZE, 1)
        assert batch.images.stride() == strides
        for numbers in batch[1:]:
            assert numbers.shape == (16,)
            assert numbers.dtype == torch.int64
        assert torch.equal(batch.targets, split.labels[batch.indices])


def test_evaluation_covers_every_sample_once_in_order(case: Case) -> None:
    make, split, _ = case
    loader = make(train=False)
    batches = list(loader.batches(0))
    assert [len(batch.images) for batch in batches] == [16, 16, 16, 2]
    assert len(loader) == 4
    whole = joined(batches)
    assert torch.equal(whole.indices, torch.arange(COUNT))
    assert torch.equal(whole.targets, split.labels)


def test_training_drops_the_last_partial_batch(case: Case) -> None:
    make, _, _ = case
    indices = joined(list(make().batches(0))).indices
    assert len(indices) == 48
    assert len(set(indices.tolist())) == 48
    assert not list(make(batch_size=51).batches(0))


def test_order_and_views_follow_seed_and_epoch(case: Case) -> None:
    make, _, view = case
    loader = make()
    first, again, later = (joined(list(loader.batches(epoch))) for epoch in (0, 0, 1))
    other = joined(list(make(seed=4).batches(0)))
    assert equal(first, again)
    orders = {tuple(batch.indices.tolist()) for batch in (first, later, other)}
    assert len(orders) == 3
    for batch in (later, other):
        views = [dict(zip(b.indices.tolist(), b.aug_ids.tolist(), strict=True)) for b in (first, batch)]
        shared = views[0].keys() & views[1].keys()
        changed = sum(views[0][i] != views[1][i] for i in shared)
        by_chance = 1 / (view.count or 10**9)  # of two draws
        assert changed == 0 if view.count == 1 else changed > len(shared) * (0.9 - 1.5 * by_chance)


@pytest.mark.parametrize("train", [True, False])
def test_a_later_start_is_the_tail(case: Case, train: bool) -> None:
    make, _, _ = case
    loader = make(train=train)
    whole = list(loader.batches(1))
    for start in (1, 2):
        assert_same(list(loader.batches(1, start=start)), whole[start:])
    assert not list(loader.batches(1, start=len(whole)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_of_one(case: Case, world: int, train: bool) -> None:
    make, _, _ = case
    alone = list(make(batch_size=8 * world, train=train).batches(2))
    ranks = [make(batch_size=8, rank=rank, world=world, train=train) for rank in range(world)]
    assert {len(loader) for loader in ranks} == {len(alone)}
    shares = zip(*(list(loader.batches(2)) for loader in ranks), strict=True)
    assert_same([joined(list(step)) for step in shares], alone)


def test_a_rank_may_have_nothing_left_to_evaluate(case: Case) -> None:
    make, _, _ = case
    first, last = make(batch_size=20, rank=1, world=2, train=False).batches(0)
    assert first.indices.tolist() == list(range(20, 40))
    assert last.images.shape == (0, 3, SIZE, SIZE)
    assert len(last.targets) == len(last.indices) == len(last.aug_ids) == 0


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_picture_is_the_slow_reference(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    make, split, view = case
    table = normalisation_table(split.mean, split.std, dtype)
    for batch in make(dtype=dtype, channels_last=channels_last).batches(0):
        for image, index, aug_id in zip(batch.images, *(t.tolist() for t in batch[2:]), strict=True):
            pixels = torch.from_numpy(view.render(split.read(index), aug_id).copy()).long()
            assert torch.equal(image, torch.stack([table[c][pixels[..., c]] for c in range(3)]))


@pytest.mark.parametrize("view", [ShiftFlip(SIZE), ShiftFlip(SIZE, pad=2), Whole(SIZE)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train", [True, False])
def test_backends_agree_bit_for_bit(
    array: ArraySplit, view: ShiftFlip | Whole, dtype: torch.dtype, train: bool
) -> None:
    plan = replace(PLAN, dtype=dtype, train=train)
    device, workers = DeviceLoader(array, view, plan), TorchLoader(array, view, plan)
    for epoch in (0, 1):
        assert_same(list(device.batches(epoch)), list(workers.batches(epoch)))


def test_the_device_s_two_ways_agree(array: ArraySplit) -> None:
    """The kernel of the CPU and the tensor code of every other device, over all 162 views."""
    for view in (ShiftFlip(SIZE), Whole(SIZE)):
        for channels_last in (True, False):
            loader = DeviceLoader(array, view, replace(PLAN, channels_last=channels_last))
            aug_ids = torch.arange(view.count)
            indices = aug_ids % COUNT
            made, by_tensors = (
                loader.fetch(indices, aug_ids).images,
                loader.render_by_tensors(indices, aug_ids),
            )
            assert torch.equal(made, by_tensors)
            if view.count > 1:
                assert made.stride() == by_tensors.stride()


@pytest.mark.parametrize("view_name", ["shift", "crop"])
def test_any_number_of_workers_gives_the_same(
    array: ArraySplit, pictures: folder.FolderSplit, view_name: str
) -> None:
    split: Split = array if view_name == "shift" else pictures
    none, one, two = (TorchLoader(split, VIEWS[view_name], replace(PLAN, num_workers=n)) for n in (0, 1, 2))
    for epoch, start in ((0, 0), (1, 2), (2, 0)):
        wanted = list(none.batches(epoch, start))
        assert_same(list(one.batches(epoch, start)), wanted)
        assert_same(list(two.batches(epoch, start)), wanted)


def test_loading_leaves_the_run_s_generator_alone(pictures: folder.FolderSplit) -> None:
    before = torch.get_rng_state()
    list(TorchLoader(pictures, VIEWS["crop"], PLAN).batches(0))
    assert torch.equal(torch.get_rng_state(), before)
