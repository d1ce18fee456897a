"""The prompt sets of the shapes world: train, test and benchmark. Equal on every machine."""

from __future__ import annotations

import csv
import json
import random
from functools import lru_cache
from pathlib import Path

from flowrl.seeds import derive_seed
from flowrl.types import Prompt
from flowrl.worlds.shapes.draw import Split
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS, Item, Testpoint

NUM_TRAIN, NUM_TEST, NUM_BENCH = 20_000, 400, 100


def train_prompts() -> list[Prompt]:
    """20,000 different prompts, 2,000 of each primary dimension, in random order."""
    return list(_prompts("train", "train", NUM_TRAIN))


def test_prompts() -> list[Prompt]:
    """400 different prompts, 40 of each primary dimension, each with a combination that training never shows."""
    return list(_prompts("test", "test", NUM_TEST))


def bench_prompts() -> list[Prompt]:
    """100 different prompts, 10 of each primary dimension, made like the test prompts and none of them."""
    return list(_prompts("bench", "test", NUM_BENCH, frozenset(prompt.text for prompt in test_prompts())))


# The names begin with "test", which pytest would collect.
test_prompts.__test__ = False  # type: ignore[attr-defined]


def testpoints_of(prompt: Prompt) -> tuple[Testpoint, ...]:
    """The testpoints that a prompt carries in its meta data; none where it carries none."""
    return tuple(Testpoint.from_json(testpoint) for testpoint in prompt.meta.get("testpoints", ()))


testpoints_of.__test__ = False  # type: ignore[attr-defined]


def write_bench_csv(path: Path) -> None:
    """Writes the benchmark prompts in the CSV schema of UniGenBench++: index, prompt_en, sub_dims_en (JSON)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "prompt_en", "sub_dims_en"))
        for prompt in bench_prompts():
            writer.writerow((prompt.index, prompt.text, json.dumps(_sub_dims(prompt))))


def _sub_dims(prompt: Prompt) -> dict[str, object]:
    testpoints = testpoints_of(prompt)
    forms = {thing["form"] for thing in prompt.meta["scene"]["things"]}
    return {
        "Primary Categories": "Shapes",
        "Secondary Categories": prompt.meta["dimension"],
        "Subjects": ", ".join(sorted(forms)),
        "Sentence Structure": "Descriptive",
        "Testpoints": [testpoint.name for testpoint in testpoints],
        "Testpoint Description": [testpoint.description for testpoint in testpoints],
    }


@lru_cache
def _prompts(name: str, split: Split, count: int, excluded: frozenset[str] = frozenset()) -> tuple[Prompt, ...]:
    rng = random.Random(derive_seed("shapes", name))
    taken = set(excluded)
    items: list[tuple[str, Item]] = []
    for dimension in PRIMARY_DIMENSIONS:
        wanted = len(items) + count // len(PRIMARY_DIMENSIONS)
        while len(items) < wanted:
            item = sample_item(rng, split=split, dimension=dimension)
            if item.prompt not in taken:
                taken.add(item.prompt)
                items.append((dimension, item))
    rng.shuffle(items)
    return tuple(_prompt(index, *pair) for index, pair in enumerate(items))


def _prompt(index: int, dimension: str, item: Item) -> Prompt:
    meta = {
        "testpoints": [testpoint.to_json() for testpoint in item.testpoints],
        "dimension": dimension,
        "scene": item.scene.to_json(),
    }
    return Prompt(item.prompt, index, meta)
