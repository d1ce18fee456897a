"""A FluxPipeline with every part of the real one, random weights and tokenizers of letters, 0.5 MB on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from policies.tiny_parts import SIZE, TEXT_TOKENS, build_vae, clip_config, t5_encoder, tokenizers

__all__ = ["SIZE", "TEXT_TOKENS", "build_pipeline"]


def build_pipeline(folder: Path, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """Saves the pipeline into ``folder``, 32x32 pixels, VAE factor 4, and returns the folder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = tokenizers()
    text_encoder = CLIPTextModel(clip_config(clip_tokenizer, width=16))
    text_encoder_2 = t5_encoder(t5_tokenizer, width=24)
    vae = build_vae()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip_tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
