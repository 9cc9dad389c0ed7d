"""A view is a pure function: (seed, epoch, index) -> aug_id -> (crop, flip), integer arithmetic of a counter hash.

No generator and no worker carries state, so any backend on any number of workers or ranks makes the same view of
the same sample, a run resumes at any batch, and what a teacher said about a view can be found again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1
ORDER, VIEW, RECORD = 1, 2, 3  # independent streams of draws


def mix(x: int) -> int:
    """splitmix64: one 64-bit counter to one well-mixed 64-bit word."""
    x = (x + GOLDEN) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def mix_tensor(x: Tensor) -> Tensor:
    """`mix` on an int64 tensor, bit for bit: int64 products wrap, and shifts are made logical by a mask."""
    x = x + _signed(GOLDEN)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def draw(seed: int, epoch: int, stream: int, indices: Tensor) -> Tensor:
    """63-bit non-negative words, one an index."""
    key = mix(mix(mix(seed & MASK64) ^ epoch) ^ stream)
    return mix_tensor(mix_tensor(indices) ^ _signed(key)) & ((1 << 63) - 1)


def order(seed: int, epoch: int, num_samples: int, device: torch.device) -> Tensor:
    """The epoch's permutation of the data set: a full shuffle, the same on every rank and backend."""
    samples = torch.arange(num_samples, device=device)
    return torch.argsort(draw(seed, epoch, ORDER, samples), stable=True)


class View(Protocol):
    name: ClassVar[str]

    @property
    def size(self) -> int: ...

    @property
    def count(self) -> int | None:
        """Distinct views of a sample; None = unbounded."""
        ...

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        """One picture, HW3 uint8, the slow readable way: what every backend must equal."""
        ...


def pick(view: View, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """The aug_id each sample gets in an epoch."""
    words = draw(seed, epoch, VIEW, indices)
    return words if view.count is None else numbered(view, indices, words % view.count)


def numbered(view: View, indices: Tensor, numbers: Tensor) -> Tensor:
    """The aug_ids of the samples' views of these numbers; aug_id % view.count gives the number back."""
    return view.words(indices, numbers) if isinstance(view, Recorded) else numbers


def describe(view: View) -> dict[str, Any]:
    """All that decides what a view shows, as plain data."""
    facts = {f.name: getattr(view, f.name) for f in fields(view)}  # type: ignore[arg-type]  # each is a dataclass
    for name, value in facts.items():
        facts[name] = (
            describe(value) if name == "view" else list(value) if isinstance(value, tuple) else value
        )
    return {"name": view.name} | facts


@dataclass(frozen=True)
class Whole:
    """The picture as it is: evaluation at the size the data set has."""

    name: ClassVar[str] = "whole-v1"
    size: int
    count: ClassVar[int] = 1

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        return image


@dataclass(frozen=True)
class ShiftFlip:
    """Pad by black, crop at the old size, mirror half the time: CIFAR's standard, 9 * 9 * 2 = 162 views at pad 4."""

    name: ClassVar[str] = "shift-flip-v1"
    size: int
    pad: int = 4

    @property
    def count(self) -> int:
        return 2 * (2 * self.pad + 1) ** 2

    def window(self, aug_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(top, left) of the crop within the padded picture, and whether it is then mirrored."""
        side = 2 * self.pad + 1
        return aug_ids // (2 * side), aug_ids // 2 % side, aug_ids % 2

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        top, left, flip = (int(t) for t in self.window(torch.tensor(aug_id)))
        padded = np.pad(image, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        crop = padded[top : top + self.size, left : left + self.size]
        return crop[:, ::-1] if flip else crop


@dataclass(frozen=True)
class ResizedCropFlip:
    """A random window of the picture resized to size x size, mirrored half the time: ImageNet's standard."""

    name: ClassVar[str] = "resized-crop-flip-v1"
    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    count: ClassVar[None] = None

    def window(self, aug_id: int, height: int, width: int) -> tuple[int, int, int, int, bool]:
        """top, left, height, width of the window, and whether it is mirrored; ten tries, then the central part."""
        words = (mix(aug_id + k * GOLDEN) for k in range(64))
        uniform = ((w >> 11) * 2.0**-53 for w in words)
        flip = next(uniform) < 0.5
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + next(uniform) * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + next(uniform) * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            top, left = next(uniform), next(uniform)
            if 0 < w <= width and 0 < h <= height:
                return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w, flip
        h = min(height, round(width / self.ratio[0]))
        w = min(width, round(height * self.ratio[1]))
        return (height - h) // 2, (width - w) // 2, h, w, flip

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        top, left, h, w, flip = self.window(aug_id, *image.shape[:2])
        box = (left, top, left + w, top + h)
        resized = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        out = np.asarray(resized)
        return out[:, ::-1] if flip else out


@dataclass(frozen=True)
class Recorded:
    """`count` views of each picture out of the endless ones of `view`, always the same.

    An aug_id is a word of `view`, drawn for the picture and the view's number, and leaves that number when divided by
    `count`: backends render it like any other, and what was said about it has a place in a finite table.
    """

    name: ClassVar[str] = "recorded-v1"
    view: ResizedCropFlip
    count: int

    @property
    def size(self) -> int:
        return self.view.size

    def words(self, indices: Tensor, numbers: Tensor) -> Tensor:
        drawn = draw(0, 0, RECORD, indices) >> 1  # room for the remainder
        return drawn - drawn % self.count + numbers

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        return self.view.render(image, aug_id)


@dataclass(frozen=True)
class CentreCrop:
    """The short side resized to `resize`, the central size x size taken: ImageNet's evaluation."""

    name: ClassVar[str] = "centre-crop-v1"
    size: int
    resize: int = 256
    count: ClassVar[int] = 1

    def render(self, image: np.ndarray, aug_id: int) -> np.ndarray:
        height, width = image.shape[:2]
        factor = self.resize / min(height, width)
        h, w = max(self.size, round(height * factor)), max(self.size, round(width * factor))
        resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        top, left = (h - self.size) // 2, (w - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]


def normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(scale, bias), [3] float32 each: a byte x becomes x * scale + bias."""
    mean64, std64 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


def normalisation_table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """[3, 256]: what each byte of each channel becomes. Every backend normalises to these very values."""
    scale, bias = normalisation(mean, std)
    return (torch.arange(256.0) * scale[:, None] + bias[:, None]).to(dtype)
