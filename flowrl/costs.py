"""What an iteration costs, before anything runs: counts from the plan, FLOPs from the model's sizes."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from flowrl.errors import UserError
from flowrl.plan import Forwards, Plan
from flowrl.recipe import Recipe
from flowrl.updates import decisions_of


class Flops(NamedTuple):
    """FLOPs of the transformer, per prompt and iteration (text encoders, VAE and scorers apart)."""

    per_forward: int
    """Of one velocity of one sample: both evaluations under classifier-free guidance."""
    rollout: int
    training: int


class Cost(NamedTuple):
    """One prompt's share of an iteration."""

    forwards: int
    """Velocity evaluations of the rollout."""
    training_forwards: float
    """Forwards that are differentiated; a mean over the iteration's prompts where they draw their actions."""
    actions: int
    trained_actions: float
    decisions: int
    leaves: int
    waves: int
    """Sequential forwards that batches of any size would need."""
    forwards_alone: int
    """Velocity evaluations if every reading were denoised alone from its root."""
    forwards_by_kind: Forwards | None
    """None where every forward is the policy's own."""
    flops: Flops | None
    """None where the model's sizes are not known."""


def iteration_cost(recipe: Recipe, iteration: int = 0) -> Cost:
    """The cost of an iteration. Raises UserError where it lies outside the run or does not compile."""
    if not 0 <= iteration < recipe.run.iterations:
        raise UserError(f"iteration {iteration} is not in this run: allowed are 0..{recipe.run.iterations - 1}")
    plan = recipe.plan(iteration)
    partitions = [recipe.partition(plan, iteration, position) for position in range(recipe.rollout.prompts)]
    training_forwards = fmean(sum(len(decisions_of(plan, update)) for update in part) for part in partitions)
    return Cost(
        forwards=plan.num_forwards,
        training_forwards=training_forwards,
        actions=len(plan.actions),
        trained_actions=fmean(sum(map(len, part)) for part in partitions),
        decisions=len(plan.decisions),
        leaves=len(plan.leaves),
        waves=len(plan.waves),
        forwards_alone=plan.forwards_alone,
        forwards_by_kind=plan.forwards if plan.approximate else None,
        flops=_flops(recipe, _whole_forwards(recipe, plan), training_forwards),
    )


def _whole_forwards(recipe: Recipe, plan: Plan) -> float:
    """The rollout's forwards, those that reuse blocks counted by the share of blocks that runs."""
    cache = recipe.continuation.cache
    return plan.num_forwards - (0.0 if cache is None else cache.share * plan.forwards.cached)


def _flops(recipe: Recipe, forwards: float, training_forwards: float) -> Flops | None:
    """A reference policy adds a forward to each that is differentiated."""
    model = recipe.model
    try:
        shape = model.shape()
    except UserError:  # its folder is not here
        return None
    if shape is None:
        return None
    per_forward = model.evals_per_velocity * shape.flops_per_forward
    passes = model.training_passes + recipe.loss.needs_reference
    return Flops(per_forward, round(forwards * per_forward), round(training_forwards * passes * per_forward))
