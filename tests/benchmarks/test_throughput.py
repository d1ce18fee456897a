"""The throughput program at its tiny size: measures, merges and reports, and both ways give the same rewards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import throughput
import torch
from performance_report import rates, report
from phases import Clock
from published_loop import Counts, scaled
from throughput_work import predicted

from flowrl.rates import table
from flowrl.recipe import load_recipe

REWARD_TOLERANCE = 1e-4  # in fp32: other batches round otherwise, and scorers of noise magnify it
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
    assert ratio["rank_correlation"] == pytest.approx(1)
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
    images = measure(tmp_path, "images", "--what", "images", "--batches", "1", "2")["lines"]
    assert [(line["part"], line["batch"]) for line in images] == [
        (part, batch) for batch in (1, 2) for part in ("decode", "hps", "clip")
    ]
    files = [str(tmp_path / f"{name}.json") for name in ("forward", "train", "iteration", "images", "forward")]
    merged, page = tmp_path / "performance.json", tmp_path / "performance.md"
    assert throughput.main(["merge", *files, "-o", str(merged)]) == 0
    assert throughput.main(["report", str(merged), "-o", str(page)]) == 0
    runs = json.loads(merged.read_text())["runs"]
    assert [run["lines"][0]["what"] for run in runs] == ["train", "iteration", "images", "forward"]
    assert {"command", "commit", "device", "versions", "date", "matmul_tflops"} <= runs[0].keys()
    text = page.read_text()
    assert all(f"`{run['command']}`" in text for run in runs)
    assert all((tmp_path / f"performance_{kind}.png").is_file() for kind in ("phases", "forward", "train"))


@pytest.mark.slow
def test_two_processes_take_a_prompt_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (line,) = measure(tmp_path, "two", "--processes", "2", "--recipe", "mix_grpo", "--published")["lines"]
    assert line["world"] == len(line["seconds_by_rank"]) == 2
    assert line["rollout"]["prompts"] == 2
    alone = measure(tmp_path, "one", "--recipe", "mix_grpo", "--published")["lines"][0]
    assert line["forwards"] == alone["forwards"]


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


def test_the_page_tells_scaling_and_how_far_predictions_are_off(tmp_path: Path) -> None:
    line = {
        "what": "iteration",
        "way": "ours",
        "recipe": "g2rpo",
        "tune": "full",
        "name": "fsdp",
        "phases": {"rollout": 9},
    }
    line |= {
        "forwards": {"rollout": 1700},
        "training_forwards": 8,
        "peak_share": 0.7,
        "peak_memory_gb": 70,
        "beside": {},
    }
    two = line | {"world": 2, "seconds": 90.0, "predicted": {"seconds": 99.0, "memory_gb": 70}}
    four = line | {"world": 4, "seconds": 100.0, "seconds_by_rank": [99.0, 100.0]}
    run = {
        "command": "x",
        "commit": "y",
        "device": "z",
        "processes": 4,
        "matmul_tflops": 700,
        "versions": {},
        "date": "",
    }
    report([run | {"lines": [two, four]}], tmp_path / "page.md", notes="## Tried\n\nNothing.")
    text = (tmp_path / "page.md").read_text()
    text = re.sub(" +", " ", text)
    assert "| 2 | 90.00 | - | 100.0 % of 2 | 1 |" in text
    assert "| 4 | 100.00 | 99.00, 100.00 | 90.0 % of 2 | 1 |" in text
    assert "| 99.00 | 90.00 | +10.0 % |" in text
    assert text.endswith("Nothing.\n")


def test_rates_are_lines_of_the_table() -> None:
    """Of each variant the batch that counts; the keys are those by which the package looks rates up."""
    forward = {"what": "forward", "name": "a", "compiled": True, "precision": "fp8", "ms_per_sample": 50.04}
    train = {
        "what": "train",
        "name": "b",
        "compiled": True,
        "checkpointed": True,
        "tune": "lora",
        "ms_per_sample": 300.0,
    }
    image = {"what": "images", "name": "c", "batch": 4, "scorers": "full", "overrides": []}
    images = [image | {"part": "decode", "ms_per_sample": 20.0}, image | {"part": "hps", "ms_per_sample": 10.0}]
    half = images[1] | {"ms_per_sample": 5.0, "overrides": ["rewards.hps.precision=fp16"]}
    images = [half, *images, images[1] | {"ms_per_sample": 1.0, "scorers": "small"}]
    lines = [forward | {"batch": 1}, forward | {"batch": 12}, train | {"batch": 2}, train | {"batch": 8}, *images]
    run = {"size": "flux", "device": "NVIDIA H200", "command": "python x", "lines": lines}
    source = {"gpu": "h200", "hardware": "one NVIDIA H200", "command": "python x"}
    assert list(rates(run)) == [
        {"what": "forward", "compiled": True, "precision": "fp8", "ms": 50.0} | source,
        {"what": "training", "compiled": True, "checkpointed": True, "tune": "lora", "ms": 300.0} | source,
        {"what": "decode", "ms": 20.0} | source,
        {"what": "score", "scorer": "hps", "ms": 10.0} | source,
    ]
    assert all({"what", "ms", "gpu", "hardware", "command"} <= rate.keys() for rate in table()["rates"])


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    recipe = load_recipe("g2rpo", model="flux1_dev", overrides=["rollout.prompts=1", "model.lora={}"])
    found = predicted(recipe, "NVIDIA H100 80GB HBM3", world=1)
    assert found is not None
    assert found["seconds"] == pytest.approx(sum(found["phases"].values()))
    assert 30 < found["memory_gb"] < 80
    assert predicted(recipe, "x86_64 CPU, 1 threads", world=1) is None
    assert predicted(recipe, "NVIDIA GeForce RTX 4090", world=1) is None


def test_a_phase_inside_another_is_counted_once() -> None:
    clock = Clock(torch.device("cpu"))
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", inner)()
    inner()
    assert clock.calls == {"outer": 1, "inner": 1}
    assert clock.seconds.keys() == {"outer", "inner"}
    assert not clock.beside
