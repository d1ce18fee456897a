"""Coefficients-preserving sampling: noise takes the place of predicted noise, the total is kept (Flow-CPS)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from flowrl.gaussian import Gaussian, per_row
from flowrl.protocols import Kernel


class Cps(Kernel, kind="cps"):
    """Flow-CPS (arXiv 2509.05952):

        mean = (1-s') x0 + sqrt(s'^2 - std^2) x1,   std = s' sin(eta pi/2),   x0 = x - s v,   x1 = x + (1-s) v

    The noise share is a fixed part of every step however short, so the marginals stay narrower than the ODE's.
    ``log_prob: unit`` is the published one, -mean (x'-mean)^2 with all constants dropped; ``full`` the true density.
    """

    keeps_marginals: ClassVar[bool] = False

    eta: float = Field(default=0.7, gt=0, le=1)
    log_prob: Literal["unit", "full"] = "unit"

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        s, s_next = per_row(sigma, x), per_row(sigma_next, x)
        std = s_next * math.sin(self.eta * math.pi / 2)
        mean = (1 - s_next) * (x - s * v) + (s_next**2 - std**2).clamp(min=0).sqrt() * (x + (1 - s) * v)
        return Gaussian(mean, std, self.log_prob)
