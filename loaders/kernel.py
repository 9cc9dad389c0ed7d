"""The device loader's CPU kernel: compiled once, kept in numba's cache. Imported only where it is used.

A view is first gathered as bytes (irregular, cheap), then converted by loops the compiler vectorises. Indices are
unsigned because numba wraps negative ones around, a test that costs half of the speed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ONE, THREE = np.uint64(1), np.uint64(3)


@njit(nogil=True, cache=True)
def crop_and_mirror(picture: np.ndarray, aug_id: int, pad: int, view: np.ndarray) -> None:
    """One view of a picture (H, W*3 bytes) into H*W*3 bytes; the arithmetic of ShiftFlip.window."""
    size, width = picture.shape
    side = 2 * pad + 1
    shift_y = aug_id // (2 * side) - pad
    shift_x = aug_id // 2 % side - pad
    mirrored = aug_id % 2 == 1
    first = max(
        0, -shift_x
    )  # columns of the window inside the picture: first..last-1, none if it is all outside
    last = max(first, min(size, size - shift_x))
    view[:] = 0
    for y in range(max(0, -shift_y), min(size, size - shift_y)):
        source = picture[y + shift_y]
        k, columns = np.uint64(0), np.uint64(last - first)
        if mirrored:
            to, at = np.uint64(y * width + 3 * (size - last)), np.uint64(3 * (last - 1 + shift_x))
            while k < columns:
                view[to + THREE * k] = source[at - THREE * k]
                view[to + THREE * k + ONE] = source[at - THREE * k + ONE]
                view[to + THREE * k + ONE + ONE] = source[at - THREE * k + ONE + ONE]
                k += ONE
        else:
            to, at = np.uint64(y * width + 3 * first), np.uint64(3 * (first + shift_x))
            while k < THREE * columns:
                view[to + k] = source[at + k]
                k += ONE


@njit(nogil=True, cache=True)
def unzip(view: np.ndarray, planes: np.ndarray) -> None:
    """Pixel by pixel to plane by plane."""
    to = np.uint64(0)
    for c in range(3):
        at = np.uint64(c)
        while at < np.uint64(len(view)):
            planes[to] = view[at]
            to += ONE
            at += THREE


@njit(nogil=True, cache=True)
def gather_float32(
    pixels: np.ndarray,  # N,H,W*3 uint8
    scale: np.ndarray,  # H*W*3 float32: the channels' factors, in the order of the output
    bias: np.ndarray,  # likewise
    indices: np.ndarray,  # B
    aug_ids: np.ndarray,  # B
    pad: int,
    planar: bool,
    out: np.ndarray,  # B,H*W*3 float32: pixel by pixel, or plane by plane
) -> None:
    view, planes = np.empty(len(scale), np.uint8), np.empty(len(scale), np.uint8)
    for b in range(len(indices)):
        crop_and_mirror(pixels[indices[b]], aug_ids[b], pad, view)
        if planar:
            unzip(view, planes)
        source, target = planes if planar else view, out[b]
        for i in range(len(scale)):
            target[i] = np.float32(source[i]) * scale[i] + bias[i]


@njit(nogil=True, cache=True)
def gather_bfloat16(
    pixels: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    indices: np.ndarray,
    aug_ids: np.ndarray,
    pad: int,
    planar: bool,
    out: np.ndarray,  # B,H*W*3 uint16: the bits of bfloat16
) -> None:
    values = np.empty((1, len(scale)), np.float32)
    words = values.view(np.uint32)[0]
    for b in range(len(indices)):
        gather_float32(pixels, scale, bias, indices[b : b + 1], aug_ids[b : b + 1], pad, planar, values)
        target = out[b]
        for i in range(len(words)):  # round to nearest, ties to even; every value is finite
            word = words[i]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            target[i] = np.uint16((word + np.uint32(0x7FFF) + odd) >> np.uint32(16))
