"""How a plan's forwards fall into batches, found by rolling it out with a policy that computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from flowrl.engine import Rollout, execute
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import Plan
from flowrl.policies.row_padding import RowPadding
from flowrl.protocols import Policy
from flowrl.types import Cond


def batch_sizes(plan: Plan, num_prompts: int, max_batch: int) -> list[int]:
    """Rows of each velocity call of one rollout of ``num_prompts`` prompts by the engine, in its order."""
    policy = _Nothing()
    _roll_out(policy, plan, num_prompts, max_batch)
    return policy.calls


def peak_residuals(plan: Plan, num_prompts: int, max_batch: int) -> int:
    """Most residuals that such a rollout holds at once, each of the size that its model's approximation says."""
    return _roll_out(_Nothing(), plan, num_prompts, max_batch).peak_residuals


def _roll_out(policy: _Nothing, plan: Plan, num_prompts: int, max_batch: int) -> Rollout:
    return execute(
        plan,
        cast(Policy, policy),
        Cond(),
        FlowSde(),
        Noise(0, 0),
        positions=range(num_prompts),
        on_leaves=lambda x, rows: None,
        device=torch.device("cpu"),
        max_batch=max_batch,
        approximation=_Cheaper(policy) if plan.approximate else None,
    )


def num_padded(calls: Sequence[int], sizes: Sequence[int]) -> int:
    """Rows that padding to these sizes adds to calls of so many rows.

    >>> num_padded([1, 5, 12], sizes=[1, 12])
    7
    """
    padding, nothing = RowPadding(), _Nothing()
    padding.expect(rollout=sizes)
    with torch.no_grad():
        for rows in calls:
            padding(nothing.velocity, torch.zeros(rows, 1), torch.ones(rows), Cond())
    return padding.num_padded


class _Nothing:
    """What a rollout asks of a policy, in one latent dimension: it stands still, and notes how many rows it is asked
    for."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.calls: list[int] = []

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.calls.append(len(x))
        return torch.zeros_like(x)


class _Cheaper:
    """Its approximation, noted as the same kind of call."""

    def __init__(self, policy: _Nothing) -> None:
        self.policy = policy

    def refresh(self) -> None:
        pass

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        return self.policy.velocity(x, sigma, cond), x if keep else None

    def velocity_by(self, x: Tensor, sigma: Tensor, cond: Cond, residual: Tensor) -> Tensor:
        return self.policy.velocity(x, sigma, cond)
