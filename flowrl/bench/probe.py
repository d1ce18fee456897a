"""Values of noisy states: the mean reward of what they become, by continuing from stored states through the engine.

A stored state enters as a root of its own plan, on the rest of the grid, in the place of initial noise; nothing in the
engine knows that. Axes: P prompts, N states, L leaves, S streams, R rewards; ``...`` latent axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from flowrl.continuations.strided import Strided
from flowrl.credit import Rewards
from flowrl.data import PromptOrder, load_prompts
from flowrl.engine import Rollout, execute
from flowrl.errors import UserError
from flowrl.noise import Noise
from flowrl.plan import NoiseKey, Peers, Plan, compile_plan
from flowrl.protocols import Approximation, Continuation, Kernel, Policy, Scorer
from flowrl.recipe import Recipe
from flowrl.scoring import Scoring
from flowrl.seeds import derive_seed
from flowrl.sigmas import Grid
from flowrl.trainer import Trainer
from flowrl.types import Arm, Cond, Prompt

LEAVES_AT_ONCE = 4096
"""Leaves of the states that are continued together: 16 MB of the embedded world's latents, 1 GB of FLUX.1-dev's."""


# ---- plans from a stored state


@dataclass(frozen=True)
class Tail(Grid):
    """The rest of a grid: its step 0 is the step that the grid takes at ``levels[0]``.

    >>> Tail.of(Grid(4, 3.0), start=2).sigma == Grid(4, 3.0).sigma[2:]
    True
    """

    levels: tuple[float, ...] = ()
    """The unshifted ones."""

    @classmethod
    def of(cls, grid: Grid, start: int) -> Tail:
        return cls(grid.num_steps - start, grid.shift, grid.lowest, levels=grid.u[start:])

    @cached_property
    def u(self) -> tuple[float, ...]:
        """The unshifted levels, [T+1]."""
        return self.levels


class Probe(Plan):
    """A plan whose noise is not trained on: without actions, the engine keeps no state of it."""

    @cached_property
    def actions(self) -> tuple[int, ...]:
        return ()

    @classmethod
    def of(cls, plan: Plan) -> Probe:
        return cls(**{field.name: getattr(plan, field.name) for field in fields(plan)})


def exact_probe(grid: Grid, start: int, continuation: Continuation) -> Probe:
    """From the state at grid index ``start`` the continuation's paths, without noise: one leaf per path at most."""
    tail = Tail.of(grid, start)
    return Probe.of(compile_plan(tail, [Arm({})], lambda _, begin: continuation.paths(grid, start + begin)))


def noisy_probe(grid: Grid, start: int, samples: int) -> Probe:
    """From the state at grid index ``start``, ``samples`` independent rollouts with noise at every step but the last.

    Their first forward is shared. Where only the last step is left there is one leaf, as there is no noise.
    """
    tail = Tail.of(grid, start)
    noisy = range(tail.num_steps - 1)
    arm = Arm({k: 1 if k else samples for k in noisy})
    return Probe.of(compile_plan(tail, [arm], Strided().paths))


# ---- running them


@dataclass(frozen=True)
class States:
    """N states at one grid index: ``x`` [N, ...] on the CPU, each one's prompt row, and names that seed their noise."""

    x: Tensor
    prompt: tuple[int, ...]
    names: tuple[object, ...]


@dataclass(frozen=True)
class _FromStates(Noise):
    """The states as the draws of the roots; all later draws are named by the state, and so apart from any rollout's."""

    states: States

    def draw(self, position: int, key: NoiseKey, shape: tuple[int, ...]) -> Tensor:
        if len(key) == 1:
            return self.states.x[position]
        name = ("probe", self.iteration, self.states.names[position], key)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *name))
        return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Setup:
    """What rolls out and scores: all that the probes need of a recipe."""

    policy: Policy
    kernel: Kernel
    scorers: Mapping[str, Scorer]
    device: torch.device
    max_batch: int = 64
    decode_batch: int = 32
    score_ahead: int = 0
    dtype: torch.dtype = torch.float32
    approximation: Approximation | None = None
    """Of the policy, for plans that leave their continuations to it; probes never do."""

    def roll_out(
        self, plan: Plan, prompts: Sequence[Prompt], cond: Cond, noise: Noise, peers: Peers
    ) -> tuple[Rollout, Tensor]:
        """The rollout, and what the scorers said of its leaves: [P, L, R] float64, NaN where there is no answer.

        ``peers`` are judged together by a scorer of scope ``group``.
        """
        weights = dict.fromkeys(self.scorers, 1.0)
        with Scoring(self.policy, self.scorers, weights, prompts, plan, peers, ahead=self.score_ahead) as scoring:
            rollout = execute(
                plan,
                self.policy,
                cond,
                self.kernel,
                noise,
                positions=range(len(prompts)),
                on_leaves=scoring.add,
                device=self.device,
                max_batch=self.max_batch,
                leaf_batch=self.decode_batch,
                dtype=self.dtype,
                approximation=self.approximation if plan.approximate else None,
                in_turn=self.score_ahead > 0,
            )
        rewards = scoring.rewards()
        return rollout, rewards.values.where(rewards.valid, torch.nan)

    def values(
        self, plan: Probe, states: States, prompts: Sequence[Prompt], cond: Cond, *, seed: int, iteration: int = 0
    ) -> Tensor:
        """[N, L, R] rewards of the leaves that the states come to by the plan; L in the order of the siblings.

        ``prompts`` and ``cond`` are those that ``states.prompt`` are rows of. What a state comes to does not depend on
        the others.
        """
        found = []
        size = max(1, LEAVES_AT_ONCE // len(plan.leaves))
        for first in range(0, len(states.x), size):
            rows = states.prompt[first : first + size]
            chunk = States(states.x[first : first + size], rows, states.names[first : first + size])
            noise = _FromStates(seed, iteration, chunk)
            of_rows = cond[torch.tensor(rows)]
            _, values = self.roll_out(plan, [prompts[p] for p in rows], of_rows, noise, "prompt")
            found.append(values)
        return torch.cat(found)


@dataclass(frozen=True)
class Stand:
    """A recipe's policy, scorers and learner in place, with the prompts that are looked at.

    The prompts are the first of the run's own order, so methods of one seed share them.
    """

    recipe: Recipe
    trainer: Trainer
    prompts: tuple[Prompt, ...]
    cond: Cond
    setup: Setup

    @classmethod
    def of(cls, recipe: Recipe, num_prompts: int, *, with_monitors: bool = False) -> Stand:
        """Load the recipe's model and its rewards; with the monitors, those that are no reward follow them.

        Raises UserError where there are fewer prompts: the same one twice would not be two.
        """
        known = load_prompts(recipe.data.train)
        if not 1 <= num_prompts <= len(known):
            raise UserError(f"{num_prompts} prompts are asked for, {recipe.data.train} has {len(known)}")
        order = PromptOrder(known, num_prompts, recipe.run.seed)
        trainer = Trainer(recipe, order)
        scorers = dict(trainer.scorers)
        if with_monitors:
            monitors = {name: scorer for name, scorer in recipe.evaluation.scorers.items() if name not in scorers}
            scorers |= {name: trainer.load_scorer(scorer, name) for name, scorer in monitors.items()}
        prompts = tuple(order[0])
        rollout = recipe.rollout
        batches = (rollout.max_batch, rollout.decode_batch, rollout.score_ahead)
        setup = Setup(
            trainer.policy, recipe.kernel, scorers, trainer.device, *batches, approximation=trainer.approximation
        )
        return cls(recipe, trainer, prompts, trainer.policy.encode(prompts), setup)

    @property
    def grid(self) -> Grid:
        return self.recipe.grid.levels()

    def roll_out(self, plan: Plan, repetition: int, peers: Peers | None = None) -> tuple[Rollout, Tensor]:
        """The plan on the prompts; repetitions differ in their noise, methods of one seed share it.

        ``peers`` (the recipe's unless given): who is judged together by a scorer of scope ``group``.
        """
        noise = Noise(self.recipe.run.seed, repetition)
        return self.setup.roll_out(plan, self.prompts, self.cond, noise, peers or self.recipe.advantage.peers)

    def advantage(self, values: Tensor, plan: Plan) -> Tensor:
        """[P, E] the method's advantage, by what the scorers said of the plan's leaves ([P, L, R]; rewards first)."""
        rewards = self.recipe.rewards
        values = values[..., : len(rewards)]
        weights = tuple(reward.weight for reward in rewards.values())
        found = Rewards(values.nan_to_num(), values.isfinite(), tuple(rewards), weights)
        return self.recipe.advantage.per_action(found, plan)
