"""Data sets by name: what is known of one before it is read, and the one place that opens them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from loaders import cifar, folder, shapes
from loaders.cifar_files import SOURCES
from loaders.contract import DataSpec, Split
from loaders.errors import UserError
from loaders.views import CentreCrop, Recorded, ResizedCropFlip, ShiftFlip, View, Whole

DEFAULT_ROOT = Path("data")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run says of its data."""

    dataset: str
    root: Path | None  # None: ./data, and published archives are fetched into it
    download: bool
    image_size: int
    num_classes: int  # made-up data sets only, as the two sizes
    train_size: int
    test_size: int
    recorded_views: int = 0  # of a picture, where they are endless; 0 = a new one each time


def load(wanted: Wanted) -> tuple[Split, Split]:
    """(train, test)"""
    root = wanted.root or DEFAULT_ROOT
    if wanted.dataset in SOURCES:
        return cifar.load(wanted.dataset, root, download=wanted.download or wanted.root is None)
    if wanted.dataset == "shapes":
        return shapes.load(wanted.num_classes, wanted.train_size, wanted.test_size, wanted.image_size)
    return folder.load(root, image_size=wanted.image_size)


def on_disk(wanted: Wanted) -> bool:
    """Whether `load` would find what it needs without the network, as far as a glance tells."""
    root = wanted.root or DEFAULT_ROOT
    if wanted.dataset == "shapes":
        return True
    if wanted.dataset not in SOURCES:
        return (root / "train").is_dir()
    archives = SOURCES[wanted.dataset].archives
    whole = (
        all((place / f).is_file() for f in (*a.train, *a.test))
        for a in archives
        for place in (root, root / a.folder)
    )
    return any(whole) or any((root / archive.file).is_file() for archive in archives)


def views(wanted: Wanted) -> tuple[View, View]:
    """(training, evaluation)"""
    if wanted.dataset in SOURCES and wanted.image_size != cifar.SIDE:
        raise UserError(
            f"data.image_size is {wanted.image_size}; pictures of {wanted.dataset} are {cifar.SIDE} pixels wide"
        )
    if wanted.dataset in SOURCES or wanted.dataset == "shapes":
        shifted = ShiftFlip(wanted.image_size)
        if wanted.recorded_views:
            raise UserError(
                f"--cache-views {wanted.recorded_views}: a picture of {wanted.dataset} has {shifted.count} views in all, "
                "and a cache holds them exactly; leave the flag out"
            )
        return shifted, Whole(wanted.image_size)
    cropped = ResizedCropFlip(wanted.image_size)
    whole = CentreCrop(wanted.image_size, round(wanted.image_size * 256 / 224))
    return Recorded(cropped, wanted.recorded_views) if wanted.recorded_views else cropped, whole


def expected(wanted: Wanted) -> DataSpec:
    """The training split's facts without its pictures: what a dry run builds on."""
    if wanted.dataset in SOURCES:
        facts = cifar.facts(wanted.dataset)
        size, classes, mean, std = facts.num_train, facts.num_classes, facts.mean, facts.std
    elif wanted.dataset == "shapes":
        size, classes = wanted.train_size, len(shapes.class_names(wanted.num_classes))
        mean, std = shapes.MEAN, shapes.STD
    else:
        size, classes, mean, std = 1_281_167, IMAGENET_CLASSES, folder.IMAGENET_MEAN, folder.IMAGENET_STD
    return DataSpec(
        name=wanted.dataset, num_samples=size, num_classes=classes, image_size=wanted.image_size,
        labels=torch.arange(size) % classes, views=views(wanted)[0].count, mean=mean, std=std,
        class_names=tuple(str(k) for k in range(classes)),
    )  # fmt: skip


def how_to_get(wanted: Wanted) -> str:
    root = wanted.root or DEFAULT_ROOT
    if wanted.dataset in SOURCES:
        return f"`python train_teacher.py --dataset {wanted.dataset} --data {root} --download` fetches it"
    return f"put pictures into {root}/train/CLASS/ and {root}/val/CLASS/"
