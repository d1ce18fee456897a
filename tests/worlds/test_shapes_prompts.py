"""The prompt sets: sizes, balance, uniqueness, disjointness, the CSV schema."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from pathlib import Path

from flowrl.types import Prompt
from flowrl.worlds.shapes import prompts
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS, Scene, is_held_out
from flowrl.worlds.shapes.truth import degrees


def texts(found: list[Prompt]) -> set[str]:
    return {prompt.text for prompt in found}


def has_held_out(prompt: Prompt) -> bool:
    things = Scene.from_json(prompt.meta["scene"]).things
    return any(is_held_out(thing.form, thing.detail, c) for thing in things for c in (thing.colour, thing.second))


def test_sizes_balance_and_indices() -> None:
    for found, count in (
        (prompts.train_prompts(), 20_000),
        (prompts.test_prompts(), 400),
        (prompts.bench_prompts(), 100),
    ):
        assert len(found) == len(texts(found)) == count
        assert [prompt.index for prompt in found] == list(range(count))
        balance = Counter(prompt.meta["dimension"] for prompt in found)
        assert balance == dict.fromkeys(PRIMARY_DIMENSIONS, count // 10)


def test_sets_share_no_prompt() -> None:
    train, test, bench = (
        texts(found) for found in (prompts.train_prompts(), prompts.test_prompts(), prompts.bench_prompts())
    )
    assert not train & test
    assert not train & bench
    assert not test & bench


def test_only_train_lacks_the_held_out_combinations() -> None:
    assert not any(map(has_held_out, prompts.train_prompts()))
    assert all(map(has_held_out, prompts.test_prompts()))
    assert all(map(has_held_out, prompts.bench_prompts()))


def test_meta_is_json_and_true_of_the_scene() -> None:
    for prompt in prompts.test_prompts():
        meta = json.loads(json.dumps(prompt.meta))
        testpoints = prompts.testpoints_of(Prompt(prompt.text, prompt.index, meta))
        assert min(degrees(Scene.from_json(meta["scene"]), testpoints)) > 0.95


def test_train_prompts_are_made_quickly() -> None:
    prompts._prompts.cache_clear()
    begin = time.process_time()
    prompts.train_prompts()
    assert time.process_time() - begin < 4  # about a second on an idle core


def test_a_caller_cannot_change_the_next_callers_list() -> None:
    prompts.test_prompts().clear()
    assert len(prompts.test_prompts()) == 400


def test_bench_csv_has_the_unigenbench_schema(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    prompts.write_bench_csv(path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(100))
    for row, prompt in zip(rows, prompts.bench_prompts(), strict=True):
        assert list(row) == ["index", "prompt_en", "sub_dims_en"]
        assert row["prompt_en"] == prompt.text
        sub_dims = json.loads(row["sub_dims_en"])
        assert list(sub_dims) == [
            "Primary Categories",
            "Secondary Categories",
            "Subjects",
            "Sentence Structure",
            "Testpoints",
            "Testpoint Description",
        ]
        assert sub_dims["Testpoints"] == [testpoint.name for testpoint in prompts.testpoints_of(prompt)]
        assert len(sub_dims["Testpoint Description"]) == len(sub_dims["Testpoints"])
