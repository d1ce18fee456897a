"""Sentences on knowledge, logic and grammar. Each function draws a scene and says it in English."""

from __future__ import annotations

from dataclasses import replace

from flowrl.worlds.shapes.draw import Draw, default_detail, held_out_colour, trained_colours
from flowrl.worlds.shapes.scene import COLOURS, FLAGS, SHAPES, Item, Scene, Testpoint, Thing, is_held_out
from flowrl.worlds.shapes.words import (
    NUMBERS,
    a,
    all_are,
    coloured,
    counted,
    exists,
    has_colour,
    has_form,
    is_many,
    looks,
    plural,
    put,
    related,
    scene_of,
    sometimes_large,
)

_COLOUR_OF = {
    "red": ("a ripe tomato", "blood", "a ruby", "a fire engine"),
    "yellow": ("a ripe banana", "a lemon", "a canary"),
    "green": ("fresh grass", "a frog", "an emerald"),
    "blue": ("the sea", "a sapphire", "blue jeans"),
    "purple": ("an eggplant", "lavender", "an amethyst"),
}
_SHAPE_OF = {
    "circle": ("a coin", "a full moon", "a wheel"),
    "square": ("a chess board", "one side of a die"),
    "triangle": ("a slice of pizza", "a pyramid"),
    "cross": ("a plus sign", "the sign of a hospital"),
    "star": ("a starfish", "a sheriff badge"),
}
_BACKGROUND_OF = {"white": "snow", "grey": "ashes", "black": "coal"}
_RIDDLES = {
    "circle": ("a shape without any corners", "the shape that looks the same from every side"),
    "square": ("a shape with four equal sides", "the shape with four right angles"),
    "triangle": ("a shape with three sides", "the shape with the fewest corners"),
    "cross": ("a shape of two crossing bars",),
    "star": ("a shape with five points", "the shape with five spikes"),
}
_SUMS = {
    1: ("two minus one", "three minus two", "half of two"),
    2: ("one plus one", "three minus one", "four minus two", "half of four"),
    3: ("one plus two", "two plus one", "four minus one"),
    4: ("two plus two", "one plus three", "two times two"),
}
_NUMBER_OF = {
    2: ("a person has eyes", "a bicycle has wheels"),
    3: ("a triangle has corners", "a traffic light has colours"),
    4: ("a square has sides", "a dog has legs"),
}
_TRAFFIC_LIGHT = ("red", "yellow", "green")


def _shape_of_known_colour(draw: Draw, avoid: tuple[str, ...] = ()) -> Thing:
    """A shape in a colour that something is known for."""
    thing = draw.shape(forms=[form for form in SHAPES if form != "circle"], avoid=("cyan", *avoid))
    if draw.chance(0.8) or is_held_out(thing.form, "", thing.colour):
        return thing
    return replace(thing, form="circle", detail="")


def world_colour(draw: Draw) -> Item:
    """A shape in the colour of something, sometimes with another shape."""
    thing = _shape_of_known_colour(draw)
    known = draw.pick(_COLOUR_OF[thing.colour])
    prompt = f"{a(thing.form)} {draw.pick(('in', 'with', 'that has'))} the colour of {known}"
    if draw.chance(0.4):
        (thing,) = put(sometimes_large(draw, [thing]), [draw.near((32, 32), 10)])
        first = exists("World Knowledge", f"the colour of {known}", colour=thing.colour)
        return Item(prompt, scene_of(draw, thing), (first, has_form(thing)))
    first = exists("World Knowledge", f"the colour of {known}", form=thing.form, colour=thing.colour)
    other = draw.shape(avoid=(thing.colour,))
    things = put([thing, other], draw.two_places())
    return Item(f"{prompt} and {coloured(other)}", scene_of(draw, *things), (first, looks(other)))


def world_shape(draw: Draw) -> Item:
    """Something of a colour in the shape of something."""
    thing, other = draw.two_shapes(other_form=True)
    known = draw.pick(_SHAPE_OF[thing.form])
    prompt = f"something {thing.colour} {draw.pick(('with the shape of', 'shaped like'))} {known}"
    first = has_form(thing, "World Knowledge")
    if draw.chance(0.5):
        (thing,) = put(sometimes_large(draw, [thing]), [draw.near((32, 32), 10)])
        return Item(prompt, scene_of(draw, thing), (first, has_colour(thing)))
    things = put([thing, other], draw.two_places())
    return Item(f"{prompt} and {coloured(other)}", scene_of(draw, *things), (first, has_colour(thing), looks(other)))


def world_background(draw: Draw) -> Item:
    """Shapes on a background in the colour of something."""
    background = draw.pick(tuple(_BACKGROUND_OF))
    known = _BACKGROUND_OF[background]
    things = put(sometimes_large(draw, draw.two_shapes()), draw.two_places())
    check = {"kind": "background", "is": background}
    first = Testpoint("World Knowledge", f"background in the colour of {known}", check)
    prompt = f"{coloured(things[0])} and {coloured(things[1])} on a background the colour of {known}"
    return Item(prompt, Scene(background, things), (first, *(looks(thing) for thing in things)))


def world_traffic_light(draw: Draw) -> Item:
    """Three equal shapes with the colours of a traffic light, one above the other."""
    forms = [form for form in SHAPES if (held_out_colour(form, "") in _TRAFFIC_LIGHT) == draw.owes_held_out]
    shape = draw.shape(forms=forms, avoid=[colour for colour in COLOURS if colour not in _TRAFFIC_LIGHT])
    things = put([replace(shape, colour=colour) for colour in _TRAFFIC_LIGHT], draw.line(3, "column"))
    check = {"kind": "order", "axis": "y", "of": [{"colour": colour} for colour in _TRAFFIC_LIGHT]}
    words = draw.pick(("stacked like", "with the colours of", "in the order of"))
    testpoints = (
        Testpoint("World Knowledge", "red, yellow, green from top to bottom", check),
        is_many("Attribute - Quantity", shape.form, 3),
    )
    prompt = f"a column of three {plural(shape.form)} {words} a traffic light"
    return Item(prompt, scene_of(draw, *things), testpoints)


def world_flag(draw: Draw) -> Item:
    """The flag of a country."""
    countries = (*FLAGS, "japan")
    country = draw.pick(countries)
    prompt = f"{draw.pick(('the', 'a large', 'a waving'))} flag of {country}"
    if country != "japan":
        check = {"kind": "flag", "country": country}
        return Item(prompt, Scene("white", flag=country), (Testpoint("World Knowledge", f"flag of {country}", check),))
    disc = Thing("circle", "red", *draw.near((32, 32), 1), "large")
    check = {"kind": "position", "form": "circle", "colour": "red", "at": "centre"}
    testpoints = (
        Testpoint("World Knowledge", "red disc of the flag of japan", check),
        Testpoint("World Knowledge", "white field of the flag of japan", {"kind": "background", "is": "white"}),
    )
    return Item(prompt, Scene("white", (disc,)), testpoints)


def logic_sum(draw: Draw) -> Item:
    """A number of shapes that must be worked out."""
    thing = draw.shape()
    number = draw.pick((1, 2, 3, 4))
    if number in _NUMBER_OF and draw.chance(0.4):
        words = draw.pick(_NUMBER_OF[number])
        prompt = f"as many {thing.colour} {plural(thing.form)} as {words}"
    else:
        words = draw.pick(_SUMS[number])
        prompt = f"{words} {thing.colour} {plural(thing.form)}"
    things = put([thing] * number, draw.cells(number))
    check = is_many("Logical Reasoning", thing.form, number)
    testpoints = [
        replace(check, description=f"{words}: {NUMBERS[number]}"),
        all_are("Attribute - Color", thing.form, thing.colour),
    ]
    if number < 4 and draw.chance(0.5):
        other = draw.shape(forms=[form for form in SHAPES if form != thing.form], avoid=(thing.colour,))
        things = put([*things, other], draw.cells(number + 1))
        return Item(f"{prompt} and {coloured(other)}", scene_of(draw, *things), (*testpoints, looks(other)))
    return Item(prompt, scene_of(draw, *things), tuple(testpoints))


def logic_riddle(draw: Draw) -> Item:
    """A shape that must be guessed from its geometry."""
    thing, other = draw.two_shapes(other_form=True)
    riddle = draw.pick(_RIDDLES[thing.form])
    prompt = f"{riddle}, {draw.pick(('painted', 'coloured', 'drawn in'))} {thing.colour}"
    testpoints = (exists("Logical Reasoning", riddle, form=thing.form), has_colour(thing))
    if draw.chance(0.4):
        (thing,) = put(sometimes_large(draw, [thing]), [draw.near((32, 32), 10)])
        return Item(prompt, scene_of(draw, thing), testpoints)
    things = put([thing, other], draw.two_places())
    return Item(f"{prompt}, and {coloured(other)}", scene_of(draw, *things), (*testpoints, looks(other)))


def logic_odd_one(draw: Draw) -> Item:
    """Equal shapes of one colour, but for one."""
    thing, number = draw.shape(), draw.pick((3, 4))
    odd = replace(thing, colour=draw.colour(thing.form, avoid=(thing.colour,)))
    things = put([thing] * (number - 1) + [odd], draw.cells(number))
    counts = [
        {"kind": "count", "colour": colour, "n": n} for colour, n in ((thing.colour, number - 1), (odd.colour, 1))
    ]
    words = f"all {thing.colour} except one that is {odd.colour}"
    prompt = f"{NUMBERS[number]} {plural(thing.form)}, {words}"
    testpoints = (
        Testpoint("Logical Reasoning", words, {"kind": "all", "of": counts}),
        is_many("Attribute - Quantity", thing.form, number),
    )
    return Item(prompt, scene_of(draw, *things), testpoints)


def logic_twice(draw: Draw) -> Item:
    """As many shapes of one kind as of another, or twice as many."""
    first, second = draw.two_shapes(other_form=True)
    number, ratio = draw.pick(((1, 1), (1, 2), (2, 1)))
    words = "twice as many" if ratio == 2 else "as many"
    things = put([first] * number + [second] * number * ratio, draw.cells(number * (1 + ratio)))
    prompt = f"{counted(number, first.colour, first.form)} and {words} {second.colour} {plural(second.form)}"
    count = is_many("Logical Reasoning", second.form, number * ratio)
    testpoints = (
        replace(count, description=f"{words} {plural(second.form)}"),
        all_are("Attribute - Color", second.form, second.colour),
        all_are("Attribute - Color", first.form, first.colour),
    )
    return Item(prompt, scene_of(draw, *things), testpoints)


def grammar_nothing(draw: Draw) -> Item:
    """Shapes, and a colour or a form that must not appear."""
    first, second = draw.two_shapes(other_form=True)
    things = put(sometimes_large(draw, (first, second)), draw.two_places())
    prompt = f"{coloured(first)} and {coloured(second)}"
    if draw.chance(0.5):
        banned = draw.pick([colour for colour in _COLOUR_OF if colour not in (first.colour, second.colour)])
        words, check = f"nothing {banned}", {"kind": "absent", "colour": banned}
    else:
        banned = draw.pick([form for form in SHAPES if form not in (first.form, second.form)])
        words, check = f"no {banned}", {"kind": "absent", "form": banned}
    testpoints = (Testpoint("Grammar - Negation", words, check), looks(first), looks(second))
    return Item(f"{prompt}, {draw.pick(('but', 'and'))} {words}", scene_of(draw, *things), testpoints)


def grammar_not(draw: Draw) -> Item:
    """A shape that must not have a colour, beside another shape."""
    other, thing = draw.two_shapes(other_form=True)
    banned = draw.pick([colour for colour in trained_colours(thing.form, "") if colour != thing.colour])
    things = put(sometimes_large(draw, (thing, other)), draw.two_places())
    check = {"kind": "every", "of": {"form": thing.form}, "is": {"not_colour": banned}}
    words = f"{a(thing.form)} that is not {banned}"
    testpoints = (Testpoint("Grammar - Negation", words, check), looks(other))
    return Item(f"{words} {draw.pick(('next to', 'and'))} {coloured(other)}", scene_of(draw, *things), testpoints)


def grammar_pronoun(draw: Draw) -> Item:
    """Two shapes whose colours are said later, by a pronoun."""
    first, second = draw.two_shapes(other_form=True)
    things = put(sometimes_large(draw, (first, second)), draw.two_places())
    names = f"{a(first.form)} and {a(second.form)}"
    both = f"the former is {first.colour} and the latter is {second.colour}"
    swapped = f"the latter is {second.colour} and the former is {first.colour}"
    prompt = draw.pick((f"{names}; {both}", f"{names}; {swapped}", f"there is {names}. {both}"))
    testpoints = tuple(
        exists(
            "Grammar - Pronoun Reference", f"the {thing.form} is {thing.colour}", form=thing.form, colour=thing.colour
        )
        for thing in things
    )
    return Item(prompt, scene_of(draw, *things), testpoints)


def grammar_it(draw: Draw) -> Item:
    """A shape that a second sentence speaks of as "it"."""
    first, second = draw.two_shapes(other_form=True)
    things = put(sometimes_large(draw, (first, second)), draw.stacked())
    prompt = f"there is {a(first.form)}. it is {first.colour} and it is above {coloured(second)}"
    testpoints = (
        exists("Grammar - Pronoun Reference", f"it is {first.colour}", form=first.form, colour=first.colour),
        related("Relationship - Composition", first, "above", second, f"above the {second.form}"),
        looks(second),
    )
    return Item(prompt, scene_of(draw, *things), testpoints)


def grammar_all(draw: Draw) -> Item:
    """Shapes that all share a colour."""
    thing, number = draw.shape(), draw.pick((2, 3))
    if draw.chance(0.4):
        things = put([thing] * number, draw.cells(number))
        words = "both of them" if number == 2 else "each of them"
        prompt = f"{NUMBERS[number]} {plural(thing.form)}, {words} {thing.colour}"
        count = is_many("Attribute - Quantity", thing.form, number)
        return Item(
            prompt, scene_of(draw, *things), (all_are("Grammar - Consistency", thing.form, thing.colour), count)
        )
    forms = [form for form in SHAPES if form != thing.form and thing.colour in trained_colours(form, "")]
    others = [replace(thing, form=form, detail=default_detail(form)) for form in draw.several(forms, number - 1)]
    things = put([thing, *others], draw.cells(number))
    names = [a(other.form) for other in things]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    check = {"kind": "every", "of": {}, "is": {"colour": thing.colour}}
    same = Testpoint("Grammar - Consistency", f"all {thing.colour}", check)
    shapes = (has_form(other) for other in things)
    return Item(f"{listed}, all of them {thing.colour}", scene_of(draw, *things), (same, *shapes))
