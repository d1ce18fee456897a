"""Forms as a generative model misdraws them: bent, their corners rounded, swollen or thinned, with a dent or a bump.

The judge learns its silhouettes from such renders: a misshapen thing is what it was misshapen from.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from flowrl.worlds.shapes.forms import distance
from flowrl.worlds.shapes.render import Array, Shape

BEND = 1.1  # pixels, largest rms of the bending
ROUNDING = 1.6  # pixels, largest standard deviation of the blur that rounds corners
SWELLING = 0.6  # pixels, by which the border moves
DENT = 0.35  # of the radius: largest dent or bump; a third of the forms has one

_WAVES = 3  # of the bending, along each axis
_WAVELENGTHS = (9.0, 30.0)  # pixels; a latent token is 8 pixels wide


def misshapen(rng: np.random.Generator, shape: Shape = distance, amount: float = 1.0) -> Shape:
    """The geometry ``shape``, misshapen: each thing in a way of its own, up to ``amount`` of the largest."""

    def deformed(form: str, detail: str, radius: float, x: Array, y: Array) -> Array:
        bent_x, bent_y = _bent(x, y, amount * BEND * rng.random(), rng)
        away = shape(form, detail, radius, bent_x, bent_y)
        away = _rounded(away, amount * ROUNDING * rng.random())
        if rng.random() < 1 / 3:
            away = _dented(away, radius, x, y, amount * DENT * rng.random(), rng)
        return np.asarray(away - amount * SWELLING * rng.uniform(-1, 1), np.float32)

    return deformed


STRANGERS = ("upright bar", "lying bar", "left half", "right half", "upper half", "lower half")
"""What is often drawn and is no form: a stroke, the half of a square (a bar too), the halves of a circle."""


def stranger(kind: str, rng: np.random.Generator) -> Shape:
    """The geometry of one of ``STRANGERS``, whatever the form."""
    share = rng.uniform(0.15, 0.6)

    def shape(form: str, detail: str, radius: float, x: Array, y: Array) -> Array:
        if kind.endswith("bar"):
            width, height = (share, 1.0) if kind == "upright bar" else (1.0, share)
            return np.maximum(np.abs(x) - width * radius, np.abs(y) - height * radius)
        beyond = {"left half": x, "right half": -x, "upper half": y, "lower half": -y}[kind]
        return np.asarray(np.maximum(np.hypot(x, y) - radius, beyond), np.float32)

    return shape


def _bent(x: Array, y: Array, rms: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """The places moved by a smooth random field: a sum of plane waves."""
    moved = []
    for start in (x, y):
        length, angle = rng.uniform(*_WAVELENGTHS, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES)
        phase = rng.uniform(0, 2 * np.pi, _WAVES)
        along = 2 * np.pi * (np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]) / length + phase
        moved.append(np.asarray(start + rms * np.sqrt(2 / _WAVES) * np.sin(along).sum(axis=-1), np.float32))
    return moved[0], moved[1]


def _rounded(away: Array, width: float) -> Array:
    """The distance blurred by a Gaussian, its border moved so that the area stays."""
    if width < 0.3:
        return away
    down, along = (_blur(side, round(width, 1)) for side in away.shape)
    soft = down @ away @ along.T
    inside = int((away < 0).sum())
    level = np.partition(soft, inside, axis=None)[inside] if 0 < inside < soft.size else 0.0
    return np.asarray(soft - level, np.float32)


@lru_cache(maxsize=4096)
def _blur(side: int, width: float) -> Array:
    """The matrix [side, side] that blurs a line by a Gaussian and keeps constants."""
    places = np.arange(side, dtype=np.float32)
    weights = np.exp(-((places[:, None] - places) ** 2) / (2 * width**2))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _dented(away: Array, radius: float, x: Array, y: Array, size: float, rng: np.random.Generator) -> Array:
    """The form without, or with, a disc of ``size`` radii about a point of its border."""
    border = np.argwhere(np.abs(away) < 1)
    if len(border) == 0:
        return away
    row, column = border[rng.integers(len(border))]
    disc = np.hypot(x - x[row, column], y - y[row, column]) - size * radius
    return np.maximum(away, -disc) if rng.random() < 0.5 else np.minimum(away, disc)
