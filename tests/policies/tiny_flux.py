"""A FluxPipeline with every part of the real one, random weights and tokenizers of letters, 0.5 MB on disk."""

from __future__ import annotations

import string
from pathlib import Path

import torch

TEXT_TOKENS = 16
SIZE = 32


def build_pipeline(folder: Path, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """Saves the pipeline into ``folder``, 32x32 pixels, VAE factor 4, and returns the folder."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    clip_tokenizer, t5_tokenizer = tokenizers()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TEXT_TOKENS,
            projection_dim=16,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=len(t5_tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
        scaling_factor=0.7,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
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


def tokenizers() -> tuple:
    """A CLIP and a T5 tokenizer whose vocabulary is the characters of ASCII."""
    from transformers import CLIPTokenizer, T5Tokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    clip_tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    clip = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(clip_tokens)}, merges=[], model_max_length=TEXT_TOKENS
    )
    t5_vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    t5_vocab += [(letter, -3.0) for letter in letters + string.ascii_uppercase]
    return clip, T5Tokenizer(vocab=t5_vocab, extra_ids=0, model_max_length=TEXT_TOKENS)
