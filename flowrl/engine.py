"""The engine: runs a plan for many prompts at once, one forward per internal node, packed into full batches.

A ready queue holds every node whose state exists, of any prompt, arm and stream; each batch takes the highest ones
(:attr:`flowrl.plan.Plan.height`), so rows of one forward differ in sigma. Continuation nodes may run by the policy's
approximation; exact rows, approximated rows and rows that reuse a residual never share a batch. A state is freed when
its last child exists, a residual when its last user has run; only decisions and their children are kept, as what the
learner trains on. Leaves leave in chunks.

Axes: P prompts, D decisions, E actions, B rows of a batch; ``...`` latent axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from flowrl.gaussian import Gaussian, Scale, per_row
from flowrl.noise import Noise
from flowrl.plan import Forwards, Kind, Plan
from flowrl.protocols import Approximation, Kernel, Policy
from flowrl.ready import Site, batches_of
from flowrl.types import Cond

OnLeaves = Callable[[Tensor, Sequence[tuple[int, int]]], None]
"""Takes finished latents [B, ...] and, per row, (prompt, leaf column)."""


@dataclass(frozen=True)
class Rollout:
    """What training needs of a rollout; row ``p * D + d`` is decision d of prompt p, ``p * E + e`` action e.

    ``x`` [P*D, ...] decision states; ``old`` the rollout's transition at each; ``next`` [P*E, ...] the sampled states.
    ``forwards`` counts velocity evaluations (rows) by kind, ``num_batches`` calls, ``peak_states`` latents held at
    once, ``peak_residuals`` and ``peak_residual_bytes`` residuals of an approximation.
    """

    x: Tensor
    old: Gaussian
    next: Tensor
    forwards: Forwards
    num_batches: int
    peak_states: int
    peak_residuals: int = 0
    peak_residual_bytes: int = 0

    @property
    def num_forwards(self) -> int:
        return sum(self.forwards)


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, x0_history: Tensor, sigma_history: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Tensor:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095, Eq. 9 for alpha = 1 - sigma, lambda = log(alpha / sigma)):

        x' = (s'/s) x - alpha' (e^-h - 1) (x0 + (h / 2 h0) (x0 - x0_history)),   h = lambda' - lambda,
        h0 = lambda - lambda_history

    ``x``, ``x0``, ``x0_history`` [B, ...]; sigmas [B] with sigma_history > sigma > sigma_next > 0. A history at
    sigma 1 has h0 = infinity and makes the step first order.
    """
    s_history, s, s_next = (per_row(level, x) for level in (sigma_history, sigma, sigma_next))
    snr_history, snr, snr_next = (torch.log((1 - level) / level) for level in (s_history, s, s_next))
    h = snr_next - snr
    x0 = x0 + 0.5 * (h / (snr - snr_history)) * (x0 - x0_history)
    return (s_next / s) * x - (1 - s_next) * torch.expm1(-h) * x0


class _Pool:
    """Latents in one growing buffer: gathering a batch is one indexing call, and a freed slot is used again."""

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        self._buffer = torch.empty(0, *shape, device=device, dtype=dtype)
        self._free: list[int] = []
        self.peak = 0

    def put(self, values: Tensor) -> list[int]:
        missing = len(values) - len(self._free)
        if missing > 0:
            held = len(self._buffer)
            grown = max(missing, held // 2)
            self._buffer = torch.cat([self._buffer, self._buffer.new_empty(grown, *self._buffer.shape[1:])])
            self._free.extend(range(held + grown - 1, held - 1, -1))
        slots = [self._free.pop() for _ in range(len(values))]
        self._buffer[self._index(slots)] = values
        self.peak = max(self.peak, len(self._buffer) - len(self._free))
        return slots

    def take(self, slots: Sequence[int], *, free: bool) -> Tensor:
        if free:
            self._free.extend(slots)
        return self._buffer[self._index(slots)]

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, device=self._buffer.device)


class _Residuals:
    """Residuals by site, each a tensor of its own: the memory of one is free as soon as its last user has it."""

    def __init__(self) -> None:
        self._held: dict[Site, Tensor] = {}
        self._uses: dict[Site, int] = {}
        self._bytes = self.peak = self.peak_bytes = 0

    def put(self, site: Site, residual: Tensor, uses: int) -> None:
        self._held[site], self._uses[site] = residual.clone(), uses  # a view would keep its whole batch
        self._bytes += residual.nbytes
        self.peak = max(self.peak, len(self._held))
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def take(self, sites: Sequence[Site]) -> Tensor:
        """[len(sites), ...] one use of each."""
        taken = torch.stack([self._held[site] for site in sites])
        for site in sites:
            self._uses[site] -= 1
            if not self._uses[site]:
                self._bytes -= self._held.pop(site).nbytes
        return taken


@torch.no_grad()
def execute(
    plan: Plan,
    policy: Policy,
    cond: Cond,
    kernel: Kernel,
    noise: Noise,
    *,
    positions: Sequence[int],
    on_leaves: OnLeaves,
    device: torch.device,
    max_batch: int = 64,
    leaf_batch: int = 32,
    dtype: torch.dtype = torch.float32,
    approximation: Approximation | None = None,
    in_turn: bool = False,
) -> Rollout:
    """Roll the plan out for the prompts of ``cond``, whose places in the global batch are ``positions``.

    Beyond rounding the result does not depend on ``max_batch``, ``leaf_batch``, which prompts run together, or
    ``in_turn``: whether paths are finished one after another (:func:`flowrl.ready.batches_of`), for scorers that work
    beside the rollout and for few residuals at once.
    ``approximation`` runs the continuation nodes of a plan that leaves them to it; ValueError where it is missing then.
    """
    if plan.approximate and approximation is None:
        raise ValueError("the plan leaves its continuations to an approximation, and there is none")
    if approximation is not None:
        approximation.refresh()
    run = _Run(plan, policy, approximation, cond, kernel, noise, tuple(positions), on_leaves, device, leaf_batch, dtype)
    run.start()
    for batch in batches_of(plan, len(positions), max_batch, in_turn=in_turn):
        run.forward(batch)
    run.hand_over_leaves(rest=True)
    return run.result()


class _Run:
    """The mutable state of one :func:`execute`. A (prompt, node) pair is a *site*."""

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        approximation: Approximation | None,
        cond: Cond,
        kernel: Kernel,
        noise: Noise,
        positions: tuple[int, ...],
        on_leaves: OnLeaves,
        device: torch.device,
        leaf_batch: int,
        dtype: torch.dtype,
    ) -> None:
        self.plan, self.policy, self.cond, self.kernel, self.noise = plan, policy, cond, kernel, noise
        self.positions, self.on_leaves, self.device, self.dtype = positions, on_leaves, device, dtype
        self.leaf_batch, self.approximation = leaf_batch, approximation
        shape = policy.latent_shape
        self.states = _Pool(shape, device, dtype)
        self.slot: dict[Site, int] = {}
        self.x0 = _Pool(shape, device, dtype)
        self.x0_slot: dict[Site, int] = {}
        self.x0_uses: dict[Site, int] = {}
        self.residuals = _Residuals()
        self.finished: list[Site] = []
        self.num_forwards: Counter[Kind] = Counter()
        self.num_batches = 0
        self.decision_at = {node: d for d, node in enumerate(plan.decisions)}
        self.action_at = {node: e for e, node in enumerate(plan.actions)}
        self.column_at = {node: c for c, node in enumerate(plan.leaves)}
        rows = len(positions) * len(plan.decisions)
        self.decision_x = torch.empty(rows, *shape, device=device, dtype=dtype)
        self.decision_mean = torch.empty_like(self.decision_x)
        self.decision_std = torch.empty(rows, *[1] * len(shape), device=device, dtype=dtype)
        self.next = torch.empty(len(positions) * len(plan.actions), *shape, device=device, dtype=dtype)
        self.scale: Scale = "full"

    def start(self) -> None:
        sites = [(p, root) for p in range(len(self.positions)) for root in self.plan.roots]
        self.keep(sites, self.draw(sites))

    def draw(self, sites: Sequence[Site]) -> Tensor:
        """[len(sites), ...] the sites' own noise."""
        shape = self.policy.latent_shape
        drawn = [self.noise.draw(self.positions[p], self.plan.noise_key[n], shape) for p, n in sites]
        return torch.stack(drawn).to(self.device, self.dtype)

    def sigma(self, nodes: Sequence[int]) -> Tensor:
        return torch.tensor([self.plan.sigma[n] for n in nodes], device=self.device, dtype=self.dtype)

    def forward(self, batch: list[Site]) -> None:
        """One velocity call for the batch, whose sites are of one kind, then every child of its sites."""
        x = self.states.take([self.slot.pop(site) for site in batch], free=True)
        sigma = self.sigma([n for _, n in batch])
        v = self._velocity(batch, x, sigma)
        self.num_forwards[self.plan.kind[batch[0][1]]] += len(batch)
        self.num_batches += 1
        self._keep_predictions(batch, x, v, sigma)
        self._step_euler(batch, x, v, sigma)
        self._step_second_order(batch, x, v, sigma)
        self._step_stochastic(batch, x, v, sigma)
        self.hand_over_leaves()

    def _velocity(self, batch: list[Site], x: Tensor, sigma: Tensor) -> Tensor:
        cond = self.cond[torch.tensor([p for p, _ in batch])]
        kind = self.plan.kind[batch[0][1]]
        if kind == "exact" or self.approximation is None:
            return self.policy.velocity(x, sigma, cond)
        if kind == "cached":
            return self.approximation.velocity_by(x, sigma, cond, self._residual(batch))
        uses = self.plan.residual_uses
        v, kept = self.approximation.velocity(x, sigma, cond, keep=any(n in uses for _, n in batch))
        if kept is not None:
            for site, residual in zip(batch, kept, strict=True):
                if site[1] in uses:
                    self.residuals.put(site, residual, uses[site[1]])
        return v

    def _residual(self, batch: list[Site]) -> Tensor:
        """What each site reuses: the residual of its last full step p or, with q the one before, at its own sigma

        r = r_p + (sigma - sigma_p) / (sigma_p - sigma_q) (r_p - r_q)
        """
        sources = [[(p, source) for source in self.plan.residuals_of[n]] for p, n in batch]
        residual = self.residuals.take([latest for latest, *_ in sources])
        rows = [row for row, of_row in enumerate(sources) if len(of_row) == 2]
        if rows:
            levels = [[self.plan.sigma[n] for n in (batch[row][1], *(s for _, s in sources[row]))] for row in rows]
            weights = [(own - latest) / (latest - before) for own, latest, before in levels]
            weight = torch.tensor(weights, device=residual.device, dtype=residual.dtype)
            latest = residual[rows]
            before = self.residuals.take([sources[row][1] for row in rows])
            residual[rows] = latest + per_row(weight, latest) * (latest - before)
        return residual

    def _edges(self, batch: list[Site], wanted: Callable[[int], bool]) -> list[tuple[int, Site]]:
        """(row of the parent, child site) of the batch's edges that are wanted."""
        return [(row, (p, c)) for row, (p, n) in enumerate(batch) for c in self.plan.children[n] if wanted(c)]

    def _step_euler(self, batch: list[Site], x: Tensor, v: Tensor, sigma: Tensor) -> None:
        edges = self._edges(batch, lambda c: self.plan.step[c] < 0 and self.plan.history[c] < 0)
        if edges:
            rows = torch.tensor([row for row, _ in edges], device=self.device)
            children = [site for _, site in edges]
            step = sigma[rows] - self.sigma([c for _, c in children])
            self.keep(children, x[rows] - v[rows] * per_row(step, x))

    def _step_second_order(self, batch: list[Site], x: Tensor, v: Tensor, sigma: Tensor) -> None:
        edges = self._edges(batch, lambda c: self.plan.history[c] >= 0)
        if not edges:
            return
        rows = torch.tensor([row for row, _ in edges], device=self.device)
        children = [site for _, site in edges]
        histories = [(p, self.plan.history[c]) for p, c in children]
        x0_history = self.x0.take([self.x0_slot[site] for site in histories], free=False)
        x0 = x[rows] - per_row(sigma[rows], x) * v[rows]
        levels = (self.sigma([n for _, n in histories]), sigma[rows], self.sigma([c for _, c in children]))
        self.keep(children, dpmpp_2m_step(x[rows], x0, x0_history, *levels))
        for site in histories:
            self.x0_uses[site] -= 1
            if not self.x0_uses[site]:
                self.x0.release(self.x0_slot.pop(site))

    def _step_stochastic(self, batch: list[Site], x: Tensor, v: Tensor, sigma: Tensor) -> None:
        edges = self._edges(batch, lambda c: self.plan.step[c] >= 0)
        if not edges:
            return
        parents = {row: i for i, row in enumerate(dict.fromkeys(row for row, _ in edges))}
        first_child = {row: child for row, (_, child) in reversed(edges)}
        rows = torch.tensor(list(parents), device=self.device)
        sigma_next = self.sigma([first_child[row] for row in parents])
        transition = self.kernel.transition(x[rows], v[rows], sigma[rows], sigma_next)
        children = [site for _, site in edges]
        of_child = torch.tensor([parents[row] for row, _ in edges], device=self.device)
        states = transition[of_child].sample(self.draw(children))
        self._keep_decisions([batch[row] for row in parents], x[rows], transition)
        self._keep_actions(children, states)
        self.keep(children, states)

    def _keep_predictions(self, batch: list[Site], x: Tensor, v: Tensor, sigma: Tensor) -> None:
        """x0 of the sites that a later second-order step looks back to."""
        counts = self.plan.history_uses
        uses = {row: counts[n] for row, (_, n) in enumerate(batch) if n in counts}
        if uses:
            rows = torch.tensor(list(uses), device=self.device)
            slots = self.x0.put(x[rows] - per_row(sigma[rows], x) * v[rows])
            self.x0_slot.update((batch[row], slot) for row, slot in zip(uses, slots, strict=True))
            self.x0_uses.update((batch[row], count) for row, count in uses.items())

    def _keep_decisions(self, sites: list[Site], x: Tensor, transition: Gaussian) -> None:
        found = [(i, p, self.decision_at[n]) for i, (p, n) in enumerate(sites) if n in self.decision_at]
        if found:
            rows = torch.tensor([i for i, _, _ in found], device=self.device)
            into = torch.tensor([p * len(self.plan.decisions) + d for _, p, d in found], device=self.device)
            self.decision_x[into] = x[rows]
            self.decision_mean[into] = transition.mean[rows]
            self.decision_std[into] = transition.std[rows]
            self.scale = transition.scale

    def _keep_actions(self, sites: list[Site], states: Tensor) -> None:
        found = [(i, p, self.action_at[n]) for i, (p, n) in enumerate(sites) if n in self.action_at]
        if found:
            rows = torch.tensor([i for i, _, _ in found], device=self.device)
            into = torch.tensor([p * len(self.plan.actions) + e for _, p, e in found], device=self.device)
            self.next[into] = states[rows]

    def keep(self, sites: list[Site], states: Tensor) -> None:
        """Hold states until their site runs (internal nodes) or is handed over (leaves)."""
        for site, slot in zip(sites, self.states.put(states), strict=True):
            self.slot[site] = slot
            if not self.plan.children[site[1]]:
                self.finished.append(site)

    def hand_over_leaves(self, *, rest: bool = False) -> None:
        while len(self.finished) >= self.leaf_batch or (rest and self.finished):
            chunk, self.finished = self.finished[: self.leaf_batch], self.finished[self.leaf_batch :]
            x = self.states.take([self.slot.pop(site) for site in chunk], free=True)
            self.on_leaves(x, [(p, self.column_at[n]) for p, n in chunk])

    def result(self) -> Rollout:
        return Rollout(
            x=self.decision_x,
            old=Gaussian(self.decision_mean, self.decision_std, self.scale),
            next=self.next,
            forwards=Forwards(*(self.num_forwards[kind] for kind in get_args(Kind))),
            num_batches=self.num_batches,
            peak_states=self.states.peak,
            peak_residuals=self.residuals.peak,
            peak_residual_bytes=self.residuals.peak_bytes,
        )
