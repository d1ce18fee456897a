"""Fidelity of credit: what a method says of its actions beside what they are worth.

For every action of a method's own rollout its advantage A is compared with values of the state x' that it led to, from
continuations of x' that the method has not seen:

    V_ode   mean reward of the exact ODE continuations from x' at every granularity of {1, 2, 3} (published grid)
    V_ode1  the same at granularity 1 alone
    V_sde   mean reward of ``samples`` continuations from x' with the method's kernel at every step but the last
    ΔV      a value minus the same value of the state that the action was taken in: what the action itself changed

Correlations are within groups: an action is compared with its siblings where its decision has any, and otherwise with
the actions of the same prompt and grid step, which start from other states (the chains of an all-step method): there V
holds what earlier actions did, and ΔV does not. Siblings share their state, so that their V and ΔV are the same.
Rewards are put on one scale: each is divided by its standard deviation over independent ODE images of a prompt (root
mean square over prompts), and weighted as in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.bench.probe import Probe, Stand, States, exact_probe, noisy_probe
from flowrl.bench.within import rounded
from flowrl.continuations.strided import Strided
from flowrl.errors import RunFailed
from flowrl.noise import Noise
from flowrl.plan import Plan, compile_plan
from flowrl.recipe import Recipe
from flowrl.types import Arm

EXACT = Strided(strides=(1, 2, 3))
SPREAD_IMAGES = 8
VALUES = ("ode", "ode1", "sde_a", "sde_b", "before_a", "before_b", "before_ode")
"""Columns with a value of every reward."""


# ---- measuring


def places(recipe: Recipe) -> list[int]:
    """The first iteration at which each distinct set of arms of the run is used: every place of a moving schedule."""
    seen: dict[str, int] = {}
    for iteration in range(recipe.run.iterations):
        seen.setdefault(repr(recipe.arms(iteration)), iteration)
    return list(seen.values())


def forwards(recipe: Recipe, *, num_prompts: int = 32, samples: int = 64) -> int:
    """Velocity evaluations of :func:`measure`."""
    grid = recipe.grid.levels()
    total = SPREAD_IMAGES * grid.num_steps
    for iteration in places(recipe):
        plan = recipe.plan(iteration)
        total += plan.num_forwards
        for start in [grid.sigma.index(plan.sigma[node]) for node in (*plan.actions, *_first_states(plan))]:
            total += exact_probe(grid, start, EXACT).num_forwards + noisy_probe(grid, start, samples).num_forwards
    return total * num_prompts


def measure(recipe: Recipe, *, num_prompts: int = 32, samples: int = 64) -> dict[str, Any]:
    """Roll the method out once for every place of its schedule and value all its actions; JSON values.

    The policy is the recipe's model as it is; a trained one is a recipe with ``model.source=RUN/weights``.
    """
    if samples < 2:
        raise ValueError(f"samples must be 2 or more, for two halves, got {samples}")
    stand = Stand.of(recipe, num_prompts)
    variance = _variance(stand)
    columns: dict[str, list[Any]] = {}
    plans = [recipe.plan(iteration) for iteration in places(recipe)]
    for repetition, plan in enumerate(plans):
        for name, values in _valued_actions(stand, plan, repetition, samples):
            columns.setdefault(name, []).extend(values)
    return {
        "kind": "credit",
        "method": recipe.name,
        "seed": recipe.run.seed,
        "samples": samples,
        "prompts": [prompt.index for prompt in stand.prompts],
        "rewards": list(recipe.rewards),
        "weights": [reward.weight for reward in recipe.rewards.values()],
        "variance": rounded(variance),
        "forwards": fmean(plan.num_forwards for plan in plans),
        "actions": fmean(len(plan.actions) for plan in plans),
        "columns": columns,
    }


def _variance(stand: Stand) -> list[float]:
    """[R] the mean over prompts of the variance of each reward over independent ODE images. Raises RunFailed where that
    is not a positive number: there is no scale to put the reward on."""
    grid = stand.grid
    plan = Probe.of(compile_plan(grid, [Arm({}, roots=SPREAD_IMAGES)], Strided().paths))
    _, values = stand.setup.roll_out(plan, stand.prompts, stand.cond, Noise(stand.recipe.run.seed, -1), "prompt")
    variance: list[float] = values.var(1).nanmean(0).tolist()
    for name, value in zip(stand.recipe.rewards, variance, strict=True):
        if not value > 0:
            raise RunFailed(f"reward {name} tells no image of a prompt from another (variance {value:g})")
    return variance


def _valued_actions(stand: Stand, plan: Plan, repetition: int, samples: int) -> Iterator[tuple[str, list[Any]]]:
    """Name and rows of columns, a row per prompt for every action: where it is, its advantage, its values [R]."""
    rollout, values = stand.roll_out(plan, repetition)
    advantage = stand.advantage(values, plan)
    num_prompts, num_actions = len(stand.prompts), len(plan.actions)
    states = rollout.next.reshape(num_prompts, num_actions, *rollout.next.shape[1:]).cpu()
    at = {node: states[:, e] for e, node in enumerate(plan.actions)}
    before = rollout.x.reshape(num_prompts, len(plan.decisions), *rollout.x.shape[1:]).cpu()
    at |= {node: before[:, plan.decisions.index(node)] for node in _first_states(plan)}
    lone = _lone(plan)
    sde = _valued(stand, plan, at, repetition, samples)
    ode = _valued(stand, plan, at, repetition, None)
    nothing = torch.zeros_like(sde[plan.actions[0]])
    for e, node in enumerate(plan.actions):
        decision = plan.decision_of_action[e]
        parent = plan.decisions[decision] if decision in lone else None
        own = nothing if parent is None else sde[parent]
        own_ode = nothing[:, 0] if parent is None else ode[parent].mean(1)
        rows = {
            "prompt": [prompt.index for prompt in stand.prompts],
            "repetition": [repetition] * num_prompts,
            "step": [plan.step[node]] * num_prompts,
            "decision": [-1 if decision in lone else decision] * num_prompts,
            "advantage": rounded(advantage[:, e].tolist()),
            "ode1": rounded(ode[node][:, 0].tolist()),
            "ode": rounded(ode[node].mean(1).tolist()),
            "sde_a": rounded(sde[node][:, 0].tolist()),
            "sde_b": rounded(sde[node][:, 1].tolist()),
            "before_a": rounded(own[:, 0].tolist()),
            "before_b": rounded(own[:, 1].tolist()),
            "before_ode": rounded(own_ode.tolist()),
        }
        yield from rows.items()


def _lone(plan: Plan) -> set[int]:
    """Decisions with one action: nobody else was tried in the same state."""
    count = np.bincount(plan.decision_of_action)
    return {decision for decision, number in enumerate(count) if number == 1}


def _first_states(plan: Plan) -> list[int]:
    """Nodes in which a lone action is taken and that no action led to: the initial noise of independent chains."""
    led_to = set(plan.actions)
    return [node for d, node in enumerate(plan.decisions) if d in _lone(plan) and node not in led_to]


def _valued(
    stand: Stand, plan: Plan, states: Mapping[int, Tensor], repetition: int, samples: int | None
) -> dict[int, Tensor]:
    """Node -> values of its states [P, ...]: [P, 2, R] of two halves of noisy samples, or without samples [P, S, R] of
    the exact continuations."""
    grid = stand.grid
    found: dict[int, Tensor] = {}
    starts = {node: grid.sigma.index(plan.sigma[node]) for node in states}
    for start in sorted(set(starts.values())):
        nodes = [node for node in states if starts[node] == start]
        prompt = tuple(range(len(stand.prompts))) * len(nodes)
        x = torch.cat([states[node] for node in nodes])
        names = tuple((p, plan.noise_key[node]) for node in nodes for p in range(len(stand.prompts)))
        probe = exact_probe(grid, start, EXACT) if samples is None else noisy_probe(grid, start, samples)
        of_states = States(x, prompt, names)
        seed = stand.recipe.run.seed
        values = stand.setup.values(probe, of_states, stand.prompts, stand.cond, seed=seed, iteration=repetition)
        read = per_stream(probe, values) if samples is None else halves(values)
        found |= dict(zip(nodes, read.unflatten(0, (len(nodes), -1)), strict=True))
    return found


def per_stream(plan: Plan, values: Tensor) -> Tensor:
    """[N, L, R] -> [N, S, R]: the value of each stream's leaf, in a plan with one leaf per stream."""
    at = {node: place for place, node in enumerate(plan.leaves)}
    leaf_of = {stream: at[leaf] for leaf, stream in plan.readings}
    return values[:, [leaf_of[stream] for stream in range(plan.num_streams)]]


def halves(values: Tensor) -> Tensor:
    """[N, L, R] -> [N, 2, R]: the means of the first and the second half of the samples; twice the same of one."""
    if values.shape[1] == 1:
        return values.expand(-1, 2, -1)
    middle = values.shape[1] // 2
    return torch.stack([values[:, :middle].mean(1), values[:, middle:].mean(1)], 1)
