"""The diagonal Gaussian of a stochastic transition. Standard deviations and log-probs exist only here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["full", "unit"]


@dataclass(frozen=True)
class Gaussian:
    """``N(mean, std^2)`` over latents, one row per transition.

    ``mean`` [B, ...]; ``std`` [B, 1, ...] broadcasts over the latent axes. ``scale="full"`` is the true density;
    ``"unit"`` is the density Flow-CPS publishes, which drops every constant: ``-mean (x - mean)^2``.

    >>> Gaussian(torch.zeros(1, 4), torch.ones(1, 1)).log_prob(torch.zeros(1, 4))
    tensor([-0.9189])
    """

    mean: Tensor
    std: Tensor
    scale: Scale = "full"

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + std * noise``; noise is drawn by the caller, so that its seed is the caller's."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] log-density of x, **averaged over the latent dimensions** as all published flow-GRPO code does
        (which is why clip ranges are 1e-5 to 1e-3): ``mean_d [-(x-mean)^2 / (2 std^2) - log std - log sqrt(2 pi)]``."""
        square = (x - self.mean) ** 2
        if self.scale == "unit":
            return -square.flatten(1).mean(1)
        density = -square / (2 * self.std**2) - torch.log(self.std) - 0.5 * math.log(2 * math.pi)
        return density.flatten(1).mean(1)

    def kl(self, other: Gaussian) -> Tensor:
        """[B] ``KL(self || other)`` averaged over the latent dimensions; the two share their std, as the std of a
        transition does not depend on the policy: ``mean_d (mean - mean')^2 / (2 std^2)``."""
        return ((self.mean - other.mean) ** 2 / (2 * self.std**2)).flatten(1).mean(1)

    def __getitem__(self, rows: Tensor) -> Gaussian:
        """The Gaussians of the given rows, for example one decision's for each of its children."""
        return Gaussian(self.mean[rows], self.std[rows], self.scale)

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.std.detach(), self.scale)


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] so that it broadcasts over the latent axes of ``like`` [B, ...]."""
    return value.to(like.device, like.dtype).reshape(-1, *[1] * (like.dim() - 1))
