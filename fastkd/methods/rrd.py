"""Relational representation distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.method import POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.adapters import UnitEmbedding
from fastkd.toolbox.memory_bank import ClassSampler, PairedBank, Queue
from loaders.contract import Batch
from loaders.errors import UserError

# variant -> (student temperature, teacher temperature, when the batch's own keys enter the queue)
VARIANTS = {"published": (0.04, 0.10, "after"), "repository": (0.10, 0.02, "before")}


def soft_cross_entropy(s_BM: Tensor, t_BM: Tensor, s_temperature: float, t_temperature: float) -> Tensor:
    """-mean_B sum_M softmax(t / t_temperature) * log softmax(s / s_temperature)"""
    targets = F.softmax(t_BM / t_temperature, dim=1)
    return -(targets * F.log_softmax(s_BM / s_temperature, dim=1)).sum(1).mean()


@final
class RRD(Method):
    """Giakoumoglou, Stathaki: Relational Representation Distillation (2024).

    s, t: unit embeddings of the pooled features. Each is compared with the same stored teacher keys, and the
    student's distribution of similarities follows the teacher's:
    rrd = -mean_B sum_M softmax(t . keys / nce_t_t) * log softmax(s . keys / nce_t_s).

    memory_type fifo (default): a queue of the last nce_k teacher keys. Two settings are published under this name:
      variant published (default; behind the paper's table): nce_t_s .04, nce_t_t .10, the queue takes the batch's
        keys after the similarities;
      variant repository (the code since February 2025): nce_t_s .10, nce_t_t .02, the queue takes them before, so
        that a sample's own key is among those it is compared with.
    memory_type momentum: CRD's bank, one embedding a sample. The scores are exp(similarity / nce_t) / Z, and the
      soft-max is taken over those already exponentiated scores, as in the repository; temperatures as the variant.

    Differs from the reference: the queue takes any batch size (there nce_k must be a multiple of it); negatives are
    drawn on the device, with replacement; under several ranks every rank stores the keys of all. As there, nothing
    trains the teacher's embedding: it is a fixed random projection, saved with the run.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        memory_type: Literal["fifo", "momentum"] = "fifo"
        variant: Literal["published", "repository"] = "published"
        nce_t_s: float | None = None  # None: the variant's
        nce_t_t: float | None = None
        feat_dim: int = 128
        nce_k: int = 16384
        nce_t: float = 0.07  # momentum only
        nce_m: float = 0.5  # momentum only

        def __post_init__(self) -> None:
            super().__post_init__()
            published = VARIANTS[self.variant]
            for name, default in (("nce_t_s", published[0]), ("nce_t_t", published[1])):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
            for name in ("nce_t_s", "nce_t_t", "nce_t"):
                value = getattr(self, name)
                if not (math.isfinite(value) and value > 0):
                    raise UserError(f"method.{name} is {value}; a temperature must be a number > 0")
            for name in ("feat_dim", "nce_k"):
                if getattr(self, name) < 1:
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be at least 1")
            if not 0 <= self.nce_m < 1:
                raise UserError(f"method.nce_m is {self.nce_m}; a momentum must be in [0, 1)")

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.embed_student = UnitEmbedding(setting.student.pooled_width, config.feat_dim)
        self.embed_teacher = UnitEmbedding(setting.teacher.pooled_width, config.feat_dim).requires_grad_(
            False
        )
        self.gather = setting.gather
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))
        if config.memory_type == "fifo":
            self.needs = Needs(teacher=(POOLED,))
            self.queue = Queue(config.nce_k, config.feat_dim, generator)
        else:
            self.needs = Needs(teacher=(POOLED,), indices=True, negatives=config.nce_k)
            self.bank = PairedBank(
                setting.data.num_samples, config.feat_dim, config.nce_t, config.nce_m, generator
            )
            self.sampler = ClassSampler(setting.data)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BD = self.embed_student(student.pooled)
        with torch.no_grad():
            t_BD = self.embed_teacher(teacher.pooled)
        if self.config.memory_type == "fifo":
            return {"rrd": self._against_queue(s_BD, t_BD)}
        others = self.sampler.others(batch.targets, self.config.nce_k)
        return {
            "rrd": self.against_bank(
                s_BD, t_BD, batch.indices, torch.cat([batch.indices[:, None], others], 1)
            )
        }

    def _against_queue(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        before = VARIANTS[self.config.variant][2] == "before"
        if before:
            self.queue.push(self.gather(t_BD))
        keys_MD = self.queue.rows.to(s_BD.dtype, copy=True)  # a copy: backward needs the keys of this step
        loss = self._follow(s_BD @ keys_MD.T, t_BD @ keys_MD.T)
        if not before:
            self.queue.push(self.gather(t_BD))
        return loss

    def against_bank(self, s_BD: Tensor, t_BD: Tensor, indices_B: Tensor, rows_BM: Tensor) -> Tensor:
        loss = self.bank.contrast(s_BD, t_BD, rows_BM, self.gather, self._follow)
        self.bank.move(self.gather(indices_B), self.gather(s_BD.detach()), self.gather(t_BD))
        return loss

    def _follow(self, s_BM: Tensor, t_BM: Tensor) -> Tensor:
        assert self.config.nce_t_s is not None
        assert self.config.nce_t_t is not None
        return soft_cross_entropy(s_BM, t_BM, self.config.nce_t_s, self.config.nce_t_t)


METHOD = RRD
