"""The SDE with a constant diffusion: DanceGRPO."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from flowrl.gaussian import Gaussian, per_row
from flowrl.protocols import Kernel


class DanceSde(Kernel, kind="dance_sde"):
    """Euler-Maruyama step with constant eta (DanceGRPO, arXiv 2505.07818; its eta is another quantity than flow_sde's):

    mean = x - v D - eta^2 D/2 (x - (1-s) x0) / s^2,     std = eta sqrt(D),     x0 = x - s v,     D = s - s'
    """

    keeps_marginals: ClassVar[bool] = True

    eta: float = Field(default=0.3, gt=0)

    def transition(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Gaussian:
        s, s_next = per_row(sigma, x), per_row(sigma_next, x)
        step = s - s_next
        score_term = (x - (1 - s) * (x - s * v)) / s**2
        mean = x - v * step - 0.5 * self.eta**2 * step * score_term
        return Gaussian(mean, self.eta * step.sqrt())
