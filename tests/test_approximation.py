"""Continuations may be approximated: what is trained stays as it is to the last bit, and the counts are the plan's."""

from dataclasses import replace

import pytest
import torch
from tiny import TinyPolicy, prompts_of

from flowrl.continuations.compressed import Compressed
from flowrl.continuations.strided import Strided
from flowrl.engine import execute
from flowrl.errors import UserError
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.recipe import load_recipe
from flowrl.schedules.all_steps import AllSteps
from flowrl.schedules.singular import Singular
from flowrl.schedules.sliding_window import SlidingWindow
from flowrl.sigmas import Grid

PLANS = {
    "g2rpo": (Singular(), Strided(strides=(1, 2, 3))),
    "dance": (AllSteps(), Strided()),
    "mix": (SlidingWindow(width=2), Strided()),
    "flash": (SlidingWindow(width=2), Compressed(ratio=0.8)),
}


class Rounded:
    """The tiny policy's velocity to two digits; its residual says at which noise level it was made, in which call."""

    def __init__(self, policy):
        self.policy = policy
        self.refreshed = 0
        self.full, self.cached = [], []

    def refresh(self):
        self.refreshed += 1

    def velocity(self, x, sigma, cond, *, keep):
        self.full += sigma.tolist()
        v = self._rounded(x, sigma, cond)
        return v, torch.stack([sigma, v.flatten(1).sum(1)], 1) if keep else None

    def velocity_by(self, x, sigma, cond, residual):
        self.cached += zip(sigma.tolist(), residual[:, 0].tolist(), strict=True)
        return self._rounded(x, sigma, cond) + 0.01 * residual[:, 1, None, None]

    def _rounded(self, x, sigma, cond):
        return (self.policy.velocity(x, sigma, cond) * 100).round() / 100


def roll(name, *, approximate, every=None, extrapolate=False, max_batch=7, num_prompts=3):
    schedule, continuation = PLANS[name]
    arms = schedule.arms(num_steps=8, group=4, iteration=2, iterations=6, seed=0)
    cheap = {"approximate": approximate, "reuse_every": every, "extrapolate": extrapolate}
    plan = compile_plan(Grid(8, 3.0), arms, continuation.paths, **cheap)
    policy, leaves = TinyPolicy(), {}
    cheaper = Rounded(policy)

    def on_leaves(x, rows):
        leaves.update(zip(rows, x, strict=True))

    rollout = execute(
        plan,
        policy,
        policy.encode(prompts_of(num_prompts)),
        FlowSde(),
        Noise(7, 3),
        positions=range(num_prompts),
        on_leaves=on_leaves,
        device=torch.device("cpu"),
        max_batch=max_batch,
        dtype=torch.float64,
        approximation=cheaper,
    )
    return plan, rollout, torch.stack([leaves[row] for row in sorted(leaves)]), cheaper


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("every", [None, 2, 3])
def test_decisions_and_actions_are_the_same_to_the_last_bit(name, every):
    _, exact, exact_leaves, _ = roll(name, approximate=False, max_batch=1)
    plan, cheap, leaves, _ = roll(name, approximate=True, every=every, max_batch=1)
    assert torch.equal(cheap.x, exact.x)
    assert torch.equal(cheap.next, exact.next)
    assert torch.equal(cheap.old.mean, exact.old.mean)
    assert torch.equal(cheap.old.std, exact.old.std)
    assert plan.forwards.full
    assert not torch.equal(leaves, exact_leaves)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("every", [None, 2, 3])
def test_counts_are_the_plans_and_packing_does_not_matter(name, every):
    plan, rollout, leaves, cheaper = roll(name, approximate=True, every=every)
    assert rollout.forwards == tuple(3 * count for count in plan.forwards)
    assert (len(cheaper.full), len(cheaper.cached)) == (rollout.forwards.full, rollout.forwards.cached)
    assert cheaper.refreshed == 1
    for max_batch in (1, 10**6):
        _, other, other_leaves, _ = roll(name, approximate=True, every=every, max_batch=max_batch)
        torch.testing.assert_close(other.next, rollout.next, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other_leaves, leaves, rtol=0, atol=1e-10)
        assert other.forwards == rollout.forwards


@pytest.mark.parametrize("every", [2, 3])
def test_extrapolated_residuals_lie_on_the_line_through_two(every):
    """The residual of :class:`Rounded` names its noise level: on the line, the level where it is reused."""
    plan, rollout, _, cheaper = roll("dance", approximate=True, every=every, extrapolate=True)
    assert not cheaper.cached, "its continuations are of one step"
    plan, rollout, leaves, cheaper = roll("g2rpo", approximate=True, every=every, extrapolate=True)
    twice = {plan.sigma[n] for n, sources in enumerate(plan.residuals_of) if len(sources) == 2}
    at_start = {(plan.sigma[n], plan.sigma[s[0]]) for n, s in enumerate(plan.residuals_of) if len(s) == 1}
    assert twice
    for sigma, found in cheaper.cached:
        assert (sigma, found) in at_start or found == pytest.approx(sigma)
    for max_batch in (1, 10**6):
        _, _, other, _ = roll("g2rpo", approximate=True, every=every, extrapolate=True, max_batch=max_batch)
        torch.testing.assert_close(other, leaves, rtol=0, atol=1e-10)
    held_of_one = roll("g2rpo", approximate=True, every=every)[1].peak_residuals
    assert held_of_one < rollout.peak_residuals <= 2 * held_of_one


@pytest.mark.parametrize("every", [2, 3])
def test_a_residual_is_the_one_of_the_last_full_step_above(every):
    plan, _, _, cheaper = roll("g2rpo", approximate=True, every=every)
    expected = sorted(
        (plan.sigma[n], plan.sigma[source]) for n, sources in enumerate(plan.residuals_of) for source in sources
    )
    assert sorted(cheaper.cached) == sorted(expected * 3)


def test_residuals_are_freed_and_counted():
    plan, rollout, _, _ = roll("g2rpo", approximate=True, every=2, num_prompts=4, max_batch=4)
    total = 4 * len(plan.residual_uses)
    assert 0 < rollout.peak_residuals <= total / 2, "those of one arm of each prompt, about"
    assert rollout.peak_residual_bytes == rollout.peak_residuals * 2 * 8
    assert roll("g2rpo", approximate=True)[1].peak_residuals == 0


def test_a_plan_that_wants_an_approximation_does_not_run_without_one():
    plan = compile_plan(
        Grid(4), Singular().arms(num_steps=4, group=2, iteration=0, iterations=1, seed=0), Strided().paths
    )
    policy = TinyPolicy()
    where = {"positions": [0], "on_leaves": lambda x, rows: None, "device": torch.device("cpu")}
    with pytest.raises(ValueError, match="approximation"):
        execute(replace(plan, approximate=True), policy, policy.encode(prompts_of(1)), FlowSde(), Noise(0, 0), **where)


def test_recipes_ask_the_model_before_anything_is_loaded():
    recipe = load_recipe("g2rpo", overrides=["continuation.precision=fp8", "continuation.cache={every: 3}"])
    plan = recipe.plan()
    assert plan.forwards.exact == len(plan.decisions)
    assert plan.forwards.cached
    assert load_recipe("g2rpo").plan().forwards == (plan.num_forwards, 0, 0)
    with pytest.raises(UserError, match=r"model kind tiny cannot approximate by cache.*set cache: null"):
        load_recipe("g2rpo", overrides=["plugins=[tiny]", "model={kind: tiny}", "continuation.cache={}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("continuation.precision=fp16", r"continuation\.precision: must be 'exact' or 'fp8', got 'fp16'"),
        ("continuation.precison=fp8", r"did you mean 'precision'\?"),
        ("continuation.cache={evry: 2}", r"continuation\.cache\.evry: unknown key; did you mean 'every'\?"),
        ("continuation.cache={every: 1}", r"continuation\.cache\.every: must be greater than or equal to 2"),
        ("continuation.cache={order: 2}", r"continuation\.cache\.order: must be 0 or 1, got 2"),
        ("continuation.cache={blocks: [0.5, 0.5]}", r"rising fractions"),
        ("continuation.cache={blocks: [0.50, 0.51]}", r"names no block of a model with 8 blocks"),
    ],
)
def test_mistakes_are_explained(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("g2rpo", overrides=[override])
