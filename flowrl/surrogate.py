"""The policy-gradient surrogate on actions: ratio, clip, and what is logged about them. Axis: A actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.gaussian import Gaussian


@dataclass(frozen=True)
class Actions:
    """What the loss may know of A actions.

    ``next`` [A, ...] the states that were sampled; ``old`` the rollout's transition; ``advantage``, ``sigma``,
    ``sigma_next`` [A].
    """

    next: Tensor
    old: Gaussian
    advantage: Tensor
    sigma: Tensor
    sigma_next: Tensor


class LossTerms(NamedTuple):
    """Per-action terms, [A] each; ``total`` is what is minimised, the others are logged."""

    total: Tensor
    policy: Tensor
    kl: Tensor
    log_ratio: Tensor
    clipped: Tensor


class Surrogate(NamedTuple):
    """``loss`` [A] and whether the clip was active, ``clipped`` [A] bool."""

    loss: Tensor
    clipped: Tensor


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Surrogate:
    """``max(-A r, -A clip(r, 1 - low, 1 + high))`` with ``r = exp(log_ratio)`` (PPO; G2RPO, Eq. 12).

    >>> clipped_surrogate(torch.tensor([0.0]), torch.tensor([2.0]), 0.1, 0.1).loss
    tensor([-2.])
    """
    ratio = log_ratio.exp()
    free = -advantage * ratio
    bound = -advantage * ratio.clamp(1 - low, 1 + high)
    return Surrogate(torch.maximum(free, bound), bound > free)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """[A] ``r - 1 - log r``: the non-negative one-sample estimate of KL(old || new) (Schulman's k3)."""
    return torch.expm1(log_ratio) - log_ratio
