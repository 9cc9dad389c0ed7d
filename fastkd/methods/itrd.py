"""Information-theoretic representation distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fastkd.method import POOLED, Method, MethodConfig, Needs, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.relations import directions
from loaders.contract import Batch
from loaders.errors import UserError


def standardised(x_BD: Tensor) -> Tensor:
    """Columns of mean 0 and unbiased standard deviation 1; 0, without gradient, where a column is constant."""
    mean_D = x_BD.mean(0)
    variance_D = (x_BD - mean_D).square().sum(0) / max(len(x_BD) - 1, 1)
    varies_D = variance_D > (1e-6 * mean_D).square()  # by more than the rounding of the mean
    deviation_D = torch.where(varies_D, variance_D, torch.ones_like(variance_D)).sqrt()
    return torch.where(varies_D, (x_BD - mean_D) / deviation_D, torch.zeros_like(x_BD))


def gram(x_BD: Tensor) -> Tensor:
    """BB: the cosines between samples."""
    unit_BD = directions(x_BD)
    return unit_BD @ unit_BD.T


def of_unit_trace(x_BB: Tensor) -> Tensor:
    """The trace counts the samples whose features are not all zero: it is 0, or at least 1."""
    return x_BB / x_BB.trace().clamp_min(0.5)


@final
class ITRD(Method):
    """Miles, Lopez-Rodriguez, Mikolajczyk: Information Theoretic Representation Distillation (2022).

    s, t: pooled features; e = W s + b, as wide as t. With c_d the correlation over the batch of column d of e and of t,
    correlation = lambda_corr * log2 sum_d |c_d - 1|^(2 alpha_it);
    mutual = lambda_mutual * sum(G_s^2 - G_st^2), where G_s and G_t hold the cosines between samples, G_st is their
    product entry by entry, and G_s and G_st are divided by their trace.
    G_s is taken of s where both nets are as wide, and of e otherwise.

    Equal to the authors' ITLoss (and TTM's copy of it). Kept from there: the columns are scaled by the unbiased standard
    deviation and averaged over B, so even equal columns have c = (B - 1) / B. alpha_it is 1.01 for pairs of one family
    and 1.5 for others: rows of the recipe. Differs where the reference is not finite: a constant column has c = 0 and a
    row of zeros no cosine, both without gradient. Under several ranks each takes its own samples.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        lambda_corr: float = 2.0
        lambda_mutual: float = 1.0
        alpha_it: float = 1.01

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("lambda_corr", "lambda_mutual"):
                if not 0 <= getattr(self, name) < float("inf"):
                    raise UserError(
                        f"method.{name} is {getattr(self, name)}; a weight must be a finite number >= 0"
                    )
            if not 0.5 <= self.alpha_it < float("inf"):
                raise UserError(f"method.alpha_it is {self.alpha_it}; it must be a number >= 0.5")

    config: Config
    needs = Needs(teacher=(POOLED,))

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        widths = setting.student.pooled_width, setting.teacher.pooled_width
        self.embed = nn.Linear(*widths)
        self.same_width = widths[0] == widths[1]

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        s_BD, t_BD = student.pooled, teacher.pooled
        e_BD = self.embed(s_BD)
        c_D = (standardised(e_BD) * standardised(t_BD)).mean(0)
        s_BB = gram(s_BD if self.same_width else e_BD)
        mutual = of_unit_trace(s_BB).square().sum() - of_unit_trace(s_BB * gram(t_BD)).square().sum()
        return {
            "correlation": self.config.lambda_corr
            * (c_D - 1).abs().pow(2 * self.config.alpha_it).sum().log2(),
            "mutual": self.config.lambda_mutual * mutual,
        }


METHOD = ITRD
