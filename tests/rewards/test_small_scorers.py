"""Scorers in the official formats with an architecture, a picture size and a vocabulary of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flowrl.errors import UserError
from flowrl.protocols import ScorerConfig
from flowrl.rewards.image_reward import ImageRewardModel, build_head, build_text, build_vision, to_official
from flowrl.types import Prompt, Scores
from flowrl.worlds.shapes.tokenizers import clip_tokenizer

WORDS = ["a", "red", "blue", "circle", "square", "above"]
TEXTS = ["a red circle", "a blue square above a red circle", "a red circle", "Xylophone!", ""]
CONTEXT = 12
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"xylopne", *(f"##{letter}" for letter in "xylophne")]


def open_clip_folder(folder: Path) -> dict[str, Any]:
    """Configuration and tokenizer; returns the model's weights."""
    import open_clip

    tokenizer = clip_tokenizer(WORDS, CONTEXT)
    tokenizer.save_pretrained(folder)
    text = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1}
    text |= {"pool_type": "eos", "eos_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    weights: dict[str, Any] = open_clip.CLIP(**model_cfg).state_dict()
    return weights


def write_hps(folder: Path) -> None:
    weights = open_clip_folder(folder)
    torch.save({"state_dict": {name: w.half() for name, w in weights.items()}}, folder / "HPS_v2.1_compressed.pt")


def write_clip(folder: Path) -> None:
    weights = {name: value.half() for name, value in open_clip_folder(folder).items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def write_pickscore(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer(WORDS, CONTEXT)
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**tower, **ids, "max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer)}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    sizes |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))


def write_image_reward(folder: Path) -> None:
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    med = {
        **{"vocab_size": len(BERT) + 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
        **{"vision_num_heads": 3, "max_length": 16},
    }
    vision |= {"image_size": 32, "patch_size": 8}
    parts = build_vision(vision), build_text(med, vision_width=48), build_head([32, 8, 1])
    torch.save(to_official(ImageRewardModel(*parts, image_size=32)), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(med))
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "hps": write_hps,
    "clip": write_clip,
    "pickscore": write_pickscore,
    "image_reward": write_image_reward,
}


def score(kind: str, folder: Path, texts: Sequence[str]) -> Scores:
    picture = Image.radial_gradient("L").resize((64, 64))
    scorer = ScorerConfig.model_validate({"kind": kind, "source": str(folder)}).load(torch.device("cpu"))
    return scorer.score([picture] * len(texts), [Prompt(text, index) for index, text in enumerate(texts)])


@pytest.mark.parametrize("kind", WRITERS)
def test_sizes_and_vocabulary_are_those_of_the_files(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    found = score(kind, tmp_path, TEXTS)
    assert found.valid.all()
    assert found.values[0] == found.values[2]
    assert found.values.unique().numel() == 4


@pytest.mark.parametrize("kind", ["hps", "clip"])
def test_a_long_text_is_cut_and_keeps_its_end(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    fits = " ".join(["red"] * (CONTEXT - 2))
    values = score(kind, tmp_path, [fits, f"{fits} blue", "blue"]).values
    assert values[0] == values[1]
    assert values[0] != values[2]


@pytest.mark.parametrize("kind", ["hps", "clip"])
def test_another_vocabulary_has_to_lie_beside(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer\.json"):
        score(kind, tmp_path, TEXTS)
    tokenizer["model"]["vocab"]["more"] = len(tokenizer["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json has \d+ entries, the text tower"):
        score(kind, tmp_path, TEXTS)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    write_image_reward(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, "more"]) + "\n")
    with pytest.raises(UserError, match=r"vocab\.txt: \d+ entries"):
        score("image_reward", tmp_path, TEXTS)
