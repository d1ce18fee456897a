"""Any pipeline that diffusers.StableDiffusion3Pipeline loads, SD3.5 medium and large among them, as a policy.

Classifier-free guidance (arXiv 2207.12598) is part of the policy, in the rollout and in training, as Flow-GRPO has it:
``v = v_uncond + guidance (v_cond - v_uncond)``, both with gradients.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flowrl.policies.diffusers_policy import DiffusersConfig, DiffusersPolicy
from flowrl.policies.lora import LoRA
from flowrl.policies.sd3_shape import PUBLISHED, SD3Shape, sd3_shape
from flowrl.policies.shape import Configs
from flowrl.types import Cond

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

NEGATIVE_PROMPT = ""
FLOW_GRPO_TARGETS = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)
"""What Flow-GRPO adapts in SD3.5 (its train_sd3.py)."""


class SD3LoRA(LoRA):
    """Adapters of the joint attention alone, unless told otherwise."""

    targets: tuple[str, ...] = FLOW_GRPO_TARGETS


class SD3(DiffusersConfig, kind="sd3"):
    """A StableDiffusion3Pipeline. Its own size is the transformer's ``sample_size``, its own number of tokens 256."""

    pipeline_name = "StableDiffusion3Pipeline"
    transformer_name = "SD3Transformer2DModel"
    text_components = (
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
    )
    t5_tokenizer = "tokenizer_3"
    published: ClassVar = PUBLISHED

    guidance: float | None = Field(default=4.5, ge=1)
    """Of classifier-free guidance, which costs a second evaluation of the transformer; None or 1: none."""
    lora: SD3LoRA | None = None
    """None: full fine-tuning over fp32 masters."""

    @property
    def evals_per_velocity(self) -> int:
        return 1 if self.guidance is None or self.guidance == 1 else 2

    def load(self, device: torch.device) -> SD3Policy:
        """Raises UserError where weights are missing or a size does not fit."""
        return SD3Policy(self, device)

    def shape_of(self, configs: Configs) -> SD3Shape:
        return sd3_shape(self.source, configs, height=self.height, width=self.width, text_tokens=self.text_tokens)

    def encode_text(self, pipe: Any, text: str, num_tokens: int) -> tuple[Tensor, Tensor]:
        embeds, _, pooled, _ = pipe.encode_prompt(
            [text], None, None, do_classifier_free_guidance=False, max_sequence_length=num_tokens
        )
        return embeds, pooled

    @property
    def always_encoded(self) -> tuple[str, ...]:
        """The negative prompt, where there is guidance."""
        return (NEGATIVE_PROMPT,) if self.evals_per_velocity == 2 else ()


class SD3Policy(DiffusersPolicy):
    """The Policy protocol over a StableDiffusion3Pipeline. States are latents [B, VAE channels, rows, columns]."""

    config: SD3
    shape: SD3Shape

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, channels, rows, columns] at sigma [B], called as StableDiffusion3Pipeline does; in x's dtype.

        Under guidance one call of 2B rows, the unconditional ones first.
        """
        dtype = self.weight_dtype
        text, pooled = cond.tensors["text"].to(x.device), cond.tensors["pooled"].to(x.device)
        states, times = x, 1000 * sigma.to(x.device)
        if self.evals_per_velocity == 2:
            negative = self._negative.tensors
            text = torch.cat([negative["text"].expand(len(x), -1, -1), text])
            pooled = torch.cat([negative["pooled"].expand(len(x), -1), pooled])
            states, times = torch.cat([x, x]), torch.cat([times, times])
        v: Tensor = self.module(
            hidden_states=states.to(dtype),
            timestep=times,
            encoder_hidden_states=text.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0].to(x.dtype)
        if self.evals_per_velocity == 1:
            return v
        unconditional, conditional = v.chunk(2)  # combined in x's dtype: guidance would multiply a rounding error
        return unconditional + float(self.config.guidance or 1) * (conditional - unconditional)

    @cached_property
    def _negative(self) -> Cond:
        """The negative prompt's embedding, one row."""
        return self.prompts.encode([NEGATIVE_PROMPT])

    def vae_latents(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def set_pipeline_steps(self, scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int) -> None:
        """The scheduler's own grid, whose last step starts near 0, with a dynamic shift where it has one."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        mu = None
        if scheduler.config.get("use_dynamic_shifting"):
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            _, rows, columns = self.latent_shape
            num_tokens = (rows // self.shape.patch_size) * (columns // self.shape.patch_size)
            mu = calculate_shift(num_tokens, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(num_steps, mu=mu)
