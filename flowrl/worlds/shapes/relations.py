"""Sentences on relations, compounds, layout and text. Each function draws a scene and says it in English."""

from __future__ import annotations

from dataclasses import replace

from flowrl.worlds.shapes.draw import Draw, trained_colours
from flowrl.worlds.shapes.scene import LETTERS, SHAPES, Item, Testpoint, Thing
from flowrl.worlds.shapes.words import (
    a,
    all_are,
    coloured,
    counted,
    exists,
    looks,
    plural,
    put,
    related,
    scene_of,
    sometimes_large,
)

_RELATION_PHRASES = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_CORNERS = {
    "top left": (14.0, 14.0),
    "top right": (50.0, 14.0),
    "bottom left": (14.0, 50.0),
    "bottom right": (50.0, 50.0),
}
_SIDES = {"left": (14.0, 32.0), "right": (50.0, 32.0), "top": (32.0, 14.0), "bottom": (32.0, 50.0)}
_ACROSS = {
    "top left": "bottom right",
    "bottom right": "top left",
    "top right": "bottom left",
    "bottom left": "top right",
    "left": "right",
    "right": "left",
    "top": "bottom",
    "bottom": "top",
}


def relation_place(draw: Draw) -> Item:
    """One shape left of, right of, above or below another."""
    relation = draw.pick(tuple(_RELATION_PHRASES))
    first, second = draw.two_shapes()
    places = draw.side_by_side() if relation in ("left of", "right of") else draw.stacked()
    if relation in ("right of", "below"):
        places = places[::-1]
    things = put(sometimes_large(draw, (first, second)), places)
    words = draw.pick(_RELATION_PHRASES[relation])
    place = related("Relationship - Composition", first, relation, second, f"{words} the {second.form}")
    prompt = f"{coloured(first)} {words} {coloured(second)}"
    return Item(prompt, scene_of(draw, *things), (place, looks(first), looks(second)))


def relation_inside(draw: Draw) -> Item:
    """A small shape inside a large one."""
    outer = draw.shape("large", forms=("circle", "square"))
    inner = draw.shape("small", forms=("circle", "square", "triangle"), avoid=(outer.colour,))
    x, y = draw.near((32, 32), 9)
    inner, outer = put([inner, outer], [draw.near((x, y), 0.5), (x, y)])
    check = {"kind": "relation", "a": {"colour": inner.colour}, "b": {"colour": outer.colour}, "is": "inside"}
    inside = Testpoint("Relationship - Inclusion", f"{inner.form} inside the {outer.form}", check)
    words = draw.pick(("inside", "within", "in the middle of"))
    prompt = f"{coloured(inner)} {words} {coloured(outer)}"
    return Item(prompt, scene_of(draw, outer, inner), (inside, looks(inner), looks(outer)))


def relation_comparison(draw: Draw) -> Item:
    """One shape larger or smaller than another."""
    larger = draw.chance(0.5)
    first, second = draw.two_shapes()
    sizes = ("large", draw.pick(("small", "medium")))
    first, second = (
        replace(thing, size=size) for thing, size in zip((first, second), sizes if larger else sizes[::-1], strict=True)
    )
    things = put([first, second], draw.two_places())
    word = draw.pick(("larger", "bigger")) if larger else "smaller"
    compared = related(
        "Relationship - Comparison",
        first,
        "larger than" if larger else "smaller than",
        second,
        f"{word} than the {second.form}",
    )
    verb = draw.pick(("that is ", ""))
    prompt = f"{coloured(first)} {verb}{word} than {coloured(second)}"
    return Item(prompt, scene_of(draw, *things), (compared, looks(first), looks(second)))


def relation_similarity(draw: Draw) -> Item:
    """Two shapes that share a colour, differ in colour, or share a form."""
    case = draw.pick(("same colour", "other colour", "same form"))
    first = draw.shape()
    forms = [form for form in SHAPES if form != first.form and first.colour in trained_colours(form, "")]
    second = draw.shape(forms=forms, avoid=(first.colour,))
    ends = {"a": {"form": first.form}, "b": {"form": second.form}}
    if case == "same form":
        second = draw.shape(forms=(first.form,), avoid=(first.colour,))
        ends = {"a": {"colour": first.colour}, "b": {"colour": second.colour}}
        words = f"{a(second.colour)} {draw.pick(('shape', 'thing'))} of the same shape"
    elif case == "same colour":
        second = replace(second, colour=first.colour)
        words = f"{a(second.form)} of the same colour"
    else:
        words = f"{a(second.form)} of a different colour"
    things = put(sometimes_large(draw, (first, second)), draw.two_places())
    similar = Testpoint("Relationship - Similarity", words, {"kind": "relation", **ends, "is": case})
    return Item(f"{coloured(first)} and {words}", scene_of(draw, *things), (similar, looks(first)))


def compound_features(draw: Draw) -> Item:
    """Two shapes, each with its own size and colour."""
    sizes = draw.pick((("small", "large"), ("large", "small"), ("small", "small")))
    first, second = (replace(thing, size=size) for thing, size in zip(draw.two_shapes(), sizes, strict=True))
    things = put([first, second], draw.two_places())
    names = [f"{thing.size} {thing.colour} {thing.form}" for thing in things]
    testpoints = tuple(
        exists("Compound - Feature Matching", name, form=thing.form, colour=thing.colour, size=thing.size)
        for thing, name in zip(things, names, strict=True)
    )
    return Item(
        f"{a(names[0])} {draw.pick(('and', 'with', 'next to'))} {a(names[1])}", scene_of(draw, *things), testpoints
    )


def compound_halves(draw: Draw) -> Item:
    """A shape of two colours, sometimes with a plain one beside it."""
    form = draw.pick(("circle", "square"))
    first = draw.colour(form)
    second = draw.colour(form, avoid=(first,))
    side = draw.pick(("left", "top"))
    others = {"left": ("left", "right"), "top": ("top", "bottom")}[side]
    prompt = draw.pick(
        (
            f"{a(form)} whose {others[0]} half is {first} and whose {others[1]} half is {second}",
            f"{a(form)}, half {first} and half {second}, {first} {'at the top' if side == 'top' else 'on the left'}",
        )
    )
    check = {"kind": "halves", "form": form, "first": first, "second": second, "side": side}
    testpoints = [Testpoint("Compound - Imagination", f"half {first}, half {second} {form}", check)]
    whole = Thing(form, first, 32.0, 32.0, "large", side, second)
    if draw.chance(0.3):
        return Item(prompt, scene_of(draw, *put([whole], [draw.near((32, 32), 8)])), tuple(testpoints))
    shape = draw.shape(forms=[other for other in SHAPES if other != form], avoid=(first, second))
    things = put([whole, shape], draw.two_places())
    return Item(f"{prompt}, and {coloured(shape)}", scene_of(draw, *things), (*testpoints, looks(shape)))


def layout_position(draw: Draw) -> Item:
    """A shape in a corner, at a side or in the centre, sometimes with one across from it."""
    at = draw.pick((*_CORNERS, *_SIDES, "centre"))
    if at == "centre":
        (thing,) = put(sometimes_large(draw, [draw.shape()]), [draw.near((32, 32), 2)])
        return Item(f"{coloured(thing)} {_at(at)}", scene_of(draw, thing), (_position(thing, at), looks(thing)))
    spots = _CORNERS | _SIDES
    first, second = draw.two_shapes(other_form=True)
    if draw.chance(0.4):
        (thing,) = put([first], [draw.near(spots[at], 2)])
        return Item(f"{coloured(thing)} {_at(at)}", scene_of(draw, thing), (_position(thing, at), looks(thing)))
    opposite = _ACROSS[at]
    first, second = put([first, second], [draw.near(spots[at], 2), draw.near(spots[opposite], 2)])
    testpoints = (_position(first, at), looks(first), looks(second))
    if draw.chance(0.5):
        return Item(f"{coloured(first)} {_at(at)} and {coloured(second)}", scene_of(draw, first, second), testpoints)
    prompt = f"{coloured(first)} {_at(at)} and {coloured(second)} {_at(opposite)}"
    both = (testpoints[0], _position(second, opposite), *testpoints[1:])
    return Item(prompt, scene_of(draw, first, second), both)


def _at(place: str) -> str:
    if place == "centre":
        return "in the centre"
    if " " in place:
        return f"in the {place} corner"
    return f"at the {place}" if place in ("top", "bottom") else f"on the {place} side"


def _position(thing: Thing, at: str) -> Testpoint:
    check = {"kind": "position", "form": thing.form, "at": at}
    return Testpoint("Entity Layout - Two-Dimensional Space", f"{thing.form} {_at(at)}", check)


def layout_arrangement(draw: Draw) -> Item:
    """Two or three equal shapes in a row, a column or a diagonal."""
    thing, number = draw.shape(), draw.pick((2, 3, 3))
    direction = draw.pick(("row", "column", "diagonal"))
    things = put([thing] * number, draw.line(number, direction))
    words = {
        "row": ("in a row", "in a horizontal line"),
        "column": ("in a column", "in a vertical line"),
        "diagonal": ("on a diagonal", "in a diagonal line"),
    }[direction]
    check = {"kind": "arrangement", "form": thing.form, "n": number, "is": direction}
    testpoints = (
        Testpoint("Entity Layout - Two-Dimensional Space", f"{plural(thing.form)} in a {direction}", check),
        all_are("Attribute - Color", thing.form, thing.colour),
    )
    prompt = f"{counted(number, thing.colour, thing.form)} {draw.pick(words)}"
    return Item(prompt, scene_of(draw, *things), testpoints)


def layout_order(draw: Draw) -> Item:
    """Three different shapes, in order from left to right or from top to bottom."""
    axis = draw.pick(("x", "y"))
    forms = draw.several(SHAPES, 3)
    things: list[Thing] = []
    for form in forms:
        things.append(draw.shape(forms=(form,), avoid=[thing.colour for thing in things]))
    placed = put(things, draw.line(3, "row" if axis == "x" else "column"))
    words = "from left to right" if axis == "x" else "from top to bottom"
    check = {"kind": "order", "axis": axis, "of": [{"form": form} for form in forms]}
    colours = {"kind": "all", "of": [dict(looks(thing).check) for thing in things]}
    names = [f"{thing.colour} {thing.form}" for thing in things]
    testpoints = (
        Testpoint("Entity Layout - Two-Dimensional Space", f"{words}: {', '.join(forms)}", check),
        Testpoint("Attribute - Color", ", ".join(names), colours),
    )
    return Item(f"{words}: {a(names[0])}, {a(names[1])}, {a(names[2])}", scene_of(draw, *placed), testpoints)


def text_one(draw: Draw) -> Item:
    """One letter, sometimes with a shape beside it."""
    letter = draw.pick(LETTERS)
    colour = draw.colour("letter", letter)
    glyph = Thing("letter", colour, 32.0, 32.0, "large", letter)
    prompt = draw.pick(
        (f'the letter "{letter}" in {colour}', f'a {colour} letter "{letter}"', f'a sign with a {colour} "{letter}"')
    )
    testpoints = [_text(letter), exists("Attribute - Color", f"{colour} letter", form="letter", colour=colour)]
    if draw.chance(0.3):
        return Item(prompt, scene_of(draw, *put([glyph], [draw.near((32, 32), 8)])), tuple(testpoints))
    shape = draw.shape(avoid=(colour,))
    things = put([replace(glyph, size="medium"), shape], draw.two_places())
    prompt = f"{prompt} {draw.pick(('next to', 'beside', 'and'))} {coloured(shape)}"
    return Item(prompt, scene_of(draw, *things), (*testpoints, looks(shape)))


def text_two(draw: Draw) -> Item:
    """Two letters of one colour, side by side."""
    first, second = draw.several(LETTERS, 2)
    colour = draw.colour("letter", first)
    while colour not in trained_colours("letter", second):
        second = draw.pick([letter for letter in LETTERS if letter != first])
    letters = [Thing("letter", colour, 32.0, 32.0, "medium", letter) for letter in (first, second)]
    things = put(letters, draw.side_by_side())
    prompt = draw.pick(
        (
            f'the letters "{first} {second}" in {colour}',
            f'{colour} letters that read "{first} {second}"',
            f'a sign that says "{first} {second}" in {colour}',
        )
    )
    every = {"kind": "every", "of": {"form": "letter"}, "is": {"colour": colour}}
    return Item(
        prompt,
        scene_of(draw, *things),
        (_text(first + second), Testpoint("Attribute - Color", f"{colour} letters", every)),
    )


def _text(text: str) -> Testpoint:
    return Testpoint("Text Generation", f'the text "{text}"', {"kind": "text", "text": text})
