"""The parts that tiny pipelines share: random text encoders, tokenizers of letters, a VAE of factor 4."""

from __future__ import annotations

import string
from typing import Any

TEXT_TOKENS = 16
SIZE = 32


def tokenizers() -> tuple[Any, Any]:
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


def clip_config(tokenizer: Any, width: int, num_layers: int = 1) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def t5_encoder(tokenizer: Any, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def build_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
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
