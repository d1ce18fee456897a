"""The scorers in the package: official formats that official code loads, small, and better than chance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from flowrl.rewards.images import as_tensors
from flowrl.types import Prompt
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.prompts import test_prompts, testpoints_of
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Item, Scene
from flowrl.worlds.shapes.scoring import models
from flowrl.worlds.shapes.scoring.agreement import KINDS, SCORERS, load
from flowrl.worlds.shapes.vocabulary import vocabulary

PROMPTS = test_prompts()[:120]
"""The first held-out prompts, of all dimensions."""


@pytest.fixture(scope="module")
def pictures() -> tuple[list[Prompt], torch.Tensor]:
    """Prompts, and pictures [P, 2, 3, 64, 64]: right, and with one testpoint broken."""
    prompts, pairs = [], []
    for prompt in PROMPTS:
        rng = random.Random(prompt.index)
        scene = Scene.from_json(prompt.meta["scene"])
        wrong = corrupt(Item(prompt.text, scene, testpoints_of(prompt)), rng)
        pairs.append([render(s, np.random.default_rng(prompt.index)) for s in (scene, wrong)])
        prompts.append(prompt)
    return prompts, torch.from_numpy(np.array(pairs)).permute(0, 1, 4, 2, 3).float() / 255


@pytest.fixture(scope="module", params=KINDS)
def scored(request: pytest.FixtureRequest, pictures: tuple[list[Prompt], torch.Tensor]) -> tuple[str, torch.Tensor]:
    """A kind and its scores [P, 2] of the pictures, by flowrl's class."""
    prompts, pixels = pictures
    scorer = load(SCORERS / request.param, request.param)
    result = scorer.score(pixels.flatten(0, 1), [prompt for prompt in prompts for _ in range(2)])
    assert result.valid.all()
    return request.param, result.values.view(-1, 2)


def test_they_are_small_and_so_are_their_vocabularies() -> None:
    files = [file for file in SCORERS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 24e6
    for kind in ("hps", "clip", "pickscore"):
        assert len(json.loads((SCORERS / kind / "tokenizer.json").read_text())["model"]["vocab"]) <= 2000
    assert len((SCORERS / "image_reward" / "vocab.txt").read_text().splitlines()) <= 2000


def test_the_right_picture_scores_higher_than_one_that_breaks_a_testpoint(scored: tuple[str, torch.Tensor]) -> None:
    kind, scores = scored
    assert (scores[:, 0] > scores[:, 1]).float().mean() > 0.6, kind  # 120 pairs: chance passes 0.6 once in 70


def test_another_prompts_picture_scores_lower(
    scored: tuple[str, torch.Tensor], pictures: tuple[list[Prompt], torch.Tensor]
) -> None:
    kind, scores = scored
    prompts, pixels = pictures
    strange = load(SCORERS / kind, kind).score(pixels[:, 0].roll(1, 0), prompts).values
    assert (scores[:, 0] > strange).float().mean() > 0.85, kind


def test_scores_are_those_of_the_libraries_own_classes(
    scored: tuple[str, torch.Tensor], pictures: tuple[list[Prompt], torch.Tensor]
) -> None:
    kind, scores = scored
    prompts, pixels = pictures
    texts, images = [prompt.text for prompt in prompts[:8]], pixels[:8, 0]
    direct = {"hps": _hps, "clip": _clip, "pickscore": _pickscore, "image_reward": _image_reward}[kind]
    with torch.no_grad():
        assert torch.allclose(direct(SCORERS / kind, images, texts), scores[:8, 0], atol=1e-5)


def _ids(folder: Path, texts: list[str], context: int) -> torch.Tensor:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in texts]
    return torch.tensor([row + [0] * (context - len(row)) for row in rows])


def _cosine(model: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return (normalize(model.encode_image(x), dim=-1) * normalize(model.encode_text(ids), dim=-1)).sum(-1)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return models.normalised((images * 255).round().byte().permute(0, 2, 3, 1))


def _hps(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    import open_clip

    cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**cfg).eval()
    model.load_state_dict(torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"])
    return _cosine(model, _normalised(images), _ids(folder, texts, cfg["text_cfg"]["context_length"]))


def _clip(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    x = torch.stack([transform(picture) for picture in _pil(images)])
    return _cosine(model.eval(), x, _ids(folder, texts, model.context_length))


def _pickscore(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    given = processor(text=texts, images=_pil(images), padding=True, return_tensors="pt")
    return model(**given).logits_per_image.diag() / 100


def _image_reward(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    from flowrl.rewards.image_reward import ImageRewardModel, tokenizer

    cfg = json.loads((folder / "med_config.json").read_text())
    weights = torch.load(folder / "ImageReward.pt", weights_only=True)
    assert {"blip.visual_encoder.cls_token", "mlp.layers.0.weight"} <= set(weights)
    model = ImageRewardModel.from_official(weights, cfg, folder).eval()
    return model(_normalised(images), *tokenizer(folder / "vocab.txt", cfg)(texts))


def _pil(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in as_tensors(images)]


def test_every_word_of_the_world_is_one_token() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SCORERS / "clip" / "tokenizer.json"))
    assert all(len(tokenizer.encode(word).ids) == 3 for word in vocabulary())
    pieces = set((SCORERS / "image_reward" / "vocab.txt").read_text().splitlines())
    assert {word.lower() for word in vocabulary()} <= pieces


def test_records_say_what_gold_was() -> None:
    records = json.loads((SCORERS / "records.json").read_text())
    assert records["preferences"]["judge_digest"]
    assert all(0.8 < records[kind]["labels_that_agree_with_gold"] < 0.97 for kind in KINDS if kind != "clip")
