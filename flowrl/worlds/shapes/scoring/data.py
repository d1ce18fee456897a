"""What the scorers learn from: renders with captions, and preferences between pictures of one prompt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowrl import atomic
from flowrl.seeds import derive_seed
from flowrl.types import Prompt
from flowrl.worlds.shapes.auditor import scene_labels
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.prompts import testpoints_of, train_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.sampling import draw
from flowrl.worlds.shapes.scene import Item, Scene
from flowrl.worlds.shapes.scoring.settings import ScorerSettings

Pixels = NDArray[np.uint8]

CHUNK = 100  # prompts whose samples are drawn, and kept, at a time


def make_renders(folder: Path, settings: ScorerSettings) -> None:
    """Writes ``images.npy`` uint8 [N, 2, 64, 64, 3] (right, broken), ``captions.json`` and what is seen where:
    ``things.npy`` [N, 2, things, 8], ``whole.npy`` [N, 2, 3] (``flowrl.worlds.shapes.auditor.scene_labels``)."""
    captions: list[str] = []
    scenes: list[Scene] = []
    pictures: list[Pixels] = []
    for index in range(settings.num_renders):
        rng = random.Random(derive_seed(settings.seed, "scorer render", index))
        caption, pair = _pair(rng)
        captions.append(caption)
        scenes += pair
        noise = np.random.default_rng(derive_seed(settings.seed, "scorer render", index))
        pictures += [render(scene, noise) for scene in pair]
    labels = {name: value.reshape(len(captions), 2, *value.shape[1:]) for name, value in scene_labels(scenes).items()}
    np.save(folder / "images.npy", np.stack(pictures).reshape(len(captions), 2, *pictures[0].shape))
    np.save(folder / "things.npy", labels["things"])
    np.save(folder / "whole.npy", labels["whole"])
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")


def _pair(rng: random.Random) -> tuple[str, tuple[Scene, Scene]]:
    """A caption, a scene that shows it, and one that breaks one testpoint of it."""
    while True:
        item = sample_item(rng)
        try:
            return item.prompt, (item.scene, corrupt(item, rng))
        except ValueError:  # nothing breaks one testpoint alone
            continue


@dataclass(frozen=True)
class Preferences:
    """Pictures of each prompt and what gold says of them.

    ``images`` uint8 [P, K, 64, 64, 3]: first the samples of the base model, then a render, then a broken render.
    ``quality`` [P, K].
    """

    images: Pixels
    captions: Sequence[str]
    quality: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path) -> Preferences:
        """What ``make_preferences`` wrote."""
        captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
        return cls(np.load(folder / "images.npy"), captions, np.load(folder / "quality.npy"))


def pairs(count: int) -> tuple[list[int], list[int]]:
    """The first and the second of every pair of ``count`` pictures.

    >>> pairs(3)
    ([0, 0, 1], [1, 2, 2])
    """
    a, b = zip(*combinations(range(count), 2), strict=True)
    return list(a), list(b)


def make_preferences(
    folder: Path,
    samples_folder: Path,
    load: Callable[[], Any],
    settings: ScorerSettings,
    *,
    log: Callable[[str], None] = print,
) -> Preferences:
    """Draws and judges pictures of training prompts; writes them to ``folder``.

    Samples are kept in ``samples_folder``, chunk by chunk, and the pipeline is loaded where one is missing.
    """
    prompts = train_prompts()[: settings.num_groups]
    samples = np.concatenate(list(_samples(samples_folder, load, prompts, settings, log)))
    renders = np.stack([_renders(prompt, settings) for prompt in prompts])
    images = np.concatenate([samples, renders], axis=1)
    quality = np.stack([gold(row, prompt) for row, prompt in zip(images, prompts, strict=True)])
    np.save(folder / "images.npy", images)
    np.save(folder / "quality.npy", quality)
    captions = [prompt.text for prompt in prompts]
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    return Preferences(images, captions, quality)


def gold(images: Pixels, prompt: Prompt) -> NDArray[np.float32]:
    """The gold judge's quality [K] of pictures of one prompt."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return np.asarray(judge(pixels, [testpoints_of(prompt)] * len(images)).quality.numpy(), np.float32)


def sample(
    pipeline: Any, prompts: Sequence[Prompt], per_prompt: int, *, steps: int, seed: int, first_index: int = 0
) -> Pixels:
    """Samples of the pipeline, uint8 [P, per_prompt, 64, 64, 3]."""
    texts = [prompt.text for prompt in prompts for _ in range(per_prompt)]
    images = draw(pipeline, texts, steps=steps, seed=seed, batch=32, first_index=first_index)
    pixels = to_bytes(images)
    return pixels.reshape(len(prompts), per_prompt, *pixels.shape[1:])


def to_bytes(images: Tensor) -> Pixels:
    """Images [B, 3, H, W] in 0..1 as uint8 [B, H, W, 3]."""
    pixels: Pixels = (images.clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def _samples(
    folder: Path,
    load: Callable[[], Any],
    prompts: Sequence[Prompt],
    settings: ScorerSettings,
    log: Callable[[str], None],
) -> Iterator[Pixels]:
    """Chunk by chunk; a chunk that an earlier run has kept is not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    seed, pipeline = derive_seed(settings.seed, "scorer samples"), None
    for start in range(0, len(prompts), CHUNK):
        kept = folder / f"samples-{start:05d}.npy"
        if not kept.exists():
            pipeline = pipeline or load()
            chunk = prompts[start : start + CHUNK]
            pixels = sample(
                pipeline,
                chunk,
                settings.group,
                steps=settings.sample_steps,
                seed=seed,
                first_index=start * settings.group,
            )
            with atomic.replacing(kept) as temporary, temporary.open("wb") as file:
                np.save(file, pixels)
            log(f"preferences: samples of {start + len(chunk)} of {len(prompts)} prompts")
        yield np.load(kept)


def _renders(prompt: Prompt, settings: ScorerSettings) -> Pixels:
    """The prompt's scene, and one that breaks one testpoint; the scene twice where nothing does."""
    rng = random.Random(derive_seed(settings.seed, "preferred render", prompt.index))
    noise = np.random.default_rng(derive_seed(settings.seed, "preferred render", prompt.index))
    scene = Scene.from_json(prompt.meta["scene"])
    try:
        broken = corrupt(Item(prompt.text, scene, testpoints_of(prompt)), rng)
    except ValueError:
        broken = scene
    return np.stack([render(scene, noise), render(broken, noise)])
