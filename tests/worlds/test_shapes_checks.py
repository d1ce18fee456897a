"""What checks mean, on scenes written by hand: truth first, then the same from pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowrl.worlds.shapes.checks import evaluate
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Scene, Testpoint, Thing
from flowrl.worlds.shapes.truth import picture_of

RED_LEFT = Scene("white", (Thing("circle", "red", 17, 32), Thing("square", "blue", 47, 32, "large")))
NESTED = Scene("grey", (Thing("circle", "yellow", 32, 32, "large"), Thing("star", "blue", 32, 32, "small")))
COLUMN = Scene(
    "black", tuple(Thing("cross", colour, 32, y) for colour, y in (("red", 11), ("blue", 32), ("green", 53)))
)
DIAGONAL = Scene("white", tuple(Thing("square", "red", k, k) for k in (12, 32, 52)))
HALVES = Scene("white", (Thing("circle", "red", 32, 32, "large", "left", "blue"),))
LETTERS = Scene("white", (Thing("letter", "red", 17, 32, "medium", "H"), Thing("letter", "red", 47, 32, "medium", "T")))
TOUCHING = Scene("white", (Thing("square", "red", 24, 32), Thing("square", "green", 38.4, 32)))
PERSON = Scene("white", (Thing("person", "red", 32, 32, "large", "arms up"),))
ARROW = Scene("white", (Thing("arrow", "red", 32, 32, "large", "left"),))
CORNER = Scene("white", (Thing("star", "green", 50, 14),))
STRIPED = Scene("white", (Thing("star", "green", 32, 32, "large"),), "striped")
FRANCE = Scene("white", flag="france")
NO_STAR = {"kind": "absent", "form": "star"}

CASES: list[tuple[Scene, dict[str, Any], bool]] = [
    (RED_LEFT, {"kind": "exists", "form": "circle", "colour": "red"}, True),
    (RED_LEFT, {"kind": "exists", "form": "circle", "colour": "blue"}, False),
    (RED_LEFT, {"kind": "exists", "form": "square", "size": "large"}, True),
    (RED_LEFT, {"kind": "exists", "form": "square", "size": "small"}, False),
    (RED_LEFT, {"kind": "absent", "colour": "green"}, True),
    (RED_LEFT, {"kind": "absent", "colour": "red"}, False),
    (RED_LEFT, {"kind": "every", "of": {}, "is": {"colour": "red"}}, False),
    (RED_LEFT, {"kind": "every", "of": {"form": "circle"}, "is": {"not_colour": "blue"}}, True),
    (RED_LEFT, {"kind": "every", "of": {"form": "star"}, "is": {"colour": "red"}}, False),
    (RED_LEFT, {"kind": "count", "form": "circle", "n": 1}, True),
    (RED_LEFT, {"kind": "count", "form": "circle", "n": 2}, False),
    (RED_LEFT, {"kind": "relation", "a": {"form": "circle"}, "b": {"form": "square"}, "is": "left of"}, True),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "left of"}, False),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "right of"}, True),
    (RED_LEFT, {"kind": "relation", "a": {"form": "circle"}, "b": {"form": "square"}, "is": "above"}, False),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "larger than"}, True),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "smaller than"}, False),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "same colour"}, False),
    (RED_LEFT, {"kind": "relation", "a": {"form": "square"}, "b": {"form": "circle"}, "is": "other colour"}, True),
    (RED_LEFT, {"kind": "relation", "a": {"colour": "red"}, "b": {"colour": "blue"}, "is": "same form"}, False),
    (RED_LEFT, {"kind": "relation", "a": {"colour": "red"}, "b": {"colour": "blue"}, "is": "touching"}, False),
    (RED_LEFT, {"kind": "background", "is": "white"}, True),
    (RED_LEFT, {"kind": "background", "is": "black"}, False),
    (NESTED, {"kind": "relation", "a": {"form": "star"}, "b": {"form": "circle"}, "is": "inside"}, True),
    (NESTED, {"kind": "relation", "a": {"form": "circle"}, "b": {"form": "star"}, "is": "inside"}, False),
    (COLUMN, {"kind": "arrangement", "form": "cross", "n": 3, "is": "column"}, True),
    (COLUMN, {"kind": "arrangement", "form": "cross", "n": 3, "is": "row"}, False),
    (COLUMN, {"kind": "arrangement", "form": "cross", "n": 3, "is": "diagonal"}, False),
    (COLUMN, {"kind": "order", "axis": "y", "of": [{"colour": c} for c in ("red", "blue", "green")]}, True),
    (COLUMN, {"kind": "order", "axis": "y", "of": [{"colour": c} for c in ("blue", "red", "green")]}, False),
    (DIAGONAL, {"kind": "arrangement", "form": "square", "n": 3, "is": "diagonal"}, True),
    (DIAGONAL, {"kind": "relation", "a": {"colour": "red"}, "b": {"colour": "red"}, "is": "above"}, True),
    (HALVES, {"kind": "halves", "form": "circle", "first": "red", "second": "blue", "side": "left"}, True),
    (HALVES, {"kind": "halves", "form": "circle", "first": "blue", "second": "red", "side": "left"}, False),
    (HALVES, {"kind": "halves", "form": "circle", "first": "red", "second": "blue", "side": "top"}, False),
    (HALVES, {"kind": "halves", "form": "square", "first": "red", "second": "blue", "side": "left"}, False),
    (LETTERS, {"kind": "text", "text": "HT"}, True),
    (LETTERS, {"kind": "text", "text": "TH"}, False),
    (LETTERS, {"kind": "text", "text": "H"}, False),
    (TOUCHING, {"kind": "relation", "a": {"colour": "red"}, "b": {"colour": "green"}, "is": "touching"}, True),
    (PERSON, {"kind": "exists", "form": "person", "detail": "arms up"}, True),
    (PERSON, {"kind": "exists", "form": "person", "detail": "arms out"}, False),
    (ARROW, {"kind": "exists", "form": "arrow", "detail": "left"}, True),
    (ARROW, {"kind": "exists", "form": "arrow", "detail": "right"}, False),
    (CORNER, {"kind": "position", "form": "star", "at": "top right"}, True),
    (CORNER, {"kind": "position", "form": "star", "at": "top left"}, False),
    (CORNER, {"kind": "position", "form": "star", "at": "centre"}, False),
    (STRIPED, {"kind": "style", "is": "striped"}, True),
    (STRIPED, {"kind": "style", "is": "pastel"}, False),
    (FRANCE, {"kind": "flag", "country": "france"}, True),
    (FRANCE, {"kind": "flag", "country": "italy"}, False),
    (RED_LEFT, {"kind": "flag", "country": "france"}, False),
    (RED_LEFT, {"kind": "all", "of": [NO_STAR, {"kind": "exists", "colour": "red"}]}, True),
    (
        RED_LEFT,
        {"kind": "all", "of": [{"kind": "absent", "form": "star"}, {"kind": "exists", "colour": "cyan"}]},
        False,
    ),
]


@pytest.mark.parametrize(("scene", "check", "holds"), CASES)
def test_of_scene_and_of_its_picture(scene: Scene, check: dict[str, Any], holds: bool) -> None:
    assert (evaluate(check, picture_of(scene)).degree >= 0.5) == holds
    image = torch.from_numpy(render(scene, np.random.default_rng(0))).permute(2, 0, 1)[None] / 255
    assert judge(image, [[Testpoint("Style", "", check)]]).satisfied == [[int(holds)]]


def test_nothing_holds_of_an_empty_picture() -> None:
    empty = picture_of(Scene("white"))
    for check in ({"kind": "absent", "colour": "red"}, {"kind": "background", "is": "white"}):
        assert evaluate(check, empty) == (0, 0)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError, match="shiny"):
        evaluate({"kind": "shiny"}, picture_of(RED_LEFT))
