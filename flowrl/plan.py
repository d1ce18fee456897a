"""The plan: one prompt's denoising forest, as data. A rollout costs its internal nodes.

The velocity depends only on the parent latent, so one forward at a node serves every child of it, stochastic or not.
A child that would be the same random variable as an existing one *is* that one ("interned"): the common ODE prefix,
the SDE step shared by siblings, and the first steps that all granularities share are therefore shared by construction.

Only decisions' velocities enter a log-prob. What runs below the last action of a path merely evaluates the direction
that the action took: these *continuation* nodes may be approximated without an importance-ratio mismatch.

Axes: N nodes, E actions, D decisions, L leaves, S streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from flowrl.sigmas import Grid
from flowrl.types import Arm, Path

Peers = Literal["prompt", "step", "parent"]
NoiseKey = tuple[tuple[int, int], ...]
"""What names a node's noise: (-1, root), then the (grid step, sibling) pairs on the way."""


Kind = Literal["exact", "full", "cached"]
"""How a node's forward runs: by the policy itself; by its approximation with all blocks; by it with blocks reused."""


class Forwards(NamedTuple):
    """Velocity evaluations by :data:`Kind`."""

    exact: int
    full: int
    cached: int


class Reading(NamedTuple):
    """A leaf to score, and the stream (granularity) that its reward belongs to."""

    leaf: int
    stream: int


@dataclass(frozen=True)
class Plan:
    """A denoising forest as parallel arrays over nodes, parents before children.

    >>> from flowrl.sigmas import Grid
    >>> plan = compile_plan(Grid(2), [Arm({0: 3})], lambda grid, start: [Path(grid.sigma[start:])])
    >>> plan.num_forwards, len(plan.actions), len(plan.decisions), len(plan.leaves)
    (4, 3, 1, 3)
    """

    sigma: tuple[float, ...]
    """[N] noise level."""
    parent: tuple[int, ...]
    """[N] parent node, -1 at a root."""
    step: tuple[int, ...]
    """[N] grid step of the stochastic edge into the node, -1 where it is deterministic."""
    noise_key: tuple[NoiseKey, ...]
    """[N] the draws that the node's state depends on; its own draw is the last where the node is stochastic."""
    history: tuple[int, ...]
    """[N] the node whose x0 prediction makes the edge a DPM-Solver++(2M) step, -1 for a first-order (Euler) one."""
    readings: tuple[Reading, ...]
    approximate: bool = False
    """Whether continuation nodes are left to the policy's approximation."""
    reuse_every: int | None = None
    """Of every so many steps of a continuation one runs in full and the others reuse its residual
    (:attr:`residuals_of`); None: all run in full."""
    extrapolate: bool = False
    """Whether a reused residual is extrapolated from two in place of one."""

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.parent]
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                found[parent].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def roots(self) -> tuple[int, ...]:
        return tuple(node for node, parent in enumerate(self.parent) if parent < 0)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """[L] nodes at sigma 0 that are scored."""
        return tuple(sorted({leaf for leaf, _ in self.readings}))

    @property
    def num_streams(self) -> int:
        return 1 + max(stream for _, stream in self.readings)

    @cached_property
    def actions(self) -> tuple[int, ...]:
        """[E] stochastic edges that can be trained, named by their child. Noise at sigma 0 stays in the picture and
        is never an action."""
        return tuple(n for n, step in enumerate(self.step) if step >= 0 and self.sigma[n] > 0)

    @cached_property
    def decisions(self) -> tuple[int, ...]:
        """[D] parents of actions: one training forward serves all their siblings."""
        return tuple(dict.fromkeys(self.parent[n] for n in self.actions))

    @cached_property
    def decision_of_action(self) -> tuple[int, ...]:
        """[E] position of each action's parent in ``decisions``."""
        position = {node: i for i, node in enumerate(self.decisions)}
        return tuple(position[self.parent[n]] for n in self.actions)

    @cached_property
    def height(self) -> tuple[int, ...]:
        """[N] forwards still to run below a node, along its longest path; see :class:`flowrl.ready.ReadyQueue`."""
        height = [0] * len(self.parent)
        for node in range(len(self.parent) - 1, -1, -1):
            if self.parent[node] >= 0:
                height[self.parent[node]] = max(height[self.parent[node]], height[node] + 1)
        return tuple(height)

    @cached_property
    def history_uses(self) -> dict[int, int]:
        """How many second-order edges look back to a node's x0 prediction; nodes without any are absent."""
        return dict(Counter(node for node in self.history if node >= 0))

    @cached_property
    def depth(self) -> tuple[int, ...]:
        """[N] forwards between a node and its root."""
        depth: list[int] = []
        for parent in self.parent:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return tuple(depth)

    @cached_property
    def waves(self) -> tuple[tuple[int, ...], ...]:
        """Internal nodes by depth: the fewest sequential forwards that unlimited batches would need."""
        waves: list[list[int]] = [[] for _ in range(1 + max(self.depth))]
        for node, depth in enumerate(self.depth):
            if self.children[node]:
                waves[depth].append(node)
        return tuple(tuple(wave) for wave in waves if wave)

    @cached_property
    def begins_path(self) -> tuple[bool, ...]:
        """[N] whether an internal node is a root, or one of several that go on from its parent."""
        going_on = [sum(1 for child in children if self.children[child]) for children in self.children]
        return tuple(
            bool(self.children[node]) and (parent < 0 or going_on[parent] > 1)
            for node, parent in enumerate(self.parent)
        )

    @cached_property
    def continuation_step(self) -> tuple[int, ...]:
        """[N] how many continuation nodes lie above a continuation node, -1 at every other node.

        A continuation node is internal, has an action on its way (its own edge included), and no decision at or below
        itself. The prefix, the decisions and all between two actions of a path are therefore never among them.
        """
        actions = set(self.actions)
        decides = [False] * len(self.parent)
        for node in self.decisions:
            decides[node] = True
        for node in range(len(self.parent) - 1, -1, -1):
            if decides[node] and self.parent[node] >= 0:
                decides[self.parent[node]] = True
        acted: list[bool] = []
        steps: list[int] = []
        for node, parent in enumerate(self.parent):
            acted.append(node in actions or (parent >= 0 and acted[parent]))
            continues = acted[node] and not decides[node] and bool(self.children[node])
            steps.append(-1 if not continues else 1 + (steps[parent] if parent >= 0 else -1))
        return tuple(steps)

    @cached_property
    def residuals_of(self) -> tuple[tuple[int, ...], ...]:
        """[N] the nodes whose residuals a node reuses: the nearest above it that runs in full and, where they are
        extrapolated and there is one, the nearest above that; none where it runs in full itself.

        Counted from the end, of every ``reuse_every`` steps the first runs in full, and so the last step of a path
        always does, which moves furthest; the first step of a continuation does too. Siblings share what they reuse.
        """
        every = self.reuse_every if self.approximate else None
        steps = self.continuation_step
        in_full: list[
            tuple[int, ...]
        ] = []  # per node: the full continuation nodes up to it, itself included, latest two
        found: list[tuple[int, ...]] = []
        for node, parent in enumerate(self.parent):
            above = in_full[parent] if parent >= 0 else ()
            reuses = every is not None and steps[node] > 0 and self.height[node] % every != 1
            # a branch that is longer than this one may have let it miss its turn
            reuses = reuses and steps[node] - steps[above[0]] < (every or 0)
            found.append(above[: 1 + self.extrapolate] if reuses else ())
            in_full.append(above if reuses or steps[node] < 0 else (node, *above)[:2])
        return tuple(found)

    @cached_property
    def residual_uses(self) -> dict[int, int]:
        """How many nodes reuse a node's residual; nodes whose residual nobody reuses are absent."""
        return dict(Counter(node for nodes in self.residuals_of for node in nodes))

    @cached_property
    def kind(self) -> tuple[Kind, ...]:
        """[N] how a node's forward runs; leaves, which have none, count as exact."""
        return tuple(
            "exact" if not self.approximate or step < 0 else "cached" if reused else "full"
            for step, reused in zip(self.continuation_step, self.residuals_of, strict=True)
        )

    @cached_property
    def forwards(self) -> Forwards:
        """:attr:`num_forwards` by kind."""
        counts = Counter(kind for kind, children in zip(self.kind, self.children, strict=True) if children)
        return Forwards(counts["exact"], counts["full"], counts["cached"])

    @cached_property
    def num_forwards(self) -> int:
        """Velocity evaluations of the rollout (NFE): one per internal node."""
        return sum(1 for children in self.children if children)

    @cached_property
    def forwards_alone(self) -> int:
        """Velocity evaluations if every reading were denoised alone from its root, nothing shared."""
        return sum(self.depth[leaf] for leaf, _ in self.readings)

    @cached_property
    def leaves_below(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """[E][S] columns (positions in ``leaves``) of the leaves below each action that are read for each stream."""
        row = {node: i for i, node in enumerate(self.actions)}
        column = {node: i for i, node in enumerate(self.leaves)}
        below: list[list[list[int]]] = [[[] for _ in range(self.num_streams)] for _ in row]
        for leaf, stream in self.readings:
            for node in self.ancestry(leaf):
                if node in row:
                    below[row[node]][stream].append(column[leaf])
        return tuple(tuple(map(tuple, per_stream)) for per_stream in below)

    @cached_property
    def sample_of_action(self) -> tuple[int, ...]:
        """[E] the sample an action belongs to: the column of the first leaf below it."""
        return tuple(min(c for columns in per_stream for c in columns) for per_stream in self.leaves_below)

    def ancestry(self, node: int) -> Iterable[int]:
        """The node, its parent, and so on up to the root."""
        while node >= 0:
            yield node
            node = self.parent[node]

    def peers(self, by: Peers) -> tuple[int, ...]:
        """[E] group number of each action: all actions of the prompt, those of its step, or those of its decision.

        Raises ValueError where a group has one member: its advantage would be 0 / 0.
        """
        keys = {
            "prompt": [0 for _ in self.actions],
            "step": [self.step[n] for n in self.actions],
            "parent": list(self.decision_of_action),
        }[by]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        for key in number:
            if keys.count(key) == 1:
                where = f"grid step {self.step[self.actions[keys.index(key)]]}"
                wider = "prompt" if by == "step" else "prompt or step"
                remedy = "a group of 2 or more" + (f", or peers: {wider}" if by != "prompt" else "")
                raise ValueError(
                    f"an action at {where} has no peers to be compared with (peers: {by}); a group of one has no "
                    f"advantage. Use {remedy}"
                )
        return tuple(number[key] for key in keys)

    def leaf_groups(self, by: Peers) -> tuple[tuple[int, ...], ...]:
        """Columns of the leaves that are judged together by a scorer of scope ``group``: those of one stream whose
        last actions are peers; in a plan without actions, those of one stream. Streams whose paths coincide share a
        group; a leaf may be in two where they coincide in part."""
        row = {node: i for i, node in enumerate(self.actions)}
        column = {node: i for i, node in enumerate(self.leaves)}
        peer = self.peers(by) if self.actions else ()
        groups: dict[tuple[int, int], list[int]] = {}
        for leaf, stream in self.readings:
            last = next((row[node] for node in self.ancestry(leaf) if node in row), None)
            groups.setdefault((stream, -1 if last is None else peer[last]), []).append(column[leaf])
        return tuple(dict.fromkeys(map(tuple, groups.values())))


class _Grower:
    """Grows a plan; :meth:`child` returns the existing node where one is the same random variable."""

    def __init__(self) -> None:
        self.sigma: list[float] = []
        self.parent: list[int] = []
        self.step: list[int] = []
        self.noise_key: list[NoiseKey] = []
        self.history: list[int] = []
        self._interned: dict[tuple[object, ...], int] = {}

    def root(self, index: int, sigma: float) -> int:
        return self._intern(-1, sigma, -1, ((-1, index),), -1)

    def ode(self, node: int, sigma: float, history: int = -1) -> int:
        return self._intern(node, sigma, -1, self.noise_key[node], history)

    def sde(self, node: int, sigma: float, step: int, sibling: int) -> int:
        return self._intern(node, sigma, step, (*self.noise_key[node], (step, sibling)), -1)

    def _intern(self, parent: int, sigma: float, step: int, noise_key: NoiseKey, history: int) -> int:
        key = (parent, sigma, step, noise_key, history)
        if key not in self._interned:
            self._interned[key] = len(self.sigma)
            self.sigma.append(sigma)
            self.parent.append(parent)
            self.step.append(step)
            self.noise_key.append(noise_key)
            self.history.append(history)
        return self._interned[key]

    def front(self, arm: Arm, grid: Grid) -> tuple[int, list[int]]:
        """The arm's tips: the states after its last stochastic step, and the grid index they stand at."""
        nodes = [self.root(i, grid.sigma[0]) for i in range(arm.roots)]
        start = 1 + max(arm.fanout, default=-1)
        for k in range(start):
            level = grid.sigma[k + 1]
            if k in arm.fanout:
                nodes = [self.sde(n, level, k, sibling) for n in nodes for sibling in range(arm.fanout[k])]
            else:
                nodes = [self.ode(n, level) for n in nodes]
        return start, nodes

    def walk(self, tip: int, path: Path) -> int:
        """The leaf at the end of a path. A step to sigma 0 is first order, where both solvers are the same step."""
        previous = self.parent[tip] if path.history == "decision" and self.step[tip] >= 0 else -1
        node = tip
        for sigma in path.sigmas[1:]:
            second_order = path.solver == "dpmpp_2m" and sigma > 0
            node, previous = self.ode(node, sigma, previous if second_order else -1), node
        return node


def compile_plan(
    grid: Grid,
    arms: Sequence[Arm],
    paths: Callable[[Grid, int], Sequence[Path]],
    *,
    approximate: bool = False,
    reuse_every: int | None = None,
    extrapolate: bool = False,
) -> Plan:
    """Grow every arm from shared roots, then every continuation from its tips.

    ``paths(grid, start)`` is a continuation's: one path per stream from ``grid.sigma[start]`` to 0. ``approximate``,
    ``reuse_every`` and ``extrapolate`` are the plan's own fields. Raises ValueError where an arm does not fit the grid
    or a path does not lead from its start down to 0.
    """
    if not arms:
        raise ValueError("a plan needs at least one arm")
    tree = _Grower()
    readings: dict[Reading, None] = {}
    streams: set[int] = set()
    for arm in arms:
        _check_arm(arm, grid)
        start, tips = tree.front(arm, grid)
        found = paths(grid, start)
        streams.add(len(found))
        for stream, path in enumerate(found):
            _check_path(path, grid, start)
            for tip in tips:
                readings[Reading(tree.walk(tip, path), stream)] = None
    if len(streams) != 1:
        raise ValueError(f"every arm needs the same number of streams, got {sorted(streams)}")
    return Plan(
        sigma=tuple(tree.sigma),
        parent=tuple(tree.parent),
        step=tuple(tree.step),
        noise_key=tuple(tree.noise_key),
        history=tuple(tree.history),
        readings=tuple(readings),
        approximate=approximate,
        reuse_every=reuse_every,
        extrapolate=extrapolate,
    )


def _check_arm(arm: Arm, grid: Grid) -> None:
    outside = [k for k in arm.fanout if not 0 <= k < grid.num_steps]
    if outside:
        raise ValueError(
            f"stochastic steps {outside} are not steps of a {grid.num_steps}-step grid (0..{grid.num_steps - 1})"
        )
    if arm.roots < 1 or any(b < 1 for b in arm.fanout.values()):
        raise ValueError(f"roots and fanouts are 1 or more, got roots {arm.roots} and fanout {dict(arm.fanout)}")


def _check_path(path: Path, grid: Grid, start: int) -> None:
    sigmas = path.sigmas
    falling = all(a > b for a, b in pairwise(sigmas))
    if not sigmas or sigmas[0] != grid.sigma[start] or sigmas[-1] != 0.0 or not falling:
        raise ValueError(f"a path from grid index {start} must fall from {grid.sigma[start]} to 0, got {sigmas}")
