"""Held-out evaluation: one image per prompt by the ODE, the same noise before and after training.

Axes: n prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flowrl import atomic
from flowrl.continuations.strided import Strided
from flowrl.data import rank_slice
from flowrl.engine import execute
from flowrl.monitors import EVALUATION
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.protocols import Scorer
from flowrl.scoring import Scoring
from flowrl.types import Arm, Prompt

if TYPE_CHECKING:
    from flowrl.trainer import Trainer

CHUNK = 64
"""Prompts whose conditions and images are held at once: 0.27 GB of FLUX.1-dev embeddings."""


@dataclass(frozen=True)
class HeldOut:
    """What the scorers said of each prompt's image: ``scores`` name -> [n] (None: no answer), and the first images."""

    scores: Mapping[str, list[float | None]]
    images: list[Tensor] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """``test/NAME``: the mean over the prompts that have an answer, NaN where none has."""
        answered = {name: [value for value in values if value is not None] for name, values in self.scores.items()}
        return {f"test/{name}": fmean(values) if values else math.nan for name, values in answered.items()}

    def coverage(self) -> dict[str, float]:
        """``coverage/test/NAME``: the share of the prompts that have an answer."""
        return {
            f"coverage/test/{name}": sum(value is not None for value in values) / len(values)
            for name, values in self.scores.items()
        }

    def __str__(self) -> str:
        """The means on one line; a scorer that did not answer everything says so.

        >>> str(HeldOut({"gold": [0.5, 0.75], "judge": [4.0, None]}))
        'gold 0.6250, judge 4.0000 (1 of 2 answered)'
        """
        shown = []
        for (name, values), mean in zip(self.scores.items(), self.means().values(), strict=True):
            answered = sum(value is not None for value in values)
            shown.append(f"{name} {mean:.4f}" + f" ({answered} of {len(values)} answered)" * (answered < len(values)))
        return ", ".join(shown)


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
    accelerator = trainer.accelerator
    mine = rank_slice(len(prompts), accelerator.process_index, accelerator.num_processes)
    count = min(num_images, len(prompts))
    values: list[Tensor] = []
    images = torch.empty(0)
    with trainer.layout.gathered(), droppable or nullcontext():
        for first in range(0, len(mine.positions), CHUNK):
            places, weights = mine.positions[first : first + CHUNK], mine.weights[first : first + CHUNK]
            scoring = _draw(trainer, [prompts[place] for place in places], scorers, keep_images=count)
            rewards = scoring.rewards()
            values.append(rewards.values.where(rewards.valid, torch.nan)[:, 0])  # one leaf a prompt
            if count and not len(images):
                images = torch.zeros(count, *scoring.images[0, 0].shape)
            for row, (place, weight) in enumerate(zip(places, weights, strict=True)):
                if place < count and weight:
                    images[place] = scoring.images[row, 0]
    table = torch.cat(values).to(trainer.device)
    if accelerator.num_processes > 1:
        if scorers:  # NCCL's gather cannot take a table without columns
            table = accelerator.gather(table)[: len(prompts)]
        images = accelerator.reduce(images.to(trainer.device), "sum").cpu() if count else images
    scores = {
        name: [None if math.isnan(value) else value for value in table[:, r].tolist()] for r, name in enumerate(scorers)
    }
    return HeldOut(scores, list(images))


def _draw(trainer: Trainer, prompts: list[Prompt], scorers: Mapping[str, Scorer], *, keep_images: int) -> Scoring:
    """An image per prompt by the ODE of a plan without actions, scored."""
    recipe = trainer.recipe
    plan = compile_plan(recipe.grid.levels(recipe.evaluation.num_steps), [Arm({})], Strided().paths)
    weights, ahead = dict.fromkeys(scorers, 1.0), recipe.rollout.score_ahead
    with Scoring(
        trainer.policy, scorers, weights, prompts, plan, "prompt", keep_images=keep_images, ahead=ahead
    ) as scoring:
        execute(
            plan,
            trainer.policy,
            trainer.policy.encode(prompts),
            recipe.kernel,
            Noise(recipe.evaluation.seed, iteration=0),
            positions=[prompt.index for prompt in prompts],
            on_leaves=scoring.add,
            device=trainer.device,
            max_batch=recipe.rollout.max_batch,
            leaf_batch=recipe.rollout.decode_batch,
            in_turn=recipe.in_turn,
        )
    return scoring


def keep_scores(
    output: Path, iteration: int, indices: Sequence[int], found: HeldOut, when: Literal["before", "after"] | None
) -> None:
    """Write an evaluation's scores by prompt and its coverage into ``evaluation/`` of a run's folder.

    That after training stands under its iteration too: a run that goes on for longer has another one.
    """
    coverage = {name.removeprefix("coverage/test/"): share for name, share in found.coverage().items()}
    values = {"iteration": iteration, "index": list(indices), "scores": found.scores, "coverage": coverage}
    for name in ([when] if when else []) + ([] if when == "before" else [f"iteration_{iteration:06d}"]):
        atomic.write_json(output / EVALUATION / f"{name}.json", values)
