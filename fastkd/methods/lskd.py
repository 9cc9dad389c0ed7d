"""Another method, on standardised logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, final

from torch import nn

from fastkd import config as configs
from fastkd import methods
from fastkd.method import LOGITS, Method, MethodConfig, Needs, Phase, Setting
from fastkd.outputs import Clock, Outputs, Terms
from fastkd.toolbox.softlabels import standardised
from loaders.contract import Batch
from loaders.errors import UserError

STANDARDISE = "standardise"  # the field of a method that standardises some of what it reads by itself


@final
class LSKD(Method):
    """Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation (2024).

    z = (logits - mean) / (standard deviation + 1e-7) within each sample, unbiased, of both nets; lskd = the terms of the
    method `of` on z at kd_temperature, weighed by kd_weight. The task loss reads the logits as they are.

        --distill lskd method.of dkd method.inner.beta 2 --div 15

    inner.*: the other method's own numbers. Its weights and temperature are those of lskd: over dkd the published
    recipe multiplies alpha and beta by kd_weight. A method whose Config has `standardise` is given the logits and does
    it itself, as mlkd, whose relations among samples and classes stay on the logits. Temperature 2 and weight 9 are the
    published ones for most pairs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        task_weight: float = 0.1
        kd_weight: float = 9.0
        weight: float = 0.0  # lskd has no further term, as kd
        kd_temperature: float = 2.0
        of: str = "kd"
        inner: Mapping[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            super().__post_init__()
            built = self.built()
            object.__setattr__(self, "of", methods.canonical(self.of))
            object.__setattr__(self, "inner", {name: getattr(built, name) for name in self._own()})

        def _own(self) -> list[str]:
            """What `inner` may set: the other method's fields that lskd does not decide."""
            decided = {f.name for f in fields(MethodConfig)} | {STANDARDISE}
            return [f.name for f in fields(methods.load(self.of).Config) if f.name not in decided]

        def built(self) -> MethodConfig:
            """The other method's Config."""
            cls, own = methods.load(self.of), self._own()
            for name in self.inner:
                if name not in own:
                    known = f"its own numbers: {', '.join(own)}" if own else "it has no numbers of its own"
                    raise UserError(f"method.inner.{name} cannot be set for {self.of}; {known}")
            decided: dict[str, Any] = {"kd_temperature": self.kd_temperature}
            if STANDARDISE in {f.name for f in fields(cls.Config)}:
                decided[STANDARDISE] = True
            made: MethodConfig = configs.build(cls.Config, {**self.inner, **decided}, "method.inner")
            return made

    config: Config
    weighed_by = "kd_weight"

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        built = config.built()
        self.inner = methods.load(config.of)(built, setting)
        self.needs: Needs = self.inner.needs
        if LOGITS not in self.needs.teacher:
            raise UserError(f"method.of is {config.of}, which does not read the teacher's logits")
        self.standardises = not hasattr(built, STANDARDISE)

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch, clock: Clock) -> Terms:
        if not self.standardises:
            return self.inner.terms(student, teacher, batch, clock)
        # float64: a loss between z-scores is small, and what a learned temperature gets of it smaller still
        z_s, z_t = standardised(student.logits.double()), standardised(teacher.logits.detach().double())
        terms = self.inner.terms(student._replace(logits=z_s), teacher._replace(logits=z_t), batch, clock)
        return {name: term.to(student.logits.dtype) for name, term in terms.items()}

    def phases(self) -> Sequence[Phase]:
        return self.inner.phases()

    def deployed(self, student: nn.Module) -> nn.Module:
        return self.inner.deployed(student)


METHOD = LSKD
