"""Scene -> picture, anti-aliased; the jitter of place, size, angle and shade stays inside what the judge accepts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowrl.worlds.shapes.forms import distance
from flowrl.worlds.shapes.scene import CANVAS, FLAGS, Scene, Thing

Array = NDArray[np.float32]
Shape = Callable[[str, str, float, Array, Array], Array]
"""Form, detail, radius, x, y -> signed distance, as ``forms.distance``."""

COLOUR_RGB = {
    "red": (225, 40, 40),
    "yellow": (245, 215, 30),
    "green": (40, 170, 60),
    "cyan": (40, 205, 215),
    "blue": (45, 75, 225),
    "purple": (170, 50, 210),
}
PASTEL_RGB = {
    "red": (250, 155, 155),
    "yellow": (252, 240, 150),
    "green": (150, 230, 160),
    "cyan": (150, 232, 240),
    "blue": (155, 170, 250),
    "purple": (215, 155, 248),
}
BACKGROUND_RGB = {"white": (247, 247, 247), "grey": (140, 140, 140), "black": (14, 14, 14)}

OUTLINE_WIDTH = 3.0
STRIPE_PERIOD = 10.0
STRIPE_SHADE = 0.5  # of the colour, every other stripe

SHIFT_JITTER = 1.0  # pixels, the whole scene
PLACE_JITTER = 0.5  # pixels, each thing
SIZE_JITTER = 0.04  # of the radius
ANGLE_JITTER = 0.06  # radians
SHADE_JITTER = 7.0  # of 255


def render(scene: Scene, rng: np.random.Generator, shape: Shape = distance) -> NDArray[np.uint8]:
    """The picture [64, 64, 3] of a scene; the generator decides the jitter, ``shape`` the geometry of the forms."""
    if scene.flag:
        canvas = _flag(scene.flag, rng)
    else:
        canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
        canvas[:] = np.array(BACKGROUND_RGB[scene.background]) + rng.uniform(-SHADE_JITTER, SHADE_JITTER)
    shift = rng.uniform(-SHIFT_JITTER, SHIFT_JITTER, 2)
    for thing in scene.things:
        _draw(canvas, thing, thing.style or scene.style, shift, rng, shape)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _shade(rgb: tuple[int, int, int], rng: np.random.Generator) -> Array:
    return np.asarray(np.array(rgb) + rng.uniform(-SHADE_JITTER, SHADE_JITTER, 3), np.float32)


def _flag(country: str, rng: np.random.Generator) -> Array:
    direction, colours = FLAGS[country]
    palette = COLOUR_RGB | BACKGROUND_RGB
    bands = np.stack([_shade(palette[colour], rng) for colour in colours])
    cut = (np.arange(CANVAS) + 0.5) * len(colours) / CANVAS
    line = bands[np.minimum(cut.astype(int), len(colours) - 1)]
    picture = np.broadcast_to(line if direction == "columns" else line[:, None], (CANVAS, CANVAS, 3))
    return np.array(picture, np.float32)


def _draw(
    canvas: Array, thing: Thing, style: str, shift: NDArray[np.float64], rng: np.random.Generator, shape: Shape
) -> None:
    centre_x, centre_y = np.array((thing.x, thing.y)) + shift + rng.uniform(-PLACE_JITTER, PLACE_JITTER, 2)
    radius = thing.radius * (1 + rng.uniform(-SIZE_JITTER, SIZE_JITTER))
    angle = rng.uniform(-ANGLE_JITTER, ANGLE_JITTER)
    left, right = _window(centre_x, radius)
    top, bottom = _window(centre_y, radius)
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - centre_x)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
    x, y = np.broadcast_arrays(x, y)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    away = shape(thing.form, "" if thing.second else thing.detail, radius, cos * x + sin * y, cos * y - sin * x)
    if style == "outline":
        away = np.maximum(away, -OUTLINE_WIDTH - away)
    cover = np.clip(0.5 - away, 0, 1)[..., None]
    window = canvas[top:bottom, left:right]
    window += cover * (_paint(thing, style, x, y, rng) - window)


def _window(centre: float, radius: float) -> tuple[int, int]:
    reach = 1.3 * radius + 2
    return max(0, int(centre - reach)), min(CANVAS, int(centre + reach) + 1)


def _paint(thing: Thing, style: str, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Colour of each pixel of a thing, [h, w, 3] or [3]; ``x`` and ``y`` are relative to its centre."""
    palette = PASTEL_RGB if style == "pastel" else COLOUR_RGB
    paint = _shade(palette[thing.colour], rng)
    if style == "striped":
        phase = rng.uniform(0, STRIPE_PERIOD)
        edge = np.abs((y + phase) % STRIPE_PERIOD - STRIPE_PERIOD / 2) - STRIPE_PERIOD / 4
        return _mix(paint, STRIPE_SHADE * paint, edge)
    if thing.second:
        return _mix(paint, _shade(palette[thing.second], rng), x if thing.detail == "left" else y)
    return paint


def _mix(first: Array, second: Array, edge: Array) -> Array:
    """``first`` where ``edge`` is negative, ``second`` where it is positive, blended over a pixel."""
    return first + np.clip(edge + 0.5, 0, 1)[..., None] * (second - first)
