"""Scoring beside the rollout gives what scoring in line gives, and the rollout goes on meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny import TinyPolicy, TinyScorer, prompts_of

from flowrl.continuations.strided import Strided
from flowrl.engine import execute
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.schedules.singular import Singular
from flowrl.scoring import Scoring
from flowrl.sigmas import Grid
from flowrl.types import Scores

GRID = Grid(8, 3.0)
AHEAD = pytest.mark.parametrize("ahead", [0, 1, 3])


def roll_out(scorers, *, ahead, policy=None, leaf_batch=5, num_prompts=3):
    arms = Singular().arms(num_steps=8, group=4, iteration=0, iterations=1, seed=0)
    plan = compile_plan(GRID, arms, Strided(strides=(1, 2)).paths)
    policy, prompts = policy or TinyPolicy(), prompts_of(num_prompts)
    weights = dict.fromkeys(scorers, 1.0)
    with Scoring(policy, scorers, weights, prompts, plan, "parent", keep_images=1, ahead=ahead) as scoring:
        execute(
            plan,
            policy,
            policy.encode(prompts),
            FlowSde(),
            Noise(7, 3),
            positions=range(num_prompts),
            on_leaves=scoring.add,
            device=torch.device("cpu"),
            max_batch=16,
            leaf_batch=leaf_batch,
            dtype=torch.float64,
        )
    return scoring, plan


class Ranks:
    """Scope group: the share of the others that an image is brighter than."""

    scope = "group"

    def score(self, images, prompts):
        brightness = images.flatten(1).mean(1)
        values = (brightness[:, None] > brightness[None]).double().mean(1)
        return Scores(values, torch.ones(len(images), dtype=torch.bool))


@pytest.mark.parametrize("ahead", [1, 3])
def test_rewards_are_those_of_scoring_in_line(ahead):
    scorers = {"a": TinyScorer(0), "ranks": Ranks(), "b": TinyScorer(1)}
    policies = TinyPolicy(), TinyPolicy()
    generator = torch.random.get_rng_state()
    (one, _), (other, _) = (roll_out(scorers, ahead=n, policy=p) for n, p in zip((0, ahead), policies, strict=True))
    assert torch.equal(one.rewards().values, other.rewards().values)
    assert torch.equal(one.rewards().valid, other.rewards().valid)
    assert list(one.parts) == list(other.parts) == ["a/mean", "b/mean"]
    assert all(torch.equal(one.parts[name], other.parts[name]) for name in one.parts)
    assert one.images.keys() == other.images.keys()
    assert all(torch.equal(one.images[row], other.images[row]) for row in one.images)
    assert not other._held, "no image outlives its group"
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_the_rollout_goes_on_while_a_scorer_waits_for_an_answer():
    """An endpoint whose first answer comes only after the rollout's last forward: in line it would never come."""
    policy, arrived = TinyPolicy(), threading.Event()
    _, plan = roll_out({"a": TinyScorer()}, ahead=0)
    last_forward = 3 * plan.num_forwards
    velocity = policy.velocity

    def counted(x, sigma, cond):
        if sum(policy.calls) + len(x) == last_forward:
            arrived.set()
        return velocity(x, sigma, cond)

    policy.velocity = counted

    class Endpoint(TinyScorer):
        def score(self, images, prompts):
            assert arrived.wait(60), "the rollout waits for the answer"
            return super().score(images, prompts)

    scoring, _ = roll_out({"a": Endpoint()}, ahead=100, policy=policy)
    assert scoring.rewards().valid.all()


@AHEAD
def test_decoded_chunks_are_bounded_and_one_is_scored_at_a_time(ahead):
    decoded = scored = most = 0
    policy, lock, inside = TinyPolicy(), threading.Lock(), threading.Lock()
    decode = policy.decode

    def counted(x):
        nonlocal decoded, most
        with lock:
            decoded += 1
            most = max(most, decoded - scored)
        return decode(x)

    policy.decode = counted

    class Counting(TinyScorer):
        def score(self, images, prompts):
            nonlocal scored
            assert inside.acquire(blocking=False)
            scores = super().score(images, prompts)
            inside.release()
            with lock:
                scored += 1
            return scores

    roll_out({"a": Counting()}, ahead=ahead, policy=policy, leaf_batch=2)
    assert decoded == scored > 10
    assert most <= max(ahead, 1)


@AHEAD
def test_a_scorers_exception_is_the_rollouts(ahead):
    class Failing(TinyScorer):
        calls = 0

        def score(self, images, prompts):
            self.calls += 1
            if self.calls == 2:
                raise ConnectionError("no judge at this address")
            return super().score(images, prompts)

    failing = Failing()
    with pytest.raises(ConnectionError, match="no judge at this address"):
        roll_out({"a": failing}, ahead=ahead)
    assert failing.calls == 2


@AHEAD
def test_scorers_build_no_graph(ahead):
    seen = []

    class Looking(TinyScorer):
        weight = torch.ones((), requires_grad=True)

        def score(self, images, prompts):
            seen.append((images * self.weight).requires_grad)
            return super().score(images, prompts)

    roll_out({"a": Looking()}, ahead=ahead)
    assert seen
    assert not any(seen)
