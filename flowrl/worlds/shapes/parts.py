"""The parts of the embedded FLUX pipeline: every size in one record, and the modules with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl.worlds.shapes.tokenizers import clip_tokenizer, t5_tokenizer


@dataclass(frozen=True)
class Sizes:
    """Sizes of the pipeline. The defaults are those of the weights in the package.

    >>> Sizes().image_size // Sizes().vae_factor
    16
    """

    image_size: int = 64
    text_length: int = 32
    latent_channels: int = 4
    vae_channels: tuple[int, ...] = (12, 24, 32)  # one level per factor of 2, and one more
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 4
    heads: int = 4
    rope_axes: tuple[int, int, int] = (8, 12, 12)  # sums to the head's width: text, row, column
    double_blocks: int = 2
    single_blocks: int = 6
    shift: float = 3.0  # static, the one that training uses

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self.vae_channels) - 1)

    @property
    def latent_size(self) -> int:
        return self.image_size // self.vae_factor


def build_vae(sizes: Sizes) -> Any:
    """An ``AutoencoderKL`` without attention; under 0.3 M parameters."""
    from diffusers import AutoencoderKL

    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=4,
        sample_size=sizes.image_size,
        shift_factor=0.0,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_transformer(sizes: Sizes) -> Any:
    """A ``FluxTransformer2DModel`` over 2x2 packed latents, with guidance embedding."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4 * sizes.latent_channels,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sum(sizes.rope_axes),
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.text_width,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope_axes,
    )


def build_text_encoders(sizes: Sizes, words: Sequence[str]) -> dict[str, Any]:
    """Tokenizers and encoders by their names in the pipeline: CLIP for the pooled vector, T5 for the sequence."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip_words = clip_tokenizer(words, sizes.text_length)
    t5_words = t5_tokenizer(words, sizes.text_length)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_words),
            hidden_size=sizes.text_width,
            intermediate_size=2 * sizes.text_width,
            projection_dim=sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=sizes.text_length,
            bos_token_id=clip_words.bos_token_id,
            eos_token_id=clip_words.eos_token_id,
            pad_token_id=clip_words.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_words),
            d_model=sizes.text_width,
            d_kv=sizes.text_width // sizes.text_heads,
            d_ff=2 * sizes.text_width,
            num_layers=sizes.text_layers,
            num_heads=sizes.text_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=t5_words.pad_token_id,
            eos_token_id=t5_words.eos_token_id,
        )
    )
    return {"tokenizer": clip_words, "text_encoder": clip, "tokenizer_2": t5_words, "text_encoder_2": t5}


def build_scheduler(sizes: Sizes) -> Any:
    """The plain pipeline's sampler: Euler over sigmas with a static shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=sizes.shift, use_dynamic_shifting=False)


def build_pipeline(sizes: Sizes, words: Sequence[str], *, seed: int = 0) -> Any:
    """A ``FluxPipeline`` with random fp32 weights that depend on ``seed`` alone; leaves torch's generator alone."""
    from diffusers import FluxPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxPipeline(
            scheduler=build_scheduler(sizes),
            vae=build_vae(sizes),
            transformer=build_transformer(sizes),
            **build_text_encoders(sizes, words),
        ).to(torch.float32)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Writes the folder that ``FluxPipeline.from_pretrained`` reads: transformer and VAE in bf16, text encoders fp32.

    The plain pipeline hands the text encoders' output on in their own dtype, so those stay fp32.
    """
    import copy

    stored = copy.copy(pipeline)
    for name in ("transformer", "vae"):
        setattr(stored, name, copy.deepcopy(getattr(pipeline, name)).to(device="cpu", dtype=torch.bfloat16))
    for name in ("text_encoder", "text_encoder_2"):
        setattr(stored, name, copy.deepcopy(getattr(pipeline, name)).to(device="cpu", dtype=torch.float32))
    stored.save_pretrained(folder)


def assemble(folder: Path, words: Sequence[str], *, sizes: Sizes | None = None, seed: int = 0) -> Path:
    """Saves the pipeline with random weights in ``folder``: the exact structure of the trained one, for tests."""
    sizes = sizes or Sizes()
    save_pipeline(build_pipeline(sizes, words, seed=seed), folder)
    return folder
