"""Any pipeline that diffusers.FluxPipeline loads, from the embedded world to FLUX.1-dev, as a policy."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.policies.diffusers_policy import DiffusersConfig, DiffusersPolicy
from flowrl.policies.flux_approximation import FluxApproximation
from flowrl.policies.flux_shape import PUBLISHED, FluxShape, flux_shape
from flowrl.policies.shape import Configs
from flowrl.protocols import Approximated, Continuation
from flowrl.sigmas import Grid
from flowrl.types import Cond

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


class Flux(DiffusersConfig, kind="flux"):
    """A FluxPipeline. Its own size is the VAE config's ``sample_size``, its own number of tokens the T5 tokenizer's
    maximum, 512 for FLUX.1-dev."""

    pipeline_name = "FluxPipeline"
    transformer_name = "FluxTransformer2DModel"
    text_components = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    t5_tokenizer = "tokenizer_2"
    published: ClassVar = PUBLISHED

    approximations: ClassVar[frozenset[Approximated]] = frozenset({"fp8", "cache"})

    guidance: float = 3.5
    """The embedded guidance scale; used where the transformer's config has ``guidance_embeds``."""

    def check_continuation(self, continuation: Continuation) -> None:
        """Also where no block of this model would be reused; a model whose folder is not here is not asked."""
        super().check_continuation(continuation)
        if continuation.cache is not None:
            with suppress(UserError):
                shape = cast(FluxShape, self.shape())
                continuation.cache.span(shape.num_layers + shape.num_single_layers)

    def load(self, device: torch.device) -> FluxPolicy:
        """Raises UserError where weights are missing or a size does not fit."""
        return FluxPolicy(self, device)

    def shape_of(self, configs: Configs) -> FluxShape:
        return flux_shape(self.source, configs, height=self.height, width=self.width, text_tokens=self.text_tokens)

    def encode_text(self, pipe: Any, text: str, num_tokens: int) -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = pipe.encode_prompt([text], max_sequence_length=num_tokens)
        return embeds, pooled


class FluxPolicy(DiffusersPolicy):
    """The Policy protocol over a FluxPipeline. States are packed latents [B, tokens, 4 x VAE channels]."""

    config: Flux
    shape: FluxShape

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, tokens, channels] at sigma [B], called as FluxPipeline does; in x's dtype."""
        v: Tensor = self.module(**self.inputs(x, sigma, cond), return_dict=False)[0]
        return v.to(x.dtype)

    def inputs(self, x: Tensor, sigma: Tensor, cond: Cond) -> dict[str, Any]:
        """What the transformer is called with."""
        dtype = self.weight_dtype
        image_ids, text_ids = self._ids
        guidance = None
        if self.shape.guidance_embeds:
            guidance = torch.full((len(x),), self.config.guidance, device=x.device, dtype=torch.float32)
        return {
            "hidden_states": x.to(dtype),
            "timestep": sigma.to(x.device),  # in 0..1: the transformer multiplies by 1000
            "guidance": guidance,
            "pooled_projections": cond.tensors["pooled"].to(x.device, dtype),
            "encoder_hidden_states": cond.tensors["text"].to(x.device, dtype),
            "txt_ids": text_ids,
            "img_ids": image_ids,
        }

    def approximation(self, continuation: Continuation, precision: Literal["fp32", "bf16"]) -> FluxApproximation:
        """The velocity at a lower cost, for continuations."""
        return FluxApproximation(self, continuation, precision)

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        from diffusers import FluxPipeline

        rows, columns = self.shape.token_grid
        image_ids = FluxPipeline._prepare_latent_image_ids(1, rows, columns, self.device, torch.float32)
        return image_ids, torch.zeros(self.shape.text_tokens, 3, device=self.device)

    def vae_latents(self, x: Tensor) -> Tensor:
        """Unpacked, [B, C, h, w]."""
        from diffusers import FluxPipeline

        latents: Tensor = FluxPipeline._unpack_latents(x, self.shape.height, self.shape.width, self.shape.vae_factor)
        return latents

    def set_pipeline_steps(self, scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int) -> None:
        """An even grid, shifted by the number of image tokens."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(self.latent_shape[0], *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=list(Grid(num_steps).u[:-1]), mu=mu)
