"""Contrastive representation distillation."""

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

EPS = 1e-7


@final
class CRD(Method):
    """Tian, Krishnan, Isola: Contrastive Representation Distillation (2020).

    s, t: unit embeddings of the pooled features, both trained.

    memory_type momentum (default; RepDistiller and MDistiller, behind every table): a bank of one student and one
    teacher embedding a sample of the data set. Each s is held against the teacher's row of its positive and nce_k rows
    of other classes, each t against the student's; x = exp(similarity / nce_t) / Z, with n samples and c = nce_k / n:
    crd = -1/B sum over both sides of log(x_pos / (x_pos + c + 1e-7)) + sum_negatives log(c / (x + c + 1e-7)).
    Then row <- unit(nce_m * row + (1 - nce_m) * new). The Z of either side is n times the mean score of the first batch
    there ever was, and is kept, as published; over several ranks it is the mean of theirs.
      mode exact: the positive is the sample itself; relax: a random one of its class.
    memory_type fifo (the distillers repository's default): another loss under the name. A queue of the last nce_k
    teacher embeddings takes the batch's first, then
    crd = cross-entropy of [s . t, s . queue] / nce_t with the first as the label:
    a sample's own key is also among its negatives, and t learns through the positive alone.

    Differs from the references: negatives are drawn on the device with replacement (there by each worker, without); no
    row of a bank is gathered, the same scores are read from a product with the whole bank; the queue takes any batch
    size; every rank holds the same bank or queue and stores the embeddings of all.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        weight: float = 0.8
        memory_type: Literal["momentum", "fifo"] = "momentum"
        mode: Literal["exact", "relax"] = "exact"  # momentum only
        feat_dim: int = 128
        nce_k: int = 16384
        nce_t: float = 0.07
        nce_m: float = 0.5  # momentum only

        def __post_init__(self) -> None:
            super().__post_init__()
            lowest = 0.02 if self.memory_type == "momentum" else 0.0  # exp(1 / nce_t) has to fit float32
            if not (math.isfinite(self.nce_t) and self.nce_t > 0 and self.nce_t >= lowest):
                raise UserError(
                    f"method.nce_t is {self.nce_t}; it must be a number {f'>= {lowest}' if lowest else '> 0'}"
                )
            for name in ("feat_dim", "nce_k"):
                if getattr(self, name) < 1:
                    raise UserError(f"method.{name} is {getattr(self, name)}; it must be at least 1")
            if not 0 <= self.nce_m < 1:
                raise UserError(f"method.nce_m is {self.nce_m}; a momentum must be in [0, 1)")
            if self.memory_type == "fifo" and self.mode != "exact":
                raise UserError(
                    f"method.mode is {self.mode}, but a queue has no classes; use memory_type momentum"
                )

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        self.embed_student = UnitEmbedding(setting.student.pooled_width, config.feat_dim)
        self.embed_teacher = UnitEmbedding(setting.teacher.pooled_width, config.feat_dim)
        self.gather = setting.gather
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))
        if config.memory_type == "fifo":
            self.needs = Needs(teacher=(POOLED,))
            self.queue = Queue(config.nce_k, config.feat_dim, generator)
        else:
            self.needs = Needs(teacher=(POOLED,), indices=True, negatives=config.nce_k)
            number = setting.data.num_samples
            self.bank = PairedBank(number, config.feat_dim, config.nce_t, config.nce_m, generator)
            self.sampler = ClassSampler(setting.data)
            self.per_sample = config.nce_k / number

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BD, t_BD = self.embed_student(student.pooled), self.embed_teacher(teacher.pooled)
        if self.config.memory_type == "fifo":
            return {"crd": self._against_queue(s_BD, t_BD)}
        positive_B = batch.indices if self.config.mode == "exact" else self.sampler.same(batch.targets)
        others_BK = self.sampler.others(batch.targets, self.config.nce_k)
        rows_BM = torch.cat([positive_B[:, None], others_BK], 1)
        loss = self.bank.contrast(
            s_BD, t_BD, rows_BM, self.gather, lambda s_BM, t_BM: self._estimate(s_BM) + self._estimate(t_BM)
        )
        self.bank.move(*(self.gather(rows.detach()) for rows in (batch.indices, s_BD, t_BD)))
        return {"crd": loss}

    def _estimate(self, scores_BM: Tensor) -> Tensor:
        """Noise-contrastive: is a score of the data or, nce_k times as often, of chance?"""
        c = self.per_sample
        of_data_BM = scores_BM / (scores_BM + (c + EPS))
        of_chance_BM = c / (scores_BM + (c + EPS))
        return -(of_data_BM[:, 0].log().sum() + of_chance_BM[:, 1:].log().sum()) / len(scores_BM)

    def _against_queue(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        self.queue.push(self.gather(t_BD.detach()))
        positive_B1 = (s_BD * t_BD).sum(1, keepdim=True)
        logits_BM = torch.cat([positive_B1, s_BD @ self.queue.rows.to(s_BD.dtype).T], 1) / self.config.nce_t
        return -F.log_softmax(logits_BM, dim=1)[:, 0].mean()


METHOD = CRD
