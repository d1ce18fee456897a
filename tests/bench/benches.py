"""A bench of the tiny policy: its files in a folder, and what runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from runs import TINY

from flowrl.bench.report import Budget
from flowrl.bench.spec import load_bench
from flowrl.bench.study import Study
from flowrl.bench.units import Store
from flowrl.recipe import Recipe

TESTS = Path(__file__).parents[1]
ALGORITHM = ("name", "summary", "schedule", "continuation", "kernel", "advantage", "loss", "train")
SCALE = {
    "seeds": 2,
    "iterations": 4,
    "every": 2,
    "held_out": 3,
    "prompts": 3,
    "benchmark_prompts": 2,
    "benchmark_images": 1,
    "long": 6,
    "search": None,
    "steps": {"few": 2, "medium": 3, "many": 4},
}
METHODS: dict[str, Any] = {
    "one": {"recipe": "tiny_recipe.yaml", "title": "One", "overrides": ["continuation.strides=[1]"]},
    "two": {"recipe": "tiny_recipe.yaml", "title": "Two"},
    "same": {"same_as": "two", "title": "Two again"},
}


def write_bench(
    folder: Path,
    methods: dict[str, Any] | None = None,
    scale: dict[str, Any] | None = None,
    table: dict[str, Any] | None = None,
) -> Path:
    """Bench files with one table, ``curves``; the recipe, its model and rewards lie beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("".join(f"train {i}\n" for i in range(7)))
    (folder / "test.txt").write_text("".join(f"test {i}\n" for i in range(5)))
    shutil.copy(TESTS / "tiny.py", folder / "tiny.py")
    data = {"train": str(folder / "train.txt"), "test": str(folder / "test.txt")}
    parts = {
        "models/toy": {"fragment": True, "model": {"kind": "tiny"}, "data": data}
        | {key: TINY[key] for key in ("grid", "rollout", "optimizer", "run", "evaluation")},
        "rewards/toy": {"fragment": True, "rewards": TINY["rewards"]},
        "tiny_recipe": {"plugins": ["tiny"], "include": ["models/toy", "rewards/toy"]}
        | {k: TINY[k] for k in ALGORITHM},
    }
    bench = folder / "bench"
    for name, values in parts.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values))
    bench.mkdir(exist_ok=True)
    named = {
        name: values | ({"recipe": str(folder / values["recipe"])} if "recipe" in values else {})
        for name, values in (methods or METHODS).items()
    }
    (bench / "methods.yaml").write_text(yaml.safe_dump(named))
    (bench / "budgets.yaml").write_text(yaml.safe_dump({"smoke": SCALE | (scale or {}), "full": SCALE | (scale or {})}))
    values = {
        "title": "Curves",
        "report": "flowrl.bench.tables.curves:report",
        "rewards": [str(folder / "rewards" / "toy.yaml")],
        "groups": {"": list(named)},
        "reference": next(iter(named)),
    }
    (bench / "curves.yaml").write_text(yaml.safe_dump(values | (table or {})))
    return bench


def study_of(bench: Path, budget: Budget = "smoke", **options: Any) -> Study:
    model = str(bench.parent / "models" / "toy.yaml")
    return Study(load_bench(bench), model, budget, Store(bench.parent / "runs"), **options)


def arguments(bench: Path, *more: str) -> list[str]:
    """Of ``flowrl bench`` for the table of :func:`write_bench`."""
    options = {
        "--table": "curves",
        "--budget": "smoke",
        "--model": bench.parent / "models" / "toy.yaml",
        "--specs": bench,
        "--folder": bench.parent / "runs",
        "--jobs": "1",
    }
    return ["bench", *(str(word) for pair in options.items() for word in pair), *more]


def seed_of(recipe: Recipe) -> int:
    """A measurement that takes no time."""
    return recipe.run.seed


def start(bench: Path, *more: str) -> subprocess.Popen[str]:
    """``flowrl bench`` as a process of its own."""
    command = [sys.executable, "-m", "flowrl", *arguments(bench, *more)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
