"""Credit: hand-worked cases of the one formula, and what it does where rewards say nothing."""

import math

import pytest
import torch

from flowrl.advantages.broadcast import Broadcast
from flowrl.advantages.mgai_sum import MgaiSum
from flowrl.advantages.per_step import PerStep
from flowrl.continuations.strided import Strided
from flowrl.credit import Rewards, num_skipped_groups
from flowrl.plan import compile_plan
from flowrl.sigmas import Grid
from flowrl.types import Arm


def rewards_of(values, valid=None):
    values = torch.tensor(values, dtype=torch.float64)[..., None]
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else torch.tensor(valid)[..., None]
    return Rewards(values, valid, ("r",), (1.0,))


def fan(group=3, strides=(1,)):
    return compile_plan(Grid(4), [Arm({0: group})], Strided(strides=strides).paths)


def test_a_group_by_hand():
    advantage = Broadcast().per_action(rewards_of([[1.0, 2.0, 3.0]]), fan())
    torch.testing.assert_close(advantage, torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64))


def test_an_inner_edge_earns_the_mean_of_its_leaves():
    """BranchGRPO's tree: two splits, the first edge's value is the mean of its two leaves."""
    plan = compile_plan(Grid(4), [Arm({0: 2, 1: 2})], Strided().paths)
    advantage = PerStep(peers="step").per_action(rewards_of([[0.0, 2.0, 4.0, 10.0]]), plan)[0]
    first = [e for e, node in enumerate(plan.actions) if plan.step[node] == 0]
    half = math.sqrt(0.5)
    assert advantage[first].tolist() == pytest.approx([-half, half])


def test_a_group_without_variance_has_no_advantage():
    noise = [[0.3, 0.3 + 1e-8, 0.3 - 1e-8]]
    assert torch.equal(Broadcast().per_action(rewards_of(noise), fan()), torch.zeros(1, 3, dtype=torch.float64))


def test_a_missing_reward_silences_its_group_alone():
    rewards = rewards_of([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[True, True, True], [True, False, True]])
    advantage = Broadcast().per_action(rewards, fan())
    assert advantage[0].abs().sum() > 0
    assert torch.equal(advantage[1], torch.zeros(3, dtype=torch.float64))
    assert num_skipped_groups(rewards, fan(), "step") == 1


def test_a_nan_counts_as_missing():
    advantage = Broadcast().per_action(rewards_of([[1.0, float("nan"), 3.0]]), fan())
    assert torch.equal(advantage, torch.zeros(1, 3, dtype=torch.float64))


def test_streams_are_normalised_apart_and_summed_or_averaged_first():
    plan = fan(group=2, strides=(1, 3))
    columns = [[plan.leaves_below[e][s][0] for s in (0, 1)] for e in (0, 1)]
    values = [0.0] * len(plan.leaves)
    for (fine, coarse), (a, b) in zip(columns, ((0.0, 10.0), (1.0, 0.0)), strict=True):
        values[fine], values[coarse] = a, b
    half = math.sqrt(0.5)
    assert MgaiSum().per_action(rewards_of([values]), plan)[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert PerStep().per_action(rewards_of([values]), plan)[0].tolist() == pytest.approx([half, -half])


def test_clip_comes_last():
    values = [[0.0] * 40 + [1.0]]
    assert float(Broadcast(clip=2.0).per_action(rewards_of(values), fan(group=41)).max()) == 2.0


def test_batch_scope_takes_the_spread_of_all_prompts_and_the_mean_of_each():
    values = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
    advantage = Broadcast(scope="batch", ddof=0, eps=0.0).per_action(rewards_of(values), fan())
    everyone = torch.tensor(values, dtype=torch.float64)
    expected = (everyone - everyone.mean(1, keepdim=True)) / everyone.std(correction=0)
    torch.testing.assert_close(advantage, expected)
