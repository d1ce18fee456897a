"""Training forwards made to fit: rows at once and blocks recomputed, from what was measured, equal on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from flowrl.policies.embeddings import readable
from flowrl.policies.memory import BlockBytes, TrainingPlan, free_bytes, plan_training, share_of
from flowrl.types import Cond

if TYPE_CHECKING:
    from flowrl.policies.diffusers_policy import DiffusersPolicy
    from flowrl.trainer import Trainer

UNMEASURED = 32
"""``run.microbatch: auto`` of a policy whose blocks cannot be measured."""


def fit_training(trainer: Trainer, x: Tensor, cond: Cond, num_rows: int) -> int:
    """The microbatch of a run's training, before its first: ``run.microbatch``, or chosen with what is recomputed.

    Called by all ranks when all else that the run needs is in memory. The first row of ``x`` and ``cond`` is what is
    measured; ``num_rows`` are the decisions of the largest update. Leaves the policy's blocks recomputed as chosen.
    """
    asked = trainer.recipe.run.microbatch
    microbatch = None if asked == "auto" else asked
    speed = getattr(trainer.policy, "speed", None)
    if speed is None:
        return microbatch or min(UNMEASURED, num_rows)
    policy = cast("DiffusersPolicy", trainer.policy)
    if microbatch is None or policy.config.gradient_checkpointing == "auto":
        rows = microbatch or 1
        if microbatch is not None:
            speed.expect(training=[microbatch])
        if trainer.recipe.loss.needs_reference:
            with trainer.layout.reference():
                pass  # a copy of the untrained weights is made at its first use
        blocks = _measured(policy, x, cond, rows, trainer.layout.no_sync())
        blocks, budget = _worst(blocks, _budget(trainer), trainer.accelerator.gather, trainer.device)
        is_chosen = policy.config.gradient_checkpointing == "auto"
        found = plan_training(
            blocks,
            budget=budget,
            num_rows=num_rows,
            microbatch=microbatch,
            checkpointed=None if is_chosen else sum(call.checkpointed for call in speed.blocks.calls),
            passes=policy.config.training_passes - share_of(policy.config.gradient_checkpointing),
        )
        speed.blocks.checkpoint(found.checkpointed)
        trainer.say(describe(found, len(blocks), budget))
        microbatch = found.microbatch
    speed.expect(training=[microbatch], rollout=[microbatch] if trainer.recipe.loss.needs_reference else [])
    return microbatch


def describe(found: TrainingPlan, num_blocks: int, budget: int) -> str:
    """One line.

    >>> describe(TrainingPlan(2, 19, 40 * 10**9), 57, 50 * 10**9)
    'training: 2 rows a forward, 19 of 57 blocks recomputed; activations take up to 40 GB of 50 GB free'
    """
    text = (
        f"training: {found.microbatch} rows a forward, {found.checkpointed} of {num_blocks} blocks recomputed; "
        f"activations take up to {readable(found.needed)} of {readable(max(budget, 0))} free"
    )
    return text if found.fits else f"{text}, which may not be enough"


def _measured(
    policy: DiffusersPolicy, x: Tensor, cond: Cond, rows: int, no_sync: AbstractContextManager[None]
) -> list[BlockBytes]:
    first = torch.zeros(rows, dtype=torch.long)
    x = x[first.to(x.device)]
    with no_sync:  # a forward that no backward follows
        sigma = torch.full((rows,), 0.5, device=x.device, dtype=x.dtype)
        return policy.speed.measure(policy.velocity, x, sigma, cond[first])


def _budget(trainer: Trainer) -> int:
    return free_bytes(trainer.device, trainer.parameters.values(), bool(trainer.optimizer.state))


def _worst(
    blocks: list[BlockBytes], budget: int, gather: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[list[BlockBytes], int]:
    """The largest need and the smallest budget over ranks: every rank then plans the same."""
    row = [-budget, *(number for block in blocks for number in (block.saved, block.inputs, block.once))]
    worst = [int(number) for number in gather(torch.tensor([row], dtype=torch.float64, device=device)).amax(0)]
    return [BlockBytes(*worst[i : i + 3]) for i in range(1, len(worst), 3)], -worst[0]
