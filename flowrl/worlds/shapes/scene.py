"""What a picture of the shapes world holds, what is asked of it, and the fixed lists of words both are made of.

Lengths are pixels of the 64 x 64 canvas; x runs right, y runs down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

CANVAS = 64

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
BACKGROUNDS = ("white", "grey", "black")
STYLES = ("flat", "outline", "striped", "pastel")
SHAPES = ("circle", "square", "triangle", "cross", "star")
DIRECTIONS = ("up", "right", "down", "left")
POSES = ("arms up", "arms out", "arms down", "lying")
LETTERS = ("C", "E", "H", "K", "L", "T", "U", "X", "Y", "Z")
SIZES = ("small", "medium", "large")

DETAILS: Mapping[str, tuple[str, ...]] = {
    "circle": ("",),
    "square": ("",),
    "triangle": DIRECTIONS,
    "cross": ("",),
    "star": ("",),
    "arrow": DIRECTIONS,
    "person": POSES,
    "letter": LETTERS,
}
"""Form -> what sets its members apart: where it points, its pose, which letter."""

FORMS = tuple(DETAILS)

RADIUS: Mapping[str, Mapping[str, float]] = {
    **{shape: {"small": 6.0, "medium": 8.0, "large": 13.0} for shape in SHAPES},
    "arrow": {"small": 9.0, "medium": 11.0, "large": 15.0},
    "person": {"small": 14.0, "medium": 17.0, "large": 22.0},
    "letter": {"small": 11.0, "medium": 13.0, "large": 18.0},
}
"""Half extent in pixels, by form and size."""

FLAGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "france": ("columns", ("blue", "white", "red")),
    "italy": ("columns", ("green", "white", "red")),
    "nigeria": ("columns", ("green", "white", "green")),
    "mali": ("columns", ("green", "yellow", "red")),
    "germany": ("rows", ("black", "red", "yellow")),
    "austria": ("rows", ("red", "white", "red")),
    "netherlands": ("rows", ("red", "white", "blue")),
    "poland": ("rows", ("white", "red")),
    "ukraine": ("rows", ("blue", "yellow")),
}
"""Country -> direction in which the bands follow each other and their colours; a flag fills the whole canvas."""

PRIMARY_DIMENSIONS = (
    "Style",
    "World Knowledge",
    "Attribute",
    "Action",
    "Relationship",
    "Logical Reasoning",
    "Grammar",
    "Compound",
    "Entity Layout",
    "Text Generation",
)
"""The ten primary dimensions of UniGenBench++."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a scene.

    ``second`` is the colour of the other half of a two-coloured circle or square; then ``detail`` says on which side
    the first colour is: ``left`` or ``top``. Where ``style`` is empty it is the scene's.

    >>> Thing("circle", "red", 20.0, 32.0).radius
    8.0
    """

    form: str
    colour: str
    x: float
    y: float
    size: str = "medium"
    detail: str = ""
    second: str = ""
    style: str = ""

    @property
    def radius(self) -> float:
        """Half extent in pixels."""
        return RADIUS[self.form][self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture in words: things in drawing order on a plain background, or the flag of a country.

    >>> Scene.from_json(Scene("white", (Thing("star", "blue", 32.0, 32.0),)).to_json()).things[0].form
    'star'
    """

    background: str
    things: tuple[Thing, ...] = ()
    style: str = "flat"
    flag: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; defaults of a thing are left out."""
        things = [
            {f.name: value for f in fields(Thing) if (value := getattr(thing, f.name)) != f.default}
            for thing in self.things
        ]
        return {"background": self.background, "things": things, "style": self.style, "flag": self.flag}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """The inverse of ``to_json``."""
        things = tuple(Thing(**thing) for thing in data["things"])
        return cls(data["background"], things, data["style"], data["flag"])


@dataclass(frozen=True, slots=True)
class Testpoint:
    """One thing that the judge looks for: a sub-dimension's name, words for people, and a check for the judge.

    ``check`` is a JSON object with a ``kind``; ``flowrl.worlds.shapes.checks`` gives its meaning.

    >>> Testpoint("Attribute - Color", "red circle", {"kind": "exists", "colour": "red"}).primary
    'Attribute'
    """

    __test__ = False  # pytest collects classes by the prefix of their name

    name: str
    description: str
    check: Mapping[str, Any]

    @property
    def primary(self) -> str:
        """The primary dimension: the name before " - "."""
        return self.name.split(" - ")[0]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "description": self.description, "check": dict(self.check)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Testpoint:
        """The inverse of ``to_json``."""
        return cls(data["name"], data["description"], data["check"])


class Item(NamedTuple):
    """A prompt, a scene that shows it, and what the judge is asked about it."""

    prompt: str
    scene: Scene
    testpoints: tuple[Testpoint, ...]


def is_held_out(form: str, detail: str, colour: str) -> bool:
    """Whether this combination of colour and form is kept out of training: one colour per form (letter, pose, ...).

    >>> [colour for colour in COLOURS if is_held_out("circle", "", colour)]
    ['cyan']
    """
    key = {"letter": detail, "person": detail, "arrow": detail}.get(form, form)
    return COLOURS[_HELD_OUT_COLOUR[key]] == colour


# Steps of 5 through the colours visit all six. The start leaves in training what the world knows: the red circle of
# the Japanese flag, the three circles of a traffic light.
_HELD_OUT_COLOUR = {
    key: (3 + 5 * index) % len(COLOURS) for index, key in enumerate((*SHAPES, *DIRECTIONS, *POSES, *LETTERS))
}
