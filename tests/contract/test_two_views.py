"""Batches that hold a strong view of every sample beside the weak one, from any backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import loaders
from loaders import folder
from loaders.contract import ArraySplit, Batch, Loader, Plan, Split
from loaders.errors import UserError
from loaders.strong import Strong, pick_strong
from loaders.torch_workers import TorchLoader
from loaders.views import Recorded, ResizedCropFlip, ShiftFlip, View, Whole, normalisation_table

SIZE, COUNT = 12, 50
PLAN = Plan(
    batch_size=16, seed=3, train=True, device=torch.device("cpu"), dtype=torch.float32, channels_last=True, views=2
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core


@pytest.fixture(scope="module")
def array() -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    return ArraySplit(
        name="bytes/train", images=pixels, labels=torch.arange(COUNT) % 5, class_names=tuple("abcde"),
        mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761),
    )  # fmt: skip


def as_shown(split: Split, view: View, index: int, aug_id: int) -> Tensor:
    table = normalisation_table(split.mean, split.std, torch.float32)
    pixels = torch.from_numpy(view.render(split.read(index), aug_id).copy()).long()
    return torch.stack([table[c][pixels[..., c]] for c in range(3)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> folder.FolderSplit:
    root, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for part, count in (("train", COUNT), ("val", 4)):
        for n in range(count):
            path = root / part / "abcd"[n % 4] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (19 + n % 5, 24 - n % 3, 3), np.uint8)).save(path)
    return folder.load(root)[0]


Make = Callable[..., Loader]
VIEWS: dict[str, View] = {
    "shift": ShiftFlip(SIZE), "crop": ResizedCropFlip(SIZE), "recorded": Recorded(ResizedCropFlip(SIZE), 5),
}  # fmt: skip


@pytest.fixture(params=["device-shift", "torch-shift", "torch-crop", "torch-recorded"])
def case(
    request: pytest.FixtureRequest, array: ArraySplit, files: folder.FolderSplit
) -> tuple[Make, Split, View]:
    backend, _, name = request.param.partition("-")
    view, split = VIEWS[name], array if name == "shift" else files

    def make(**changes: object) -> Loader:
        return loaders.build(backend, split, view, replace(PLAN, **changes))  # type: ignore[arg-type]

    return make, split, view


def rows_of(batch: Batch) -> dict[int, list[Tensor]]:
    """By sample: its two pictures, its target and its weak view."""
    weak, strong = batch.images.chunk(2)
    rows = zip(batch.indices.tolist(), weak, strong, batch.targets, batch.aug_ids, strict=True)
    return {index: parts for index, *parts in rows}


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


Case = tuple[Make, Split, View]


def test_a_batch_holds_weak_rows_then_strong_rows(case: Case) -> None:
    make, split, view = case
    strong = Strong.over(view)
    weak_alone = list(make(views=1).batches(4))
    for number, batch in enumerate(make().batches(4)):
        assert batch.images.shape == (32, 3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.images[:16], weak_alone[number].images)
        assert all(torch.equal(a, b) for a, b in zip(batch[1:], weak_alone[number][1:], strict=True))
        words = pick_strong(PLAN.seed, 4, batch.indices).tolist()
        for image, index, word in zip(batch.images[16:], batch.indices.tolist(), words, strict=True):
            assert torch.equal(image, as_shown(split, strong, index, word))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_backends_agree(array: ArraySplit, dtype: torch.dtype, channels_last: bool) -> None:
    plan = replace(PLAN, dtype=dtype, channels_last=channels_last)
    device, workers = (loaders.build(name, array, ShiftFlip(SIZE), plan) for name in ("device", "torch"))
    for epoch in (0, 1):
        made, others = list(device.batches(epoch)), list(workers.batches(epoch))
        assert_same(made, others)
        assert made[0].images.stride() == others[0].images.stride()
        assert made[0].images.dtype == dtype


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_pictures_of_one(case: Case, world: int) -> None:
    make, _, _ = case
    alone = list(make(batch_size=8 * world).batches(2))
    shares = zip(
        *(make(batch_size=8, rank=rank, world=world).batches(2) for rank in range(world)), strict=True
    )
    for whole, parts in zip(alone, shares, strict=True):
        together = {index: row for part in parts for index, row in rows_of(part).items()}
        wanted = rows_of(whole)
        assert list(together) == list(wanted)
        assert all(torch.equal(a, b) for i in wanted for a, b in zip(wanted[i], together[i], strict=True))


def test_a_later_start_is_the_tail(case: Case) -> None:
    make, _, _ = case
    loader = make()
    whole = list(loader.batches(1))
    assert_same(list(loader.batches(1, start=1)), whole[1:])
    assert_same(list(make().batches(1, start=2)), whole[2:])


def test_strong_views_follow_seed_and_epoch(case: Case) -> None:
    make, _, _ = case
    loader = make()
    first, again, later, other = (
        {i: row[1] for batch in made.batches(epoch) for i, row in rows_of(batch).items()}
        for made, epoch in ((loader, 0), (loader, 0), (loader, 1), (make(seed=4), 0))
    )
    assert all(torch.equal(first[i], again[i]) for i in first)
    for changed in (later, other):
        shared = first.keys() & changed.keys()
        assert sum(not torch.equal(first[i], changed[i]) for i in shared) > 0.9 * len(shared)


@pytest.mark.parametrize("name", ["shift", "crop"])
def test_any_number_of_workers_gives_the_same(
    array: ArraySplit, files: folder.FolderSplit, name: str
) -> None:
    split: Split = array if name == "shift" else files
    none, two = (TorchLoader(split, VIEWS[name], replace(PLAN, num_workers=n)) for n in (0, 2))
    for epoch, start in ((0, 0), (1, 2)):
        assert_same(list(two.batches(epoch, start)), list(none.batches(epoch, start)))


def test_what_is_visited_has_no_strong_view(case: Case) -> None:
    make, _, _ = case
    batch = next(iter(make().batches(0)))
    (visited,) = make().visit(batch.indices, batch.aug_ids, 16)
    assert torch.equal(visited.images, batch.images[:16])


def test_a_picture_that_does_not_fit_is_named(files: folder.FolderSplit) -> None:
    with pytest.raises(UserError, match=r"whole-v1 gives \d+ x \d+ x 3, the run needs 12 x 12 x 3"):
        next(iter(TorchLoader(files, Whole(SIZE), PLAN).batches(0)))
