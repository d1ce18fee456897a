"""Held-out evaluation: one image per prompt by the ODE, the same noise before and after training.

Axes: n prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.continuations.strided import Strided
from flowrl.data import RankSlice, rank_slice
from flowrl.engine import execute
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.protocols import Scorer
from flowrl.scoring import Scoring
from flowrl.sigmas import Grid
from flowrl.types import Arm, Prompt

if TYPE_CHECKING:
    from flowrl.trainer import Trainer


@dataclass(frozen=True)
class HeldOut:
    """What the scorers said of each prompt's image: ``scores`` name -> [n] (NaN: no answer), and the first images."""

    scores: Mapping[str, list[float]]
    images: list[Tensor] = field(default_factory=list)


def evaluate(
    trainer: Trainer,
    prompts: Sequence[Prompt],
    scorers: Mapping[str, Scorer],
    *,
    num_images: int = 0,
    droppable: AbstractContextManager[None] | None = None,
) -> HeldOut:
    """Draw and score an image per prompt; its noise depends on the prompt's index and the evaluation seed alone.

    Ranks share the prompts. The images of the first ``num_images`` are kept, the same on any number of ranks.
    ``droppable`` is around the drawing, as in :meth:`flowrl.trainer.Trainer.iterate`.
    """
    recipe, accelerator = trainer.recipe, trainer.accelerator
    mine = rank_slice(len(prompts), accelerator.process_index, accelerator.num_processes)
    chosen = [prompts[position] for position in mine.positions]
    plan = compile_plan(Grid(recipe.evaluation.num_steps, recipe.grid.shift), [Arm({})], Strided().paths)
    num_images = min(num_images, len(prompts))
    scoring = Scoring(
        trainer.policy, scorers, dict.fromkeys(scorers, 1.0), chosen, len(plan.leaves), keep_images=num_images
    )
    with droppable or nullcontext():
        execute(
            plan,
            trainer.policy,
            trainer.policy.encode(chosen),
            recipe.kernel,
            Noise(recipe.evaluation.seed, iteration=0),
            positions=[prompt.index for prompt in chosen],
            on_leaves=scoring.add,
            device=trainer.device,
            max_batch=recipe.rollout.max_batch,
            leaf_batch=recipe.rollout.decode_batch,
        )
        rewards = scoring.rewards()
    scores: dict[str, list[float]] = {}
    if scorers:
        values = rewards.values.where(rewards.valid, torch.nan)[:, 0].to(trainer.device)  # one leaf a prompt
        if accelerator.num_processes > 1:
            values = accelerator.gather(values)[: len(prompts)]
        scores = {name: values[:, r].tolist() for r, name in enumerate(scorers)}
    return HeldOut(scores, _first_images(trainer, scoring, mine, num_images) if num_images else [])


def _first_images(trainer: Trainer, scoring: Scoring, mine: RankSlice, count: int) -> list[Tensor]:
    """The images of the first ``count`` prompts, each from the rank that drew it, on every rank."""
    own = [(row, place) for row, place in enumerate(mine.positions) if place < count and mine.weights[row]]
    gathered = torch.zeros(count, *scoring.images[0, 0].shape)
    for row, place in own:
        gathered[place] = scoring.images[row, 0]
    if trainer.accelerator.num_processes > 1:
        gathered = trainer.accelerator.reduce(gathered.to(trainer.device), "sum").cpu()
    return list(gathered)
