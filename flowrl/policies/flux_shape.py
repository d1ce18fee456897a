"""Sizes and costs of a FLUX model, from its config files alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowrl.policies.shape import (
    MAX_TEXT_TOKENS,
    TIME_CHANNELS,
    Configs,
    PipelineShape,
    check_size,
    check_text_tokens,
    linear,
)

FLUX1_DEV = Configs(
    transformer={
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    vae={"block_out_channels": [128, 256, 512, 512], "sample_size": 1024},
    t5_tokenizer={"model_max_length": 512},
    clip_tokenizer={"model_max_length": 77},
)
"""The published configs of FLUX.1-dev, so that a run can be planned before its weights are fetched."""
ARCHITECTURE = tuple(FLUX1_DEV.transformer)
PUBLISHED = {"black-forest-labs/FLUX.1-dev": FLUX1_DEV}


@dataclass(frozen=True)
class FluxShape(PipelineShape):
    """The sizes of a FluxTransformer2DModel and of what it draws."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Packed latents as FluxPipeline has them: [tokens, 4 x VAE channels], a token being 2x2 latents."""
        rows, columns = self.token_grid
        return rows * columns, self.in_channels

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // (2 * self.vae_factor), self.width // (2 * self.vae_factor)

    @property
    def num_parameters(self) -> int:
        """Parameters of the transformer, biases and norms included."""
        d = self.attention_head_dim * self.num_attention_heads
        norms = 2 * self.attention_head_dim  # the query's and the key's RMSNorm
        stream = linear(d, 6 * d) + 4 * linear(d, d) + norms + linear(d, 4 * d) + linear(4 * d, d)
        single = linear(d, 3 * d) + 3 * linear(d, d) + norms + linear(d, 4 * d) + linear(5 * d, d)
        time = linear(TIME_CHANNELS, d) + linear(d, d)
        embedders = (1 + self.guidance_embeds) * time + linear(self.pooled_projection_dim, d) + linear(d, d)
        embedders += linear(self.joint_attention_dim, d) + linear(self.in_channels, d)
        head = linear(d, 2 * d) + linear(d, self.in_channels)
        return self.num_layers * 2 * stream + self.num_single_layers * single + embedders + head

    @property
    def flops_per_forward(self) -> int:
        """FLOPs of one evaluation for one sample: two per multiply-add of every matrix product, attention included.

        With width d and n = text + image tokens a block costs ``24 n d^2 + 4 n^2 d``: a double block has 12 d^2
        weights per stream and each token passes one stream; a single block has 12 d^2 weights for all tokens.
        """
        d = self.attention_head_dim * self.num_attention_heads
        num_image_tokens = self.latent_shape[0]
        n = num_image_tokens + self.text_tokens
        blocks = (self.num_layers + self.num_single_layers) * (24 * n * d**2 + 4 * n**2 * d)
        embedders = 2 * d * (2 * num_image_tokens * self.in_channels + self.text_tokens * self.joint_attention_dim)
        modulation = 2 * d * d * (12 * self.num_layers + 3 * self.num_single_layers + 2)
        return blocks + embedders + modulation

    def embedding_bytes(self, bytes_per_number: int) -> int:
        """What one prompt's cached embedding takes on disk, its small header apart."""
        return bytes_per_number * (self.text_tokens * self.joint_attention_dim + self.pooled_projection_dim)


def flux_shape(
    source: str, configs: Configs, *, height: int | None, width: int | None, text_tokens: int | None
) -> FluxShape:
    """The shape of the pipeline with these configs.

    None for a size means the pipeline's own: the VAE config's ``sample_size``, the T5 tokenizer's maximum length.
    Raises UserError where a size does not fit the VAE.
    """
    own_size = configs.vae["sample_size"]
    sizes: dict[str, Any] = {"height": height or own_size, "width": width or own_size}
    check_size(source, 2 * configs.vae_factor, **sizes)
    own_tokens = int(configs.t5_tokenizer.get("model_max_length", MAX_TEXT_TOKENS))
    tokens = text_tokens or min(own_tokens, MAX_TEXT_TOKENS)
    check_text_tokens(tokens, "FluxPipeline")
    architecture: dict[str, Any] = {name: configs.transformer[name] for name in ARCHITECTURE}
    return FluxShape(**sizes, vae_factor=configs.vae_factor, text_tokens=tokens, **architecture)
