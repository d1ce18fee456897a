"""The clipped surrogate with an optional KL to the reference policy."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from flowrl.gaussian import Gaussian, per_row
from flowrl.protocols import Loss
from flowrl.surrogate import Actions, LossTerms, clipped_surrogate


class PpoClip(Loss, kind="ppo_clip"):
    """``max(-A r, -A clip(r, 1-clip, 1+clip)) + beta KL(new || ref)`` (G2RPO, Eq. 12).

    ``kl_denominator``: ``transition`` is the transition's variance, so that the term is the Gaussian KL
    ``mean (m - m_ref)^2 / (2 g^2 D)``; ``diffusion`` is the one Flow-GRPO's code publishes,
    ``mean (m - m_ref)^2 / (2 g^2)``, smaller by the step D.
    """

    clip: float = Field(default=1e-4, gt=0)
    clip_high: float | None = Field(default=None, gt=0)
    beta: float = Field(default=0.0, ge=0)
    kl_denominator: Literal["transition", "diffusion"] = "transition"

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def terms(self, new: Gaussian, actions: Actions, ref: Gaussian | None) -> LossTerms:
        log_ratio = new.log_prob(actions.next) - actions.old.log_prob(actions.next)
        high = self.clip if self.clip_high is None else self.clip_high
        policy, clipped = clipped_surrogate(log_ratio, actions.advantage, self.clip, high)
        kl = torch.zeros_like(policy)
        if ref is not None:
            kl = new.kl(ref)
            if self.kl_denominator == "diffusion":
                kl = kl * per_row(actions.sigma - actions.sigma_next, kl)
        return LossTerms(policy + self.beta * kl, policy, kl, log_ratio, clipped)
