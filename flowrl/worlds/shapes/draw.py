"""Random choices for a scene: colours that respect the split, sizes, and places that keep things apart."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Literal, TypeVar

from flowrl.worlds.shapes.scene import COLOURS, DETAILS, SHAPES, Thing, is_held_out

Split = Literal["train", "test"]
Place = tuple[float, float]
T = TypeVar("T")

_BACKGROUNDS = ("white", "white", "grey", "black")
_CELLS = ((17.0, 17.0), (47.0, 17.0), (17.0, 47.0), (47.0, 47.0))


class Draw:
    """A source of choices. In the test split the first colour asked for makes a combination training never shows."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.random = rng.random
        self.owes_held_out = split == "test"

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely as any other."""
        return options[int(self.random() * len(options))]

    def several(self, options: Sequence[T], number: int) -> list[T]:
        """Different options, in random order."""
        pool = list(options)
        return [pool.pop(int(self.random() * len(pool))) for _ in range(number)]

    def chance(self, probability: float) -> bool:
        """True as often as the probability says."""
        return self.random() < probability

    def near(self, place: Place, reach: float) -> Place:
        """A place within ``reach`` pixels of another, along each axis."""
        return (
            round(place[0] + (2 * self.random() - 1) * reach, 1),
            round(place[1] + (2 * self.random() - 1) * reach, 1),
        )

    def background(self) -> str:
        """A plain background; white is the most frequent."""
        return self.pick(_BACKGROUNDS)

    def colour(self, form: str, detail: str = "", avoid: Collection[str] = ()) -> str:
        """A colour for a form."""
        if self.owes_held_out:
            held_out = held_out_colour(form, detail)
            if held_out not in avoid:
                self.owes_held_out = False
                return held_out
        allowed = trained_colours(form, detail)
        return self.pick([colour for colour in allowed if colour not in avoid] if avoid else allowed)

    def shape(self, size: str = "medium", forms: Sequence[str] = SHAPES, avoid: Collection[str] = ()) -> Thing:
        """A coloured shape at the centre; triangles point up. ``avoid`` names colours."""
        form = self.pick(forms)
        return Thing(form, self.colour(form, avoid=avoid), 32.0, 32.0, size, default_detail(form))

    def two_shapes(self, *, other_form: bool = False) -> tuple[Thing, Thing]:
        """Two shapes of different colours (and of different forms)."""
        a = self.shape()
        forms = [form for form in SHAPES if form != a.form] if other_form else SHAPES
        return a, self.shape(forms=forms, avoid=(a.colour,))

    def cells(self, number: int) -> list[Place]:
        """Up to four places, far enough apart for medium things and one large one."""
        return [self.near(cell, 1.5) for cell in self.several(_CELLS, number)]

    def side_by_side(self) -> list[Place]:
        """A left and a right place."""
        height = 32 + (2 * self.random() - 1) * 10
        return [self.near((17.0, height), 1.5), self.near((47.0, height), 1.5)]

    def stacked(self) -> list[Place]:
        """An upper and a lower place."""
        return [(y, x) for x, y in self.side_by_side()]

    def two_places(self) -> list[Place]:
        """Two places: beside, above or across from each other, in either order."""
        places = self.pick((self.side_by_side, self.stacked, lambda: self.cells(2)))()
        return places if self.chance(0.5) else places[::-1]

    def line(self, number: int, direction: str) -> list[Place]:
        """Two or three places in a row, column or diagonal, in order."""
        steps = (18.0, 46.0) if number == 2 else (11.0, 32.0, 53.0)
        if direction == "diagonal":
            falling = self.chance(0.5)
            return [self.near((step, step if falling else 64 - step), 0.5) for step in steps]
        across = 32 + (2 * self.random() - 1) * 14
        places = [self.near((step, across), 0.5) for step in steps]
        return [(y, x) for x, y in places] if direction == "column" else places


def default_detail(form: str) -> str:
    """The detail of a form that no word sets apart: triangles and arrows point up."""
    return DETAILS[form][0]


@lru_cache
def held_out_colour(form: str, detail: str) -> str:
    """The colour that training never gives this form."""
    return next(colour for colour in COLOURS if is_held_out(form, detail, colour))


@lru_cache
def trained_colours(form: str, detail: str) -> tuple[str, ...]:
    """The colours that training gives this form."""
    return tuple(colour for colour in COLOURS if not is_held_out(form, detail, colour))
