"""A FLUX pipeline of any size with random weights, and scorers of full size: what speed is measured on.

Nothing of the transformer is read from a disk: it is built without storage and filled on the device. The same names
and seed give the same weights, in bf16 those of fp32 rounded. Text embeddings are random numbers that a prompt's text
names.
"""

from __future__ import annotations

import fcntl
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowrl.atomic import write_json
from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.random_checkpoints import make_checkpoint
from flowrl.types import Cond, Prompt

SEED = 7


class Size(NamedTuple):
    """Configs of a transformer and a VAE, pixels, text tokens, and what of a recipe the size sets."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    pixels: int
    text_tokens: int
    overrides: tuple[str, ...]
    matmul: int
    """Side of the matrices whose product gives the device's peak."""


SIZES = {
    "flux": Size(
        transformer={"guidance_embeds": True},  # diffusers' defaults are FLUX.1-dev's
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        pixels=720,
        text_tokens=512,
        overrides=(),
        matmul=8192,
    ),
    "tiny": Size(
        transformer={
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        vae={
            "block_out_channels": (8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "sample_size": 32,
            "scaling_factor": 0.7,
            "shift_factor": 0.1,
        },
        pixels=32,
        text_tokens=16,
        overrides=(
            "grid.num_steps=6",
            "rollout.group=3",
            "rollout.max_batch=4",
            "run.precision=fp32",
            "model.dtype=fp32",
        ),
        matmul=256,
    ),
}


class RandomFlux(Flux, kind="random_flux"):
    """A :class:`Flux` whose ``source`` holds configs alone (:func:`write_skeleton`) and whose weights are drawn."""

    def load(self, device: torch.device) -> RandomFluxPolicy:
        return RandomFluxPolicy(self, device)


class RandomFluxPolicy(FluxPolicy):
    """The policy as it is, but for what it would read from files."""

    def _load_transformer(self, dtype: torch.dtype) -> Any:
        from diffusers import FluxTransformer2DModel

        return _drawn(FluxTransformer2DModel, self.folder / "transformer", dtype, self.device).train(False)

    def _load_vae(self) -> Any:
        from diffusers import AutoencoderKL

        return _drawn(AutoencoderKL, self.folder / "vae", self.frozen_dtype, self.device)

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """``text`` and ``pooled`` of the prompts, without text encoders."""
        shape = self.shape
        sizes = {"text": (shape.text_tokens, shape.joint_attention_dim), "pooled": (shape.pooled_projection_dim,)}
        return Cond({name: self._numbers(prompts, size, name) for name, size in sizes.items()})

    def _numbers(self, prompts: Sequence[Prompt], size: tuple[int, ...], name: str) -> Tensor:
        rows = [torch.randn(size, generator=_generator(f"{name} {p.text}", torch.device("cpu"))) for p in prompts]
        return torch.stack(rows).to(self.device, self.frozen_dtype)


def write_skeleton(folder: Path, size: Size) -> Path:
    """A pipeline folder with every config and empty files for weights."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    num_blocks = len(size.vae["block_out_channels"])
    vae = size.vae | {
        "down_block_types": ("DownEncoderBlock2D",) * num_blocks,
        "up_block_types": ("UpDecoderBlock2D",) * num_blocks,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    with torch.device("meta"):
        FluxTransformer2DModel(**size.transformer).save_config(folder / "transformer")
        AutoencoderKL(**vae).save_config(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_config(folder / "scheduler")
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"})
    for encoder in ("text_encoder", "text_encoder_2"):
        (folder / encoder).mkdir(exist_ok=True)
        write_json(folder / encoder / "config.json", {"dtype": "bfloat16"})
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (folder / tokenizer).mkdir(exist_ok=True)
        write_json(folder / tokenizer / "tokenizer_config.json", {"model_max_length": size.text_tokens})
    empty = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")]
    empty += [f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")]
    for name in (*empty, "tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"):
        (folder / name).touch()
    return folder


def _drawn(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A diffusers model by its config, its weights drawn on the device."""
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(folder))
    nn.Module.to(module, dtype)  # diffusers' own warns about modules that must stay fp32, which none of these is
    module.to_empty(device=device)
    fill(module)
    return module


@torch.no_grad()
def fill(module: nn.Module, seed: int = SEED) -> None:
    """Every parameter from a generator of its own: matrices of std 1 / sqrt(inputs), norms about 1, biases small. As in
    a trained model, time and guidance matter by their low frequencies: bf16 weights have them rounded to 8 bits."""
    for name, parameter in module.named_parameters():
        drawn = torch.randn(
            parameter.shape, generator=_generator(name, parameter.device, seed), device=parameter.device
        )
        if parameter.dim() > 1:
            drawn /= math.sqrt(math.prod(parameter.shape[1:]))
            if name.endswith(("timestep_embedder.linear_1.weight", "guidance_embedder.linear_1.weight")):
                drawn *= _low_frequencies(parameter.shape[1]).to(drawn)
        else:
            drawn = drawn.mul_(0.02).add_(1.0 if name.endswith("weight") else 0.0)
        parameter.copy_(drawn)


def _low_frequencies(channels: int) -> Tensor:
    """[channels] factors of the sinusoidal embedding's cosines and sines, whose frequencies fall from 1 to 1e-4: those
    above 0.01 are damped in proportion."""
    frequency = 10_000.0 ** -torch.linspace(0, 1, channels // 2 + 1)[:-1]
    return (0.01 / frequency).clamp(max=1.0).repeat(2)


def _generator(name: str, device: torch.device, seed: int = SEED) -> torch.Generator:
    return torch.Generator(device).manual_seed((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)


# ---- scorers

_LOADED: dict[str, Scorer] = {}


class Kept(ScorerConfig):
    """Another scorer, loaded once a process, however many trainers ask for it. No kind: recipes cannot name it."""

    scorer: ScorerConfig

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.scorer.kind

    def load(self, device: torch.device) -> Scorer:
        key = f"{self.scorer!r} {device}"
        if key not in _LOADED:
            _LOADED[key] = self.scorer.load(device)
        return _LOADED[key]


def scorer_source(name: str, scale: Literal["full", "small"], folder: Path) -> str:
    """Where a reward's weights are: the embedded world's, or random ones of the official size in the official files,
    written once into ``folder``."""
    if scale == "small":
        return "shapes"
    weights = folder / name
    weights.mkdir(parents=True, exist_ok=True)
    with (weights / "complete").open("a+") as complete:  # one process writes, the others wait
        fcntl.flock(complete, fcntl.LOCK_EX)
        if not complete.tell():
            make_checkpoint(name, weights, "full")
            complete.write("yes")
    return str(weights)
