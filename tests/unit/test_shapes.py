from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from loaders import shapes
from loaders.errors import UserError


def test_pictures_are_the_same_for_ever_and_of_every_class() -> None:
    train, test = shapes.load(20, 1000, 100, 32)
    again, _ = shapes.load(20, 600, 100, 32)
    assert np.array_equal(train.images[:600], again.images), (
        "a picture does not depend on how many are asked for"
    )
    assert train.images.shape == (1000, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert torch.bincount(train.labels).tolist() == [50] * 20
    assert len(set(train.class_names)) == 20
    packed = {
        hashlib.sha256(picture.tobytes()).digest() for split in (train, test) for picture in split.images
    }
    assert len(packed) == 1100, "no picture twice, and none of the test set in the training set"
    pixels = train.images.reshape(-1, 3) / 255
    assert np.allclose(pixels.mean(0), shapes.MEAN, atol=0.02)
    assert np.allclose(pixels.std(0), shapes.STD, atol=0.05)


@pytest.mark.parametrize("classes", [10, 20, 25, 37, 64, 100])
def test_every_number_of_classes_has_its_names(classes: int) -> None:
    names = shapes.class_names(classes)
    assert len(set(names)) == classes
    assert max(int(name.split()[0]) for name in names) <= shapes.OUTLINES + 1


@pytest.mark.parametrize(
    ("classes", "train", "why"), [(9, 100, "10 to 100"), (101, 1000, "10 to 100"), (20, 19, "at least one")]
)
def test_impossible_sets_are_refused(classes: int, train: int, why: str) -> None:
    with pytest.raises(UserError, match=why):
        shapes.load(classes, train, 100, 32)
