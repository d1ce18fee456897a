"""Texts to token ids for open_clip models: its own byte pairs, or a small vocabulary beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, listing
from flowrl.hub import read_json

OWN_VOCABULARY = 49408
CONTEXT = 77

CONFIG = "open_clip_config.json"

Tokenizer = Callable[[Sequence[str]], Tensor]


def model_config(path: Path) -> dict[str, Any]:
    """The architecture that an ``open_clip_config.json`` describes. Raises UserError where it does not."""
    config: dict[str, Any] = read_json(path, "model_cfg")["model_cfg"]
    if absent := {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise UserError(f"{path}: model_cfg lacks {listing(absent)}")
    return config


def needs_vocabulary(model_cfg: Mapping[str, Any]) -> bool:
    """Whether the text tower has another vocabulary than open_clip's, so that ``tokenizer.json`` must lie beside it."""
    text = model_cfg["text_cfg"]
    return text.get("vocab_size", OWN_VOCABULARY) != OWN_VOCABULARY and "hf_tokenizer_name" not in text


def tokenizer(model_cfg: Mapping[str, Any], folder: Path) -> Tokenizer:
    """Texts to ids [B, context], int64. What exceeds the context is cut; the last id stays the end of the text."""
    if needs_vocabulary(model_cfg):
        return small_vocabulary(folder / "tokenizer.json", model_cfg["text_cfg"])
    import open_clip

    if "hf_tokenizer_name" in model_cfg["text_cfg"]:
        return lambda texts: open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts))
    own = open_clip.SimpleTokenizer(context_length=model_cfg["text_cfg"].get("context_length", CONTEXT))
    return lambda texts: own(list(texts))


def small_vocabulary(file: Path, text_cfg: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer file whose post-processor marks beginning and end. Padding is 0, as in open_clip's own."""
    from tokenizers import Tokenizer as FromFile

    encoder = FromFile.from_file(str(file))
    encoder.no_truncation()
    encoder.no_padding()
    context = text_cfg.get("context_length", CONTEXT)
    if encoder.get_vocab_size() != text_cfg["vocab_size"]:
        raise UserError(
            f"{file} has {encoder.get_vocab_size()} entries, the text tower beside it {text_cfg['vocab_size']}"
        )

    def encode(texts: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(texts), context, dtype=torch.long)
        for row, found in zip(ids, encoder.encode_batch(list(texts)), strict=True):
            kept = found.ids if len(found.ids) <= context else [*found.ids[: context - 1], found.ids[-1]]
            row[: len(kept)] = torch.tensor(kept)
        return ids

    return encode
