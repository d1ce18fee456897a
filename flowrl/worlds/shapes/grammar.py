"""The grammar of the shapes world: a random prompt with a scene that shows it and testpoints that ask for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.worlds.shapes import looks, relations, riddles
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.draw import Draw, Split
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS, Item, Testpoint
from flowrl.worlds.shapes.vocabulary import vocabulary

__all__ = ["MAX_TOKENS", "SENTENCES", "corrupt", "sample_item", "vocabulary"]

Sentence = Callable[[Draw], Item]

# A sentence that stands twice is drawn twice as often.
SENTENCES: Mapping[str, tuple[Sentence, ...]] = {
    "Style": (looks.style_of_one, looks.style_of_two),
    "World Knowledge": (
        *(riddles.world_colour, riddles.world_shape, riddles.world_background) * 3,
        riddles.world_traffic_light,
        riddles.world_flag,
    ),
    "Attribute": (looks.attribute_size, looks.attribute_looks, looks.attribute_quantity),
    "Action": (looks.action_person, looks.action_pointing, looks.action_touching),
    "Relationship": (
        relations.relation_place,
        relations.relation_inside,
        relations.relation_comparison,
        relations.relation_similarity,
    ),
    "Logical Reasoning": (riddles.logic_sum, riddles.logic_riddle, riddles.logic_odd_one, riddles.logic_twice),
    "Grammar": (
        riddles.grammar_nothing,
        riddles.grammar_not,
        riddles.grammar_pronoun,
        riddles.grammar_it,
        riddles.grammar_all,
    ),
    "Compound": (relations.compound_features, relations.compound_halves),
    "Entity Layout": (relations.layout_position, relations.layout_arrangement, relations.layout_order),
    "Text Generation": (relations.text_one, relations.text_two),
}
_TRAIN_ONLY = (riddles.world_flag,)  # a flag has no combination that could be held out

MAX_TOKENS = 30
_MAX_TESTPOINTS = 4
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ")


def sample_item(rng: random.Random, *, split: Split = "train", dimension: str | None = None) -> Item:
    """A random item, of one primary dimension or of any.

    In the train split no thing has a held-out combination of colour and form (``scene.is_held_out``); in the test split
    at least one has. Raises UserError where the dimension is unknown.
    """
    if dimension is None:
        dimension = PRIMARY_DIMENSIONS[rng.randrange(len(PRIMARY_DIMENSIONS))]
    elif dimension not in SENTENCES:
        hint = did_you_mean(dimension, SENTENCES)
        raise UserError(f"unknown dimension {dimension!r}{hint} (allowed: {listing(SENTENCES)})")
    draw = Draw(rng, split)
    return _finish(draw, draw.pick(_sentences(dimension, split))(draw))


@lru_cache
def _sentences(dimension: str, split: Split) -> tuple[Sentence, ...]:
    return tuple(sentence for sentence in SENTENCES[dimension] if split == "train" or sentence not in _TRAIN_ONLY)


def _finish(draw: Draw, item: Item) -> Item:
    """The item with an opening and, now and then, a word on the background."""
    prompt, scene, testpoints = item
    if scene.flag or "flag" in prompt:
        return item
    if not prompt.startswith(("from left", "from top", "there is")):
        prompt = draw.pick(_OPENINGS) + prompt
    if draw.chance(0.3) and len(testpoints) < _MAX_TESTPOINTS and "background" not in prompt:
        prompt = f"{prompt}, on a {scene.background} background"
        check = {"kind": "background", "is": scene.background}
        testpoints = (*testpoints, Testpoint("Attribute - Color", f"{scene.background} background", check))
    return Item(prompt, scene, testpoints)
