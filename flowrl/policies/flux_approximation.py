"""FLUX's velocity at a lower cost: 8-bit products in its blocks, and blocks reused between neighbouring steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from flowrl.policies import flux_blocks, fp8
from flowrl.protocols import Continuation
from flowrl.types import Cond

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

    from flowrl.policies.flux import FluxPolicy


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
            policy.speed.twin(own)
        self.transformer = own

    def refresh(self) -> None:
        """Quantise the policy's present weights."""
        if self.quantised:
            fp8.refresh(self.transformer)

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond, *, keep: bool) -> tuple[Tensor, Tensor | None]:
        self.policy.speed.choose_attention(self.policy.evaluate, x, sigma, cond)
        rows = self.policy.speed.padding.fill(torch.arange(len(x)))
        inputs = self._inputs(x, sigma, cond, rows)
        with self._autocast():
            v, residual = flux_blocks.velocity(self.transformer, inputs, span=self.span if keep else None)
        return v[: len(x)].to(x.dtype), None if residual is None else residual[: len(x)]

    @torch.no_grad()
    def velocity_by(self, x: Tensor, sigma: Tensor, cond: Cond, residual: Tensor) -> Tensor:
        rows = self.policy.speed.padding.fill(torch.arange(len(x)))
        inputs, residual = self._inputs(x, sigma, cond, rows), residual[rows.to(residual.device)]
        with self._autocast():
            v, _ = flux_blocks.velocity(self.transformer, inputs, span=self.span, residual=residual)
        return v[: len(x)].to(x.dtype)

    def _inputs(self, x: Tensor, sigma: Tensor, cond: Cond, rows: Tensor) -> dict[str, Any]:
        """What the transformer is called with; ``rows`` repeats some where compiled blocks want full batches."""
        at = rows.to(x.device)
        return self.policy.inputs(x[at], sigma[at], cond[rows])

    def _autocast(self) -> AbstractContextManager[None]:
        """The trainer's, which it wraps around the policy's module and which is not called here."""
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.bf16)
