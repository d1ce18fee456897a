"""The SDE whose marginals are the flow's: Flow-GRPO, MixGRPO, G2RPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from flowrl.gaussian import Gaussian, per_row
from flowrl.protocols import Kernel


class FlowSde(Kernel, kind="flow_sde"):
    """Euler-Maruyama step of the reverse SDE with diffusion g (Flow-GRPO, arXiv 2505.05470, Eq. 9; G2RPO, Eq. 2-3):

    g    = eta sqrt(s / (1 - s))                at s = 1 the denominator takes s' for s
    mean = x (1 - g^2 D / 2s) - v (1 + g^2 (1-s) / 2s) D,     std = g sqrt(D),     D = s - s'
    """

    keeps_marginals: ClassVar[bool] = True

    eta: float = Field(default=0.7, gt=0)

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        s, s_next = per_row(sigma, x), per_row(sigma_next, x)
        step = s - s_next
        g2 = self.eta**2 * s / (1 - s_next.where(s >= 1, s))
        mean = x * (1 - g2 * step / (2 * s)) - v * (1 + g2 * (1 - s) / (2 * s)) * step
        return Gaussian(mean, (g2 * step).sqrt())
