"""What the auditor is trained on, and its training.

Scenes of the grammar with their colours exchanged at random, so that no combination of colour and form is new to it;
sizes between the three; forms on their way to another form; strokes and halves that are no form, and count for
nothing; things in a style of their own; pictures bent, softened, noised and sent through the VAE. It learns what a
misshapen thing is nearest to, as the base model draws many.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowrl.seeds import derive_seed
from flowrl.worlds.shapes.auditor import Auditor, Measured, auditor_loss, scene_labels
from flowrl.worlds.shapes.autoencoder import round_trip
from flowrl.worlds.shapes.forms import distance
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.loop import Loop
from flowrl.worlds.shapes.misshapen import STRANGERS, misshapen, stranger
from flowrl.worlds.shapes.render import Array, Shape, render
from flowrl.worlds.shapes.scene import CANVAS, COLOURS, DETAILS, RADIUS, SHAPES, STYLES, Scene, Thing
from flowrl.worlds.shapes.settings import Settings

CHUNK = 500
RESIZE = 0.15  # largest log of a thing's radius over its size's
MORPH = 0.35  # largest share of another form
BEND = 0.9  # pixels, largest rms of the bending
NOISE = 0.12  # largest standard deviation, pixel values in 0..1
STRANGE = 0.2  # share of the scenes in which the things of one form are strangers
MIXED = 0.3  # share of the scenes in which each thing may have another style

FAMILIES = (SHAPES, ("arrow",), ("person",), ("letter",))
"""Forms that turn into one another."""


def make_auditor_data(folder: Path, settings: Settings) -> None:
    """Writes ``images.npy`` uint8 [N, 64, 64, 3] and ``labels.npz``; scene n depends on (seed, n) alone."""
    starts = range(0, settings.auditor_scenes, CHUNK)
    with multiprocessing.get_context("spawn").Pool(min(len(starts), os.cpu_count() or 1)) as pool:
        chunks = pool.map(partial(_chunk, settings.seed, settings.auditor_scenes), starts)
    np.save(folder / "images.npy", np.concatenate([pictures for pictures, _ in chunks]))
    labels = {name: np.concatenate([part[name] for _, part in chunks]) for name in chunks[0][1]}
    np.savez(folder / "labels.npz", **labels)  # type: ignore[arg-type]


def _chunk(seed: int, count: int, start: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    scenes, pictures = [], []
    for index in range(start, min(start + CHUNK, count)):
        rng = random.Random(derive_seed(seed, "auditor scene", index))
        scene = _restyled(_resized(_recoloured(sample_item(rng).scene, rng), rng), rng)
        noise = np.random.default_rng(derive_seed(seed, "auditor render", index))
        shape, strangers = _estranged(scene, _morphing(rng), rng, noise)
        pictures.append(render(scene, noise, misshapen(noise, shape, rng.random())))
        scenes.append(replace(scene, things=tuple(thing for thing in scene.things if thing.form not in strangers)))
    return np.stack(pictures), scene_labels(scenes)


def _recoloured(scene: Scene, rng: random.Random) -> Scene:
    """The scene with its colours exchanged for others."""
    other = dict(zip(COLOURS, rng.sample(COLOURS, len(COLOURS)), strict=True)) | {"": ""}
    things = tuple(replace(thing, colour=other[thing.colour], second=other[thing.second]) for thing in scene.things)
    return replace(scene, things=things)


def _restyled(scene: Scene, rng: random.Random) -> Scene:
    """The scene, in some cases each thing in one of two styles; the scene's is then that of the most."""
    if rng.random() >= MIXED or not scene.things:
        return scene
    other = rng.choice([style for style in STYLES if style != scene.style])
    styles = [rng.choice((scene.style, other)) for _ in scene.things]
    things = tuple(replace(thing, style=style) for thing, style in zip(scene.things, styles, strict=True))
    return replace(scene, things=things, style=max(styles, key=styles.count))


def _resized(scene: Scene, rng: random.Random) -> Scene:
    """The scene with things of any size about theirs; each named by the nearest of the three."""

    def resized(thing: Thing) -> Measured:
        pixels = thing.radius * math.exp(rng.uniform(-RESIZE, RESIZE))
        sizes = RADIUS[thing.form]
        size = min(sizes, key=lambda name: abs(math.log(pixels / sizes[name])))
        values = {field.name: getattr(thing, field.name) for field in fields(Thing)}
        return Measured(**values | {"size": size}, pixels=pixels)

    return replace(scene, things=tuple(resized(thing) for thing in scene.things))


def _morphing(rng: random.Random) -> Shape:
    """The forms' geometry, each form mixed with up to ``MORPH`` of another of its family."""
    share = rng.uniform(0, MORPH) if rng.random() < 0.5 else 0.0
    partners: dict[tuple[str, str], tuple[str, str]] = {}

    def shape(form: str, detail: str, radius: float, x: Array, y: Array) -> Array:
        own = distance(form, detail, radius, x, y)
        if share == 0:
            return own
        if (form, detail) not in partners:
            family = next(forms for forms in FAMILIES if form in forms)
            members = [(f, d) for f in family for d in DETAILS[f] if (f, d) != (form, detail)]
            partners[form, detail] = members[rng.randrange(len(members))]
        other = distance(*partners[form, detail], radius, x, y)
        return np.asarray((1 - share) * own + share * other, np.float32)

    return shape


def _estranged(
    scene: Scene, shape: Shape, rng: random.Random, noise: np.random.Generator
) -> tuple[Shape, tuple[str, ...]]:
    """The geometry with the forms that it no longer draws, in whose places there are strangers."""
    halved = {thing.form for thing in scene.things if thing.second}
    forms = sorted({thing.form for thing in scene.things} - halved)
    if not forms or rng.random() >= STRANGE:
        return shape, ()
    gone, strange = rng.choice(forms), stranger(rng.choice(STRANGERS), noise)

    def drawn(form: str, detail: str, radius: float, x: Array, y: Array) -> Array:
        return (strange if form == gone else shape)(form, detail, radius, x, y)

    return drawn, (gone,)


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 3, H, W] in 0..1, each bent, softened and noised by amounts of its own."""
    amount = torch.rand(3, len(x), 1, 1, 1, device=x.device, generator=generator)
    field = torch.randn(len(x), 2, 5, 5, device=x.device, generator=generator)
    field = F.interpolate(field, x.shape[2:], mode="bicubic", align_corners=True)
    field = field / field.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() * amount[0] * BEND * 2 / CANVAS
    still = F.affine_grid(torch.eye(2, 3, device=x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, still + field.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + 0.8 * amount[1] * (soft - x)
    noise = torch.randn(x.shape, device=x.device, generator=generator)
    return (x + NOISE * amount[2] ** 2 * noise).clamp(0, 1)


def train_auditor(
    auditor: Auditor,
    folder: Path,
    vae: Any,
    settings: Settings,
    device: torch.device,
    checkpoint: Path,
    *,
    time_limit: float | None = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Trains the auditor in place on the data in ``folder``; returns its losses. Half of its pictures went through the
    VAE; all are disturbed."""
    pixels = torch.from_numpy(np.load(folder / "images.npy"))
    labels = {name: torch.from_numpy(values).to(device) for name, values in np.load(folder / "labels.npz").items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        through = torch.rand(len(pixels)) < 0.5
    x = pixels.permute(0, 3, 1, 2)
    decoded = [
        (round_trip(vae, chunk.to(device).float() / 255) * 255).round().byte().cpu() for chunk in x[through].split(1000)
    ]
    x = x.contiguous()
    x[through] = torch.cat(decoded)
    x = x.to(device)

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(x), (settings.auditor_batch,), device=device, generator=generator)
        return {
            "images": disturbed(x[rows].float() / 255, generator),
            "things": labels["things"][rows],
            "whole": labels["whole"][rows],
        }

    def loss(images: Tensor, things: Tensor, whole: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            return auditor_loss(auditor, images, things, whole)

    loop = Loop(
        "auditor",
        auditor,
        settings,
        steps=settings.auditor_steps,
        lr=settings.auditor_lr,
        device=device,
        checkpoint=checkpoint,
        capture=False,  # the number of things differs from batch to batch
        log=log,
    )
    history = loop.run(batch, loss, time_limit=time_limit)
    auditor.eval().requires_grad_(False)
    return history
