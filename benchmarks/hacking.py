"""A run that games its reward by nothing but training longer or harder, and where a monitor would have ended it.

    python benchmarks/hacking.py run runs/hacking --rewards R --iterations 200 --every 5 --set optimizer.lr=3e-4
    python benchmarks/hacking.py plot runs/hacking docs/images/hacking.png --monitor gold --patience 3

``run`` trains shapes by a recipe on a rewards fragment (name or file) through ``flowrl train``, never ending early; the
monitors are the model fragment's, and those that ``--set evaluation.scorers.NAME={...}`` adds. Called again it goes on.
``plot`` draws from metrics.jsonl alone the training rewards and every monitor against the iteration, marks the best of
``--monitor`` and the evaluation at which ``evaluation.stop`` with the same values would have ended the run, and prints
what it would have said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.monitors import first_end, read_scores
from flowrl.output import RECIPE
from flowrl.pictures import curves
from flowrl.tracking import read_rows


def run(folder: Path, recipe: str, rewards: str, iterations: int, every: int, overrides: list[str]) -> int:
    """Train, or go on; returns the program's exit code."""
    command = [sys.executable, "-m", "flowrl", "train", recipe, "--model", "shapes", "--rewards", rewards]
    command += ["--output", str(folder), *(["--resume"] if (folder / RECIPE).is_file() else [])]
    settings = [f"run.iterations={iterations}", f"evaluation.every={every}", "evaluation.stop=null"]
    return subprocess.run([*command, *settings, *overrides]).returncode


def plot(folder: Path, picture: Path, **rule: Any) -> None:
    """The picture of a run, and what is to be said of it."""
    rows = read_rows(folder)
    column = f"test/{rule['monitor']}"
    values = {row["iteration"]: row[column] for row in rows if row.get(column) is not None}
    if not values:
        known = sorted({name for row in rows for name in row if name.startswith("test/")})
        raise SystemExit(f"{folder}: nothing was logged of {column} (known: {', '.join(known) or 'none'})")
    best = max(values, key=lambda iteration: values[iteration])
    found = first_end(rows, **rule, scores=read_scores(folder, rule["monitor"]))
    curves([_shown(row) for row in rows], picture, {best: "best"} | ({} if found is None else {found.iteration: "end"}))
    for what, iteration in (("best", best), ("last", max(values))):
        print(f"{rule['monitor']}: {what} {values[iteration]:.4f} after iteration {iteration}")
    print(found or "evaluation.stop would not have ended this run")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("iteration", "reward")
    return {name: value for name, value in row.items() if name in names or name.startswith(("reward/", "test/"))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--recipe", default="g2rpo")
    runner.add_argument("--rewards", default="rewards/gold")
    runner.add_argument("--iterations", type=int, default=200)
    runner.add_argument("--every", type=int, default=5)
    runner.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    plotter = commands.add_parser("plot")
    plotter.add_argument("folder", type=Path)
    plotter.add_argument("picture", type=Path)
    plotter.add_argument("--monitor", default="gold")
    plotter.add_argument("--reward")
    plotter.add_argument("--patience", type=int, default=3)
    plotter.add_argument("--min-drop", type=float, default=0.0)
    chosen = parser.parse_args()
    if chosen.command == "run":
        settings = (chosen.recipe, chosen.rewards, chosen.iterations, chosen.every, chosen.set)
        raise SystemExit(run(chosen.folder, *settings))
    options = ("monitor", "reward", "patience", "min_drop")
    plot(chosen.folder, chosen.picture, **{name: getattr(chosen, name) for name in options})
