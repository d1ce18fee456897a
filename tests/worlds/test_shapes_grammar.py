"""The grammar: what it says, what it shows, what it keeps out of training, and how a scene is broken."""

from __future__ import annotations

import json
import random

import pytest

from flowrl.errors import UserError
from flowrl.worlds.shapes.grammar import MAX_TOKENS, SENTENCES, corrupt, sample_item, vocabulary
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS, Item, Scene, Testpoint, is_held_out
from flowrl.worlds.shapes.truth import degrees
from flowrl.worlds.shapes.words import tokens

UNIGENBENCH = {
    "Style",
    "World Knowledge",
    "Attribute - Color",
    "Attribute - Quantity",
    "Attribute - Shape",
    "Attribute - Size",
    "Action - Contact Interaction",
    "Action - Full-body (Character/Anthropomorphic)",
    "Action - Hand (Character/Anthropomorphic)",
    "Action - State",
    "Compound - Feature Matching",
    "Compound - Imagination",
    "Entity Layout - Two-Dimensional Space",
    "Grammar - Consistency",
    "Grammar - Negation",
    "Grammar - Pronoun Reference",
    "Logical Reasoning",
    "Relationship - Comparison",
    "Relationship - Composition",
    "Relationship - Inclusion",
    "Relationship - Similarity",
    "Text Generation",
}


def items(split: str, dimension: str, count: int = 150) -> list[Item]:
    rng = random.Random(f"{split} {dimension}")
    return [sample_item(rng, split=split, dimension=dimension) for _ in range(count)]  # type: ignore[arg-type]


def has_held_out(scene: Scene) -> bool:
    return any(
        is_held_out(thing.form, thing.detail, colour)
        for thing in scene.things
        for colour in (thing.colour, thing.second)
    )


@pytest.mark.parametrize("dimension", PRIMARY_DIMENSIONS)
@pytest.mark.parametrize("split", ["train", "test"])
class TestItems:
    def test_the_scene_shows_what_the_prompt_asks(self, split: str, dimension: str) -> None:
        for item in items(split, dimension):
            assert min(degrees(item.scene, item.testpoints)) > 0.95, item

    def test_testpoints_are_few_and_carry_unigenbench_names(self, split: str, dimension: str) -> None:
        for item in items(split, dimension):
            assert 1 <= len(item.testpoints) <= 4
            assert {testpoint.name for testpoint in item.testpoints} <= UNIGENBENCH
            assert any(testpoint.primary == dimension for testpoint in item.testpoints)

    def test_prompts_are_short_and_in_the_vocabulary(self, split: str, dimension: str) -> None:
        known = set(vocabulary())
        for item in items(split, dimension):
            words = tokens(item.prompt)
            assert len(words) <= MAX_TOKENS
            assert set(words) <= known

    def test_combinations_of_colour_and_form_are_held_out(self, split: str, dimension: str) -> None:
        for item in items(split, dimension):
            assert has_held_out(item.scene) == (split == "test"), item

    def test_corruption_breaks_exactly_one_testpoint(self, split: str, dimension: str) -> None:
        rng = random.Random(0)
        for item in items(split, dimension, 60):
            scene = corrupt(item, rng)
            holds = [degree >= 0.5 for degree in degrees(scene, item.testpoints)]
            assert holds.count(False) == 1, (item, scene)
            assert split == "test" or not has_held_out(scene)

    def test_every_testpoint_can_be_the_broken_one(self, split: str, dimension: str) -> None:
        rng = random.Random(1)
        tries, failures = 0, 0
        for item in items(split, dimension, 60):
            for target in range(len(item.testpoints)):
                tries += 1
                try:
                    scene = corrupt(item, rng, target)
                except ValueError:
                    failures += 1
                    continue
                assert degrees(scene, item.testpoints)[target] < 0.5
        assert failures <= 0.05 * tries

    def test_json_round_trip(self, split: str, dimension: str) -> None:
        for item in items(split, dimension, 30):
            assert Scene.from_json(json.loads(json.dumps(item.scene.to_json()))) == item.scene
            for testpoint in item.testpoints:
                assert Testpoint.from_json(json.loads(json.dumps(testpoint.to_json()))) == testpoint


def test_the_ten_primary_dimensions_have_sentences() -> None:
    assert tuple(SENTENCES) == PRIMARY_DIMENSIONS
    assert len(PRIMARY_DIMENSIONS) == 10


def test_the_seed_decides_the_item() -> None:
    assert sample_item(random.Random(3)) == sample_item(random.Random(3))
    assert sample_item(random.Random(3)) != sample_item(random.Random(4))


def test_an_unknown_dimension_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'Grammar'"):
        sample_item(random.Random(0), dimension="Gramar")


def test_the_vocabulary_is_small_and_survives_lower_case() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) <= 400
    assert len({word.lower() for word in words}) == len(words)


def test_no_prompt_of_one_split_can_be_drawn_in_the_other() -> None:
    for dimension in PRIMARY_DIMENSIONS:
        train, test = ({item.prompt for item in items(split, dimension, 1500)} for split in ("train", "test"))
        assert not train & test
