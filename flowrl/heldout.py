"""Held-out evaluation: one image per prompt by the ODE, the same noise before and after training.

Axes: n prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowrl.continuations.strided import Strided
from flowrl.data import rank_slice
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

    prompts: Sequence[Prompt]
    scores: Mapping[str, list[float]]
    images: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


def evaluate(
    trainer: Trainer, prompts: Sequence[Prompt], scorers: Mapping[str, Scorer], *, num_images: int = 0
) -> HeldOut:
    """Draw and score an image per prompt; its noise depends on the prompt's index and the evaluation seed alone.

    Ranks share the prompts. ``num_images`` images of the first prompts are kept, on the main process.
    """
    recipe, accelerator = trainer.recipe, trainer.accelerator
    mine = rank_slice(len(prompts), accelerator.process_index, accelerator.num_processes)
    chosen = [prompts[position] for position in mine.positions]
    plan = compile_plan(Grid(recipe.evaluation.num_steps, recipe.grid.shift), [Arm({})], Strided().paths)
    keep = num_images if accelerator.process_index == 0 else 0
    scoring = Scoring(trainer.policy, scorers, dict.fromkeys(scorers, 1.0), chosen, len(plan.leaves), keep_images=keep)
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
    values = rewards.values.where(rewards.valid, torch.nan)[:, 0].to(trainer.device)  # one leaf a prompt
    values = accelerator.gather(values)[: len(prompts)].cpu() if accelerator.num_processes > 1 else values.cpu()
    scores = {name: values[:, r].tolist() for r, name in enumerate(scorers)}
    images = [scoring.images[p, 0] for p in range(min(keep, len(chosen)))]
    return HeldOut(prompts, scores, images)
