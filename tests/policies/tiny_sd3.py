"""A StableDiffusion3Pipeline with every part of SD3.5 medium's, random weights and tokenizers of letters."""

from __future__ import annotations

from pathlib import Path

import torch
from policies.tiny_parts import build_vae, clip_config, t5_encoder, tokenizers


def build_pipeline(folder: Path, seed: int = 0, dual_attention_layers: tuple[int, ...] = (0, 1)) -> Path:
    """Saves the pipeline into ``folder``, 32x32 pixels, VAE factor 4, and returns the folder.

    Three blocks, of which the last lets the text go; two have SD3.5 medium's second attention.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = tokenizers()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=40,
        pos_embed_max_size=12,
        dual_attention_layers=dual_attention_layers,
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(),
        text_encoder=CLIPTextModelWithProjection(clip_config(clip_tokenizer, width=16, num_layers=2)),
        tokenizer=clip_tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(clip_tokenizer, width=24, num_layers=2)),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=t5_encoder(t5_tokenizer, width=48),
        tokenizer_3=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
