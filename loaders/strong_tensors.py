"""Strong views of a whole batch as tensor code: the bytes that `Strong.render` gives picture by picture.

Nothing waits for the device, and no shape depends on data. An operation takes pixels from elsewhere, or maps bytes to
bytes, or mixes a picture with a duller one; each picture goes through all three, two of which leave it as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loaders.strong import COLOUR, EXACT, LEVELS, OPERATIONS, Choices

NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
BYTES = 256


def _matrix(name: str, v: float, size: int) -> tuple[float, ...]:
    """a, b, c, d, e, f: the pixel at x, y comes from a * x + b * y + c, d * x + e * y + f, measured from corners."""
    turn = -math.radians(v) if name == "rotate" else 0.0
    cos, sin, half = math.cos(turn), math.sin(turn), size / 2
    moved = {
        "rotate": (cos, sin, half - half * cos - half * sin, -sin, cos, half + half * sin - half * cos),
        "shear_x": (1.0, v, 0.0, 0.0, 1.0, 0.0),
        "shear_y": (1.0, 0.0, 0.0, v, 1.0, 0.0),
        "translate_x": (1.0, 0.0, v * size, 0.0, 1.0, 0.0),
        "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, v * size),
    }
    return moved.get(name, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))


def _fixed(matrix: tuple[float, ...]) -> tuple[int, ...]:
    """In units of 1 / EXACT, as Pillow counts, and for the centres of pixels."""
    a, b, c, d, e, f = matrix
    return tuple(
        math.floor(number * EXACT + 0.5) for number in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    )


def _number(name: str, v: float) -> int:
    """What else an operation is told."""
    if name == "posterise":
        return BYTES - (1 << (8 - int(v)))  # the bits that stay
    return math.ceil(v) if name == "solarise" else round(v * EXACT)


class StrongTensors:
    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        drawn = [
            (name, made.magnitude(level)) for name, made in OPERATIONS.items() for level in range(LEVELS)
        ]
        matrices = [_fixed(_matrix(name, v, size)) for name, v in drawn]
        self._matrices = torch.tensor(matrices, device=device)
        self._numbers = torch.tensor([_number(*each) for each in drawn], dtype=torch.int32, device=device)
        self._channels = torch.arange(3, device=device).repeat(size * size) * BYTES
        self._colour = torch.tensor(COLOUR, dtype=torch.uint8, device=device)

    def sources(self, operations: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The row and the column, B,size,size each, from where an operation takes every pixel; they may lie outside."""
        a, b, c, d, e, f = self._matrices[operations * LEVELS + levels][:, :, None, None].unbind(1)
        steps = torch.arange(self.size, device=operations.device)
        x, y = steps[None, None, :], steps[None, :, None]
        return d * x + e * y + f >> 16, a * x + b * y + c >> 16

    def finish(self, pixels: Tensor, choices: Choices) -> Tensor:
        """B,size,size,3 bytes as the first operation has taken them -> as they are shown."""
        pixels = self._recoloured(pixels, choices.first, choices.first_level)
        pixels = self.taken(pixels, *self.sources(choices.second, choices.second_level))
        pixels = self._recoloured(pixels, choices.second, choices.second_level)
        return torch.where(self._painted(choices)[..., None], self._colour, pixels)

    def taken(self, pixels: Tensor, y: Tensor, x: Tensor) -> Tensor:
        last = self.size - 1
        inside = (y >= 0) & (y <= last) & (x >= 0) & (x <= last)
        pictures = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        rows = (pictures * self.size + y.clamp(0, last)) * self.size + x.clamp(0, last)
        return pixels.view(-1, 3).index_select(0, rows.flatten()).view_as(pixels) * inside[..., None]

    def _recoloured(self, pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
        numbers = self._numbers[operations * LEVELS + levels][:, None, None]
        values = pixels.to(torch.int32)
        red, green, blue = values.unbind(3)
        grey = 19595 * red + 38470 * green + 7471 * blue + 32768 >> 16
        # each byte's place in the pictures' tables of B,3,BYTES
        tables = torch.arange(0, 3 * BYTES * len(pixels), 3 * BYTES, device=pixels.device)
        cells = pixels.flatten(1).to(torch.int64).add_(self._channels).add_(tables[:, None]).flatten()
        table = self._table(cells, pixels, grey, operations, numbers).to(torch.uint8)
        mapped = table.flatten().index_select(0, cells).view_as(pixels)
        grey = grey[..., None].expand(values.shape)
        duller = torch.where(_chosen(operations, "colour")[..., None], grey, _smoothed(values))
        mixed = _mixed(duller, values, numbers[..., None]).to(torch.uint8)
        return torch.where(_chosen(operations, "colour", "sharpness")[..., None], mixed, mapped)

    def _table(
        self, cells: Tensor, pixels: Tensor, grey: Tensor, operations: Tensor, numbers: Tensor
    ) -> Tensor:
        """B,3,BYTES: what each byte of each channel becomes."""
        area, bytes_ = self.size**2, torch.arange(BYTES, dtype=torch.int32, device=pixels.device)
        low, high = (edge[..., None] for edge in (pixels.amin((1, 2)), pixels.amax((1, 2))))
        # in float64, by Pillow's steps: it rounds down what may come out just below a whole number. Two tensors are
        # divided, since a number by a tensor is taken as the number times a reciprocal
        scale = torch.full_like(high, 255, dtype=torch.float64) / (high - low).clamp_min(1)
        stretched = (bytes_ * scale - low * scale).clamp(0, 255).to(torch.int32)

        counts = torch.zeros(len(pixels) * 3 * BYTES, dtype=torch.int32, device=pixels.device)
        counts = counts.scatter_add_(0, cells, counts.new_ones(()).expand_as(cells)).view(-1, 3, BYTES)
        brightest = counts.gather(2, high.to(torch.int64))
        step = (area - brightest) // 255
        below = counts.cumsum(2, dtype=torch.int32) - counts
        level = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)

        mean = (2 * grey.sum((1, 2), dtype=torch.int32) + area) // (2 * area)
        duller = torch.where(_chosen(operations, "contrast"), mean[:, None, None], 0)
        table = bytes_.expand(len(pixels), 3, BYTES)
        for names, made in (
            (("autocontrast",), torch.where(high > low, stretched, bytes_)),
            (("equalise",), torch.where(step > 0, level, bytes_)),
            (("brightness", "contrast"), _mixed(duller, bytes_, numbers)),
            (("posterise",), bytes_ & numbers),
            (("solarise",), torch.where(bytes_ < numbers, bytes_, 255 - bytes_)),
        ):
            table = torch.where(_chosen(operations, *names), made, table)
        return table

    def _painted(self, choices: Choices) -> Tensor:
        """B,size,size. Lengths are counted in 1 / (8 * LEVELS) of a pixel."""
        unit, steps = 8 * LEVELS, torch.arange(self.size, device=choices.side.device)
        half = (self.size * (2 * choices.side + 1))[:, None]
        covered = []
        for centre in (choices.y, choices.x):
            middle = unit + 4 * (self.size - 1) * (2 * centre + 1)[:, None]
            first = (middle - half).clamp_min(0) // unit
            covered.append((steps >= first) & (steps <= first + 2 * half // unit))
        return covered[0][:, :, None] & covered[1][:, None, :]


def _chosen(operations: Tensor, *names: str) -> Tensor:
    """B,1,1"""
    found = [operations == NUMBER[name] for name in names]
    return torch.stack(found).any(0)[:, None, None]


def _mixed(duller: Tensor, values: Tensor, share: Tensor) -> Tensor:
    return duller * (EXACT - share) + values * share >> 16


def _smoothed(values: Tensor) -> Tensor:
    """Each pixel with its eight neighbours, itself five times as much, rounded; those at the edge as they are."""
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    out = values.clone()
    out[:, 1:-1, 1:-1] = (around + 4 * values[:, 1:-1, 1:-1] + 6) // 13
    return out
