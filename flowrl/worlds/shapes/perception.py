"""Pixels -> pictures: what is seen in a batch of images, by colour classes, components and silhouettes.

Nothing here knows the prompt. B images (b of a chunk), N things of one colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowrl.worlds.shapes.checks import CLASSES, MEMBERS, Pair, Picture, Seen
from flowrl.worlds.shapes.components import Components, components, mended
from flowrl.worlds.shapes.forms import distance
from flowrl.worlds.shapes.misshapen import STRANGERS, misshapen, stranger
from flowrl.worlds.shapes.render import BACKGROUND_RGB, COLOUR_RGB, PASTEL_RGB, STRIPE_SHADE, Shape, render
from flowrl.worlds.shapes.scene import BACKGROUNDS, CANVAS, COLOURS, RADIUS, Scene, Thing
from flowrl.worlds.shapes.silhouettes import Silhouettes, patches_of, preference, step

Floats = NDArray[np.float64]

CHUNK = 64  # images whose maps fit a core's cache

_CHROMA = 0.13  # max - min of a pixel that has a colour; the palest paint has 0.31
_RIM = 0.38  # share of the chroma beside it below which a pixel is a rim; beside paint, pastel has 0.47 and more
_RIM_CLASS = len(CLASSES)
_DARK, _LIGHT = 0.3, 0.76  # luminance between black, grey and white; they are painted 0.05, 0.55 and 0.97
_PALE = 0.57  # saturation between paint (0.76 and more) and pastel (0.4 and less)
_HUE_WIDTH = 0.03  # of a turn; neighbouring colours are 0.15 apart
_AREA, _CORE = 30, 8  # pixels of the smallest thing, and of its inside: less is an edge or a speck
_GAP, _FRAGMENT = 3, 0.5  # pixels between a thing and a fragment of it, and the fragment's share of its area
_EXAMPLES = 30  # renders of each member at each size from which its silhouettes are learnt
_TOUCH = 3  # pixels between the parts of a two-coloured thing


class Sight(NamedTuple):
    """What is seen in each image, and how clean it is: 1 without blots, specks or blur, 0 for noise."""

    pictures: list[Picture]
    clean: Floats


def look(images: NDArray[np.uint8]) -> Sight:
    """The pictures in images uint8 [B, 64, 64, 3]."""
    silhouettes = known_silhouettes()
    pictures: list[Picture] = []
    clean = []
    for first in range(0, len(images), CHUNK):
        maps = maps_of(images[first : first + CHUNK])
        pictures += _pictures(maps, silhouettes)
        clean.append(maps.clean)
    return Sight(pictures, np.concatenate(clean) if clean else np.zeros(0))


class Maps(NamedTuple):
    """Per pixel [b, 64, 64]: 6-bit colour code, class (an index into CLASSES; rims come after), whether its neighbours
    share the class; per image [b]: how clean it is."""

    images: NDArray[np.uint8]
    code: NDArray[np.int32]
    classes: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    clean: Floats


class _Tables(NamedTuple):
    """By 6-bit colour code: the class, max - min, and how far it is from every paint, 0..1."""

    classes: NDArray[np.uint8]
    chroma: NDArray[np.float32]
    blot: NDArray[np.float32]


@lru_cache
def _tables() -> _Tables:
    level = (np.arange(64) * 4 + 2) / 255
    rgb = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    luminance = rgb @ np.array((0.3, 0.59, 0.11))
    shade = np.where(luminance > _LIGHT, 0, np.where(luminance > _DARK, 1, 2))  # the order of BACKGROUNDS
    turn = _hue(rgb)[:, None] - _palette_hues()
    nearest = np.abs(turn - np.round(turn)).argmin(axis=1)
    classes = np.where(high - low >= _CHROMA, nearest, len(COLOURS) + shade)
    full = np.array([*COLOUR_RGB.values()]) / 255
    plain = np.array([*PASTEL_RGB.values(), *BACKGROUND_RGB.values()]) / 255
    paints = np.concatenate([full, STRIPE_SHADE * full, plain])
    distance = np.full(len(rgb), np.inf)
    for paint in paints:
        distance = np.minimum(distance, np.sqrt(((rgb - paint) ** 2).sum(axis=1)))
    return _Tables(
        classes.astype(np.uint8),
        (high - low).astype(np.float32),
        np.clip((distance - 0.08) / 0.12, 0, 1).astype(np.float32),
    )


def _hue(rgb: Floats) -> Floats:
    """The hue of colours [N, 3], in turns."""
    red, green, blue = rgb.T
    return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)


@lru_cache
def _palette_hues() -> Floats:
    return _hue(np.array([COLOUR_RGB[name] for name in COLOURS]) / 255)


def maps_of(images: NDArray[np.uint8]) -> Maps:
    """What can be said of each pixel of images uint8 [b, 64, 64, 3] from itself and its neighbours."""
    tables = _tables()
    bits = (images >> 2).astype(np.int32)
    code = bits[..., 0] << 12 | bits[..., 1] << 6 | bits[..., 2]
    classes = tables.classes[code]
    # The rim of a thing, mixed with what is around it, belongs to neither.
    chroma = tables.chroma[code]
    classes[(chroma < _RIM * _strongest_neighbour(chroma)) & (classes < len(COLOURS))] = _RIM_CLASS
    inside = np.zeros(classes.shape, bool)
    middle = classes[:, 1:-1, 1:-1]
    inside[:, 1:-1, 1:-1] = (
        (middle == classes[:, :-2, 1:-1])
        & (middle == classes[:, 2:, 1:-1])
        & (middle == classes[:, 1:-1, :-2])
        & (middle == classes[:, 1:-1, 2:])
    )
    blots = tables.blot[code].mean(axis=(1, 2)).astype(float)
    # The soft edges of a clean drawing are blots too: up to a tenth of its pixels.
    return Maps(images, code, classes, inside, 1 - np.clip((blots - 0.1) / 0.4, 0, 1))


def _strongest_neighbour(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest value of each pixel's 3 x 3 square, in maps [B, H, W]."""
    found = values.copy()
    for axis in (1, 2):
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        source = found.copy()
        np.maximum(found[after], source[before], out=found[after])
        np.maximum(found[before], source[after], out=found[before])
    return found


class _Paint(NamedTuple):
    """How the insides of components are painted: colour degrees [N, 6], saturation [N], and by how much of its mean the
    chroma changes from row to row [N]."""

    colours: Floats
    saturation: Floats
    change: Floats


def _pictures(maps: Maps, silhouettes: Silhouettes) -> list[Picture]:
    parts = mended(components(maps.classes, len(COLOURS)), _GAP, _FRAGMENT)
    labels = parts.labels
    number = len(parts.image)
    core = np.bincount(labels[maps.inside & (labels >= 0)], minlength=number)
    kept = np.flatnonzero((parts.area >= _AREA) & (core >= _CORE))
    paint = _paint(maps, labels, kept, number)
    patches = patches_of(parts, kept, kept)
    forms, members, radius = silhouettes.recognise(patches)
    styles = _styles(patches.hollow, paint)

    columns = (parts.x, parts.y, parts.left, parts.top, parts.right, parts.bottom)
    x, y, left, top, right, bottom = (column[kept].astype(float).tolist() for column in columns)
    rows = zip(
        *(x, y, radius.tolist(), left, top, right, bottom),
        *(paint.colours.tolist(), forms.tolist(), members.tolist(), styles.tolist()),
        strict=True,
    )
    seen: list[list[Seen]] = [[] for _ in maps.images]
    for image, row in zip(parts.image[kept].tolist(), rows, strict=True):
        seen[image].append(Seen(*row))
    pairs: list[list[Pair]] = [[] for _ in maps.images]
    for image, pair in _find_pairs(parts, kept, paint, silhouettes):
        pairs[image].append(pair)
    backgrounds = _backgrounds(maps.classes).tolist()
    return [Picture(*row) for row in zip(seen, pairs, backgrounds, maps.classes, strict=True)]


def _paint(maps: Maps, labels: NDArray[np.int32], kept: NDArray[np.int64], number: int) -> _Paint:
    inside = maps.inside & (labels >= 0)
    owner = labels[inside]
    core = np.maximum(np.bincount(owner, minlength=number), 1)[kept]
    rgb = maps.images[inside]
    mean = np.stack([np.bincount(owner, rgb[:, k], number)[kept] / core for k in range(3)], axis=1) / 255
    turn = _hue(mean)[:, None] - _palette_hues()
    away = np.abs(turn - np.round(turn))
    return _Paint(
        colours=preference(away, _HUE_WIDTH),
        saturation=1 - mean.min(axis=1, initial=1) / np.maximum(mean.max(axis=1, initial=0), 1e-6),
        change=_change(_tables().chroma[maps.code[inside]], owner, np.nonzero(inside)[1], number)[kept],
    )


def _change(chroma: NDArray[np.float32], owner: NDArray[np.int32], row: NDArray[np.int64], number: int) -> Floats:
    """The mean step of the rows' mean chroma, wide rows counting more, over the mean chroma, of each of ``number``
    components; one value per inside pixel."""
    index = owner * CANVAS + row
    pixels = np.bincount(index, minlength=number * CANVAS).reshape(number, CANVAS)
    mean = np.bincount(index, chroma, number * CANVAS).reshape(number, CANVAS) / np.maximum(pixels, 1)
    weight = np.minimum(pixels[:, 1:], pixels[:, :-1])
    level = (mean * pixels).sum(axis=1) / np.maximum(pixels.sum(axis=1), 1)
    steps = (np.abs(np.diff(mean, axis=1)) * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    return steps / np.maximum(level, 1e-6)


def _styles(hollow: Floats, paint: _Paint) -> Floats:
    """Degrees per style [N, 4], in the order of STYLES."""
    outline = step(hollow, 0.09, 0.01)
    striped = (1 - outline) * step(paint.change, 0.075, 0.005)
    rest = (1 - outline) * (1 - striped)
    pale = step(-paint.saturation, -_PALE, 0.03)
    return np.stack([rest * (1 - pale), outline, striped, rest * pale], axis=1)


def _backgrounds(classes: NDArray[np.uint8]) -> Floats:
    """The share of each background among the pixels without colour, [b, 3]."""
    num_classes = len(CLASSES) + 1  # and the rim
    index = classes.reshape(len(classes), -1) + np.arange(len(classes))[:, None] * num_classes
    counts = np.bincount(index.reshape(-1), minlength=len(classes) * num_classes).reshape(-1, num_classes)
    plain = counts[:, len(COLOURS) : len(CLASSES)]
    return plain / np.maximum(plain.sum(axis=1, keepdims=True), 1)


def _find_pairs(
    parts: Components, kept: NDArray[np.int64], paint: _Paint, silhouettes: Silhouettes
) -> Iterator[tuple[int, Pair]]:
    """Neighbouring parts of two colours and about equal area, as one thing: (image, pair)."""
    a, b = _candidates(parts, kept)
    if len(a) == 0:
        return
    first, second = kept[a], kept[b]
    forms, _, radius = silhouettes.recognise(patches_of(parts, first, second))
    dx = (parts.x[second] - parts.x[first]) / radius
    dy = (parts.y[second] - parts.y[first]) / radius
    rows = zip(
        forms.tolist(), paint.colours[a].tolist(), paint.colours[b].tolist(), dx.tolist(), dy.tolist(), strict=True
    )
    yield from zip(parts.image[first].tolist(), (Pair(*row) for row in rows), strict=True)


def _candidates(parts: Components, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices into ``kept`` of the parts that may be halves of one thing."""
    pairs = []
    image = parts.image[kept]
    for offset in range(1, 4):  # components are ordered by image
        a = np.arange(len(kept) - offset) if len(kept) > offset else np.zeros(0, np.int64)
        pairs.append(np.stack([a, a + offset])[:, image[a] == image[a + offset]])
    a, b = np.concatenate(pairs, axis=1)
    i, j = kept[a], kept[b]
    gap = np.maximum(
        np.maximum(parts.left[i] - parts.right[j], parts.left[j] - parts.right[i]),
        np.maximum(parts.top[i] - parts.bottom[j], parts.top[j] - parts.bottom[i]),
    )
    ratio = parts.area[i] / parts.area[j]
    good = (gap <= _TOUCH) & (ratio > 0.4) & (ratio < 2.5) & (parts.kind[i] != parts.kind[j])
    return a[good], b[good]


@lru_cache
def known_silhouettes() -> Silhouettes:
    """The silhouettes of every member at every size and of strangers, misshapen; every other one is blurred too."""
    rng = np.random.default_rng(0)
    examples: list[tuple[int, Thing, Shape]] = [
        (index, Thing(form, "blue", 32.0, 32.0, size, detail), distance)
        for index, (form, detail) in enumerate(MEMBERS)
        for size in RADIUS[form]
        for _ in range(_EXAMPLES)
    ]
    examples += [
        (len(MEMBERS) + index, Thing("circle", "blue", 32.0, 32.0, size), stranger(kind, rng))
        for index, kind in enumerate(STRANGERS)
        for size in RADIUS["circle"]
        for _ in range(_EXAMPLES)
    ]
    images = np.stack(
        [
            render(Scene(BACKGROUNDS[k % 3], (thing,)), rng, misshapen(rng, shape))
            for k, (_, thing, shape) in enumerate(examples)
        ]
    )
    images[::2] = _blurred(images[::2])
    parts = mended(components(maps_of(images).classes, len(COLOURS)), _GAP, _FRAGMENT)
    by_area = np.lexsort((parts.area, parts.image))
    seen = np.unique(parts.image)
    largest = by_area[np.searchsorted(parts.image[by_area], seen, side="right") - 1]
    member, radius = np.array([(index, thing.radius) for index, thing, _ in examples])[seen].T
    return Silhouettes.learn(patches_of(parts, largest, largest), member.astype(np.int64), radius)


def _blurred(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images through the binomial filter (1, 2, 1) / 4 along both axes."""
    wide = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    wide = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    wide = wide[:, :, :-2] + 2 * wide[:, :, 1:-1] + wide[:, :, 2:]
    return ((wide + 8) // 16).astype(np.uint8)
