"""The networks of the four scorers, their vocabularies, and the official files they are written to."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.worlds.shapes.scene import CANVAS
from flowrl.worlds.shapes.scoring.settings import ScorerSettings, Tower
from flowrl.worlds.shapes.tokenizers import clip_tokenizer
from flowrl.worlds.shapes.vocabulary import vocabulary

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels, as every one of the official models takes them."""
PATCH = 8
BOS, EOS = 0, 1  # of clip_tokenizer
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

State = dict[str, Tensor]


def normalised(pixels: Tensor) -> Tensor:
    """uint8 [..., 64, 64, 3] -> the networks' input [..., 3, 64, 64]."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).movedim(-1, -3)


def clip_config(settings: ScorerSettings) -> dict[str, Any]:
    """The keyword arguments of ``open_clip.model.CLIP``."""
    vision, text = settings.vision, settings.text
    return {
        "embed_dim": settings.embed,
        "vision_cfg": {
            "image_size": CANVAS,
            "patch_size": PATCH,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": vision.mlp,
        },
        "text_cfg": {
            "context_length": settings.context,
            "vocab_size": len(word_tokenizer(settings)),
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp,
            "pool_type": "eos",
            "eos_id": EOS,
        },
    }


def build_clip(settings: ScorerSettings) -> Any:
    """An untrained open_clip model."""
    from open_clip.model import CLIP

    return CLIP(**clip_config(settings))


def word_tokenizer(settings: ScorerSettings) -> Any:
    """The tokenizer of the scorers that are CLIP models."""
    return clip_tokenizer(vocabulary(), settings.context)


def clip_texts(settings: ScorerSettings, folder: Path) -> Callable[[Sequence[str]], Tensor]:
    """Writes ``tokenizer.json``; returns texts -> ids [B, context]."""
    from flowrl.rewards.open_clip_text import small_vocabulary

    word_tokenizer(settings).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return small_vocabulary(folder / "tokenizer.json", clip_config(settings)["text_cfg"])


def half(state: Mapping[str, Tensor]) -> State:
    """A state dict as it is stored."""
    return {name: value.detach().half().contiguous() for name, value in state.items()}


def save_hps(model: Any, settings: ScorerSettings, folder: Path) -> None:
    """``HPS_v2.1_compressed.pt`` as the official one: fp16 under "state_dict"."""
    torch.save({"state_dict": half(model.state_dict())}, folder / "HPS_v2.1_compressed.pt")
    _write_json(folder / "open_clip_config.json", {"model_cfg": clip_config(settings)})


def save_clip(model: Any, settings: ScorerSettings, folder: Path) -> None:
    """A folder that open_clip reads as ``local-dir:``."""
    from safetensors.torch import save_file

    save_file(half(model.state_dict()), folder / "open_clip_model.safetensors", {"format": "pt"})
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    _write_json(folder / "open_clip_config.json", {"model_cfg": clip_config(settings), "preprocess_cfg": preprocess})


def build_pickscore(settings: ScorerSettings) -> Any:
    """An untrained transformers CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    text = _transformer(settings.small_text) | {"vocab_size": len(word_tokenizer(settings)), **special}
    vision = _transformer(settings.small_vision) | {"image_size": CANVAS, "patch_size": PATCH}
    config = CLIPConfig(
        text_config=text | {"max_position_embeddings": settings.context, "projection_dim": settings.embed},
        vision_config=vision | {"projection_dim": settings.embed},
        projection_dim=settings.embed,
    )
    return CLIPModel(config)


def _transformer(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.width * tower.mlp,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": "gelu",
    }


def save_pickscore(model: Any, settings: ScorerSettings, folder: Path) -> None:
    """What ``CLIPModel`` and ``CLIPProcessor`` read with ``from_pretrained``."""
    from transformers import CLIPImageProcessor

    model.half().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": CANVAS}, crop_size=CANVAS, resample=3).save_pretrained(folder)
    word_tokenizer(settings).save_pretrained(folder)


def build_image_reward(settings: ScorerSettings) -> Any:
    """An untrained network of ImageReward's parts."""
    from flowrl.rewards.image_reward import ImageRewardModel, build_text, build_vision

    vision, text = settings.vision, settings.text
    sizes = _transformer(vision)
    del sizes["hidden_act"]
    widths = (text.width, text.width // 2, 1)
    return ImageRewardModel(
        build_vision(sizes | {"image_size": CANVAS, "patch_size": PATCH}),
        build_text(med_config(settings), vision.width),
        nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))),
        CANVAS,
    )


def med_config(settings: ScorerSettings) -> dict[str, Any]:
    """``med_config.json``; two keys more than the official one has, for what differs here."""
    return {
        "vocab_size": len(word_pieces()) + 2,  # [DEC] and [ENC], which the official code appends
        **_transformer(settings.text),
        "max_position_embeddings": settings.context,
        "layer_norm_eps": 1e-12,
        "max_length": settings.context,
        "vision_num_heads": settings.vision.heads,
    }


def word_pieces() -> list[str]:
    """Special pieces, words, and the characters that spell any other word."""
    letters = string.ascii_lowercase + string.digits
    words = (word.lower() for word in vocabulary())
    return list(dict.fromkeys((*PIECES, *words, *letters, *string.punctuation, *(f"##{c}" for c in letters))))


def save_image_reward(model: Any, settings: ScorerSettings, folder: Path) -> None:
    """``ImageReward.pt`` (bare, under the official names); ``image_reward_texts`` writes what lies beside it."""
    from flowrl.rewards.image_reward import to_official

    torch.save(half(to_official(model)), folder / "ImageReward.pt")


def image_reward_texts(settings: ScorerSettings, folder: Path) -> Callable[[Sequence[str]], Tensor]:
    """Writes ``med_config.json`` and ``vocab.txt``; returns texts -> ids and mask [B, 2, context]."""
    from flowrl.rewards.image_reward import tokenizer

    _write_json(folder / "med_config.json", med_config(settings))
    (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n", encoding="utf-8")
    tokenize = tokenizer(folder / "vocab.txt", med_config(settings))
    return lambda texts: torch.stack(tokenize(texts), dim=1)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
