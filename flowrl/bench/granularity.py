"""How much a reward, and its ranking within a group, vary with the granularity of the denoising that it is read after.

The actions are those of singular sampling at every step that can be noisy. Each is continued at every granularity
lambda of 1..4 on every grid of levels (:class:`flowrl.continuations.strided.Strided`), so all rewards of an action
differ by the granularity alone. A group is the siblings of one prompt and step. For two granularities:

    difference   mean of |r_lambda(a) - r_lambda'(a)|, in units of the standard deviation of r_lambda' in its group
                 (ddof 1, root mean square over groups)
    Spearman     rank correlation of the group's rewards; Kendall: tau-b of them
    other best   share of groups whose best action is another one

and of the rewards r[a, lambda] of a group, a Lambda's parts of the sum of squares about its mean (two-way, one value a
cell): of actions, of granularities, and of their interaction, the part that reorders actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from flowrl.bench.probe import Stand
from flowrl.bench.report import Block, Column, Figure, Line, Panel, Row, Table
from flowrl.bench.within import Array, Statistic, cell, correlation, ends, interval, members, rounded, spearman, sums
from flowrl.continuations.strided import Strided
from flowrl.plan import Plan, compile_plan
from flowrl.progress import counted
from flowrl.recipe import Recipe
from flowrl.schedules.singular import Singular
from flowrl.sigmas import Grid
from flowrl.statistics import Interval
from flowrl.types import Path

LAMBDAS = (1, 2, 3, 4)
GRIDS = ("published", "published_keep", "paper")
STREAMS = tuple((grid, stride) for grid in GRIDS for stride in LAMBDAS)
SETS = ((1, 2), (1, 2, 3), (1, 2, 3, 4))


# ---- measuring


def all_paths(grid: Grid, start: int) -> tuple[Path, ...]:
    """One path per entry of :data:`STREAMS`."""
    of_grids = (Strided(strides=LAMBDAS, grid=name).paths(grid, start) for name in GRIDS)
    return tuple(path for paths in of_grids for path in paths)


def singular_plan(recipe: Recipe, group: int | None = None) -> Plan:
    """Every step that can be noisy, every granularity on every grid. ``group``: the recipe's unless given."""
    steps = recipe.grid.num_steps
    run = {"iteration": 0, "iterations": 1, "seed": recipe.run.seed}
    arms = Singular(steps=tuple(range(steps - 1))).arms(num_steps=steps, group=group or recipe.rollout.group, **run)
    return compile_plan(recipe.grid.levels(), arms, all_paths)


def forwards(recipe: Recipe, *, num_prompts: int = 64, group: int | None = None) -> int:
    """Velocity evaluations of :func:`measure`."""
    return num_prompts * singular_plan(recipe, group).num_forwards


def measure(recipe: Recipe, *, num_prompts: int = 64, group: int | None = None) -> dict[str, Any]:
    """Rewards and monitors of all actions at all granularities; JSON values."""
    stand = Stand.of(recipe, num_prompts, with_monitors=True)
    plan = singular_plan(recipe, group)
    _, values = stand.roll_out(plan, 0, "parent")
    below = torch.tensor([[of_stream[0] for of_stream in plan.leaves_below[e]] for e in range(len(plan.actions))])
    rewards = values[:, below]  # [P, E, S, R]
    return {
        "kind": "granularity",
        "method": recipe.name,
        "seed": recipe.run.seed,
        "streams": [list(stream) for stream in STREAMS],
        "prompts": [prompt.index for prompt in stand.prompts],
        "steps": [plan.step[node] for node in plan.actions],
        "forwards": plan.num_forwards,
        "names": list(stand.setup.scorers),
        "rewards": {name: rounded(rewards[..., r].tolist()) for r, name in enumerate(stand.setup.scorers)},
    }


# ---- what it says


@dataclass(frozen=True)
class Groups:
    """Rewards of g groups of G siblings: ``values`` [g, G, S], the ``step`` and the prompt (``cluster``) of each."""

    values: Array
    step: Array
    cluster: Array

    def at(self, step: int) -> Groups:
        rows = self.step == step
        return Groups(self.values[rows], self.step[rows], self.cluster[rows])

    def read(self, stream: tuple[str, int]) -> Array:
        """[g, G] the rewards at one granularity."""
        return self.values[..., STREAMS.index(stream)]


def groups_of(measurements: Sequence[Mapping[str, Any]], name: str) -> Groups:
    """All measurements of a reward together; groups in which one is missing are left out."""
    values, steps, clusters = [], [], []
    for found in measurements:
        rewards = np.array(found["rewards"][name], dtype=np.float64)  # [P, E, S], None is NaN
        for rows in members(np.array(found["steps"])):
            if len(rows):
                values.append(rewards[:, rows])
                steps.append(np.full(len(rewards), found["steps"][rows[0]]))
                clusters.append(np.array(found["prompts"]))
    whole = Groups(np.concatenate(values), np.concatenate(steps), np.concatenate(clusters))
    keep = np.isfinite(whole.values).all((1, 2))
    return Groups(whole.values[keep], whole.step[keep], whole.cluster[keep])


def difference(groups: Groups, one: tuple[str, int], other: tuple[str, int]) -> Interval | None:
    """Mean absolute difference in standard deviations (ddof 1) of ``other`` within its groups."""
    x, y = groups.read(one), groups.read(other)
    parts = [np.abs(x - y).mean(1), y.var(1, ddof=1), np.ones(len(x))]

    def in_deviations(total: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return total[..., 0] / np.sqrt(total[..., 1] * total[..., 2])

    return interval(sums(parts, groups.cluster), in_deviations)


def rank_correlation(groups: Groups, one: tuple[str, int], other: tuple[str, int]) -> Interval | None:
    """Spearman's, of the siblings of each group."""
    x, y = groups.read(one), groups.read(other)
    group, cluster = (np.repeat(of_group, x.shape[1]) for of_group in (np.arange(len(x)), groups.cluster))
    return spearman(x.reshape(-1), y.reshape(-1), group, cluster)


def kendall(groups: Groups, one: tuple[str, int], other: tuple[str, int]) -> Interval | None:
    """tau-b: the correlation of the signs of all differences between siblings, over all groups."""
    x, y = (np.sign(v[:, :, None] - v[:, None]) for v in (groups.read(one), groups.read(other)))
    parts = [(x * y).sum((1, 2)), (x * x).sum((1, 2)), (y * y).sum((1, 2))]
    return interval(sums(parts, groups.cluster), correlation)


def other_best(groups: Groups, one: tuple[str, int], other: tuple[str, int]) -> Interval | None:
    """Share of groups in which no action is the best, or one of equally good ones, at both granularities."""
    best = [values == values.max(1, keepdims=True) for values in (groups.read(one), groups.read(other))]
    moved = ~(best[0] & best[1]).any(1)
    return interval(sums([moved.astype(float), np.ones(len(moved))], groups.cluster), _share(0, 1))


def parts_of_variance(groups: Groups, grid: str, strides: Sequence[int]) -> dict[str, Interval | None]:
    """Shares of the sum of squares of each group about its mean, added up over groups."""
    y = np.stack([groups.read((grid, stride)) for stride in strides], 2)
    y = y - y.mean((1, 2), keepdims=True)
    total = (y**2).sum((1, 2))
    of_action = (y.mean(2) ** 2).sum(1) * len(strides)
    of_stride = (y.mean(1) ** 2).sum(1) * y.shape[1]
    found = sums([of_action, of_stride, total - of_action - of_stride, total], groups.cluster)
    names = ("action", "granularity", "interaction")
    return {name: interval(found, _share(i, 3)) for i, name in enumerate(names)}


def _share(part: int, whole: int) -> Statistic:
    def share(total: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return total[..., part] / total[..., whole]

    return share


PAIRED = {
    "difference": (difference, Column(key="difference", title="difference, in std of the group", digits=2)),
    "spearman": (rank_correlation, Column(key="spearman", title="Spearman", digits=2)),
    "kendall": (kendall, Column(key="kendall", title="Kendall", digits=2)),
    "other_best": (other_best, Column(key="other_best", title="other best action", digits=0, percent=True)),
}


def blocks(measurements: Sequence[Mapping[str, Any]], runs: tuple[str, ...] = ()) -> list[Block]:
    """Tables of pairs and of parts of variance, and two figures by grid step. ``runs``: keys of the measurements."""
    names = list(dict.fromkeys(name for found in measurements for name in found["names"]))
    of_name = {name: groups_of([m for m in measurements if name in m["names"]], name) for name in names}
    prompts = len({prompt for found in measurements for prompt in found["prompts"]})
    seeds = len({found["seed"] for found in measurements})
    over = f"{prompts} prompts, {counted(seeds, 'seed')}; 95 % bootstrap intervals over prompts."
    return [
        _pairs_table(of_name, runs, over),
        _variance_table(of_name, runs, over),
        _figure(of_name, "spearman", "Spearman within the group", runs, over),
        _figure(of_name, "difference", "difference, in std of the group", runs, over),
    ]


def _pairs_table(of_name: Mapping[str, Groups], runs: tuple[str, ...], over: str) -> Table:
    pairs = [("published", *pair) for pair in combinations(LAMBDAS, 2)]
    pairs += [(grid, 1, stride) for grid in GRIDS[1:] for stride in LAMBDAS[1:]]
    rows = []
    for name, groups in of_name.items():
        for grid, base, stride in pairs:
            where = (groups, (grid, stride), (grid, base))
            cells = {key: cell(function(*where), runs) for key, (function, _) in PAIRED.items()}
            rows.append(Row(title=f"{base} and {stride}, grid {grid}", cells=cells, group=name))
    return Table(
        name="granularity_pairs",
        title="The same actions at two granularities",
        columns=tuple(shown for _, shown in PAIRED.values()),
        rows=tuple(rows),
        caption="Siblings of one prompt and step, their rewards after denoising at two granularities; all steps that "
        f"can be noisy. {over}",
    )


def _variance_table(of_name: Mapping[str, Groups], runs: tuple[str, ...], over: str) -> Table:
    rows = []
    for name, groups in of_name.items():
        for grid in GRIDS:
            for strides in SETS:
                found = parts_of_variance(groups, grid, strides)
                cells = {key: cell(part, runs) for key, part in found.items()}
                title = f"{{{', '.join(map(str, strides))}}}, grid {grid}"
                rows.append(Row(title=title, cells=cells, group=name))
    titles = {"action": "actions", "granularity": "granularities", "interaction": "interaction"}
    return Table(
        name="granularity_variance",
        title="Where the variance of rewards within a group comes from",
        columns=tuple(Column(key=key, title=title, digits=1, percent=True) for key, title in titles.items()),
        rows=tuple(rows),
        caption="Shares of the sum of squares about the group's mean. Advantages are normalised at each granularity, "
        f"which removes what granularities have in common for all actions; the interaction reorders actions. {over}",
    )


def _figure(of_name: Mapping[str, Groups], key: str, y: str, runs: tuple[str, ...], over: str) -> Figure:
    function, _ = PAIRED[key]
    panels = []
    for name, groups in of_name.items():
        lines = []
        for stride in LAMBDAS[1:]:
            points = []
            for step in np.unique(groups.step).tolist():
                found = function(groups.at(step), ("published", stride), ("published", 1))
                points += [] if found is None else [(float(step), *ends(found))]
            if points:
                x, mean, low, high = zip(*points, strict=True)
                lines.append(Line(title=f"{stride} and 1", x=x, mean=mean, low=low, high=high, runs=runs))
        panels.append(Panel(title=name, x="grid step of the action", y=y, lines=tuple(lines)))
    return Figure(
        name=f"granularity_{key}",
        title=f"Granularities 2, 3 and 4 beside 1: {y}",
        panels=tuple(panels),
        caption=f"Published grid. {over}",
        description=f"One panel per reward: {y} of each granularity with granularity 1, against the grid step.",
    )
