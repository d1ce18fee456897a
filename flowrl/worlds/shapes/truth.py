"""What a scene ought to look like: the picture that a perfect eye would report, and what it makes true."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flowrl.worlds.shapes.checks import CLASSES, MEMBERS, Pair, Picture, Seen, evaluate
from flowrl.worlds.shapes.forms import half_extents
from flowrl.worlds.shapes.scene import BACKGROUNDS, CANVAS, COLOURS, FLAGS, FORMS, STYLES, Scene, Testpoint, Thing

Box = tuple[float, float, float, float]


def box_of(thing: Thing) -> Box:
    """Left, top, right and bottom of a thing, in pixels."""
    width, height = _half_extents(thing.form, "" if thing.second else thing.detail)
    width, height = width * thing.radius, height * thing.radius
    return thing.x - width, thing.y - height, thing.x + width, thing.y + height


def picture_of(scene: Scene) -> Picture:
    """The picture of a scene, every degree 0 or 1."""
    if scene.flag:
        return Picture((), (), (0.0,) * len(BACKGROUNDS), flag_classes(scene.flag))
    seen, pairs = [], []
    for thing in scene.things:
        style = _one_hot(len(STYLES), STYLES.index(thing.style or scene.style))
        if thing.second:
            pairs.append(_pair(thing))
            seen.extend(_halves(thing, style))
            continue
        form = _one_hot(len(FORMS), FORMS.index(thing.form))
        member = _one_hot(len(MEMBERS), MEMBERS.index((thing.form, thing.detail)))
        colour = _one_hot(len(COLOURS), COLOURS.index(thing.colour))
        seen.append(Seen(thing.x, thing.y, thing.radius, *box_of(thing), colour, form, member, style))
    background = BACKGROUNDS.index(scene.background)
    return Picture(seen, pairs, _one_hot(len(BACKGROUNDS), background), _plain(background))


def degrees(scene: Scene, testpoints: Sequence[Testpoint]) -> list[float]:
    """How true each testpoint is of a scene, 0..1."""
    picture = picture_of(scene)
    return [evaluate(testpoint.check, picture).degree for testpoint in testpoints]


@lru_cache
def flag_classes(country: str) -> NDArray[np.uint8]:
    """The class of each pixel of a flag, [64, 64]."""
    direction, colours = FLAGS[country]
    bands = np.arange(CANVAS) * len(colours) // CANVAS
    line = np.array([CLASSES.index(colour) for colour in colours], np.uint8)[bands]
    return np.broadcast_to(line if direction == "columns" else line[:, None], (CANVAS, CANVAS))


@lru_cache
def _plain(background: int) -> NDArray[np.uint8]:
    return np.full((CANVAS, CANVAS), len(COLOURS) + background, np.uint8)


_half_extents = lru_cache(half_extents)


@lru_cache
def _one_hot(length: int, index: int) -> tuple[float, ...]:
    """Zeros but for a one at ``index`` (none where it is -1)."""
    return tuple(float(k == index) for k in range(length))


def _pair(thing: Thing) -> Pair:
    across = thing.detail == "left"
    return Pair(
        forms=_one_hot(len(FORMS), FORMS.index(thing.form)),
        first=_one_hot(len(COLOURS), COLOURS.index(thing.colour)),
        second=_one_hot(len(COLOURS), COLOURS.index(thing.second)),
        dx=float(across),
        dy=float(not across),
    )


def _halves(thing: Thing, style: Sequence[float]) -> list[Seen]:
    """The two parts of a two-coloured thing: things of a colour, but of no form."""
    left, top, right, bottom = box_of(thing)
    if thing.detail == "left":
        boxes = ((left, top, thing.x, bottom), (thing.x, top, right, bottom))
    else:
        boxes = ((left, top, right, thing.y), (left, thing.y, right, bottom))
    nothing = _one_hot(len(FORMS), -1), _one_hot(len(MEMBERS), -1)
    return [
        Seen((x0 + x1) / 2, (y0 + y1) / 2, thing.radius / 2, x0, y0, x1, y1, colours, *nothing, style)
        for (x0, y0, x1, y1), name in zip(boxes, (thing.colour, thing.second), strict=True)
        for colours in (_one_hot(len(COLOURS), COLOURS.index(name)),)
    ]
