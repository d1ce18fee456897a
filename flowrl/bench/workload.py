"""How much a unit will do, counted before it begins: forwards, training forwards, images."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.plan import Plan
from flowrl.recipe import ModelFragment, Recipe
from flowrl.updates import decisions_of

UNKNOWN_PROMPTS = 400
"""Of a source that is fetched only when it is needed."""
SAMPLED_PROMPTS = 4
"""Places of the batch over which drawn actions are averaged."""


class Workload(NamedTuple):
    """Over a whole unit. ``images`` are decoded and scored."""

    forwards: float
    training_forwards: float
    images: float


def of_training(recipe: Recipe) -> Workload:
    """Of a run, its held-out evaluations included."""
    plans: dict[str, tuple[Plan, float]] = {}
    forwards, training, images = 0.0, 0.0, 0.0
    for iteration in range(recipe.run.iterations):
        arms = repr(recipe.arms(iteration))
        if arms not in plans:
            plan = recipe.plan(iteration)
            plans[arms] = plan, _training_forwards(recipe, plan, iteration)
        plan, trained = plans[arms]
        forwards += plan.num_forwards
        training += trained
        images += len(plan.leaves)
    prompts = recipe.rollout.prompts
    evaluations, held_out = _evaluations(recipe)
    drawn = evaluations * held_out
    return Workload(
        forwards * prompts + drawn * recipe.evaluation.num_steps, training * prompts, images * prompts + drawn
    )


def of_evaluation(fragment: ModelFragment, given: dict[str, Any], is_benchmark: bool) -> Workload:
    """Of ``flowrl eval``."""
    own = fragment.evaluation
    steps = given["num_steps"] or own.generate.num_steps or own.num_steps
    test = fragment.data.test if fragment.data is not None else None
    known = None if is_benchmark else num_prompts(test)
    images = (given["limit"] or known or (100 if is_benchmark else UNKNOWN_PROMPTS)) * given["images_per_prompt"]
    return Workload(float(images * steps), 0.0, float(images))


def measured_forwards(function: str, recipe: Recipe, options: Mapping[str, Any]) -> float:
    """Of a measurement, as its module says; 0 where it does not."""
    module = importlib.import_module(function.partition(":")[0])
    count = getattr(module, "forwards", None)
    return 0.0 if count is None else float(count(recipe, **options))


def _training_forwards(recipe: Recipe, plan: Plan, iteration: int) -> float:
    places = range(min(recipe.rollout.prompts, SAMPLED_PROMPTS))
    parts = [recipe.partition(plan, iteration, position) for position in places]
    return fmean(sum(len(decisions_of(plan, update)) for update in part) for part in parts)


def _evaluations(recipe: Recipe) -> tuple[int, int]:
    """How many there are, and of how many prompts."""
    if not recipe.evaluation.scorers or recipe.data.test is None:
        return 0, 0
    every, iterations = recipe.evaluation.every, recipe.run.iterations
    during = (iterations - 1) // every if every else 0
    known = num_prompts(recipe.data.test) or UNKNOWN_PROMPTS
    return 2 + during, min(known, recipe.evaluation.limit or known)


_COUNTS: dict[str, int | None] = {}


def num_prompts(source: str | None) -> int | None:
    """Of a source that is here; None for one that would be fetched or is missing."""
    if source is None or source.startswith("hf:"):
        return None
    if source not in _COUNTS:
        try:
            _COUNTS[source] = len(load_prompts(source))
        except UserError:
            _COUNTS[source] = None
    return _COUNTS[source]
