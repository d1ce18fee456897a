"""The learner: gradients of the surrogate, one forward per (update, decision) whatever the number of siblings.

Axes: P prompts, D decisions, E actions, B decisions of a microbatch, A actions of a microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.engine import Rollout
from flowrl.gaussian import Gaussian
from flowrl.plan import Plan
from flowrl.protocols import Kernel, Loss, Policy
from flowrl.surrogate import Actions, LossTerms, approximate_kl
from flowrl.types import Cond
from flowrl.updates import decisions_of


class Site(NamedTuple):
    """A decision to train: prompt row, decision, its trained actions, and the weight of their losses."""

    prompt: int
    decision: int
    actions: tuple[int, ...]
    weight: float


@dataclass
class Tally:
    """What an update logs: ``sums`` over actions and ``maxima``, scalars by name, ready to be reduced over ranks."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **sums: Tensor) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()

    def raise_to(self, **maxima: Tensor) -> None:
        for name, value in maxima.items():
            value = value.detach().float()
            self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value


def sites_of(plan: Plan, chosen: Sequence[tuple[int, ...]], weights: Sequence[float]) -> list[Site]:
    """The decisions of an update. ``chosen`` [P] actions per prompt, ``weights`` [P] (0 for padding prompts)."""
    return [
        Site(p, decision, tuple(actions), weights[p])
        for p, trained in enumerate(chosen)
        for decision, actions in decisions_of(plan, trained).items()
    ]


@dataclass(frozen=True)
class Learner:
    """Turns the decisions of an update into gradients.

    ``backward`` and ``no_sync`` are accelerate's, or plain ones: all microbatches but the last skip the gradient
    all-reduce. Inside ``reference`` the policy is the untrained one (None: the policy's own).
    """

    policy: Policy
    kernel: Kernel
    loss: Loss
    microbatch: int
    backward: Callable[[Tensor], None] = torch.Tensor.backward
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    reference: Callable[[], AbstractContextManager[None]] | None = None

    def accumulate(
        self,
        plan: Plan,
        rollout: Rollout,
        cond: Cond,
        advantage: Tensor,
        sites: Sequence[Site],
        *,
        num_sites: int,
        scale: float,
    ) -> Tally:
        """Add the gradient of ``scale * sum_a weight_a loss_a`` to the parameters.

        ``advantage`` [P, E]. ``num_sites`` >= len(sites) is the largest number over ranks: the missing ones are padded
        with weight 0, so that every rank runs the same microbatches, even one that has nothing to train. ``scale`` is
        world_size / global action count (DDP averages over ranks).
        """
        tally = Tally()
        padding = [Site(prompt=0, decision=0, actions=(0,), weight=0.0)] * (num_sites - len(sites))
        padded = [*sites, *padding]
        chunks = [padded[first : first + self.microbatch] for first in range(0, num_sites, self.microbatch)]
        for i, chunk in enumerate(chunks):
            with nullcontext() if i == len(chunks) - 1 else self.no_sync():
                weight, new, actions, terms = self._terms(plan, rollout, cond, advantage, chunk)
                loss = scale * (weight * terms.total).sum()
                self.backward(loss)
            _tally(tally, weight, new, actions, terms)
        return tally

    def _terms(
        self, plan: Plan, rollout: Rollout, cond: Cond, advantage: Tensor, sites: Sequence[Site]
    ) -> tuple[Tensor, Gaussian, Actions, LossTerms]:
        device, dtype = rollout.x.device, rollout.x.dtype
        at = torch.tensor([s.prompt * len(plan.decisions) + s.decision for s in sites], device=device)
        nodes = [plan.decisions[s.decision] for s in sites]
        sigma = torch.tensor([plan.sigma[n] for n in nodes], device=device, dtype=dtype)
        sigma_next = torch.tensor([plan.sigma[plan.actions[s.actions[0]]] for s in sites], device=device, dtype=dtype)
        rows = cond[torch.tensor([s.prompt for s in sites])]
        x = rollout.x[at]
        ref = None
        if self.loss.needs_reference:  # before the graph of the new policy exists: a reference may swap weights in
            with torch.no_grad(), (self.reference or self.policy.reference)():
                ref = self.kernel.transition(x, self.policy.velocity(x, sigma, rows), sigma, sigma_next)
        new = self.kernel.transition(x, self.policy.velocity(x, sigma, rows), sigma, sigma_next)
        site_of = torch.tensor([i for i, s in enumerate(sites) for _ in s.actions], device=device)
        chosen = [(s.prompt, e) for s in sites for e in s.actions]
        weight = torch.tensor([s.weight for s in sites for _ in s.actions], device=device, dtype=dtype)
        actions = Actions(
            next=rollout.next[torch.tensor([p * len(plan.actions) + e for p, e in chosen], device=device)],
            old=rollout.old[at][site_of],
            advantage=advantage[tuple(torch.tensor(chosen).T)].to(device, dtype),
            sigma=sigma[site_of],
            sigma_next=sigma_next[site_of],
        )
        new = new[site_of]
        return weight, new, actions, self.loss.terms(new, actions, None if ref is None else ref[site_of])


@torch.no_grad()
def _tally(tally: Tally, weight: Tensor, new: Gaussian, actions: Actions, terms: LossTerms) -> None:
    counted = weight > 0
    drift = (((new.mean - actions.old.mean) / actions.old.std) ** 2).flatten(1).mean(1)
    tally.add(
        actions=counted.sum(),
        loss=(weight * terms.total).sum(),
        policy_loss=(weight * terms.policy).sum(),
        kl=(weight * terms.kl).sum(),
        approx_kl=(weight * approximate_kl(terms.log_ratio)).sum(),
        clip_fraction=(weight * terms.clipped).sum(),
    )
    tally.raise_to(
        ratio_error=(torch.expm1(terms.log_ratio).abs() * counted).max(),
        mean_drift=(drift * counted).max().sqrt(),
    )
