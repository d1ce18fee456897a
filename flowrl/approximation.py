"""Asking a loaded policy for the approximation that a recipe's continuation wants."""

from __future__ import annotations

from typing import Literal

from torch import nn

from flowrl.errors import UserError, listing
from flowrl.protocols import Approximating, Approximation, Continuation, Policy


def approximation_of(
    policy: Policy, continuation: Continuation, precision: Literal["fp32", "bf16"]
) -> Approximation | None:
    """None where the continuation is exact. Call it once the policy's module is wrapped.

    Raises UserError where the policy has none, or where its weights are sharded: the approximation calls the blocks
    past the wrapper that gathers them.
    """
    if not continuation.wanted:
        return None
    what = f"continuation by {listing(sorted(continuation.wanted))}"
    if not isinstance(policy, Approximating):
        raise UserError(f"{what}: {type(policy).__name__} has no approximation; set precision: exact and cache: null")
    if _is_sharded(policy.module):
        raise UserError(
            f"{what} does not work with sharded weights (FSDP); set precision: exact and cache: null, or train LoRA "
            "without FSDP"
        )
    return policy.approximation(continuation, precision)


def _is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(part, FSDPModule | FullyShardedDataParallel) for part in module.modules())
