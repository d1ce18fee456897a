"""Sizes of a pipeline, from its config files alone: what the shapes of all diffusers pipelines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError
from flowrl.hub import read_json

MAX_TEXT_TOKENS = 512
"""The limit of ``max_sequence_length`` in the pipelines."""
TIME_CHANNELS = 256
"""Of the sinusoidal embedding of time (and of guidance), fixed in the transformers."""


@dataclass(frozen=True)
class PipelineShape(ABC):
    """Every size that a velocity depends on; ``height`` and ``width`` in pixels, ``vae_factor`` pixels per latent."""

    height: int
    width: int
    vae_factor: int
    text_tokens: int
    """Of T5."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Of a state, the batch axis apart."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Parameters of the transformer, biases and norms included."""

    @property
    @abstractmethod
    def flops_per_forward(self) -> int:
        """FLOPs of one evaluation of the transformer for one sample: two per multiply-add of every matrix product,
        attention included."""

    @abstractmethod
    def embedding_bytes(self, bytes_per_number: int) -> int:
        """What one prompt's cached embedding takes on disk, its small header apart."""


class Configs(NamedTuple):
    """The config files that sizes follow from."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    t5_tokenizer: Mapping[str, Any]
    clip_tokenizer: Mapping[str, Any]

    @property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))


def read_configs(folder: Path, *, transformer_name: str, t5_tokenizer: str) -> Configs:
    """The configs of the pipeline in ``folder``. Raises UserError where its transformer is of another class."""
    transformer = read_json(folder / "transformer" / "config.json")
    found = transformer.get("_class_name")
    if found != transformer_name:
        raise UserError(f"{folder}/transformer is a {found}, not a {transformer_name}")
    tokenizers = [folder / name / "tokenizer_config.json" for name in (t5_tokenizer, "tokenizer")]
    t5, clip = (read_json(path) if path.is_file() else {} for path in tokenizers)
    return Configs(transformer, read_json(folder / "vae" / "config.json"), t5, clip)


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with a bias."""
    return inputs * outputs + outputs


def check_size(source: str, step: int, **sizes: int) -> None:
    """Raises UserError where a size in pixels is not a multiple of ``step``."""
    for name, size in sizes.items():
        if size < step or size % step:
            near = max(step, round(size / step) * step)
            raise UserError(f"model.{name} must be a multiple of {step} pixels for {source}, got {size}; try {near}")


def check_text_tokens(tokens: int, pipeline: str) -> None:
    """Raises UserError where the pipeline takes no text of that length."""
    if tokens > MAX_TEXT_TOKENS:
        raise UserError(f"model.text_tokens must be at most {MAX_TEXT_TOKENS}, {pipeline}'s limit; got {tokens}")
