"""Sizes and costs of a FLUX model, from its config files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.errors import UserError
from flowrl.hub import read_json

TIME_CHANNELS = 256  # of the sinusoidal embedding of time and of guidance, fixed in FluxTransformer2DModel
FLUX1_DEV: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    "vae": {"block_out_channels": [128, 256, 512, 512], "sample_size": 1024},
    "tokenizer_2": {"model_max_length": 512},
}
"""The published configs of FLUX.1-dev, so that a run can be planned before its weights are fetched."""
ARCHITECTURE = tuple(FLUX1_DEV["transformer"])
PUBLISHED = {"black-forest-labs/FLUX.1-dev": FLUX1_DEV}


@dataclass(frozen=True)
class FluxShape:
    """Every size that a velocity depends on; ``height`` and ``width`` in pixels, ``vae_factor`` pixels per latent."""

    height: int
    width: int
    vae_factor: int
    text_tokens: int
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
        stream = _linear(d, 6 * d) + 4 * _linear(d, d) + norms + _linear(d, 4 * d) + _linear(4 * d, d)
        single = _linear(d, 3 * d) + 3 * _linear(d, d) + norms + _linear(d, 4 * d) + _linear(5 * d, d)
        time = _linear(TIME_CHANNELS, d) + _linear(d, d)
        embedders = (1 + self.guidance_embeds) * time + _linear(self.pooled_projection_dim, d) + _linear(d, d)
        embedders += _linear(self.joint_attention_dim, d) + _linear(self.in_channels, d)
        head = _linear(d, 2 * d) + _linear(d, self.in_channels)
        return self.num_layers * 2 * stream + self.num_single_layers * single + embedders + head

    @property
    def flops_per_forward(self) -> int:
        """FLOPs of one velocity of one sample: two per multiply-add of every matrix product, attention included.

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


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def read_shape(
    source: str, folder: Path | None, *, height: int | None, width: int | None, text_tokens: int | None
) -> FluxShape:
    """The shape of the pipeline in ``folder``, or of a published one by its hub id where ``folder`` is None.

    None for a size means the pipeline's own: the VAE config's ``sample_size``, the T5 tokenizer's maximum length.
    Raises UserError where a size does not fit the VAE or the config is not FLUX's.
    """
    transformer, vae, tokenizer = _configs(source, folder)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    sizes: dict[str, Any] = {"height": height or vae["sample_size"], "width": width or vae["sample_size"]}
    step = 2 * factor
    for name, size in sizes.items():
        if size < step or size % step:
            near = max(step, round(size / step) * step)
            raise UserError(f"model.{name} must be a multiple of {step} pixels for {source}, got {size}; try {near}")
    own_tokens = int(tokenizer.get("model_max_length", 512))
    tokens = text_tokens or min(own_tokens, 512)
    if tokens > 512:
        raise UserError(f"model.text_tokens must be at most 512, FluxPipeline's limit; got {tokens}")
    architecture: dict[str, Any] = {name: transformer[name] for name in ARCHITECTURE}
    return FluxShape(**sizes, vae_factor=factor, text_tokens=tokens, **architecture)


def _configs(source: str, folder: Path | None) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    if folder is None:
        published = PUBLISHED[source]
        return published["transformer"], published["vae"], published["tokenizer_2"]
    transformer = read_json(folder / "transformer" / "config.json")
    if transformer.get("_class_name") != "FluxTransformer2DModel":
        raise UserError(f"{folder}/transformer is a {transformer.get('_class_name')}, not a FluxTransformer2DModel")
    return transformer, read_json(folder / "vae" / "config.json"), _tokenizer_config(folder)


def _tokenizer_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer_2" / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}
