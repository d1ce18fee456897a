"""Runs of the tiny policy in a temporary folder: a recipe, its prompts, and what a run left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from flowrl import checkpoint
from flowrl.recipe import load_recipe
from flowrl.run import Summary, train
from flowrl.tracking import read_rows

TINY = {
    "name": "tiny",
    "summary": "a test",
    "plugins": ["tiny"],
    "schedule": {"kind": "singular"},
    "continuation": {"kind": "strided", "strides": [1, 2]},
    "kernel": {"kind": "flow_sde"},
    "advantage": {"kind": "mgai_sum"},
    "loss": {"kind": "ppo_clip", "clip": 1e-2},
    "train": {"updates": 2, "split": "step", "fraction": 1.0},
    "model": {"kind": "tiny"},
    "grid": {"num_steps": 6, "shift": 3.0},
    "rollout": {"group": 4, "prompts": 4, "max_batch": 16, "decode_batch": 8},
    "optimizer": {"lr": 1e-3, "ema": 0.9},
    "rewards": {"a": {"kind": "tiny"}, "b": {"kind": "tiny", "channel": 1, "weight": 0.5}},
    "data": {"train": "train.txt", "test": "test.txt"},
    "run": {"iterations": 4, "precision": "fp32", "checkpoint_every": 1, "trackers": [], "num_samples": 2},
    "evaluation": {"num_steps": 4, "scorers": {"a": {"kind": "tiny"}}},
}


def write_recipe(folder: Path, **changes: object) -> Path:
    """The tiny recipe with ``section={key: value}`` changes, beside its plugin and prompts."""
    folder.mkdir(exist_ok=True)
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for section, change in changes.items():
        values[section] = values[section] | change if isinstance(change, dict) else change
    values["data"] = {split: name and str(folder / name) for split, name in values["data"].items()}
    (folder / "train.txt").write_text("".join(f"train {i}\n" for i in range(7)))
    (folder / "test.txt").write_text("".join(f"test {i}\n" for i in range(5)))
    shutil.copy(Path(__file__).parent / "tiny.py", folder / "tiny.py")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(recipe: Path, output: Path, *overrides: str, **options: object) -> Summary:
    return train(load_recipe(recipe, overrides=overrides), output=output, **options)


def start(recipe: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    """The same as a process of its own, on one core."""
    command = [sys.executable, "-m", "flowrl", "train", str(recipe), "--output", str(output), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def rows_of(output: Path) -> list[dict[str, object]]:
    """The rows of a run's metrics without what depends on the clock or on how often the run was started."""
    ignored = {"seconds", "seconds/rollout", "seconds/train", "self_check"}
    return [{key: value for key, value in row.items() if key not in ignored} for row in read_rows(output)]


def final_parameters(output: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.newest(output / "checkpoints")
    assert found.path is not None
    return dict(checkpoint.load(found.path).parameters)
