"""Any pipeline that diffusers.FluxPipeline loads, from the embedded world to FLUX.1-dev, as a policy."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowrl.hub import cache_dir
from flowrl.policies.embeddings import GB, EmbeddingCache, readable
from flowrl.policies.flux_shape import PUBLISHED, FluxShape, read_shape
from flowrl.policies.lora import LoRA, adapter_off, add_lora, save_lora
from flowrl.policies.pipeline_folder import digest, embedded_worlds, locate, read_json
from flowrl.policies.quiet import quietly
from flowrl.protocols import PolicyConfig
from flowrl.sigmas import Grid
from flowrl.types import Cond, Prompt

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

log = logging.getLogger(__name__)

TEXT_COMPONENTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
DECODE_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 21}
"""Pixels that are decoded at once: on a GPU 4 images of 720x720 or 512 of 64x64, on a CPU what its caches hold."""


class Flux(PolicyConfig, kind="flux"):
    """A FluxPipeline: where it comes from, what size it draws, what of it is trained."""

    source: str
    """An embedded world (``shapes``), a folder, or a hub id (``black-forest-labs/FLUX.1-dev``)."""
    height: PositiveInt | None = None
    """Pixels; None: the VAE config's ``sample_size``."""
    width: PositiveInt | None = None
    guidance: float = 3.5
    """The embedded guidance scale; used where the transformer's config has ``guidance_embeds``."""
    text_tokens: PositiveInt | None = None
    """T5 tokens; None: the tokenizer's own maximum, 512 for FLUX.1-dev."""
    lora: LoRA | None = None
    """None: full fine-tuning over fp32 masters."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Of all that is frozen (LoRA's base, text encoders, VAE); auto: as the text encoder is stored."""
    gradient_checkpointing: bool = False
    cache_dir: str | None = None
    """Of prompt embeddings; None: ``$FLOWRL_CACHE`` or ``~/.cache/flowrl``."""
    cache_limit: PositiveFloat = 50.0
    """GB of prompt embeddings; the least recently used are evicted."""

    def check(self) -> None:
        """Raises UserError where files are missing or a size does not fit; reads the configs alone."""
        locate(self.source)
        self.shape()

    def load(self, device: torch.device) -> FluxPolicy:
        """Raises UserError where weights are missing or a size does not fit."""
        return FluxPolicy(self, device)

    def shape(self) -> FluxShape:
        """Sizes and costs without loading anything; FLUX.1-dev's are known before its weights are fetched."""
        folder = None if self.source in PUBLISHED else locate(self.source)
        return read_shape(self.source, folder, height=self.height, width=self.width, text_tokens=self.text_tokens)


class FluxPolicy:
    """The Policy protocol over a FluxPipeline. States are packed latents [B, tokens, 4 x VAE channels].

    ``velocity`` is given the dtype of the transformer's own weights, or runs under the caller's autocast.
    """

    evals_per_velocity = 1

    def __init__(self, config: Flux, device: torch.device) -> None:
        self.config = config
        self.device = torch.device(device)
        self.folder = locate(config.source)
        self.shape = read_shape(
            config.source, self.folder, height=config.height, width=config.width, text_tokens=config.text_tokens
        )
        self.latent_shape: tuple[int, ...] = self.shape.latent_shape
        self.frozen_dtype = self._frozen_dtype()
        self.weight_dtype = torch.float32 if config.lora is None else self.frozen_dtype
        self.transformer = self._load_transformer(self.weight_dtype)
        if config.lora is not None:
            add_lora(self.transformer, config.lora)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.module: nn.Module = self.transformer
        limit = round(config.cache_limit * GB)
        self.cache = EmbeddingCache(
            Path(config.cache_dir).expanduser() if config.cache_dir else cache_dir("embeddings"), limit
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of the transformer, adapters apart."""
        return self.shape.num_parameters

    @property
    def flops_per_forward(self) -> int:
        """FLOPs of one velocity of one sample."""
        return self.shape.flops_per_forward

    # ---- velocity

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, tokens, channels] at sigma [B], called as FluxPipeline does; in x's dtype."""
        dtype = self.weight_dtype  # not that of a weight at hand, which FSDP gathers in bfloat16
        image_ids, text_ids = self._ids
        guidance = None
        if self.shape.guidance_embeds:
            guidance = torch.full((len(x),), self.config.guidance, device=x.device, dtype=torch.float32)
        v = self.module(
            hidden_states=x.to(dtype),
            timestep=sigma.to(x.device),  # in 0..1: the transformer multiplies by 1000
            guidance=guidance,
            pooled_projections=cond.tensors["pooled"].to(x.device, dtype),
            encoder_hidden_states=cond.tensors["text"].to(x.device, dtype),
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return v.to(x.dtype)

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        from diffusers import FluxPipeline

        rows, columns = self.shape.token_grid
        image_ids = FluxPipeline._prepare_latent_image_ids(1, rows, columns, self.device, torch.float32)
        return image_ids, torch.zeros(self.shape.text_tokens, 3, device=self.device)

    def pipeline_sigmas(self, num_steps: int) -> tuple[float, ...]:
        """The noise levels of ``FluxPipeline(num_inference_steps=num_steps)`` at this size, shifted by its scheduler;
        [num_steps + 1], the last 0."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder, subfolder="scheduler")
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(self.latent_shape[0], *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=list(Grid(num_steps).u[:-1]), mu=mu)
        return tuple(scheduler.sigmas.tolist())

    def reference(self) -> AbstractContextManager[None]:
        """Inside, ``velocity`` is the untrained policy's: adapter off, or the source's own weights swapped in."""
        return adapter_off(self.transformer) if self.config.lora is not None else self._untrained_swapped_in()

    @contextmanager
    def _untrained_swapped_in(self) -> Iterator[None]:
        """Into the module itself, so that the reference runs under the same wrappers, autocast and kernels."""
        trained = {name: parameter.data for name, parameter in self.transformer.named_parameters()}
        self._set_weights(self._untrained)
        try:
            yield
        finally:
            self._set_weights(trained)

    def _set_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.transformer.named_parameters():
            parameter.data = weights[name]
        torch.clear_autocast_cache()  # it knows a parameter by its identity and would give the other's cast

    @cached_property
    def _untrained(self) -> dict[str, Tensor]:
        """From the source, not from the module: that of a resumed run is already trained."""
        return {name: parameter.data for name, parameter in self._load_transformer(torch.float32).named_parameters()}

    # ---- decode

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1, float32: unpacked, unscaled and unshifted by the VAE's config, decoded."""
        pixels = DECODE_PIXELS.get(self.device.type, DECODE_PIXELS["cuda"])
        chunk = max(1, pixels // (self.shape.height * self.shape.width))
        return torch.cat([self._decode_chunk(rows) for rows in x.split(chunk)])

    def _decode_chunk(self, x: Tensor) -> Tensor:
        from diffusers import FluxPipeline

        vae = self._vae
        latents = FluxPipeline._unpack_latents(x, self.shape.height, self.shape.width, self.shape.vae_factor)
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        with torch.autocast(self.device.type, enabled=False):
            images = vae.decode(latents.to(self.device, vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    # ---- prompts

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """``text`` [P, text_tokens, d] and ``pooled`` [P, d'] of the prompts, from the cache where it has them."""
        entries = {prompt.text: self.cache.get(self._key(prompt.text)) for prompt in prompts}
        missing = [text for text, entry in entries.items() if entry is None]
        if missing:
            self.cache.reserve(len(missing) * self._entry_bytes)
            entries |= dict(self._encode_and_store(missing))
        rows = [entry for prompt in prompts if (entry := entries[prompt.text]) is not None]
        return Cond({name: torch.stack([row[name] for row in rows]).to(self.device) for name in ("text", "pooled")})

    def cache_prompts(self, prompts: Sequence[Prompt], say: Callable[[str], None] = print) -> None:
        """Encodes what the cache lacks of all the prompts that a run will reach, after saying how large that is.

        The text encoders leave the device afterwards. Ranks may each pass a part of the prompts.
        """
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        missing = [text for text in texts if not self.cache.touch(self._key(text))]
        if not missing:
            return
        size = len(missing) * self._entry_bytes
        say(f"encoding {len(missing)} of {len(texts)} prompts: {readable(size)} in {self.cache.folder}")
        self.cache.reserve(size, in_use_bytes=(len(texts) - len(missing)) * self._entry_bytes)
        for _ in self._encode_and_store(missing):
            pass  # kept on disk alone: a run's embeddings may exceed the memory

    def _encode_and_store(self, texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One prompt at a time, so that an embedding never depends on which others were missing with it."""
        from diffusers import FluxPipeline

        num_tokens, num_cut = self.shape.text_tokens, 0
        with quietly():
            pipe = FluxPipeline.from_pretrained(
                self.folder, transformer=None, vae=None, torch_dtype=self.frozen_dtype, local_files_only=True
            ).to(self.device)
        for text in texts:
            with quietly(), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                num_cut += len(pipe.tokenizer_2(text).input_ids) > num_tokens
                embeds, pooled, _ = pipe.encode_prompt([text], max_sequence_length=num_tokens)
            entry = {"text": embeds[0].cpu(), "pooled": pooled[0].cpu()}
            self.cache.put(self._key(text), entry)
            yield text, entry
        if num_cut:
            log.warning(
                "%d of %d prompts are longer than %d T5 tokens; their ends are cut", num_cut, len(texts), num_tokens
            )
        del pipe
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _key(self, text: str) -> str:
        return EmbeddingCache.key(
            model=self._text_digest, dtype=str(self.frozen_dtype), tokens=self.shape.text_tokens, text=text
        )

    @cached_property
    def _text_digest(self) -> str:
        return digest(self.folder, TEXT_COMPONENTS)

    @property
    def _entry_bytes(self) -> int:
        return self.shape.embedding_bytes(self.frozen_dtype.itemsize)

    # ---- weights

    def save_pretrained(self, folder: Path) -> None:
        """What plain diffusers loads: LoRA ``pytorch_lora_weights.safetensors``; an embedded world's whole pipeline;
        else ``transformer/``. Trained weights are stored in fp32."""
        if self.config.lora is not None:
            save_lora(self.transformer, folder)
            return
        if self.config.source in embedded_worlds():
            shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
        self.transformer.save_pretrained(folder / "transformer")

    def _load_transformer(self, dtype: torch.dtype) -> FluxTransformer2DModel:
        from diffusers import FluxTransformer2DModel

        with quietly():
            transformer = FluxTransformer2DModel.from_pretrained(
                self.folder, subfolder="transformer", torch_dtype=dtype
            )
        return transformer.to(self.device)

    @cached_property
    def _vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        with quietly():
            vae = AutoencoderKL.from_pretrained(self.folder, subfolder="vae", torch_dtype=self.frozen_dtype)
        # Convolutions of few channels are twice as fast with the channels last (measured on CPU).
        return vae.requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    def _frozen_dtype(self) -> torch.dtype:
        if self.config.dtype != "auto":
            return {"bf16": torch.bfloat16, "fp32": torch.float32}[self.config.dtype]
        stored = read_json(self.folder / "text_encoder" / "config.json")
        return torch.bfloat16 if "bfloat16" in (stored.get("dtype"), stored.get("torch_dtype")) else torch.float32
