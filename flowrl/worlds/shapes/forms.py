"""The geometry of every form as a signed distance: negative inside, in pixels; x runs right, y runs down.

Formulas: I. Quilez, "2D distance functions" (polygon, segment).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_STAR_OUTER, _STAR_INNER = 1.15, 0.53
_CROSS_LENGTH, _CROSS_WIDTH = 1.02, 0.42  # half length and half width of an arm
_LETTER_STROKE, _PERSON_STROKE = 0.19, 0.11  # half width of a stroke over the radius

_QUARTER_TURNS = {"up": 0, "right": 1, "down": 2, "left": 3}

_POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0.0, -1.05), (1.08, 0.9), (-1.08, 0.9)),
    "cross": tuple(
        (sx * x, sy * y)
        for sx, sy, corners in (
            (-1, -1, ((_CROSS_LENGTH, _CROSS_WIDTH), (_CROSS_WIDTH, _CROSS_WIDTH), (_CROSS_WIDTH, _CROSS_LENGTH))),
            (1, -1, ((_CROSS_WIDTH, _CROSS_LENGTH), (_CROSS_WIDTH, _CROSS_WIDTH), (_CROSS_LENGTH, _CROSS_WIDTH))),
            (1, 1, ((_CROSS_LENGTH, _CROSS_WIDTH), (_CROSS_WIDTH, _CROSS_WIDTH), (_CROSS_WIDTH, _CROSS_LENGTH))),
            (-1, 1, ((_CROSS_WIDTH, _CROSS_LENGTH), (_CROSS_WIDTH, _CROSS_WIDTH), (_CROSS_LENGTH, _CROSS_WIDTH))),
        )
        for x, y in corners
    ),
    "star": tuple(
        (radius * math.sin(math.pi * k / 5), -radius * math.cos(math.pi * k / 5))
        for k in range(10)
        for radius in (_STAR_OUTER if k % 2 == 0 else _STAR_INNER,)
    ),
    "arrow": ((0.0, -1.0), (0.85, -0.05), (0.3, -0.05), (0.3, 1.0), (-0.3, 1.0), (-0.3, -0.05), (-0.85, -0.05)),
}

_LETTER_STROKES: dict[str, tuple[tuple[float, float], ...]] = {
    # Polylines in a box of |x| <= 0.6, |y| <= 0.8; None of them needs a curve.
    "C": ((0.6, -0.8), (-0.6, -0.8), (-0.6, 0.8), (0.6, 0.8)),
    "E": ((0.6, -0.8), (-0.6, -0.8), (-0.6, 0.0), (0.45, 0.0), (-0.6, 0.0), (-0.6, 0.8), (0.6, 0.8)),
    "H": ((-0.6, -0.8), (-0.6, 0.8), (-0.6, 0.0), (0.6, 0.0), (0.6, -0.8), (0.6, 0.8)),
    "K": ((-0.6, -0.8), (-0.6, 0.8), (-0.6, 0.0), (0.6, -0.8), (-0.6, 0.0), (0.6, 0.8)),
    "L": ((-0.6, -0.8), (-0.6, 0.8), (0.6, 0.8)),
    "T": ((-0.65, -0.8), (0.65, -0.8), (0.0, -0.8), (0.0, 0.8)),
    "U": ((-0.6, -0.8), (-0.6, 0.8), (0.6, 0.8), (0.6, -0.8)),
    "X": ((-0.6, -0.8), (0.6, 0.8), (0.0, 0.0), (0.6, -0.8), (-0.6, 0.8)),
    "Y": ((-0.6, -0.8), (0.0, 0.0), (0.6, -0.8), (0.0, 0.0), (0.0, 0.8)),
    "Z": ((-0.6, -0.8), (0.6, -0.8), (-0.6, 0.8), (0.6, 0.8)),
}

_PERSON_HEAD = (0.0, -0.68, 0.24)  # x, y, radius
_PERSON_BODY = ((0.0, -0.5), (0.0, 0.28), (0.0, 0.28), (-0.36, 0.9), (0.0, 0.28), (0.36, 0.9))
_PERSON_ARMS = {
    "arms up": ((0.0, -0.3), (-0.62, -0.85), (0.0, -0.3), (0.62, -0.85)),
    "arms out": ((-0.72, -0.22), (0.72, -0.22)),
    "arms down": ((0.0, -0.32), (-0.5, 0.22), (0.0, -0.32), (0.5, 0.22)),
}


def half_extents(form: str, detail: str) -> tuple[float, float]:
    """Half width and half height of a form of radius 1 (about its centre; the larger side counts)."""
    if form == "circle":
        return 1.0, 1.0
    if form == "letter":
        return 0.6 + _LETTER_STROKE, 0.8 + _LETTER_STROKE
    if form == "person":
        width, height = {"arms out": 0.83, "arms up": 0.73}.get(detail, 0.61), 1.01
        return (height, width) if detail == "lying" else (width, height)
    corners = _turned(form, _QUARTER_TURNS.get(detail, 0))
    return float(np.abs(corners[:, 0]).max()), float(np.abs(corners[:, 1]).max())


def distance(form: str, detail: str, radius: float, x: Array, y: Array) -> Array:
    """Signed distance to the border of a form centred on the origin; ``x`` and ``y`` of one shape."""
    if form == "circle":
        return np.asarray(np.hypot(x, y) - radius, np.float32)
    if form == "letter":
        line = np.array(_LETTER_STROKES[detail], np.float32)
        return _strokes(line[:-1] * radius, line[1:] * radius, x, y) - _LETTER_STROKE * radius
    if form == "person":
        return _person(detail, radius, x, y)
    return _polygon(_turned(form, _QUARTER_TURNS.get(detail, 0)) * np.float32(radius), x, y)


@lru_cache
def _turned(form: str, quarter_turns: int) -> Array:
    corners = np.array(_POLYGONS[form], np.float32)
    for _ in range(quarter_turns):
        corners = np.stack([-corners[:, 1], corners[:, 0]], axis=1)
    return corners


def _person(pose: str, radius: float, x: Array, y: Array) -> Array:
    if pose == "lying":
        x, y, pose = y, -x, "arms down"  # the head points right
    ends = np.array(_PERSON_BODY + _PERSON_ARMS[pose], np.float32).reshape(-1, 2, 2) * np.float32(radius)
    limbs = _strokes(ends[:, 0], ends[:, 1], x, y) - _PERSON_STROKE * radius
    head_x, head_y, head = (value * radius for value in _PERSON_HEAD)
    return np.minimum(limbs, np.hypot(x - head_x, y - head_y) - head)


def _strokes(starts: Array, ends: Array, x: Array, y: Array) -> Array:
    """Distance to the nearest of the segments ``starts[i]`` -> ``ends[i]``, each [S, 2]."""
    shape = (-1,) + (1,) * x.ndim
    px, py = x - starts[:, 0].reshape(shape), y - starts[:, 1].reshape(shape)
    dx, dy = (ends - starts)[:, 0].reshape(shape), (ends - starts)[:, 1].reshape(shape)
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return np.asarray(np.sqrt(((px - dx * along) ** 2 + (py - dy * along) ** 2).min(axis=0)), np.float32)


def _polygon(corners: Array, x: Array, y: Array) -> Array:
    """Signed distance to a closed polygon [V, 2]: the nearest edge, with the sign of the even-odd rule."""
    starts, ends = corners, np.roll(corners, -1, axis=0)
    border = _strokes(starts, ends, x, y)
    shape = (-1,) + (1,) * x.ndim
    x0, y0 = starts[:, 0].reshape(shape), starts[:, 1].reshape(shape)
    x1, y1 = ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)
    slope = (x1 - x0) / np.where(y1 == y0, np.float32(1), y1 - y0)
    crossings = ((y0 <= y) != (y1 <= y)) & (x < x0 + slope * (y - y0))
    inside = crossings.sum(axis=0) % 2 == 1
    return np.asarray(np.where(inside, -border, border), np.float32)
