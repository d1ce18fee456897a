"""Sentences on style, attributes and actions. Each function draws a scene and says it in English."""

from __future__ import annotations

from dataclasses import replace

from flowrl.worlds.shapes.draw import Draw
from flowrl.worlds.shapes.scene import DIRECTIONS, POSES, SHAPES, STYLES, Item, Testpoint, Thing
from flowrl.worlds.shapes.words import (
    a,
    all_are,
    coloured,
    counted,
    exists,
    has_colour,
    has_form,
    is_many,
    looks,
    put,
    related,
    scene_of,
    sometimes_large,
)

_STYLE_PHRASES = {
    "flat": ("in flat style", "filled with flat colour", "painted in one plain tone"),
    "outline": ("in outline style", "drawn as an outline", "as a simple line drawing"),
    "striped": ("in striped style", "filled with stripes", "painted with stripes"),
    "pastel": ("in pastel style", "in soft pastel colours", "painted in pale tones"),
}
_POSE_PHRASES = {
    "arms up": ("with raised arms", "holding both arms up"),
    "arms out": ("with arms stretched out", "holding both arms out"),
    "arms down": ("with arms hanging down", "letting both arms hang"),
    "lying": ("lying down", "lying on the ground"),
}


def style_of_one(draw: Draw) -> Item:
    """One large shape in a style."""
    style = draw.pick(STYLES)
    (thing,) = put([draw.shape("large")], [draw.near((32, 32), 8)])
    words = draw.pick(_STYLE_PHRASES[style])
    return Item(f"{coloured(thing)} {words}", scene_of(draw, thing, style=style), (_style(style), looks(thing)))


def style_of_two(draw: Draw) -> Item:
    """Two large shapes in a style."""
    style = draw.pick(STYLES)
    things = put([replace(thing, size="large") for thing in draw.two_shapes()], draw.two_places())
    words = draw.pick(_STYLE_PHRASES[style])
    prompt = f"{coloured(things[0])} and {coloured(things[1])}, {words}"
    return Item(prompt, scene_of(draw, *things, style=style), (_style(style), *(looks(thing) for thing in things)))


def _style(style: str) -> Testpoint:
    return Testpoint("Style", f"{style} style", {"kind": "style", "is": style})


def attribute_size(draw: Draw) -> Item:
    """One shape with its size."""
    size = draw.pick(("small", "large"))
    (thing,) = put([draw.shape(size)], [draw.near((32, 32), 14 if size == "small" else 10)])
    testpoints = (exists("Attribute - Size", f"{size} {thing.form}", form=thing.form, size=size), looks(thing))
    return Item(a(f"{size} {thing.colour} {thing.form}"), scene_of(draw, thing), testpoints)


def attribute_looks(draw: Draw) -> Item:
    """One shape, or two."""
    if draw.chance(0.3):
        (thing,) = put(sometimes_large(draw, [draw.shape()]), [draw.near((32, 32), 10)])
        return Item(coloured(thing), scene_of(draw, thing), (has_form(thing), has_colour(thing)))
    things = put(sometimes_large(draw, draw.two_shapes()), draw.two_places())
    prompt = f"{coloured(things[0])} and {coloured(things[1])}"
    return Item(prompt, scene_of(draw, *things), tuple(looks(thing) for thing in things))


def attribute_quantity(draw: Draw) -> Item:
    """Two to four equal shapes, sometimes with one of another kind."""
    thing, other = draw.two_shapes(other_form=True)
    number = draw.pick((2, 3, 4))
    alone = number == 4 or draw.chance(0.4)
    things = put([thing] * number + ([] if alone else [other]), draw.cells(number + (not alone)))
    prompt = counted(number, thing.colour, thing.form)
    testpoints = [
        is_many("Attribute - Quantity", thing.form, number),
        all_are("Attribute - Color", thing.form, thing.colour),
    ]
    if not alone:
        prompt += f" and {counted(1, other.colour, other.form)}"
        testpoints.append(looks(other))
    return Item(prompt, scene_of(draw, *things), tuple(testpoints))


def action_person(draw: Draw) -> Item:
    """A stick figure in a pose, sometimes with a shape beside it."""
    pose = draw.pick(POSES)
    colour = draw.colour("person", pose)
    name = f"Action - {'Full-body' if pose == 'lying' else 'Hand'} (Character/Anthropomorphic)"
    words = draw.pick(_POSE_PHRASES[pose])
    testpoints = [
        exists(name, f"a stick figure {words}", form="person", detail=pose),
        exists("Attribute - Color", f"{colour} stick figure", form="person", colour=colour),
    ]
    prompt = a(f"{colour} stick figure {words}")
    person = Thing("person", colour, 32.0, 32.0, "large", pose)
    if draw.chance(0.4):
        return Item(prompt, scene_of(draw, *put([person], [draw.near((32, 32), 7)])), tuple(testpoints))
    shape = draw.shape(avoid=(colour,))
    places = draw.stacked() if pose == "lying" else draw.side_by_side()
    things = put([replace(person, size="medium"), shape], places if draw.chance(0.5) else places[::-1])
    link = draw.pick(("next to", "beside", "and"))
    return Item(f"{prompt} {link} {coloured(shape)}", scene_of(draw, *things), (*testpoints, looks(shape)))


def action_pointing(draw: Draw) -> Item:
    """An arrow or a triangle that points somewhere, sometimes with a shape beside it."""
    form, turn = draw.pick(("arrow", "triangle")), draw.pick(DIRECTIONS)
    colour = draw.colour(form, turn)
    pointer = Thing(form, colour, 32.0, 32.0, "large", turn)
    words = f"pointing {draw.pick(('', 'to the '))}{turn}" if turn in ("left", "right") else f"pointing {turn}"
    testpoints = [
        exists("Action - State", f"{form} pointing {turn}", form=form, detail=turn),
        exists("Attribute - Color", f"{colour} {form}", form=form, colour=colour),
    ]
    prompt = a(f"{colour} {form} {words}")
    if draw.chance(0.3):
        return Item(prompt, scene_of(draw, *put([pointer], [draw.near((32, 32), 10)])), tuple(testpoints))
    shape = draw.shape(forms=[other for other in SHAPES if other != form], avoid=(colour,))
    things = put([replace(pointer, size="medium"), shape], draw.two_places())
    return Item(f"{prompt} and {coloured(shape)}", scene_of(draw, *things), (*testpoints, looks(shape)))


def action_touching(draw: Draw) -> Item:
    """Two shapes that touch."""
    solid = ("circle", "square")
    first = draw.shape(forms=solid)
    second = draw.shape(forms=solid, avoid=(first.colour,))
    half = {"circle": 1.0, "square": 0.9}
    reach = [half[thing.form] * thing.radius for thing in (first, second)]
    x, y = draw.near((32, 32), 8)
    # The jitter of places parts them, or lets them overlap, by a pixel or so.
    ends = (-reach[0] + 0.2, reach[1] - 0.2)
    places = [(x + end, y) for end in ends] if draw.chance(0.5) else [(x, y + end) for end in ends]
    things = put([first, second], places)
    verb = draw.pick(("touching", "leaning against", "in contact with"))
    touch = related("Action - Contact Interaction", first, "touching", second, f"{first.form} touching {second.form}")
    prompt = f"{coloured(first)} {verb} {coloured(second)}"
    return Item(prompt, scene_of(draw, *things), (touch, looks(first), looks(second)))
