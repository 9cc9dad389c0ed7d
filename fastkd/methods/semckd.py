"""Cross-layer distillation with semantic calibration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.method import Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import bottleneck
from fastkd.toolbox.relations import directions
from fastkd.toolbox.spatial import same_size, stages
from loaders.contract import Batch
from loaders.errors import UserError


class Embedding(nn.Module):
    """From a sample's similarities to its batch, a vector of length 1."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        width = max(batch_size // 4, 1)
        self.hidden = nn.Linear(batch_size, 2 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BD = x_BCHW.flatten(1)
        similar_BB = x_BD @ x_BD.T
        # A rank sees its share of the batch, and so does a test of one sample; what is absent counts 0.
        padded_BM = F.pad(similar_BB, (0, self.hidden.in_features - len(x_BD)))
        return directions(self.out(F.relu(self.hidden(padded_BM))))


class Attention(nn.Module):
    """How much each sample's student stage listens to each teacher stage."""

    def __init__(self, num_student: int, num_teacher: int, batch_size: int, soft: float) -> None:
        super().__init__()
        self.soft = soft
        self.queries = nn.ModuleList(Embedding(batch_size) for _ in range(num_student))
        self.keys = nn.ModuleList(Embedding(batch_size) for _ in range(num_teacher))

    def forward(self, s_maps: list[Tensor], t_maps: list[Tensor]) -> Tensor:
        """B, student stages, teacher stages; soft-max over the last."""
        queries_BSD = torch.stack([embed(x) for embed, x in zip(self.queries, s_maps, strict=True)], dim=1)
        keys_BTD = torch.stack([embed(x) for embed, x in zip(self.keys, t_maps, strict=True)], dim=1)
        return F.softmax(queries_BSD @ keys_BTD.mT / self.soft, dim=2)


def _apart(project: nn.Module, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """B: mean squares."""
    s_BCHW, t_BCHW = same_size(s_BCHW, t_BCHW)
    square_BCHW: Tensor = (project(s_BCHW) - t_BCHW).square()
    return square_BCHW.flatten(1).mean(1)


@final
class SemCKD(Method):
    """Chen et al.: Cross-Layer Distillation with Semantic Calibration (2021).

    Each student stage is compared with each teacher stage: d_bij = mean over entries of (project_ij(s_i) - t_j)^2 for
    sample b, the larger map first averaged down, project 1x1, 3x3, 1x1 convolutions. The weights are an attention:
    a_b = softmax over j of q_bi . k_bj / soft, where q and k are unit vectors, made by two linear layers from sample b's
    row of the batch's similarities (products of flattened maps).
    semckd = sum over samples and pairs of a_bij d_bij / (B * student stages).

    Equal to SimKD's SemCKD, and to the SemCKD repository where soft is 1. As there, the attention's width is the size of
    the batch (batch_size over all ranks), so its weights depend on it and on where in a batch a sample stands. Under
    several ranks each has the similarities of its own samples, as there; the columns of the others are 0. The
    repository's layers that no output depends on are left out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        kd_weight: float = 1.0
        weight: float = 400.0
        soft: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not (math.isfinite(self.soft) and self.soft > 0):
                raise UserError(f"method.soft is {self.soft}; a temperature must be a number > 0")

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.needs = Needs(student=stages(setting.student), teacher=stages(setting.teacher))
        self.attention = Attention(
            len(self.needs.student), len(self.needs.teacher), setting.batch_size, config.soft
        )
        widths_s = [setting.student.taps[tap].channels for tap in self.needs.student]
        widths_t = [setting.teacher.taps[tap].channels for tap in self.needs.teacher]
        self.projectors = nn.ModuleList(
            nn.Sequential(*bottleneck(wide_s, 2 * wide_t, wide_t))
            for wide_s, wide_t in itertools.product(widths_s, widths_t)
        )

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_maps = [student.taps[tap] for tap in self.needs.student]
        t_maps = [teacher.taps[tap] for tap in self.needs.teacher]
        attention_BP = self.attention(s_maps, t_maps).flatten(1)  # P: pairs of stages
        pairs = zip(self.projectors, itertools.product(s_maps, t_maps), strict=True)
        apart_BP = torch.stack([_apart(project, *maps) for project, maps in pairs], 1)
        return {"semckd": (attention_BP * apart_BP).sum() / (len(apart_BP) * len(s_maps))}


METHOD = SemCKD
