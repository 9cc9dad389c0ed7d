"""The strong view of a picture: a crop of its own, two random operations, a square painted over.

The set of operations is FixMatch's (Sohn et al., 2020), and two codes give it different numbers. Here are those of the
code that multi-level logit distillation and logit standardisation were measured with: crop and mirror as in the weak
view, drawn apart from it; two of the 14 operations, drawn with replacement, both applied, each with a magnitude from its
whole range; a square of up to half the picture's width in ImageNet's mean colour, its centre between 1 and the width, as
numpy.random.uniform(width) draws. FixMatch's own, and the PyTorch copies of it, draw from ten magnitudes, apply an
operation half the time, always paint 16 grey pixels, and pad by reflection.

Departures: magnitudes, the square's side and its place have LEVELS values each, evenly spaced, and magnitudes are
multiples of 1 / EXACT. With those Pillow's arithmetic on bytes is exact, so every device can show the very same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from loaders.views import Recorded, View, draw, mix_tensor

STREAM = 4  # of draws, apart from those in views
LEVELS = 1024
EXACT = 1 << 16
COLOUR = (125, 123, 114)


def pick_strong(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """The word that makes each sample's strong view in an epoch."""
    return draw(seed, epoch, STREAM, indices)


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    """The pixel at x, y comes from a * x + b * y + c, d * x + e * y + f; black where nothing is."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


class Operation(NamedTuple):
    low: float
    high: float
    apply: Callable[[Image.Image, float], Image.Image]

    def magnitude(self, level: int) -> float:
        return round(EXACT * (self.low + (self.high - self.low) * (level + 0.5) / LEVELS)) / EXACT


OPERATIONS = {
    "autocontrast": Operation(0, 1, lambda image, _: ImageOps.autocontrast(image)),
    "brightness": Operation(0.05, 0.95, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "colour": Operation(0.05, 0.95, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "contrast": Operation(0.05, 0.95, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "equalise": Operation(0, 1, lambda image, _: ImageOps.equalize(image)),
    "identity": Operation(0, 1, lambda image, _: image),
    "posterise": Operation(4, 8, lambda image, v: ImageOps.posterize(image, int(v))),
    "rotate": Operation(-30, 30, lambda image, v: image.rotate(v)),
    "sharpness": Operation(0.05, 0.95, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "shear_x": Operation(-0.3, 0.3, lambda image, v: _affine(image, 1, v, 0, 0, 1, 0)),
    "shear_y": Operation(-0.3, 0.3, lambda image, v: _affine(image, 1, 0, 0, v, 1, 0)),
    "solarise": Operation(0, 256, lambda image, v: ImageOps.solarize(image, math.ceil(v))),
    "translate_x": Operation(-0.3, 0.3, lambda image, v: _affine(image, 1, 0, v * image.width, 0, 1, 0)),
    "translate_y": Operation(-0.3, 0.3, lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height)),
}


class Choices(NamedTuple):
    """What a word decides. Tensors of the words' shape; levels are below LEVELS."""

    aug_ids: Tensor  # of the view that comes first
    first: Tensor  # number of an operation
    first_level: Tensor
    second: Tensor
    second_level: Tensor
    side: Tensor  # levels of the painted square, as the next two
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Strong:
    name: ClassVar[str] = "strong-v1"
    view: View  # comes first
    count: ClassVar[None] = None

    @classmethod
    def over(cls, weak: View) -> Strong:
        """Beside this weak view. The recorded few of endless crops are no limit to the strong ones."""
        return cls(weak.view if isinstance(weak, Recorded) else weak)

    @property
    def size(self) -> int:
        return self.view.size

    def choices(self, words: Tensor) -> Choices:
        bits = mix_tensor(words)
        side, x, y, *levels = (bits >> shift & (LEVELS - 1) for shift in (0, 10, 20, 30, 40))
        pair = (mix_tensor(bits) & ((1 << 63) - 1)) % len(OPERATIONS) ** 2
        first, second = pair // len(OPERATIONS), pair % len(OPERATIONS)
        aug_ids = words if self.view.count is None else words % self.view.count
        return Choices(aug_ids, first, levels[0], second, levels[1], side, x, y)

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        choices = self.choices(torch.tensor(aug_id))
        return change(self.view.render(image, int(choices.aug_ids)), choices)


def change(image: np.ndarray, choices: Choices) -> np.ndarray:
    """What comes after the first view, of one square picture."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    operations, size = list(OPERATIONS.values()), len(image)
    for number, level in ((choices.first, choices.first_level), (choices.second, choices.second_level)):
        operation = operations[int(number)]
        picture = operation.apply(picture, operation.magnitude(int(level)))
    side, x, y = ((int(level) + 0.5) / LEVELS for level in (choices.side, choices.x, choices.y))
    side = 0.5 * size * side
    left, top = (int(max(0, 1 + (size - 1) * centre - side / 2)) for centre in (x, y))
    picture = picture.copy()
    box = (left, top, min(size, left + side), min(size, top + side))  # the pixels at both ends are painted
    ImageDraw.Draw(picture).rectangle(box, COLOUR)
    return np.asarray(picture)
