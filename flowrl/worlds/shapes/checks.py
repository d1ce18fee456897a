"""What a check means: a picture, as a list of what is seen in it, against one question -> a degree of truth.

A degree is a number in 0..1 that is above one half where the check holds; a credit is what the parts of the check that
do hold are worth. The judge fills a :class:`Picture` from pixels, ``truth.picture_of`` fills it from a scene, and both
are asked the same questions:

    exists       a thing with this form, detail, colour, size              {"kind": "exists", "form": "star", ...}
    absent       no such thing
    count        exactly ``n`` such things
    every        whatever matches ``of`` (and something does) also matches ``is``
    relation     a thing ``a`` ``is`` left of, right of, above, below, inside, touching, larger than, smaller than,
                 same colour, other colour, same form: a thing ``b``
    position     such a thing ``at`` left, right, top, bottom, a corner ("top left"), centre
    arrangement  ``n`` such things stand in a row, column, diagonal
    order        the things ``of`` follow each other along ``axis`` x or y
    halves       a thing of this form, half ``first`` (on its ``side`` left or top) and half ``second``
    text         the letters of the picture, from left to right, read ``text``
    style        everything, but for a fragment, is drawn flat, outline, striped, pastel
    background   white, grey, black
    flag         the picture is the flag of ``country``
    all          every check of the list ``of`` holds

A thing is described by any of ``form``, ``detail`` (with its form), ``colour``, ``not_colour`` and ``size``. Nothing
holds of a picture in which nothing is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowrl.worlds.shapes.scene import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    DETAILS,
    FLAGS,
    FORMS,
    STYLES,
)

MEMBERS = tuple((form, detail) for form, details in DETAILS.items() for detail in details)
"""Every form with each of its details: the classes that the eye tells apart."""

CLASSES = (*COLOURS, *BACKGROUNDS)
"""What a pixel can be."""

_COLOUR = {name: index for index, name in enumerate(COLOURS)}
_FORM = {name: index for index, name in enumerate(FORMS)}
_MEMBER = {name: index for index, name in enumerate(MEMBERS)}
_STYLE = {name: index for index, name in enumerate(STYLES)}
_BACKGROUND = {name: index for index, name in enumerate(BACKGROUNDS)}


class Seen(NamedTuple):
    """One thing of one colour: centre, radius and box in pixels, and degrees per colour, form, member, style."""

    x: float
    y: float
    radius: float
    left: float
    top: float
    right: float
    bottom: float
    colours: Sequence[float]
    forms: Sequence[float]
    members: Sequence[float]
    styles: Sequence[float]


class Pair(NamedTuple):
    """Two coloured parts that make one thing: degrees per form, degrees per colour of each part, and the step from the
    first part's centre to the second's in units of the whole's radius."""

    forms: Sequence[float]
    first: Sequence[float]
    second: Sequence[float]
    dx: float
    dy: float


class Picture(NamedTuple):
    """What is seen: things, two-coloured pairs, degrees per background, and the class of each pixel [64, 64]."""

    seen: Sequence[Seen]
    pairs: Sequence[Pair]
    background: Sequence[float]
    classes: NDArray[np.uint8]


class Answer(NamedTuple):
    """``degree``: truth, above one half where the check holds. ``credit``: the worth of the parts that hold."""

    degree: float
    credit: float


def evaluate(check: Mapping[str, Any], picture: Picture) -> Answer:
    """The answer of a picture to a check. Raises KeyError where the kind is unknown."""
    answer = _KINDS[check["kind"]]
    if not picture.seen and check["kind"] != "flag":
        return Answer(0.0, 0.0)
    return answer(check, picture)


def _step(value: float, threshold: float, width: float) -> float:
    """A smooth step: one half at the threshold, 0.98 four widths above it."""
    z = (value - threshold) / width
    return 1.0 / (1.0 + math.exp(-z)) if z > -30.0 else 0.0


def _size(radius: float, size: str) -> float:
    # The radii of shapes are 6, 8 and 13; the thresholds are about half way.
    if size == "small":
        return _step(-radius, -6.95, 0.2)
    if size == "large":
        return _step(radius, 10.3, 0.4)
    return min(_step(radius, 6.95, 0.2), _step(-radius, -10.3, 0.4))


def _matches(seen: Seen, want: Mapping[str, Any]) -> list[float]:
    parts = []
    if "form" in want:
        parts.append(seen.forms[_FORM[want["form"]]])
        if "detail" in want:
            parts.append(seen.members[_MEMBER[want["form"], want["detail"]]])
    if "colour" in want:
        parts.append(seen.colours[_COLOUR[want["colour"]]])
    if "not_colour" in want:
        parts.append(1.0 - seen.colours[_COLOUR[want["not_colour"]]])
    if "size" in want:
        parts.append(_size(seen.radius, want["size"]))
    return parts or [1.0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _all(parts: Sequence[float]) -> Answer:
    return Answer(min(parts), _mean(parts))


def _exists(check: Mapping[str, Any], picture: Picture) -> Answer:
    return max(_all(_matches(seen, check)) for seen in picture.seen)


def _absent(check: Mapping[str, Any], picture: Picture) -> Answer:
    degree = 1.0 - _exists(check, picture).degree
    return Answer(degree, degree)


def _count(check: Mapping[str, Any], picture: Picture) -> Answer:
    off = abs(sum(min(_matches(seen, check)) for seen in picture.seen) - check["n"])
    return Answer(max(0.0, 1.0 - off), 1.0 / (1.0 + off))


def _every(check: Mapping[str, Any], picture: Picture) -> Answer:
    rows = [(min(_matches(seen, check["of"])), min(_matches(seen, check["is"]))) for seen in picture.seen]
    weight = sum(of for of, _ in rows)
    degree = min(max(of for of, _ in rows), min(max(1.0 - of, it) for of, it in rows))
    return Answer(degree, sum(of * it for of, it in rows) / max(weight, 1.0))


def _relation(check: Mapping[str, Any], picture: Picture) -> Answer:
    holds = _RELATIONS[check["is"]]
    found = Answer(0.0, 0.0)
    for a, b in permutations(picture.seen, 2):
        parts_a, parts_b = _matches(a, check["a"]), _matches(b, check["b"])
        if min(parts_a + parts_b) > 0.05:
            found = max(found, _all([*parts_a, *parts_b, holds(a, b)]))
    # Both ends without the relation are worth what each end is worth.
    ends = 0.25 * (_exists(check["a"], picture).degree + _exists(check["b"], picture).degree)
    return Answer(found.degree, max(found.credit, ends))


def _beyond(ahead: float, aside: float) -> float:
    """How clearly one centre lies ``ahead`` of the other, not just ``aside``."""
    return min(_step(ahead, 8.0, 1.5), _step(ahead - 0.5 * abs(aside), 0.0, 1.5))


def _inside(a: Seen, b: Seen) -> float:
    margin = min(a.left - b.left, b.right - a.right, a.top - b.top, b.bottom - a.bottom)
    return _step(margin, 0.5, 0.6)


def _touching(a: Seen, b: Seen) -> float:
    gap = max(a.left - b.right, b.left - a.right, a.top - b.bottom, b.top - a.bottom)
    return _step(-gap, -5.0, 0.7)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


_RELATIONS: dict[str, Callable[[Seen, Seen], float]] = {
    "left of": lambda a, b: _beyond(b.x - a.x, b.y - a.y),
    "right of": lambda a, b: _beyond(a.x - b.x, b.y - a.y),
    "above": lambda a, b: _beyond(b.y - a.y, b.x - a.x),
    "below": lambda a, b: _beyond(a.y - b.y, b.x - a.x),
    "inside": _inside,
    "touching": _touching,
    "larger than": lambda a, b: _step(a.radius / b.radius, 1.2, 0.04),
    "smaller than": lambda a, b: _step(b.radius / a.radius, 1.2, 0.04),
    "same colour": lambda a, b: _dot(a.colours, b.colours),
    "other colour": lambda a, b: 1.0 - _dot(a.colours, b.colours),
    "same form": lambda a, b: _dot(a.forms, b.forms),
}


def _position(check: Mapping[str, Any], picture: Picture) -> Answer:
    return max(
        _all([*_matches(seen, check), *(_SIDES[side](seen) for side in check["at"].split())]) for seen in picture.seen
    )


_SIDES: dict[str, Callable[[Seen], float]] = {
    "left": lambda seen: _step(-seen.x, -24.0, 1.5),
    "right": lambda seen: _step(seen.x, 40.0, 1.5),
    "top": lambda seen: _step(-seen.y, -24.0, 1.5),
    "bottom": lambda seen: _step(seen.y, 40.0, 1.5),
    "centre": lambda seen: _step(-max(abs(seen.x - 32.0), abs(seen.y - 32.0)), -8.0, 1.2),
}


def _arrangement(check: Mapping[str, Any], picture: Picture) -> Answer:
    found = [seen for seen in picture.seen if min(_matches(seen, check)) >= 0.5]
    if len(found) < check["n"]:
        return Answer(0.0, 0.5 * len(found) / check["n"])
    if check["is"] == "column":
        found = [seen._replace(x=seen.y, y=seen.x) for seen in found]
    found.sort(key=lambda seen: seen.x)
    parts = [_step(b.x - a.x, 8.0, 1.5) for a, b in pairwise(found)]
    if check["is"] == "diagonal":
        slopes = [b.y - a.y for a, b in pairwise(found)]
        parts += [max(_step(min(slopes), 8.0, 1.5), _step(-max(slopes), 8.0, 1.5))]
    else:
        heights = [seen.y for seen in found]
        parts += [_step(min(heights) - max(heights), -9.0, 1.2)]
    return _all(parts)


def _order(check: Mapping[str, Any], picture: Picture) -> Answer:
    best = [max(picture.seen, key=lambda seen: min(_matches(seen, want))) for want in check["of"]]
    parts = [min(_matches(seen, want)) for seen, want in zip(best, check["of"], strict=True)]
    places = [seen.x if check["axis"] == "x" else seen.y for seen in best]
    return _all(parts + [_step(b - a, 7.0, 1.5) for a, b in pairwise(places)])


def _halves(check: Mapping[str, Any], picture: Picture) -> Answer:
    first, second, form = _COLOUR[check["first"]], _COLOUR[check["second"]], _FORM[check["form"]]
    answers = [Answer(0.0, 0.2 * sum(_exists({"colour": check[k]}, picture).degree for k in ("first", "second")))]
    for pair in picture.pairs:
        step = pair.dx if check["side"] == "left" else pair.dy
        for a, b, ahead in ((pair.first, pair.second, step), (pair.second, pair.first, -step)):
            answers.append(_all([pair.forms[form], a[first], b[second], _step(ahead, 0.4, 0.08)]))
    return max(answers)


def _text(check: Mapping[str, Any], picture: Picture) -> Answer:
    wanted = [_MEMBER["letter", letter] for letter in check["text"]]
    letters = sorted((seen for seen in picture.seen if seen.forms[_FORM["letter"]] >= 0.5), key=lambda seen: seen.x)
    present = _mean([max(seen.members[letter] for seen in picture.seen) for letter in wanted])
    if len(letters) != len(wanted):
        return Answer(0.0, 0.5 * present)
    parts = [seen.members[letter] for seen, letter in zip(letters, wanted, strict=True)]
    return Answer(min(parts), max(_mean(parts), 0.5 * present))


def _style(check: Mapping[str, Any], picture: Picture) -> Answer:
    area = [seen.radius**2 for seen in picture.seen]
    share = sum(a * seen.styles[_STYLE[check["is"]]] for a, seen in zip(area, picture.seen, strict=True)) / sum(area)
    return Answer(_step(share, 0.85, 0.03), share)


def _background(check: Mapping[str, Any], picture: Picture) -> Answer:
    degree = picture.background[_BACKGROUND[check["is"]]]
    return Answer(degree, degree)


def _flag(check: Mapping[str, Any], picture: Picture) -> Answer:
    direction, colours = FLAGS[check["country"]]
    lines = picture.classes.T if direction == "columns" else picture.classes
    width = CANVAS / len(colours)
    right = []
    for band, colour in enumerate(colours):
        core = lines[round(width * (band + 0.15)) : round(width * (band + 0.85))]
        right.append(float((core == CLASSES.index(colour)).mean()))
    return Answer(_step(min(right), 0.7, 0.05), _mean(right))


def _together(check: Mapping[str, Any], picture: Picture) -> Answer:
    answers = [evaluate(part, picture) for part in check["of"]]
    return Answer(min(answer.degree for answer in answers), _mean([answer.credit for answer in answers]))


_KINDS: dict[str, Callable[[Mapping[str, Any], Picture], Answer]] = {
    "exists": _exists,
    "absent": _absent,
    "count": _count,
    "every": _every,
    "relation": _relation,
    "position": _position,
    "arrangement": _arrangement,
    "order": _order,
    "halves": _halves,
    "text": _text,
    "style": _style,
    "background": _background,
    "flag": _flag,
    "all": _together,
}
