"""English for things, and the testpoints that most sentences share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowrl.worlds.shapes.draw import Draw, Place
from flowrl.worlds.shapes.scene import Scene, Testpoint, Thing

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


def tokens(prompt: str) -> list[str]:
    """The words and punctuation marks of a prompt.

    >>> tokens('the letter "H", in red')
    ['the', 'letter', '"', 'H', '"', ',', 'in', 'red']
    """
    return _TOKEN.findall(prompt)


def a(phrase: str) -> str:
    """The phrase with its article.

    >>> a("arrow"), a("red star")
    ('an arrow', 'a red star')
    """
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def plural(form: str) -> str:
    """The plural of a form: circles, crosses."""
    return f"{form}es" if form.endswith("s") else f"{form}s"


def counted(number: int, colour: str, form: str) -> str:
    """Number, colour and noun: "one red star", "two red stars"."""
    return f"{NUMBERS[number]} {colour} {form if number == 1 else plural(form)}"


def coloured(thing: Thing) -> str:
    """Colour and form with their article: "a red circle"."""
    return a(f"{thing.colour} {thing.form}")


def put(things: Sequence[Thing], places: Sequence[Place]) -> tuple[Thing, ...]:
    """The things at the places."""
    return tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(things, places, strict=True))


def scene_of(draw: Draw, *things: Thing, style: str = "flat") -> Scene:
    """The things on a plain background of any kind; the first is drawn first."""
    return Scene(draw.background(), things, style)


def pick_out(thing: Thing, other: Thing) -> dict[str, str]:
    """What tells a thing from another one: its form, or its colour where the forms are equal."""
    return {"form": thing.form} if thing.form != other.form else {"colour": thing.colour}


def exists(name: str, description: str, **want: Any) -> Testpoint:
    """A testpoint: such a thing exists."""
    return Testpoint(name, description, {"kind": "exists", **want})


def looks(thing: Thing) -> Testpoint:
    """A testpoint: a thing of this form and colour exists."""
    return exists("Attribute - Color", f"{thing.colour} {thing.form}", form=thing.form, colour=thing.colour)


def has_colour(thing: Thing, name: str = "Attribute - Color") -> Testpoint:
    """A testpoint: something has the colour of the thing, whatever its form."""
    return exists(name, thing.colour, colour=thing.colour)


def has_form(thing: Thing, name: str = "Attribute - Shape") -> Testpoint:
    """A testpoint: something has the form of the thing, whatever its colour."""
    return exists(name, thing.form, form=thing.form)


def is_many(name: str, form: str, number: int) -> Testpoint:
    """A testpoint: exactly this many things have this form."""
    noun = form if number == 1 else plural(form)
    return Testpoint(name, f"{NUMBERS[number]} {noun}", {"kind": "count", "form": form, "n": number})


def all_are(name: str, form: str, colour: str) -> Testpoint:
    """A testpoint: everything of this form has this colour."""
    check = {"kind": "every", "of": {"form": form}, "is": {"colour": colour}}
    return Testpoint(name, f"{colour} {plural(form)}", check)


def related(name: str, first: Thing, relation: str, second: Thing, description: str) -> Testpoint:
    """A testpoint: the first thing stands in this relation to the second."""
    ends = {"a": pick_out(first, second), "b": pick_out(second, first)}
    return Testpoint(name, description, {"kind": "relation", **ends, "is": relation})


def sometimes_large(draw: Draw, things: Sequence[Thing]) -> list[Thing]:
    """The things, one of them now and then large."""
    things = list(things)
    if draw.chance(0.3):
        index = int(draw.random() * len(things))
        things[index] = replace(things[index], size="large")
    return things
