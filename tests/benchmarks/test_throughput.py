"""The throughput program at its tiny size: measures, merges and reports, and both ways give the same rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import throughput
import torch
from phases import Clock
from published_loop import Counts, scaled

from flowrl.recipe import load_recipe

REWARD_TOLERANCE = 1e-5
"""In fp32: the same transitions in batches of other sizes differ by rounding; a group's std is 1e-2."""


def measure(folder: Path, name: str, *arguments: str) -> dict:
    output = folder / f"{name}.json"
    assert throughput.main([*arguments, "--folder", str(folder / "weights"), "--output", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    ("recipe", "arguments", "num_compared"),
    [
        ("g2rpo", ["--parts", "0", "2"], 2 * 3 * 3 * 2),
        ("dance_grpo", [], 3 * 2),
        ("mix_grpo", ["--parts", "0", "2", "--set", "schedule.width=2"], 2 * 2),
    ],
)
def test_the_published_way_has_our_rewards(
    tmp_path: Path, recipe: str, arguments: list[str], num_compared: int
) -> None:
    ours, published, ratio = measure(tmp_path, recipe, "--recipe", recipe, *arguments)["lines"]
    assert ratio["rewards_compared"] == num_compared
    assert ratio["max_reward_difference"] < REWARD_TOLERANCE < ratio["reward_std"] / 10
    assert ratio["ratio"] == pytest.approx(published["seconds"] / ours["seconds"])
    assert ours["forwards"]["rollout"] < published["forwards"]["rollout"]
    for line in (ours, published):
        assert sum(line["phases"].values()) == pytest.approx(line["seconds"], rel=0.05)
    assert 0 <= ours["padding_share"] < 1


def test_lines_of_all_kinds_are_merged_and_reported(tmp_path: Path) -> None:
    measure(tmp_path, "forward", "--what", "forward", "--batches", "1", "2")
    measure(
        tmp_path, "train", "--what", "train", "--batches", "2", "--variant", "plain model.gradient_checkpointing=false"
    )
    measure(tmp_path, "iteration", "--recipe", "mix_grpo", "--published", "--tune", "full", "--without-phases")
    files = [str(tmp_path / f"{name}.json") for name in ("forward", "train", "iteration", "forward")]
    merged, page = tmp_path / "performance.json", tmp_path / "performance.md"
    assert throughput.main(["merge", *files, "-o", str(merged)]) == 0
    assert throughput.main(["report", str(merged), "-o", str(page)]) == 0
    runs = json.loads(merged.read_text())["runs"]
    assert [run["lines"][0]["what"] for run in runs] == ["train", "iteration", "forward"]
    assert {"command", "commit", "device", "versions", "date", "matmul_tflops"} <= runs[0].keys()
    text = page.read_text()
    assert all(f"`{run['command']}`" in text for run in runs)
    assert all((tmp_path / f"performance_{kind}.png").is_file() for kind in ("phases", "forward", "train"))


@pytest.mark.parametrize(
    ("recipe", "anchor", "forwards", "images", "training"),
    [
        ("g2rpo", 16, 2172, 289, 8),  # 2188 in all
        ("g2rpo_wo_mgai", 16, 1200, 97, 8),
        ("mix_grpo", 0, 192, 12, 48),
        ("dance_grpo", 0, 192, 12, 108),
    ],
)
def test_what_the_published_programs_do(recipe: str, anchor: int, forwards: int, images: int, training: int) -> None:
    found = Counts.of(load_recipe(recipe, model="flux1_dev"))
    assert found == Counts(anchor, forwards, images, training)


def test_a_part_is_scaled_by_what_it_counts() -> None:
    done, whole = Counts(16, 100, 11, 2), Counts(16, 300, 55, 8)
    phases = {"prefix": 1.0, "branches": 10.0, "decode": 2.0, "score": 1.0, "train": 3.0, "optimiser": 0.5}
    found, seconds = scaled(phases, 18.0, done, whole)
    assert found == {"prefix": 1.0, "branches": 30.0, "decode": 10.0, "score": 5.0, "train": 12.0, "optimiser": 0.5}
    assert seconds == sum(found.values()) + 3 * 0.5


def test_a_phase_inside_another_is_counted_once() -> None:
    clock = Clock(torch.device("cpu"))
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", inner)()
    inner()
    assert clock.calls == {"outer": 1, "inner": 1}
    assert clock.seconds.keys() == {"outer", "inner"}
    assert not clock.beside
