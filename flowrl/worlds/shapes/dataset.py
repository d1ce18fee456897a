"""The build's data stage: scenes, their pictures and their captions, some of them wrong on purpose."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from functools import partial
from pathlib import Path

import numpy as np

from flowrl.seeds import derive_seed
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import CANVAS, PRIMARY_DIMENSIONS, Item, Scene
from flowrl.worlds.shapes.settings import Settings

CHUNK = 1000


def make_dataset(folder: Path, settings: Settings) -> None:
    """Writes ``images.npy`` uint8 [N, 64, 64, 3] and ``captions.json``.

    Scene n depends on (seed, n) alone, however many processes share the work.
    """
    count = settings.num_scenes
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, CANVAS, CANVAS, 3))
    captions: list[str] = []
    starts = range(0, count, CHUNK)
    with multiprocessing.get_context("spawn").Pool(min(len(starts), os.cpu_count() or 1)) as pool:
        for start, (pictures, texts) in zip(starts, pool.imap(partial(_chunk, settings), starts), strict=True):
            images[start : start + len(pictures)] = pictures
            captions += texts
    images.flush()
    (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")


def misdraw(item: Item, wrong: float, rng: random.Random) -> Scene:
    """The item's scene with each testpoint broken at rate ``wrong``, as far as scenes exist that break it alone."""
    scene, held = item.scene, list(item.testpoints)
    for testpoint in item.testpoints:
        if rng.random() >= wrong:
            continue
        kept = tuple(other for other in held if other is not testpoint)
        try:
            scene = corrupt(Item(item.prompt, scene, (*kept, testpoint)), rng, len(kept))
        except ValueError:  # what was broken before leaves no such scene
            continue
        held.remove(testpoint)
    return scene


def _chunk(settings: Settings, start: int) -> tuple[np.ndarray, list[str]]:
    captions, pictures = [], []
    for index in range(start, min(start + CHUNK, settings.num_scenes)):
        rng = random.Random(derive_seed(settings.seed, "scene", index))
        dimension = PRIMARY_DIMENSIONS[rng.randrange(len(PRIMARY_DIMENSIONS))]
        item = sample_item(rng, dimension=dimension)
        scene = misdraw(item, settings.wrong[dimension], rng)
        captions.append(item.prompt)
        pictures.append(render(scene, np.random.default_rng(derive_seed(settings.seed, "render", index))))
    return np.stack(pictures), captions
