from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from loaders import datasets
from loaders.errors import UserError
from loaders.views import CentreCrop, ResizedCropFlip, ShiftFlip, Whole

WANTED = datasets.Wanted(
    dataset="cifar100", root=None, download=False, image_size=32, num_classes=20, train_size=100, test_size=50
)


def test_cifar_comes_in_one_size() -> None:
    with pytest.raises(UserError, match="pictures of cifar100 are 32 pixels wide"):
        datasets.views(dataclasses.replace(WANTED, image_size=64))
    assert datasets.views(WANTED) == (ShiftFlip(32), Whole(32))
    assert datasets.views(WANTED)[0].count == 162


def test_folders_are_cropped_at_any_size() -> None:
    train, test = datasets.views(dataclasses.replace(WANTED, dataset="imagefolder", image_size=112))
    assert (train, test) == (ResizedCropFlip(112), CentreCrop(112, 128))


@pytest.mark.parametrize(
    ("name", "classes", "size"), [("cifar10", 10, 50_000), ("cifar100", 100, 50_000), ("shapes", 20, 100)]
)
def test_facts_need_no_files(name: str, classes: int, size: int, tmp_path: Path) -> None:
    wanted = dataclasses.replace(WANTED, dataset=name, root=tmp_path)
    spec = datasets.expected(wanted)
    assert (spec.num_classes, spec.num_samples, len(spec.class_names)) == (classes, size, classes)
    assert datasets.on_disk(wanted) == (name == "shapes")
    assert name == "shapes" or "--download" in datasets.how_to_get(wanted)
