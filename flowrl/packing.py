"""How a plan's forwards fall into batches, found by rolling it out with a policy that computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from flowrl.engine import execute
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import Plan
from flowrl.policies.row_padding import RowPadding
from flowrl.protocols import Policy
from flowrl.types import Cond


def batch_sizes(plan: Plan, num_prompts: int, max_batch: int) -> list[int]:
    """Rows of each velocity call of one rollout of ``num_prompts`` prompts by the engine, in its order."""
    policy = _Nothing()
    execute(
        plan,
        cast(Policy, policy),
        Cond(),
        FlowSde(),
        Noise(0, 0),
        positions=range(num_prompts),
        on_leaves=lambda x, rows: None,
        device=torch.device("cpu"),
        max_batch=max_batch,
    )
    return policy.calls


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
