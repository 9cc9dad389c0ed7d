"""Attribute structure knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import LOGITS, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Network, Outputs, Terms
from fastkd.toolbox.spatial import Pair
from loaders.contract import Batch
from loaders.errors import UserError


def structure(x: Tensor) -> Tensor:
    """How far the entries of the last dimension lie apart, every pair once, in units of the mean over all of x."""
    lower, upper = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)
    apart = (x[..., lower] - x[..., upper]).abs().clamp_min(1e-6)  # the published floor: no distance is 0
    return apart / apart.mean()


def structure_distance(s: Tensor, t: Tensor) -> Tensor:
    """Smooth L1 between structures, averaged over all ordered pairs of entries, each with itself included."""
    count = s.shape[-1]
    if count < 2:
        return (s * 0).sum()
    return F.smooth_l1_loss(structure(s), structure(t)) * ((count - 1) / count)


def regions(s_BCHW: Tensor, t_BCHW: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """BCR each: averages over windows of side // grid; over a grid x grid where such windows give other grids."""
    windows = [(x.shape[2] // grid, x.shape[3] // grid) for x in (s_BCHW, t_BCHW)]
    s_cells, t_cells = F.avg_pool2d(s_BCHW, windows[0]), F.avg_pool2d(t_BCHW, windows[1])
    if s_cells.shape[2:] != t_cells.shape[2:]:
        s_cells, t_cells = (F.adaptive_avg_pool2d(x, grid) for x in (s_BCHW, t_BCHW))
    return s_cells.flatten(2), t_cells.flatten(2)


@final
class ASKD(Method):
    """Wang: Attribute Structure Knowledge Distillation (2020, code; no text of a paper was found).

    structure(x): |x_i - x_j| of the numbers of one sample, divided by the mean over the whole batch.
    askd_class = class_weight * smooth L1 between the structures of the logits.
    askd_region = region_weight * smooth L1 between the structures of the averages over grid x grid regions, channel by
    channel, the student's map first taken to the teacher's channels by a trained 1x1 convolution; a term a layer.

    layers: the maps compared, 0 the stem, 1 the first stage, -1 the last, which is the default and the published one.
    grid: rows in configs have 2 for pairs of one style. A map smaller than the grid has as many regions as pixels;
    small_maps own (default): for itself; small_maps inherit: for the layers after it as well. The latter is the code's
    first step; it also keeps the smaller grid for all layers of later steps. With one layer the three are the same.
    Equal to the code but for that. Differences are taken directly, where there a^2 + b^2 - 2ab cancels. Sides that the
    grid does not divide, for which the code fails when the nets then disagree, are averaged over uneven regions.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        region_weight: float = 5.0
        class_weight: float = 14.0
        grid: int = 4
        layers: tuple[int, ...] = (-1,)
        small_maps: Literal["own", "inherit"] = "own"

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.grid < 1:
                raise UserError(f"method.grid is {self.grid}; it must be at least 1")
            if self.region_weight and not self.layers:
                raise UserError(
                    "method.layers names no map; give one or more, such as -1, or region_weight 0"
                )
            if not (self.region_weight or self.class_weight):
                raise UserError("method.region_weight and class_weight are both 0; give one a weight above 0")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        layers = config.layers if config.region_weight else ()
        self.pairs = [
            Pair(self._map("student", setting.student, k), self._map("teacher", setting.teacher, k))
            for k in layers
        ]
        self.needs = Needs(
            student=tuple(pair.student for pair in self.pairs),
            teacher=(*(pair.teacher for pair in self.pairs), *((LOGITS,) if config.class_weight else ())),
        )
        embeds: list[nn.Module] = []
        self.grids: list[int] = []
        grid = config.grid
        for pair in self.pairs:
            s, t = setting.student.taps[pair.student], setting.teacher.taps[pair.teacher]
            embeds.append(nn.Conv2d(s.channels, t.channels, 1))
            self.grids.append(min(grid, s.height, s.width, t.height, t.width))
            if config.small_maps == "inherit":
                grid = self.grids[-1]
        self.embeds = nn.ModuleList(embeds)

    @staticmethod
    def _map(role: str, net: Network, layer: int) -> str:
        maps = [tap for tap in net.taps if not tap.endswith(".pre")]
        if not -len(maps) <= layer < len(maps):
            raise UserError(
                f"method.layers has {layer}; the {role} has 0 (its stem) to {len(maps) - 1}, or -1 for the last"
            )
        return maps[layer]

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        terms: Terms = {}
        for pair, embed, grid in zip(self.pairs, self.embeds, self.grids, strict=True):
            s_BCR, t_BCR = regions(embed(student.taps[pair.student]), teacher.taps[pair.teacher], grid)
            terms[f"askd_region_{pair.stage}"] = self.config.region_weight * structure_distance(s_BCR, t_BCR)
        if self.config.class_weight:
            distance = structure_distance(student.logits, teacher.logits)
            terms["askd_class"] = self.config.class_weight * distance
        return terms


METHOD = ASKD
