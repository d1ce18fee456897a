"""Engine and learner against the naive transcription of Algorithm 1, in float64."""

from types import SimpleNamespace

import naive
import pytest
import torch
from test_engine import roll
from tiny import TinyPolicy, TinyScorer, prompts_of

from flowrl.advantages.broadcast import Broadcast
from flowrl.advantages.mgai_sum import MgaiSum
from flowrl.advantages.per_step import PerStep
from flowrl.continuations.compressed import Compressed
from flowrl.continuations.strided import Strided
from flowrl.engine import execute
from flowrl.kernels.cps import Cps
from flowrl.kernels.flow_sde import FlowSde
from flowrl.learner import Learner, sites_of
from flowrl.losses.ppo_clip import PpoClip
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.recipe import load_recipe
from flowrl.recipe_files import shipped_folder, shipped_recipes
from flowrl.schedules.all_steps import AllSteps
from flowrl.schedules.singular import Singular
from flowrl.schedules.sliding_window import SlidingWindow
from flowrl.scoring import Scoring
from flowrl.sigmas import Grid
from flowrl.updates import Updates

SEED, ITERATION, ITERATIONS, GROUP = 3, 2, 6, 4
GRID = Grid(8, 3.0)
VARIANTS = {
    "paper grid, K updates": (
        Singular(),
        Strided(strides=(1, 3), grid="paper"),
        FlowSde(),
        MgaiSum(),
        Updates(updates=4),
    ),
    "weighted rewards, batch std": (
        AllSteps(last="sde", roots="own"),
        Strided(),
        FlowSde(),
        Broadcast(mixing="weighted_rewards", scope="batch", ddof=0, eps=1e-4),
        Updates(split="sample"),
    ),
    "weighted advantages": (
        SlidingWindow(width=2),
        Strided(),
        FlowSde(),
        Broadcast(mixing="weighted_advantages"),
        Updates(updates=4, split="sample"),
    ),
    "compressed": (SlidingWindow(width=2), Compressed(ratio=0.8), FlowSde(), Broadcast(), Updates()),
    "cps": (AllSteps(), Strided(), Cps(), Broadcast(), Updates()),
    "rewards averaged over granularities": (Singular(), Strided(strides=(1, 2)), FlowSde(), PerStep(), Updates()),
}
RECIPES = [shipped_folder() / f"{name}.yaml" for name, _ in shipped_recipes()]


def parts_of(path):
    recipe = load_recipe(path, model="shapes", overrides=["grid.num_steps=8", f"rollout.group={GROUP}"])
    return recipe.schedule, recipe.continuation, recipe.kernel, recipe.advantage, recipe.train


ALGORITHMS = VARIANTS | {f"{path.parent.name}/{path.stem}": parts_of(path) for path in RECIPES}


def ours(policy, parts, loss, num_prompts, max_batch=9, microbatch=5):
    """Plan, rewards [P, L, R], advantages [P, E], and per update the gradient and tally."""
    schedule, continuation, kernel, advantage, updates = parts
    arms = schedule.arms(num_steps=8, group=GROUP, iteration=ITERATION, iterations=ITERATIONS, seed=SEED)
    plan = compile_plan(GRID, arms, continuation.paths)
    prompts = prompts_of(num_prompts)
    cond = policy.encode(prompts)
    scoring = Scoring(policy, {"a": TinyScorer(0), "b": TinyScorer(1)}, {"a": 1.0, "b": 3.0}, prompts, plan, "prompt")
    positions = list(range(num_prompts))
    rollout = execute(
        plan,
        policy,
        cond,
        kernel,
        Noise(SEED, ITERATION),
        positions=positions,
        on_leaves=scoring.add,
        device=torch.device("cpu"),
        max_batch=max_batch,
        dtype=torch.float64,
    )
    rewards = scoring.rewards()
    adv = advantage.per_action(rewards, plan)
    learner = Learner(policy, kernel, loss, microbatch)
    chosen = [updates.partition(plan, seed=SEED, iteration=ITERATION, position=p) for p in positions]
    found = []
    for update in range(updates.updates):
        actions = [partition[update] for partition in chosen]
        sites = sites_of(plan, actions, [1.0] * num_prompts)
        policy.module.zero_grad()
        policy.calls.clear()
        tally = learner.accumulate(
            plan, rollout, cond, adv, sites, num_sites=len(sites), scale=1 / sum(map(len, actions))
        )
        gradient = [parameter.grad.clone() for parameter in policy.module.parameters()]
        found.append(SimpleNamespace(gradient=gradient, tally=tally, actions=actions, forwards=sum(policy.calls)))
    return plan, rewards.values, adv, found


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("num_prompts", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_equals_algorithm_one(name, num_prompts, beta):
    parts = ALGORITHMS[name]
    schedule, continuation, kernel, advantage, _ = parts
    loss = PpoClip(clip=1e-3, beta=beta, kl_denominator="diffusion" if "flow_grpo" in name else "transition")
    policy = TinyPolicy()
    policy.frozen = {key: value + 0.05 for key, value in policy.frozen.items()}
    plan, rewards, adv, updates = ours(policy, parts, loss, num_prompts)

    recipe = SimpleNamespace(continuation=continuation, kernel=kernel, advantage=advantage, loss=loss)
    arms = schedule.arms(num_steps=8, group=GROUP, iteration=ITERATION, iterations=ITERATIONS, seed=SEED)
    prompts = prompts_of(num_prompts)
    scorers = [TinyScorer(0), TinyScorer(1)]
    samples = naive.iterate(policy, recipe, GRID, arms, prompts, scorers, [1.0, 3.0], SEED, ITERATION, GROUP)

    row = {plan.noise_key[node]: e for e, node in enumerate(plan.actions)}
    column = {(plan.noise_key[leaf], stream): plan.leaves.index(leaf) for leaf, stream in plan.readings}
    for p, of_prompt in enumerate(samples):
        for sample in of_prompt:
            read = rewards[p, [column[sample.steps[-1].key, stream] for stream in range(plan.num_streams)]]
            torch.testing.assert_close(read, torch.tensor(sample.rewards, dtype=torch.float64), rtol=0, atol=1e-10)
            for step in sample.steps:
                if step.sigma_next > 0:
                    assert float(adv[p, row[step.key]]) == pytest.approx(sample.advantage, abs=1e-10)
    for update in updates:

        def is_trained(position, key, actions=update.actions):
            return row[key] in actions[position]

        expected = naive.gradient(policy, recipe, samples, prompts, is_trained)
        for got, want in zip(update.gradient, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_one_forward_per_decision_serves_all_siblings():
    plan, _, _, (update,) = ours(TinyPolicy(), ALGORITHMS["recipes/g2rpo"], PpoClip(), num_prompts=2)
    assert update.forwards == 2 * len(plan.decisions) == 8
    assert int(update.tally.sums["actions"]) == 2 * len(plan.actions) == 32


@pytest.mark.parametrize("name", ["recipes/g2rpo", "recipes/dance_grpo"])
def test_accumulation_does_not_matter(name):
    *_, ones = ours(TinyPolicy(), ALGORITHMS[name], PpoClip(), 3, microbatch=1)
    *_, eights = ours(TinyPolicy(), ALGORITHMS[name], PpoClip(), 3, microbatch=8)
    for one, eight in zip(ones, eights, strict=True):
        for a, b in zip(one.gradient, eight.gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_first_update_starts_at_ratio_one():
    *_, updates = ours(TinyPolicy(), ALGORITHMS["recipes/g2rpo"], PpoClip(), 2)
    assert float(updates[0].tally.maxima["ratio_error"]) < 1e-12
    assert float(updates[0].tally.maxima["mean_drift"]) < 1e-10


def test_padding_weighs_nothing():
    policy = TinyPolicy()
    parts = ALGORITHMS["recipes/g2rpo"]
    *_, (plain,) = ours(policy, parts, PpoClip(), 2)
    original = Learner.accumulate

    def padded(self, *args, num_sites, **kwargs):
        return original(self, *args, num_sites=num_sites + 3, **kwargs)

    Learner.accumulate = padded
    try:
        *_, (with_padding,) = ours(policy, parts, PpoClip(), 2)
    finally:
        Learner.accumulate = original
    for a, b in zip(plain.gradient, with_padding.gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert with_padding.forwards == plain.forwards + 3
    assert int(with_padding.tally.sums["actions"]) == int(plain.tally.sums["actions"])


def test_a_rank_with_nothing_to_train_runs_along_and_weighs_nothing():
    policy = TinyPolicy()
    plan, rollout, _, _ = roll("g2rpo", policy=policy)
    policy.calls.clear()
    cond, advantage = policy.encode(prompts_of(3)), torch.ones(3, len(plan.actions))
    tally = Learner(policy, FlowSde(), PpoClip(), microbatch=2).accumulate(
        plan, rollout, cond, advantage, [], num_sites=3, scale=1.0
    )
    assert policy.calls == [2, 1]
    assert not any(parameter.grad.any() for parameter in policy.module.parameters())
    assert float(tally.sums["actions"]) == 0


def test_fraction_is_drawn_per_sample_and_prompt():
    plan, *_, updates = ours(TinyPolicy(), ALGORITHMS["recipes/dance_grpo"], PpoClip(), 3)
    trained = [{e for update in updates for e in update.actions[p]} for p in range(3)]
    for actions in trained:
        assert len(actions) == GROUP * int(0.6 * 7)
    assert trained[0] != trained[1]
    by_sample = [
        [plan.step[plan.actions[e]] for e in trained[0] if plan.sample_of_action[e] == s] for s in range(GROUP)
    ]
    assert len({tuple(steps) for steps in by_sample}) > 1


def test_more_updates_than_steps_is_an_error():
    with pytest.raises(ValueError, match=r"allowed are 1\.\.4"):
        ours(TinyPolicy(), (*ALGORITHMS["recipes/g2rpo"][:4], Updates(updates=5)), PpoClip(), 1)
