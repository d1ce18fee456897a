"""Sizes and costs of a Stable Diffusion 3 model, from its config files alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowrl.errors import UserError
from flowrl.policies.shape import (
    TIME_CHANNELS,
    Configs,
    PipelineShape,
    check_size,
    check_text_tokens,
    linear,
)

TEXT_TOKENS = 256
"""StableDiffusion3Pipeline's own ``max_sequence_length``."""
_SD35: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}
_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": range(13), "pos_embed_max_size": 384}
_LARGE = {"num_layers": 38, "num_attention_heads": 38, "dual_attention_layers": (), "pos_embed_max_size": 192}
ARCHITECTURE = (*_SD35, *_MEDIUM)
PUBLISHED = {
    f"stabilityai/stable-diffusion-3.5-{name}": Configs(
        transformer=_SD35 | sizes,
        vae={"block_out_channels": [128, 256, 512, 512]},
        t5_tokenizer={"model_max_length": 512},
        clip_tokenizer={"model_max_length": 77},
    )
    for name, sizes in {"medium": _MEDIUM, "large": _LARGE}.items()
}
"""The published configs, so that a run can be planned before the weights are fetched."""


@dataclass(frozen=True)
class SD3Shape(PipelineShape):
    """The sizes of an SD3Transformer2DModel and of what it draws. ``text_tokens`` of T5 follow ``clip_tokens``."""

    clip_tokens: int
    sample_size: int
    patch_size: int
    in_channels: int
    out_channels: int
    attention_head_dim: int
    joint_attention_dim: int
    pooled_projection_dim: int
    qk_norm: str | None
    num_layers: int
    num_attention_heads: int
    dual_attention_layers: tuple[int, ...]
    """Blocks with a second attention among the image tokens alone (SD3.5 medium's)."""
    pos_embed_max_size: int
    """Image tokens of a side, at most."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latents as StableDiffusion3Pipeline has them: [VAE channels, rows, columns]."""
        return self.in_channels, self.height // self.vae_factor, self.width // self.vae_factor

    @property
    def _width(self) -> int:
        return self.attention_head_dim * self.num_attention_heads

    @property
    def _patch(self) -> int:
        """Latents of a token and channel."""
        return self.patch_size**2

    @property
    def num_parameters(self) -> int:
        """Parameters of the transformer, biases and norms included.

        The last block lets the text go after its attention: it has no output projection and MLP for it.
        """
        d = self._width
        norm = 0 if self.qk_norm is None else self.attention_head_dim
        attention, mlp = 4 * linear(d, d) + 2 * norm, linear(d, 4 * d) + linear(4 * d, d)
        block = 2 * (linear(d, 6 * d) + attention + mlp)
        spared = linear(d, 4 * d) + linear(d, d) + mlp
        dual = linear(d, 3 * d) + attention  # of the modulation's 9 d outputs, 3 d are its own
        time = linear(TIME_CHANNELS, d) + linear(d, d)
        embedders = time + linear(self.pooled_projection_dim, d) + linear(d, d)
        embedders += linear(self.joint_attention_dim, d) + linear(self._patch * self.in_channels, d)
        head = linear(d, 2 * d) + linear(d, self._patch * self.out_channels)
        return self.num_layers * block - spared + len(self.dual_attention_layers) * dual + embedders + head

    @property
    def flops_per_forward(self) -> int:
        """FLOPs of one evaluation for one sample: two per multiply-add of every matrix product, attention included.

        With width d and n = text + image tokens a block costs ``24 n d^2 + 4 n^2 d``; the last one spares 18 d^2 for
        each text token; a second attention costs ``8 m d^2 + 4 m^2 d`` with the m image tokens.
        """
        d = self._width
        channels, rows, columns = self.latent_shape
        m = rows * columns // self._patch
        num_text = self.clip_tokens + self.text_tokens
        n = m + num_text
        num_dual = len(self.dual_attention_layers)
        blocks = self.num_layers * (24 * n * d**2 + 4 * n**2 * d) - 18 * num_text * d**2
        blocks += num_dual * (8 * m * d**2 + 4 * m**2 * d)
        ends = 2 * m * d * self._patch * (channels + self.out_channels) + 2 * num_text * self.joint_attention_dim * d
        modulation = 2 * d * d * (12 * self.num_layers - 4 + 3 * num_dual + 2)
        time_and_pooled = 2 * d * (TIME_CHANNELS + self.pooled_projection_dim + 2 * d)
        return blocks + ends + modulation + time_and_pooled

    def embedding_bytes(self, bytes_per_number: int) -> int:
        """What one prompt's cached embedding takes on disk, its small header apart."""
        num_text = self.clip_tokens + self.text_tokens
        return bytes_per_number * (num_text * self.joint_attention_dim + self.pooled_projection_dim)


def sd3_shape(
    source: str, configs: Configs, *, height: int | None, width: int | None, text_tokens: int | None
) -> SD3Shape:
    """The shape of the pipeline with these configs.

    None for a size means the pipeline's own: the transformer's ``sample_size`` in latents, 256 T5 tokens. Raises
    UserError where a size does not fit the VAE, or the transformer's table of positions.
    """
    transformer, factor = configs.transformer, configs.vae_factor
    own_size = transformer["sample_size"] * factor
    sizes: dict[str, Any] = {"height": height or own_size, "width": width or own_size}
    step = transformer["patch_size"] * factor
    check_size(source, step, **sizes)
    largest = transformer["pos_embed_max_size"] * step
    for name, size in sizes.items():
        if size > largest:
            raise UserError(f"model.{name} must be at most {largest} pixels for {source}, got {size}")
    tokens = text_tokens or TEXT_TOKENS
    check_text_tokens(tokens, "StableDiffusion3Pipeline")
    architecture: dict[str, Any] = {name: transformer.get(name) for name in ARCHITECTURE}
    architecture["dual_attention_layers"] = tuple(architecture["dual_attention_layers"] or ())
    clip_tokens = int(configs.clip_tokenizer.get("model_max_length", 77))
    return SD3Shape(**sizes, vae_factor=factor, text_tokens=tokens, clip_tokens=clip_tokens, **architecture)
