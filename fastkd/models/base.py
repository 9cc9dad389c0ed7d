"""A network in named segments, whose insides can be read and which can be run in part."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastkd.outputs import Outputs, TapShape
from loaders.errors import UserError


class TapCatcher:
    """The taps asked of one forward, kept as the segments come past them."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._wanted = frozenset(wanted)
        self.found: dict[str, Tensor] = {}

    def take(self, name: str, x: Tensor) -> bool:
        """Keep x if `name` was asked for. True means kept: x must then not be written in place."""
        if name not in self._wanted:
            return False
        self.found[name] = at_least_float32(x)
        return True


class StagedNet(nn.Module, ABC):
    """Segments stem, stage1, .., stageN, head; taps "stem", "stageK", "stageK.pre" (before the activation).

    A stage's tap is the tensor that the next segment reads, so a partial run starts and ends at taps.
    """

    taps: Mapping[str, TapShape]

    def __init__(
        self, name: str, image_size: int, maps: Sequence[TapShape], pooled_width: int, num_classes: int
    ) -> None:
        """`maps` are the shapes of the stem's and of each stage's output for images of image_size squared."""
        super().__init__()
        if min(min(shape) for shape in maps) < 1:
            raise UserError(
                f"model '{name}' shrinks {image_size}x{image_size} images to nothing; use larger ones"
            )
        self.name = name
        self.image_size = image_size
        self.pooled_width = pooled_width
        self.num_classes = num_classes
        stages = [f"stage{k}" for k in range(1, len(maps))]
        self.segments: tuple[str, ...] = ("stem", *stages, "head")
        shapes = {"stem": maps[0]}
        for stage, shape in zip(stages, maps[1:], strict=True):
            shapes |= {stage: shape, f"{stage}.pre": shape}
        self.taps = shapes

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The classifier; it reads the pooled features."""

    def norm_of(self, tap: str) -> nn.BatchNorm2d:
        """The batch norm whose output, but for a shortcut, is the tap "stageK.pre"."""
        raise UserError(f"model '{self.name}' does not say which batch norm makes its tap '{tap}'")

    @abstractmethod
    def _segment(self, index: int, x: Tensor, caught: TapCatcher) -> Tensor:
        """BCHW to BCHW: 0 is the stem, the last what the head does before it pools.

        x may be a tap, so it is never written in place.
        """

    @property
    def n_segments(self) -> int:
        return len(self.segments)

    def forward(self, images: Tensor, taps: Sequence[str] = ()) -> Outputs:
        """Logits, pooled features and the taps asked for, in the order asked."""
        self._check_images(images)
        for name in taps:
            if name not in self.taps:
                raise UserError(f"model '{self.name}' has no tap '{name}'; its taps: {', '.join(self.taps)}")
        caught = TapCatcher(taps)
        x = images
        for index, segment in enumerate(self.segments):
            x = self._segment(index, x, caught)
            caught.take(segment, x)
        pooled = global_mean(x)
        logits = self.head(pooled)
        asked = {name: caught.found[name] for name in taps}
        return Outputs(at_least_float32(logits), at_least_float32(pooled), asked)

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Segments start..stop-1 applied to x: what segment `stop` reads, or the logits after the last."""
        if not 0 <= start <= stop <= self.n_segments:
            known = ", ".join(f"{index} {segment}" for index, segment in enumerate(self.segments))
            raise UserError(f"model '{self.name}' cannot run segments {start}..{stop - 1}; it has {known}")
        if start == 0 < stop:
            self._check_images(x)
        nothing = TapCatcher(())
        for index in range(start, stop):
            x = self._segment(index, x, nothing)
        return at_least_float32(self.head(global_mean(x))) if start < stop == self.n_segments else x

    def _check_images(self, images: Tensor) -> None:
        """The declared shapes, and where vgg pools, hold for one size only."""
        height, width = images.shape[-2:]
        if height != self.image_size or width != self.image_size:
            built_for = f"{self.image_size}x{self.image_size}"
            raise UserError(
                f"model '{self.name}' was built for {built_for} images, got {height}x{width}; "
                "build it with the image_size of the data"
            )


def at_least_float32(x: Tensor) -> Tensor:
    """Losses are computed in float32 after a half-precision forward; double stays double."""
    return x if x.dtype == torch.float64 else x.float()


def global_mean(x: Tensor) -> Tensor:
    """BCHW to BC."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def conv3x3(width_in: int, width: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, stride, 1, bias=bias)


def conv1x1(width_in: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 1, stride, bias=False)


def square_maps(sides: Sequence[int], widths: Sequence[int]) -> list[TapShape]:
    return [TapShape(width, side, side) for side, width in zip(sides, widths, strict=True)]


def normal_(weight: Tensor, std: float) -> None:
    """Not on the meta device: nothing to draw there, and torch would import for a second to do it."""
    if not weight.is_meta:
        nn.init.normal_(weight, 0, std)


def he_normal_(net: nn.Module) -> None:
    """Every convolution from N(0, 2 / fan_out), its bias 0. torch leaves batch norms at 1 and 0 by itself."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            normal_(module.weight, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
