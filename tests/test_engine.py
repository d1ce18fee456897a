"""The engine equals rolling every chain out alone, whatever the packing, and costs what the plan says."""

from collections import Counter

import pytest
import torch
from tiny import TinyPolicy, TinyScorer, prompts_of

from flowrl.continuations.compressed import Compressed
from flowrl.continuations.strided import Strided
from flowrl.engine import execute
from flowrl.kernels.cps import Cps
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.schedules.all_steps import AllSteps
from flowrl.schedules.singular import Singular
from flowrl.schedules.sliding_window import SlidingWindow
from flowrl.scoring import Scoring
from flowrl.sigmas import Grid
from flowrl.types import Scores

GRID = Grid(8, 3.0)
PLANS = {
    "g2rpo": (Singular(), Strided(strides=(1, 2, 3))),
    "dance": (AllSteps(), Strided()),
    "flow_grpo": (AllSteps(last="sde", roots="own"), Strided()),
    "mix": (SlidingWindow(width=2), Strided()),
    "flash": (SlidingWindow(width=2), Compressed(ratio=0.8)),
}


def roll(
    name, *, num_prompts=3, group=4, max_batch=16, leaf_batch=5, positions=None, kernel=None, policy=None, in_turn=False
):
    schedule, continuation = PLANS[name]
    arms = schedule.arms(num_steps=8, group=group, iteration=2, iterations=6, seed=0)
    plan = compile_plan(GRID, arms, continuation.paths)
    positions = list(range(num_prompts)) if positions is None else positions
    prompts = [prompts_of(10)[i] for i in positions]
    policy = policy or TinyPolicy()
    scoring = Scoring(policy, {"a": TinyScorer(0), "b": TinyScorer(1)}, {"a": 1.0, "b": 1.0}, prompts, plan, "prompt")
    rollout = execute(
        plan,
        policy,
        policy.encode(prompts),
        kernel or FlowSde(),
        Noise(7, 3),
        positions=positions,
        on_leaves=scoring.add,
        device=torch.device("cpu"),
        max_batch=max_batch,
        leaf_batch=leaf_batch,
        dtype=torch.float64,
        in_turn=in_turn,
    )
    return plan, rollout, scoring.rewards(), policy


@pytest.mark.parametrize("name", PLANS)
def test_counted_forwards_are_the_plans(name):
    plan, rollout, _, policy = roll(name)
    assert rollout.num_forwards == sum(policy.calls) == 3 * plan.num_forwards
    assert rollout.num_batches == len(policy.calls)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("kernel", [FlowSde(), Cps()], ids=["flow_sde", "cps"])
def test_packing_does_not_matter(name, kernel):
    _, reference, rewards, _ = roll(name, max_batch=10**6, kernel=kernel)
    for max_batch, leaf_batch, in_turn in ((1, 1, False), (7, 3, False), (4, 3, True)):
        _, rollout, found, _ = roll(name, max_batch=max_batch, leaf_batch=leaf_batch, kernel=kernel, in_turn=in_turn)
        torch.testing.assert_close(rollout.next, reference.next, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(rollout.old.mean, reference.old.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.values, rewards.values, rtol=1e-6, atol=1e-7)


def test_a_prompt_does_not_depend_on_its_company():
    plan, together, _, _ = roll("g2rpo")
    _, alone, _, _ = roll("g2rpo", positions=[2])
    torch.testing.assert_close(alone.next, together.next[2 * len(plan.actions) :], rtol=1e-10, atol=1e-10)


def test_every_leaf_is_scored_once():
    plan, _, rewards, _ = roll("g2rpo")
    assert rewards.valid.all()
    assert rewards.values.shape == (3, len(plan.leaves), 2)


def test_full_batches_and_early_freeing():
    plan, rollout, _, policy = roll("g2rpo", num_prompts=4, group=4, max_batch=24)
    assert max(policy.calls) == 24
    assert Counter(policy.calls)[24] >= 0.7 * len(policy.calls)
    assert rollout.peak_states < 4 * (len(plan.parent) - len(plan.leaves))


def test_lambda_and_m_do_not_change_the_noise():
    _, full, _, _ = roll("g2rpo")
    PLANS["one"] = (Singular(steps=(0,)), Strided())
    _, one, _, _ = roll("one")
    del PLANS["one"]
    torch.testing.assert_close(one.next, full.next.reshape(3, -1, 3, 2)[:, :4].reshape(-1, 3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("left", "right"), [("window", "all_steps"), ("lambda_one", "singular")])
def test_equivalent_algorithms_are_equal(left, right):
    PLANS["window"] = (SlidingWindow(width=7), Strided())
    PLANS["all_steps"] = (AllSteps(), Strided())
    PLANS["lambda_one"] = (Singular(), Strided(strides=(1,), grid="paper"))
    PLANS["singular"] = (Singular(), Strided())
    (_, a, rewards_a, _), (_, b, rewards_b, _) = roll(left), roll(right)
    for name in ("window", "all_steps", "lambda_one", "singular"):
        del PLANS[name]
    assert torch.equal(a.next, b.next)
    assert torch.equal(rewards_a.values, rewards_b.values)


class RankScorer:
    """A group scorer: the share of the group's images that are darker, and how many were judged together."""

    scope = "group"

    def score(self, images, prompts):
        assert len(set(prompts)) == 1
        brightness = images.flatten(1).mean(1)
        values = (brightness[:, None] > brightness[None]).double().mean(1)
        ones = torch.ones(len(images), dtype=torch.bool)
        return Scores(values, ones, {"size": torch.full((len(images),), float(len(images)))})


@pytest.mark.parametrize(
    ("name", "peers", "size"),
    [("g2rpo", "parent", 4), ("dance", "step", 4), ("mix", "step", 4), ("flow_grpo", "prompt", 4)],
)
def test_group_scorers_judge_peers_of_one_stream_together(name, peers, size):
    policy, prompts = TinyPolicy(), prompts_of(2)
    schedule, continuation = PLANS[name]
    arms = schedule.arms(num_steps=8, group=4, iteration=0, iterations=6, seed=0)
    plan = compile_plan(GRID, arms, continuation.paths)
    scoring = Scoring(policy, {"rank": RankScorer()}, {"rank": 1.0}, prompts, plan, peers)
    where = {"positions": [0, 1], "on_leaves": scoring.add, "device": torch.device("cpu"), "dtype": torch.float64}
    execute(plan, policy, policy.encode(prompts), FlowSde(), Noise(0, 0), **where)
    rewards = scoring.rewards()
    assert rewards.valid.all()
    assert (scoring.parts["rank/size"] == size).all()
    groups = plan.leaf_groups(peers)
    assert sorted(column for columns in groups for column in columns) == list(range(len(plan.leaves)))
    for columns in groups:
        assert sorted(rewards.values[0, list(columns), 0].tolist()) == pytest.approx([i / size for i in range(size)])
