"""Predictions aligned within samples, among samples and among classes, at several temperatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.method import LOGITS, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import standardised
from loaders.contract import Batch

OTHER_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)  # next to kd_temperature; the last two are of the weak view alone


def up_to_median(x: Tensor) -> Tensor:
    """Which entries are no larger than the median, the middle between the two middle ones."""
    ordered = x.sort().values
    middle = ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]
    return x <= middle / 2


@final
class MLKD(Method):
    """Jin, Wang, Lin: Multi-Level Logit Distillation (2023).

    A weak and a strong view of each sample, temperatures T in {kd_temperature, 3, 5, 2, 6}, p = softmax(logits / T):
      kd = f * sum_T KL(weak) + sum over the first three T of KL(strong) + sum over the last two of KL(weak),
           each KL a mean over the batch times T^2;
      cc = g * sum_T |P^T P - P^T P|^2 / K and bc = f * sum_T |P P^T - P P^T|^2 / B, teacher minus student, weak view.
    f is the share of samples whose largest teacher probability (weak view, T = 1) is at most the batch's median, g the
    share of classes of which that holds for the summed probability. The task loss is the sum of both views' means,
    and each view goes through the student by itself, so that batch norm sees one kind of picture at a time. The strong
    view is that of loaders/strong.py.

    As in the reference, where f and g come of masks meant for single samples and classes that are applied to sums
    already taken, and where 2 and 6 see the weak view twice; the published numbers rest on both.

    standardise: kd, and nothing else, is computed from standardised logits, as logit standardisation does it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.1
        weight: float = 0.9
        standardise: bool = False

    config: Config
    temperatures: Tensor
    needs = Needs(teacher=(LOGITS,), views=2)

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        temperatures = torch.tensor([config.kd_temperature, *OTHER_TEMPERATURES], dtype=torch.float64)
        self.register_buffer("temperatures", temperatures, persistent=False)

    def masks(self, t_BK: Tensor) -> tuple[Tensor, Tensor]:
        """B, K: the teacher's less sure samples, and the classes it sees less of."""
        p_BK = F.softmax(t_BK, dim=1)
        return up_to_median(p_BK.amax(1)), up_to_median(p_BK.sum(0))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_weak, s_strong = student.logits.chunk(2)
        t_weak, t_strong = teacher.logits.detach().chunk(2)
        f, g = (mask.to(s_weak.dtype).mean() for mask in self.masks(t_weak))
        weak, strong = self._kls(s_weak, t_weak), self._kls(s_strong, t_strong)
        s_TBK, t_TBK = self._log_softmax(s_weak).exp(), self._log_softmax(t_weak).exp()
        among_classes = (t_TBK.mT @ t_TBK - s_TBK.mT @ s_TBK).square().sum() / s_weak.shape[1]
        among_samples = (t_TBK @ t_TBK.mT - s_TBK @ s_TBK.mT).square().sum() / len(s_weak)
        return {
            "kd": f * weak.sum() + strong[:3].sum() + weak[3:].sum(),
            "cc": g * among_classes,
            "bc": f * among_samples,
        }

    def _log_softmax(self, x_BK: Tensor) -> Tensor:
        return F.log_softmax(x_BK / self.temperatures.to(x_BK.dtype)[:, None, None], dim=2)

    def _kls(self, s_BK: Tensor, t_BK: Tensor) -> Tensor:
        """T: at each temperature, times its square."""
        if self.config.standardise:
            s_BK, t_BK = standardised(s_BK), standardised(t_BK)
        log_s, log_t = self._log_softmax(s_BK), self._log_softmax(t_BK)
        kl_T = (log_t.exp() * (log_t - log_s)).sum((1, 2)) / len(s_BK)
        return kl_T * self.temperatures.to(kl_T.dtype).square()


METHOD = MLKD
