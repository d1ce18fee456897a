"""Rewards -> advantages: one formula for every published aggregation.

For an action e, streams s (granularities), rewards r and the peers that e is compared with:

    A[e] = clip( sum_r sum_s w_r normalise_over_peers( mean of reward r over the leaves of stream s below e ) )

"Broadcast", "per-step" and "multi-granularity sum" (G2RPO, Eq. 8 and 11) differ only in the tree and in the peers.
Axes: P prompts, E actions, L leaves, S streams, R rewards, G peer groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.plan import Peers, Plan

Scope = Literal["group", "batch"]
Streams = Literal["sum", "mean_reward"]
Mixing = Literal["sum_of_advantages", "weighted_advantages", "weighted_rewards"]

EQUAL = 1e-6
"""Rewards of a group that differ by less than this fraction of their size are equal: float32 resolves no more."""


@dataclass(frozen=True)
class Rewards:
    """What the scorers said of every leaf of every prompt of an iteration.

    ``values`` [P, L, R]; ``valid`` [P, L, R] bool, False where a scorer gave no finite answer; ``weights`` [R].
    """

    values: Tensor
    valid: Tensor
    names: tuple[str, ...]
    weights: tuple[float, ...]


def leaf_means(plan: Plan) -> Tensor:
    """[S, E, L] float64 weights that average the leaves of stream s below action e."""
    weights = torch.zeros(plan.num_streams, len(plan.actions), len(plan.leaves), dtype=torch.float64)
    for e, per_stream in enumerate(plan.leaves_below):
        for s, columns in enumerate(per_stream):
            for column in columns:
                weights[s, e, column] += 1 / len(columns)
    return weights


def relative_advantage(
    rewards: Rewards,
    plan: Plan,
    *,
    peers: Peers,
    streams: Streams,
    mixing: Mixing,
    scope: Scope,
    ddof: int,
    eps: float,
    clip: float | None,
) -> Tensor:
    """[P, E] float64: the formula above.

    ``streams``: normalise per stream, then sum (``sum``), or average the rewards over streams first (``mean_reward``).
    ``mixing``: ``sum_of_advantages`` sum_r w_r A_r (G2RPO); ``weighted_advantages`` sum_r (w_r / sum w) A_r (MixGRPO);
    ``weighted_rewards`` A of sum_r w_r r (Flow-GRPO). ``scope``: std within the peer group, or over the groups of all
    prompts together (Flow-GRPO); the mean is always the group's. ``ddof`` and ``eps``: ``(r - mean) / (std + eps)``.

    A group whose rewards are all equal, or that holds an action without a valid reward, gets advantage 0.
    """
    group_of = torch.tensor(plan.peers(peers))
    below = leaf_means(plan)
    valid = rewards.valid & rewards.values.isfinite()
    values = rewards.values.double().where(valid, 0.0)
    credited = torch.einsum("sel,plr->pser", below, values)  # [P, S, E, R]
    missing = torch.einsum("sel,plr->pser", below, (~valid).double()) > 0
    weights = torch.tensor(rewards.weights, dtype=torch.float64)
    if mixing == "weighted_rewards":
        credited = (credited * weights).sum(-1, keepdim=True)
        missing = missing.any(-1, keepdim=True)
        weights = torch.ones(1, dtype=torch.float64)
    elif mixing == "weighted_advantages":
        weights = weights / weights.sum()
    if streams == "mean_reward":
        credited = credited.mean(1, keepdim=True)
        missing = missing.any(1, keepdim=True)
    normalised = torch.zeros_like(credited)
    for group in range(int(group_of.max()) + 1):
        members = group_of == group
        normalised[:, :, members] = _normalise(credited[:, :, members], missing[:, :, members], scope, ddof, eps)
    advantage = (normalised * weights).sum((1, 3))
    return advantage if clip is None else advantage.clamp(-clip, clip)


def num_skipped_groups(rewards: Rewards, plan: Plan, peers: Peers) -> int:
    """Peer groups over all prompts that hold an action without a valid reward."""
    missing = torch.einsum("sel,plr->pe", leaf_means(plan), (~rewards.valid).double()) > 0
    group_of = torch.tensor(plan.peers(peers))
    return sum(int(missing[:, group_of == group].any(1).sum()) for group in range(int(group_of.max()) + 1))


def _normalise(values: Tensor, missing: Tensor, scope: Scope, ddof: int, eps: float) -> Tensor:
    """``values`` [P, S, n, R] of one peer group: normalised over n."""
    mean = values.mean(2, keepdim=True)
    usable = ~missing.any(2, keepdim=True)
    spread = values.amax(2, keepdim=True) - values.amin(2, keepdim=True)
    usable &= spread > EQUAL * values.abs().amax(2, keepdim=True)
    std = values.std(2, keepdim=True, correction=ddof) if scope == "group" else _batch_std(values, ~missing, ddof)
    return ((values - mean) / (std + eps)).where(usable, 0.0)


def _batch_std(values: Tensor, valid: Tensor, ddof: int) -> Tensor:
    """[1, S, 1, R] std over prompts and peers together, of valid values only."""
    count = valid.sum((0, 2), keepdim=True).clamp(min=1 + ddof)
    mean = (values * valid).sum((0, 2), keepdim=True) / count
    return (((values - mean) ** 2 * valid).sum((0, 2), keepdim=True) / (count - ddof)).sqrt()
