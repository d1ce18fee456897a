"""A scene that is wrong in one respect: every testpoint of an item holds but the chosen one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

from flowrl.worlds.shapes.draw import Draw, default_detail, trained_colours
from flowrl.worlds.shapes.scene import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    DETAILS,
    FLAGS,
    SHAPES,
    STYLES,
    Item,
    Scene,
    Thing,
    is_held_out,
)
from flowrl.worlds.shapes.truth import Box, box_of, degrees

T = TypeVar("T")
Edit = Callable[[Scene, Draw], Scene]

_TRIES = 200
_FALSE, _TRUE = 0.05, 0.95  # degrees that leave no doubt
_GAP = 3.0  # pixels between things that are not meant to touch


def corrupt(item: Item, rng: random.Random, testpoint: int | None = None) -> Scene:
    """The scene of the item, changed so that exactly one testpoint fails: the one given, or a random one.

    No combination of colour and form is introduced that is held out from training. Raises ValueError where no change of
    the scene breaks that testpoint alone.
    """
    order = [testpoint] if testpoint is not None else rng.sample(range(len(item.testpoints)), len(item.testpoints))
    for target in order:
        scene = _break(item, target, Draw(rng, "train"))
        if scene is not None:
            return scene
    broken = [item.testpoints[target].description for target in order]
    raise ValueError(f"nothing breaks {broken} alone in {item.prompt!r}")


def _break(item: Item, target: int, draw: Draw) -> Scene | None:
    edits = _edits(item.testpoints[target].check)
    for _ in range(_TRIES):
        try:
            scene = draw.pick(edits)(item.scene, draw)
        except _NotApplicableError:
            continue
        if _breaks_only(target, degrees(scene, item.testpoints)) and _is_drawable(scene, item.scene):
            return scene
    return None


def _breaks_only(target: int, found: Sequence[float]) -> bool:
    return found[target] <= _FALSE and all(degree >= _TRUE for k, degree in enumerate(found) if k != target)


def _is_drawable(scene: Scene, before: Scene) -> bool:
    """Whether the things stay apart on the canvas, and no forbidden combination is new."""
    if not _held_out(scene) <= _held_out(before):
        return False
    boxes, places = [box_of(thing) for thing in scene.things], [(thing.x, thing.y) for thing in before.things]
    if sorted(boxes) == sorted(box_of(thing) for thing in before.things):
        return True
    if not all(min(box[:2]) >= 1 and max(box[2:]) <= CANVAS - 1 for box in boxes):
        return False
    stay = _close(before) and [(thing.x, thing.y) for thing in scene.things] == places
    return stay or all(_are_apart(a, b) for a, b in combinations(boxes, 2))


def _held_out(scene: Scene) -> set[tuple[str, str]]:
    return {
        (thing.form if thing.form in SHAPES else thing.detail, colour)
        for thing in scene.things
        for colour in (thing.colour, thing.second)
        if is_held_out(thing.form, thing.detail, colour)
    }


def _are_apart(a: Box, b: Box) -> bool:
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= _GAP


class _NotApplicableError(Exception):
    """The edit has nothing to work on in this scene."""


def _with(scene: Scene, index: int, **changes: Any) -> Scene:
    things = list(scene.things)
    things[index] = replace(things[index], **changes)
    return replace(scene, things=tuple(things))


def _any_thing(scene: Scene, draw: Draw) -> int:
    return _one_of(draw, range(len(scene.things)))


def _one_of(draw: Draw, options: Sequence[T]) -> T:
    if not options:
        raise _NotApplicableError
    return draw.pick(options)


def _close(scene: Scene) -> bool:
    """Whether some things touch or contain each other, so that equal colours would melt into one."""
    return not all(_are_apart(a, b) for a, b in combinations([box_of(thing) for thing in scene.things], 2))


def _new_colour(scene: Scene, thing: Thing, draw: Draw) -> str:
    taken = {thing.colour, thing.second}
    if _close(scene):
        taken |= {other.colour for other in scene.things}
    return _one_of(draw, [colour for colour in trained_colours(thing.form, thing.detail) if colour not in taken])


def _recolour(scene: Scene, draw: Draw) -> Scene:
    index = _any_thing(scene, draw)
    return _with(scene, index, colour=_new_colour(scene, scene.things[index], draw))


def _recolour_all(scene: Scene, draw: Draw) -> Scene:
    """One colour becomes another, wherever it is."""
    old = scene.things[_any_thing(scene, draw)].colour
    new = _one_of(draw, [colour for colour in COLOURS if colour not in {thing.colour for thing in scene.things}])
    things = tuple(replace(thing, colour=new) if thing.colour == old else thing for thing in scene.things)
    return replace(scene, things=things)


def _recolour_to(scene: Scene, draw: Draw, form: str, colour: str) -> Scene:
    """A thing of this form gets this colour."""
    index = _one_of(draw, [k for k, thing in enumerate(scene.things) if thing.form == form])
    return _with(scene, index, colour=colour)


def _recolour_half(scene: Scene, draw: Draw) -> Scene:
    index = _any_thing(scene, draw)
    thing = scene.things[index]
    if not thing.second:
        raise _NotApplicableError
    turned = {"colour": thing.second, "second": thing.colour}
    return _with(scene, index, **draw.pick((turned, {"second": _new_colour(scene, thing, draw)})))


def _reform(scene: Scene, draw: Draw) -> Scene:
    index = _any_thing(scene, draw)
    form = draw.pick([form for form in SHAPES if form != scene.things[index].form])
    return _with(scene, index, form=form, detail=default_detail(form), size=_shape_size(scene.things[index]))


def _shape_size(thing: Thing) -> str:
    return thing.size if thing.form in SHAPES else "large"


def _reform_all(scene: Scene, draw: Draw) -> Scene:
    """One form becomes another, wherever it is."""
    old = scene.things[_any_thing(scene, draw)].form
    new = _one_of(draw, [form for form in SHAPES if form not in {thing.form for thing in scene.things}])
    things = tuple(
        replace(thing, form=new, detail=default_detail(new)) if thing.form == old else thing for thing in scene.things
    )
    return replace(scene, things=things)


def _redetail(scene: Scene, draw: Draw) -> Scene:
    """Another pose, direction or letter."""
    index = _any_thing(scene, draw)
    thing = scene.things[index]
    if thing.second:  # its detail is a side, not a member of the form
        raise _NotApplicableError
    return _with(scene, index, detail=_one_of(draw, [name for name in DETAILS[thing.form] if name != thing.detail]))


def _repose(scene: Scene, draw: Draw) -> Scene:
    """Another pose or direction, and the two things side by side or one above the other, where both find room."""
    return _move_apart(_redetail(scene, draw), draw)


def _resize(scene: Scene, draw: Draw) -> Scene:
    index = _any_thing(scene, draw)
    return _with(scene, index, size="large" if scene.things[index].size == "small" else "small")


def _trade_sizes(scene: Scene, draw: Draw) -> Scene:
    sizes = [thing.size for thing in scene.things][::-1]
    things = tuple(replace(thing, size=size) for thing, size in zip(scene.things, sizes, strict=True))
    return replace(scene, things=things)


def _move(scene: Scene, draw: Draw) -> Scene:
    x, y = draw.near((32, 32), 22)
    return _with(scene, _any_thing(scene, draw), x=x, y=y)


def _move_apart(scene: Scene, draw: Draw) -> Scene:
    """Two things that touch or contain each other, side by side or one above the other."""
    if len(scene.things) != 2:
        raise _NotApplicableError
    places = draw.two_places()
    things = tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.things, places, strict=True))
    return replace(scene, things=things)


def _swap(scene: Scene, draw: Draw) -> Scene:
    """Two things change places."""
    if len(scene.things) < 2:
        raise _NotApplicableError
    i, j = draw.several(range(len(scene.things)), 2)
    a, b = scene.things[i], scene.things[j]
    return _with(_with(scene, i, x=b.x, y=b.y), j, x=a.x, y=a.y)


def _remove(scene: Scene, draw: Draw) -> Scene:
    if len(scene.things) < 2:
        raise _NotApplicableError
    index = _any_thing(scene, draw)
    return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])


def _add(scene: Scene, draw: Draw) -> Scene:
    """One more of the things."""
    return _place(scene, replace(scene.things[_any_thing(scene, draw)], size="medium"), draw)


def _introduce(scene: Scene, draw: Draw, form: str | None, colour: str | None) -> Scene:
    """One more shape, of this form and colour where they are given."""
    forms = [name for name in SHAPES if form in (None, name) and colour in (None, *trained_colours(name, ""))]
    shape = draw.shape(forms=forms)
    return _place(scene, replace(shape, colour=colour or shape.colour), draw)


def _place(scene: Scene, thing: Thing, draw: Draw) -> Scene:
    x, y = draw.near((32, 32), 20)
    return replace(scene, things=(*scene.things, replace(thing, x=x, y=y)))


def _restyle(scene: Scene, draw: Draw) -> Scene:
    return replace(scene, style=draw.pick([style for style in STYLES if style != scene.style]))


def _repaint_background(scene: Scene, draw: Draw) -> Scene:
    return replace(scene, background=draw.pick([name for name in BACKGROUNDS if name != scene.background]))


def _reflag(scene: Scene, draw: Draw) -> Scene:
    return replace(scene, flag=draw.pick([country for country in FLAGS if country != scene.flag]))


_LOOKS: tuple[Edit, ...] = (_recolour, _recolour_all, _reform, _reform_all, _redetail, _repose, _resize)

_EDITS: Mapping[str, tuple[Edit, ...]] = {
    "exists": _LOOKS,
    "count": (_remove, _add, _reform),
    "every": (_recolour, _recolour_all, _reform),
    "position": (_move, _swap),
    "arrangement": (_move,),
    "order": (_swap, _move),
    "halves": (_recolour_half, _reform),
    "text": (_redetail, _swap),
    "style": (_restyle,),
    "background": (_repaint_background,),
    "flag": (_reflag,),
    "all": (_recolour, _recolour_all),
}
_RELATION_EDITS: Mapping[str, tuple[Edit, ...]] = {
    "inside": (_move_apart,),
    "touching": (_move_apart,),
    "larger than": (_trade_sizes, _resize),
    "smaller than": (_trade_sizes, _resize),
    "same colour": (_recolour,),
    "other colour": (_recolour,),
    "same form": (_reform,),
}


def _edits(check: Mapping[str, Any]) -> tuple[Edit, ...]:
    if check["kind"] == "relation":
        return _RELATION_EDITS.get(check["is"], (_swap, _move))
    if check["kind"] == "absent":
        return (partial(_introduce, form=check.get("form"), colour=check.get("colour")),)
    if check["kind"] == "every" and "not_colour" in check["is"]:
        return (partial(_recolour_to, form=check["of"]["form"], colour=check["is"]["not_colour"]),)
    return _EDITS[check["kind"]]
