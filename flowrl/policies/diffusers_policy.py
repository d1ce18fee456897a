"""What any diffusers flow pipeline shares as a policy: its files, what of it is trained, its prompts and its images."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowrl.errors import UserError, listing
from flowrl.hub import HUB_ID, cache_dir, cached_snapshot
from flowrl.policies.attention import Setting
from flowrl.policies.blocks import Compile, compiled_for_each_shape
from flowrl.policies.embeddings import GB, EmbeddingCache
from flowrl.policies.lora import LoRA, adapter_off, add_lora, save_lora
from flowrl.policies.memory import Checkpointing, share_of
from flowrl.policies.pipeline_folder import embedded_worlds, locate, read_json
from flowrl.policies.prompt_encoder import PromptEncoder
from flowrl.policies.quiet import quietly
from flowrl.policies.shape import Configs, PipelineShape, read_configs
from flowrl.policies.speed import Speed
from flowrl.protocols import PolicyConfig
from flowrl.types import Cond, Prompt

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

DECODE_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 21}
"""Pixels that are decoded at once: on a GPU 4 images of 720x720 or 512 of 64x64, on a CPU what its caches hold."""


class DiffusersConfig(PolicyConfig):
    """A pipeline: where it comes from, what size it draws, what of it is trained. A kind names diffusers' classes."""

    pipeline_name: ClassVar[str]
    """Of diffusers' class, ``FluxPipeline``."""
    transformer_name: ClassVar[str]
    text_components: ClassVar[tuple[str, ...]]
    """Folders of the text encoders and tokenizers."""
    t5_tokenizer: ClassVar[str]
    """The component whose tokens ``text_tokens`` counts."""
    published: ClassVar[Mapping[str, Configs]] = {}
    """Hub id -> its configs, so that a run can be planned before the weights are fetched."""

    source: str
    """An embedded world (``shapes``), a folder, or a hub id (``black-forest-labs/FLUX.1-dev``)."""
    height: PositiveInt | None = None
    """Pixels; None: the pipeline's own size."""
    width: PositiveInt | None = None
    guidance: float | None = None
    """The guidance scale, as the kind understands it."""
    text_tokens: PositiveInt | None = None
    """T5 tokens; None: the pipeline's own number."""
    lora: LoRA | None = None
    """None: full fine-tuning over fp32 masters."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Of all that is frozen (LoRA's base, text encoders, VAE); auto: as the text encoder is stored, fp16 as bf16."""
    gradient_checkpointing: Checkpointing = False
    """Recompute blocks in the backward pass: all, none, a share of them, or auto: those that do not fit into memory."""
    compile: Compile = "none"
    """Compile the transformer's blocks and the VAE's decoder; auto: on a GPU."""
    attention: Setting = "auto"
    """The attention kernel; auto: on a GPU the fastest that works there."""
    cache_dir: str | None = None
    """Of prompt embeddings; None: ``$FLOWRL_CACHE`` or ``~/.cache/flowrl``."""
    cache_limit: PositiveFloat = 50.0
    """GB of prompt embeddings; the least recently used are evicted."""

    @property
    def training_passes(self) -> float:
        """LoRA does without the gradients of the weights; what is recomputed costs a forward more."""
        return 3 - (self.lora is not None) + share_of(self.gradient_checkpointing)

    @property
    def always_encoded(self) -> tuple[str, ...]:
        """Texts that are encoded along with any prompt."""
        return ()

    @classmethod
    def components(cls) -> tuple[str, ...]:
        """The folders of a complete pipeline."""
        return ("transformer", "vae", *cls.text_components, "scheduler")

    @property
    def pipeline_class(self) -> Any:
        """Diffusers' own class of the pipeline."""
        import diffusers

        return getattr(diffusers, self.pipeline_name)

    @property
    def transformer_class(self) -> Any:
        """Diffusers' own class of the transformer."""
        import diffusers

        return getattr(diffusers, self.transformer_name)

    def folder(self) -> Path:
        """Where the pipeline lies. Raises UserError where files are missing."""
        return locate(self.source, self.components())

    def check(self) -> None:
        """Raises UserError where files are missing or a size does not fit; reads the configs alone."""
        self.folder()
        self.shape()

    def shape(self) -> PipelineShape:
        """Sizes and costs without loading anything; a published model's are known before its weights are fetched."""
        published = self.published.get(self.source)
        return self.shape_of(published if published is not None else self.configs(self.folder()))

    def num_trained(self) -> int:
        """The transformer's parameters, unless LoRA is what is trained."""
        return self.shape().num_parameters if self.lora is None else 0

    def configs(self, folder: Path) -> Configs:
        """The config files in ``folder``. Raises UserError where the transformer is of another class."""
        return read_configs(folder, transformer_name=self.transformer_name, t5_tokenizer=self.t5_tokenizer)

    def frozen_dtype(self, folder: Path) -> torch.dtype:
        """Of what is not trained: as asked, else fp32 where the text encoder is stored in it; fp16 becomes bf16."""
        if self.dtype != "auto":
            return {"bf16": torch.bfloat16, "fp32": torch.float32}[self.dtype]
        config = read_json(folder / "text_encoder" / "config.json")
        stored = {config.get("dtype"), config.get("torch_dtype")}
        return torch.bfloat16 if stored & {"bfloat16", "float16"} else torch.float32

    @abstractmethod
    def shape_of(self, configs: Configs) -> PipelineShape:
        """The shape at this size of a pipeline with these configs. Raises UserError where the size does not fit."""

    @abstractmethod
    def encode_text(self, pipe: Any, text: str, num_tokens: int) -> tuple[Tensor, Tensor]:
        """What the pipeline's text encoders make of a prompt: [1, tokens, d] and pooled [1, d']."""


def config_of(source: str) -> DiffusersConfig:
    """The config of a bare pipeline: an embedded world's name, a folder, or a hub id.

    The kind follows from the class that the pipeline's index names. Raises UserError where no kind has that class.
    """
    kinds = [kind for kind in PolicyConfig.members().values() if issubclass(kind, DiffusersConfig)]
    index = embedded_worlds().get(source, Path(source).expanduser()) / "model_index.json"
    if not index.is_file() and HUB_ID.fullmatch(source):
        index = cached_snapshot(source, "model_index.json") / "model_index.json"
    if not index.is_file():  # what is missing is said where the files are needed
        return next((kind for kind in kinds if source in kind.published), kinds[0])(source=source)
    found = read_json(index).get("_class_name")
    for kind in kinds:
        if kind.pipeline_name == found:
            return kind(source=source)
    raise UserError(f"{source} is a {found}; known: {listing(dict.fromkeys(kind.pipeline_name for kind in kinds))}")


class DiffusersPolicy(ABC):
    """The Policy protocol over a diffusers pipeline; a kind adds how its transformer is called.

    ``velocity`` runs in the dtype of the transformer's weights, or under the caller's autocast.
    """

    def __init__(self, config: DiffusersConfig, device: torch.device) -> None:
        self.config = config
        self.evals_per_velocity = config.evals_per_velocity
        self.device = torch.device(device)
        self.folder = config.folder()
        self.shape = config.shape_of(config.configs(self.folder))
        self.latent_shape: tuple[int, ...] = self.shape.latent_shape
        self.frozen_dtype = config.frozen_dtype(self.folder)
        self.weight_dtype = torch.float32 if config.lora is None else self.frozen_dtype
        """Of the transformer as it is loaded; a weight at hand may be another's, as FSDP gathers them in bfloat16."""
        self.transformer = self._load_transformer(self.weight_dtype)
        if config.lora is not None:
            add_lora(self.transformer, config.lora)
        self.speed = Speed(
            self.transformer,
            self.device,
            compile=config.compile,
            attention=config.attention,
            checkpointing=config.gradient_checkpointing,
        )
        self.module: nn.Module = self.transformer
        self.cache = EmbeddingCache(
            Path(config.cache_dir).expanduser() if config.cache_dir else cache_dir("embeddings"),
            round(config.cache_limit * GB),
        )
        entry_bytes = self.shape.embedding_bytes(self.frozen_dtype.itemsize)
        self.prompts = PromptEncoder(
            config, self.folder, self.shape.text_tokens, entry_bytes, self.frozen_dtype, self.device, self.cache
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of the transformer, adapters apart."""
        return self.shape.num_parameters

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """v [B, ...] at sigma [B], in x's dtype."""
        return self.speed.velocity(self.evaluate, x, sigma, cond)

    @abstractmethod
    def evaluate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The velocity of exactly these rows, called as the pipeline does."""

    @abstractmethod
    def vae_latents(self, x: Tensor) -> Tensor:
        """The VAE's latents [B, C, h, w], scaled and shifted, of states [B, ...]."""

    # ---- noise levels

    def pipeline_sigmas(self, num_steps: int) -> tuple[float, ...]:
        """The noise levels of the pipeline's ``num_inference_steps=num_steps`` at this size, shifted by its scheduler;
        [num_steps + 1], the last 0."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder, subfolder="scheduler")
        self.set_pipeline_steps(scheduler, num_steps)
        return tuple(scheduler.sigmas.tolist())

    @abstractmethod
    def set_pipeline_steps(self, scheduler: FlowMatchEulerDiscreteScheduler, num_steps: int) -> None:
        """As the pipeline sets its scheduler."""

    # ---- reference

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
        """Images [B, 3, H, W] in 0..1, float32: unscaled and unshifted by the VAE's config, decoded.

        Where blocks are compiled, so is the decoding of a whole chunk of a run's ``decode_batch``; a rest is decoded as
        it is.
        """
        pixels = DECODE_PIXELS.get(self.device.type, DECODE_PIXELS["cuda"])
        chunk = max(1, min(pixels // (self.shape.height * self.shape.width), self.speed.images or pixels))
        is_compiled = self.speed.blocks.compiled and self.speed.images is not None
        return torch.cat([self._decode_chunk(rows, is_compiled and len(rows) == chunk) for rows in x.split(chunk)])

    def _decode_chunk(self, x: Tensor, compiled: bool) -> Tensor:
        vae = self._vae
        latents = self.vae_latents(x) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        with torch.autocast(self.device.type, enabled=False):
            decode = self._compiled_decode if compiled else vae.decode
            images = decode(latents.to(self.device, vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    # ---- prompts

    def encode(self, prompts: Sequence[Prompt]) -> Cond:
        """``text`` [P, tokens, d] and ``pooled`` [P, d'] of the prompts, from the cache where it has them."""
        return self.prompts.encode([prompt.text for prompt in prompts])

    def cache_prompts(self, prompts: Sequence[Prompt], say: Callable[[str], None] = print) -> None:
        """Encodes what the cache lacks of all the prompts that a run will reach, after saying how large that is.

        The text encoders leave the device afterwards. Ranks may each pass a part of the prompts.
        """
        self.prompts.fill_cache([prompt.text for prompt in prompts], say)

    # ---- weights

    def save_pretrained(self, folder: Path) -> None:
        """What plain diffusers loads: LoRA ``pytorch_lora_weights.safetensors``; an embedded world's whole pipeline;
        else ``transformer/``. Trained weights are stored in fp32."""
        if self.config.lora is not None:
            save_lora(self.transformer, folder, self.config.pipeline_class)
            return
        if self.config.source in embedded_worlds():
            shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
        self.transformer.save_pretrained(folder / "transformer")

    def _load_transformer(self, dtype: torch.dtype) -> Any:
        with quietly():
            transformer = self.config.transformer_class.from_pretrained(
                self.folder, subfolder="transformer", torch_dtype=dtype
            )
        return transformer.to(self.device)

    @cached_property
    def _vae(self) -> AutoencoderKL:
        # Convolutions want the channels last, PyTorch's group norms on a GPU want them first: FLUX's decoder takes 41
        # and 36 ms an image there, compiled with the channels last 20 (four of 720x720, H100).
        last = self.device.type == "cpu" or self.speed.blocks.compiled
        layout = torch.channels_last if last else torch.contiguous_format
        return self._load_vae().requires_grad_(False).to(self.device, memory_format=layout)

    @cached_property
    def _compiled_decode(self) -> Callable[..., Any]:
        return compiled_for_each_shape(self._vae.decode)

    def _load_vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        with quietly():
            return AutoencoderKL.from_pretrained(self.folder, subfolder="vae", torch_dtype=self.frozen_dtype)
