"""The built-in data set: procedural RGB pictures that need no download.

A class is an outline (a disc with n lobes) and a fill (stripes, rings, checks, ...); classes that share either look
alike, and neighbouring lobe counts are harder to tell apart the higher they are. Place, size, turn, colours, light,
clutter and noise are drawn by the counter hash, so picture i of a split is the same everywhere and for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from loaders.contract import ArraySplit
from loaders.errors import UserError
from loaders.views import draw

VERSION = 1
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
OUTLINES = 10
Values = npt.NDArray[np.float32]
# Brightness in about -1..1 from the frequency f, the picture's own turned coordinates u and v, its radius and angle.
FILLS: dict[str, Callable[[Values, Values, Values, Values, Values], Values]] = {
    "plain": lambda f, u, v, r, a: 0 * r,
    "stripes": lambda f, u, v, r, a: np.sin(f * u),
    "rings": lambda f, u, v, r, a: np.sin(f * r),
    "checks": lambda f, u, v, r, a: np.sin(f * u) * np.sin(f * v) * 1.6,
    "spokes": lambda f, u, v, r, a: np.sin(5 * a),
    "waves": lambda f, u, v, r, a: np.sin(f * u + 1.6 * np.sin(0.7 * f * v)),
    "dots": lambda f, u, v, r, a: np.cos(f * u) + np.cos(f * v) - 0.6,
    "cross": lambda f, u, v, r, a: 1.0 - 2.0 * (np.minimum(np.abs(u), np.abs(v)) * f > 1.4),
    "ramp": lambda f, u, v, r, a: np.tanh(2.5 * u),
    "grid": lambda f, u, v, r, a: 1.0 - 2.0 * (np.maximum(np.cos(f * u), np.cos(f * v)) > 0.6),
}
CHUNK = 500  # pictures drawn at a time, so that the work stays in the cache


def class_names(num_classes: int) -> tuple[str, ...]:
    """Outlines and fills in about equal numbers, the easy ones first."""
    if not 10 <= num_classes <= OUTLINES * len(FILLS):
        raise UserError(
            f"data.num_classes is {num_classes}; shapes has 10 to {OUTLINES * len(FILLS)} classes"
        )
    fills = next(n for n in range(5, len(FILLS) + 1) if n * min(n, OUTLINES) >= num_classes)
    kinds = list(FILLS)
    return tuple(f"{2 + k // fills} lobes, {kinds[k % fills]}" for k in range(num_classes))


def _uniforms(split: int, indices: torch.Tensor) -> Iterator[Values]:
    number = 0
    while True:
        words = draw(VERSION, number, split, indices)
        yield (words.numpy() >> 10).astype(np.float32) * np.float32(2.0**-53)
        number += 1


def _fill(kinds: np.ndarray, u: Values, v: Values, frequency: Values) -> Values:
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    out = np.empty_like(u)
    for kind in np.unique(kinds):
        rows = kinds == kind
        brightness = list(FILLS.values())[kind]
        out[rows] = brightness(frequency[rows, None, None], u[rows], v[rows], radius[rows], angle[rows])
    return np.clip(out, -1, 1)


def _blob(u: Values, v: Values, lobes: Values, depth: Values, size: Values) -> Values:
    """How far each pixel lies inside the outline, 0..1 with a soft edge."""
    edge = size[:, None, None] * (1 + depth[:, None, None] * np.cos(lobes[:, None, None] * np.arctan2(v, u)))
    inside: Values = 1 / (1 + np.exp(np.clip((np.hypot(u, v) - edge) * 22, -30, 30)))
    return inside


def _chunk(split: int, indices: torch.Tensor, labels: torch.Tensor, fills: int, size: int) -> np.ndarray:
    """B,H,W,3 uint8."""
    random = _uniforms(split, indices)
    kinds = labels[indices].numpy()

    def between(low: float, high: float) -> Values:
        return np.float32(low) + np.float32(high - low) * next(random)

    axis: Values = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size / 2) - np.float32(
        1
    )
    ys, xs = axis[None, :, None], axis[None, None, :]

    def turned(reach: float) -> tuple[Values, Values]:
        x = xs - between(-reach, reach)[:, None, None]
        y = ys - between(-reach, reach)[:, None, None]
        angle = between(0, 6.2831855)[:, None, None]
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def colour() -> Values:
        return np.stack([between(0.05, 0.95) for _ in range(3)], -1)[:, None, None, :]

    u, v = turned(0.3)
    lobes = (2 + kinds // fills).astype(np.float32)
    inside = _blob(u, v, lobes, between(0.22, 0.42), between(0.46, 0.7))
    fill = _fill(kinds % fills, u, v, between(9, 14))
    contrast = between(0.25, 0.6)[:, None, None]
    far_u, _ = turned(0.5)
    shade = between(0.0, 0.25)[:, None, None] * np.sin(between(2, 7)[:, None, None] * far_u)
    ground = colour() + shade[..., None]
    body = colour() + (contrast * fill)[..., None] * np.sign(next(random) - 0.5)[:, None, None, None]
    picture = ground + (body - ground) * inside[..., None]
    for _ in range(2):  # clutter: small faint blobs, in front
        there = turned(1.0)
        blob = _blob(*there, np.floor(between(2, 7)), between(0, 0.3), between(0.08, 0.22))
        faint = between(0.2, 0.8)[:, None, None] * blob
        picture += (colour() - picture) * faint[..., None]
    picture += between(0.01, 0.12)[:, None, None, None] * _normal(split, indices, size)
    pixels: npt.NDArray[np.uint8] = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _normal(split: int, indices: torch.Tensor, size: int) -> Values:
    """B,H,W,3: the sum of four 15-bit parts of a word is near enough to a normal draw."""
    pixels = torch.arange(size * size * 3)[None] + indices[:, None] * (size * size * 3)
    words = draw(VERSION, -1, split, pixels).numpy()
    total = np.zeros(words.shape, np.float32)
    for shift in (0, 15, 30, 45):
        total += (words >> shift) & 0x7FFF
    normal: Values = (total / np.float32(0x7FFF) - 2) * np.float32(1.73)
    return normal.reshape(-1, size, size, 3)


def load(num_classes: int, train_size: int, test_size: int, image_size: int) -> tuple[ArraySplit, ArraySplit]:
    names = class_names(num_classes)
    fills = sum(name.startswith("2 lobes") for name in names)
    splits = []
    for number, (part, count) in enumerate((("train", train_size), ("test", test_size))):
        if count < num_classes:
            raise UserError(
                f"data.{part}_size is {count}; shapes needs at least one picture for each of {num_classes} classes"
            )
        labels = torch.arange(count) % num_classes
        draw_chunk = partial(_chunk, number, labels=labels, fills=fills, size=image_size)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            chunks = list(threads.map(draw_chunk, list(torch.split(torch.arange(count), CHUNK))))
        splits.append(
            ArraySplit(
                name="shapes",
                images=np.concatenate(chunks),
                labels=labels,
                class_names=names,
                mean=MEAN,
                std=STD,
            )
        )
    return splits[0], splits[1]
