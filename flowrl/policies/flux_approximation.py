"""FLUX's velocity at a lower cost: 8-bit products in its blocks, and blocks reused between neighbouring steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from flowrl.policies import flux_blocks, fp8
from flowrl.policies.blocks import Blocks
from flowrl.protocols import Continuation
from flowrl.types import Cond

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

    from flowrl.policies.flux import FluxPolicy


RESIDUAL = "reused residual"
"""Its name among the conditions, with which its rows are filled up."""


class FluxApproximation:
    """The :class:`flowrl.protocols.Approximation` of a FluxPolicy.

    A residual is [B, n, d] in the streams' dtype, n text and image tokens (image tokens alone where the last block is
    reused too): 15.6 MB a row for FLUX.1-dev at 720x720 in bf16. Quantised weights take a byte each, on top of the
    policy's own: 8.6 GB for FLUX.1-dev.
    """

    def __init__(self, policy: FluxPolicy, continuation: Continuation, precision: Literal["fp32", "bf16"]) -> None:
        self.policy = policy
        self.bf16 = precision == "bf16"
        own = policy.transformer
        self.span = None if continuation.cache is None else continuation.cache.span(flux_blocks.num_blocks(own))
        self.quantised = continuation.precision == "fp8"
        if self.quantised:
            dtype = torch.bfloat16 if self.bf16 else own.proj_out.weight.dtype
            blocks = [*own.transformer_blocks, *own.single_transformer_blocks]
            own = cast("FluxTransformer2DModel", fp8.quantised_copy(own, blocks, dtype))
            speed = policy.speed  # its blocks are compiled, and attend, as the policy's own
            Blocks(own, compiled=speed.blocks.compiled, attention=speed.attention.context)
        self.transformer = own

    def refresh(self) -> None:
        """Quantise the policy's present weights."""
        if self.quantised:
            fp8.refresh(self.transformer)

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        made: list[Tensor | None] = []
        v = self._padded(x, sigma, cond, None, self.span if keep else None, made)
        residuals = [part for part in made if part is not None]
        if not residuals:
            return v, None
        return v, (residuals[0] if len(residuals) == 1 else torch.cat(residuals))[: len(x)]

    @torch.no_grad()
    def velocity_by(self, x: Tensor, sigma: Tensor, cond: Cond, residual: Tensor) -> Tensor:
        return self._padded(x, sigma, cond, residual, self.span, [])

    def _padded(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Cond,
        residual: Tensor | None,
        span: tuple[int, int] | None,
        made: list[Tensor | None],
    ) -> Tensor:
        """v [B, ...], rows filled up as the policy's own calls are; ``made`` takes the residuals of what was called,
        the rows that fill at the end."""

        def evaluate(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            inputs, residual = self.policy.inputs(x, sigma, cond), cond.tensors.get(RESIDUAL)
            # the trainer's autocast is around the policy's module, which is not called here
            with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.bf16):
                v, residual = flux_blocks.velocity(self.transformer, inputs, span=span, residual=residual)
            made.append(residual)
            return v.to(x.dtype)

        with_residual = cond if residual is None else Cond({**cond.tensors, RESIDUAL: residual})
        return self.policy.speed.padding(evaluate, x, sigma, with_residual)
