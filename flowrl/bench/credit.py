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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.bench.probe import Probe, Stand, States, exact_probe, noisy_probe
from flowrl.bench.report import Block, Cell, Column, Figure, Line, Panel, Row, Table
from flowrl.bench.within import Array, ceiling, cell, column, numbered, pearson, rounded, spearman
from flowrl.continuations.strided import Strided
from flowrl.errors import RunFailed
from flowrl.noise import Noise
from flowrl.plan import Plan, compile_plan
from flowrl.recipe import Recipe
from flowrl.sigmas import Grid
from flowrl.types import Arm

EXACT = Strided(strides=(1, 2, 3))
SPREAD_IMAGES = 8
TARGETS = {
    "ode": "V_ode",
    "ode1": "V_ode, {1}",
    "sde": "V_sde",
    "ode_change": "ΔV_ode",
    "sde_change": "ΔV_sde",
}
VALUES = ("ode", "ode1", "sde_a", "sde_b", "before_a", "before_b", "before_ode")
DRAWN = ("ode", "sde", "ode_change", "sde_change")


# ---- measuring


def places(recipe: Recipe) -> list[int]:
    """The first iteration at which each distinct set of arms of the run is used: every place of a moving schedule."""
    seen: dict[str, int] = {}
    for iteration in range(recipe.run.iterations):
        seen.setdefault(repr(recipe.arms(iteration)), iteration)
    return list(seen.values())


def forwards(recipe: Recipe, *, num_prompts: int = 32, samples: int = 64) -> int:
    """Velocity evaluations of :func:`measure`."""
    grid = Grid(recipe.grid.num_steps, recipe.grid.shift)
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


# ---- what it says


@dataclass(frozen=True)
class Actions:
    """The actions of a method from all its measurements, on one scale of reward."""

    method: str
    step: Array
    group: Array
    cluster: Array
    advantage: Array
    targets: Mapping[str, Array]
    halves: Mapping[str, tuple[Array, Array]]
    """Of the targets that are sampled."""

    def at(self, step: int | None) -> Actions:
        """Those of one grid step; None for all."""
        rows = np.ones(len(self.step), bool) if step is None else self.step == step
        targets = {name: values[rows] for name, values in self.targets.items()}
        pairs = {name: (first[rows], second[rows]) for name, (first, second) in self.halves.items()}
        group = numbered(self.group[rows])
        return Actions(self.method, self.step[rows], group, self.cluster[rows], self.advantage[rows], targets, pairs)


def actions_of(measurements: Sequence[Mapping[str, Any]], scale: Array) -> Actions:
    """One method's measurements together. ``scale`` [R] multiplies the rewards. A group in which a reward is missing is
    left out."""
    parts: dict[str, list[Array]] = {}
    for number, found in enumerate(measurements):
        columns = found["columns"]
        rows = len(columns["step"])
        parts.setdefault("measurement", []).append(np.full(rows, number))
        for name in ("prompt", "repetition", "step", "decision"):
            parts.setdefault(name, []).append(np.array(columns[name]))
        parts.setdefault("advantage", []).append(column(columns["advantage"]))
        for name in VALUES:
            parts.setdefault(name, []).append(np.stack([column(row) for row in columns[name]]) @ scale)
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    names = ("measurement", "repetition", "prompt", "step", "decision")
    group = numbered(*(whole[name] for name in names))
    missing = ~np.isfinite(whole["advantage"] + sum(whole[name] for name in VALUES))
    keep = np.bincount(group, missing)[group] == 0
    whole = {name: values[keep] for name, values in whole.items()}
    sde, before = (whole["sde_a"], whole["sde_b"]), (whole["before_a"], whole["before_b"])
    change = (sde[0] - before[0], sde[1] - before[1])
    targets = {"ode": whole["ode"], "ode1": whole["ode1"], "sde": (sde[0] + sde[1]) / 2}
    targets |= {"ode_change": whole["ode"] - whole["before_ode"], "sde_change": (change[0] + change[1]) / 2}
    return Actions(
        method=measurements[0]["method"],
        step=whole["step"],
        group=numbered(group[keep]),
        cluster=whole["prompt"],
        advantage=whole["advantage"],
        targets=targets,
        halves={"sde": sde, "sde_change": change},
    )


def all_actions(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Actions]:
    """Method -> its actions. All methods share one scale of each reward."""
    variance = np.mean([found["variance"] for found in measurements], 0)
    weights = np.array(measurements[0]["weights"])
    scale = weights / np.sqrt(variance)
    methods = dict.fromkeys(found["method"] for found in measurements)
    return {name: actions_of([found for found in measurements if found["method"] == name], scale) for name in methods}


def blocks(measurements: Sequence[Mapping[str, Any]], runs: Mapping[str, tuple[str, ...]] | None = None) -> list[Block]:
    """Tables of both correlations over all steps, and a figure by grid step. ``runs``: method -> keys of its runs."""
    of_method, runs = all_actions(measurements), runs or {}
    first = {found["method"]: found for found in measurements}
    num_prompts = len({prompt for found in measurements for prompt in found["prompts"]})
    over = f"{num_prompts} prompts, {len({found['seed'] for found in measurements})} seeds"
    return [
        _ranks_table(of_method, first, runs, over),
        _values_table(of_method, runs, over, measurements[0]["samples"]),
        _figure(of_method, runs, over),
    ]


_HOW = (
    "Within groups: siblings of one decision, or where there are none the actions of the same prompt and grid step. "
    "95 % bootstrap intervals over prompts; {over}."
)


def _ranks_table(
    of_method: Mapping[str, Actions],
    first: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, tuple[str, ...]],
    over: str,
) -> Table:
    rows = []
    for name, actions in of_method.items():
        cells = {
            target: cell(spearman(actions.advantage, values, actions.group, actions.cluster), runs.get(name, ()))
            for target, values in actions.targets.items()
        }
        spent = {key: Cell(value=float(first[name][key])) for key in ("forwards", "actions")}
        rows.append(Row(title=name, cells=cells | spent))
    return Table(
        name="credit_ranks",
        title="Rank correlation of the advantage with the action's value",
        columns=(
            *(Column(key=key, title=title, better="higher", digits=2) for key, title in TARGETS.items()),
            Column(key="forwards", title="forwards", digits=0),
            Column(key="actions", title="actions", digits=0),
        ),
        rows=tuple(rows),
        caption="Spearman's rho of the ranks. " + _HOW.format(over=over) + " Forwards of the rollout and actions: per "
        "prompt and iteration. V_ode is over the granularities {1, 2, 3}, what G2RPO itself measures: near 1 there by "
        "construction.",
    )


def _values_table(
    of_method: Mapping[str, Actions], runs: Mapping[str, tuple[str, ...]], over: str, samples: int
) -> Table:
    rows = []
    for name, actions in of_method.items():
        where = (actions.group, actions.cluster)
        cells = {
            target: cell(pearson(actions.advantage, values, *where), runs.get(name, ()))
            for target, values in actions.targets.items()
        }
        limits = {f"{key}_ceiling": cell(ceiling(*pair, *where)) for key, pair in actions.halves.items()}
        rows.append(Row(title=name, cells=cells | limits))
    return Table(
        name="credit_values",
        title="Correlation of the advantage with the action's value",
        columns=(
            *(Column(key=key, title=title, better="higher", digits=2) for key, title in TARGETS.items()),
            Column(key="sde_ceiling", title="ceiling V_sde", digits=2),
            Column(key="sde_change_ceiling", title="ceiling ΔV_sde", digits=2),
        ),
        rows=tuple(rows),
        caption=f"Pearson's r. {_HOW.format(over=over)} Ceiling: what the true value itself would have with one of "
        f"{samples} samples, from its split halves.",
    )


def _figure(of_method: Mapping[str, Actions], runs: Mapping[str, tuple[str, ...]], over: str) -> Figure:
    panels = []
    for target in DRAWN:
        lines = []
        for name, actions in of_method.items():
            points = []
            for step in sorted(set(actions.step.tolist())):
                rows = actions.at(step)
                found = spearman(rows.advantage, rows.targets[target], rows.group, rows.cluster)
                points += [] if found is None else [(float(step), *found)]
            if points:
                x, mean, low, high = zip(*points, strict=True)
                lines.append(Line(title=name, x=x, mean=mean, low=low, high=high, runs=runs.get(name, ())))
        panels.append(Panel(title=TARGETS[target], x="grid step", y="Spearman's rho", lines=tuple(lines)))
    return Figure(
        name="credit_steps",
        title="Fidelity of credit by grid step",
        panels=tuple(panels),
        caption=_HOW.format(over=over),
        description="Four panels, one per value of an action; the rank correlation of each method's advantage with it "
        "against the grid step of the action.",
    )
