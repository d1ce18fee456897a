"""Held-out gold of several methods on shapes, against iterations and against forwards, over seeds.

    python benchmarks/shapes_study.py run runs/study --iterations 60 --every 5 --seeds 3 --jobs 4
    python benchmarks/shapes_study.py report runs/study/study.json reports

``run`` trains every method with every seed through ``flowrl train``, several at once, and gathers what they logged into
study.json; a run that is already there is not repeated. ``report`` draws shapes_study.png and writes shapes_study.md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

METHODS = ("dance_grpo", "mix_grpo", "g2rpo_wo_mgai", "g2rpo")
T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom (number of seeds - 1)."""


def run(folder: Path, iterations: int, every: int, seeds: int, jobs: int, overrides: list[str]) -> None:
    """Train all methods and seeds, ``jobs`` at a time, and write ``folder/study.json``."""
    settings = [f"run.iterations={iterations}", f"evaluation.every={every}", "run.checkpoint_every=1000000", *overrides]
    plan = [(method, seed) for seed in range(seeds) for method in METHODS]
    with ThreadPoolExecutor(jobs) as pool:
        failed = [error for error in pool.map(lambda job: _train(folder, *job, settings), plan) if error]
    for error in failed:
        print(error, file=sys.stderr)
    study = {"command": shlex.join(["python", *sys.argv]), "settings": settings, **_provenance()}
    study["runs"] = [_gather(folder / f"{method}-{seed}", method, seed) for method, seed in plan]
    (folder / "study.json").write_text(json.dumps(study))


def _train(folder: Path, method: str, seed: int, settings: list[str]) -> str | None:
    output = folder / f"{method}-{seed}"
    if (output / "summary.json").is_file():
        return None
    command = [sys.executable, "-m", "flowrl", "train", method, "--model", "shapes", "--output", str(output)]
    done = subprocess.run([*command, *settings, f"run.seed={seed}"], capture_output=True, text=True)
    print(f"{method} seed {seed}: {'done' if done.returncode == 0 else 'failed'}", flush=True)
    return None if done.returncode == 0 else f"{method} seed {seed} failed:\n{done.stderr[-2000:]}"


def _gather(output: Path, method: str, seed: int) -> dict[str, Any]:
    """Per evaluation: iteration, gold, and what it had cost until then."""
    summary = json.loads((output / "summary.json").read_text())
    points, forwards, training, seconds = [], 0.0, 0.0, 0.0
    for line in (output / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        forwards += row.get("forwards", 0.0)
        training += row.get("training_forwards", 0.0)
        seconds += row.get("seconds", 0.0)
        if "test/gold" in row:
            points.append((row["iteration"], row["test/gold"], forwards, training, seconds))
    return {"method": method, "name": summary["name"], "seed": seed, "points": points, "device": summary["device"]}


def _provenance() -> dict[str, str]:
    import torch

    import flowrl

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"flowrl": flowrl.__version__, "commit": commit, "torch": torch.__version__, "device": device}


def report(path: Path, output: Path) -> None:
    """A plot and a table from study.json alone."""
    study = json.loads(path.read_text())
    output.mkdir(parents=True, exist_ok=True)
    by_method = {m: [r for r in study["runs"] if r["method"] == m] for m in METHODS}
    by_method = {method: runs for method, runs in by_method.items() if runs}
    _plot(by_method, output / "shapes_study.png")
    (output / "shapes_study.json").write_text(json.dumps(study, indent=1))
    (output / "shapes_study.md").write_text(_page(study, by_method))


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of Student's t."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, T_QUANTILE[len(values) - 1] * std / math.sqrt(len(values))


def _at_forwards(points: list[list[float]], forwards: float) -> float:
    """Gold at a number of forwards, linear between evaluations."""
    for (_, a, fa, *_), (_, b, fb, *_) in pairwise(points):
        if fa <= forwards <= fb:
            return a + (b - a) * (forwards - fa) / (fb - fa)
    return math.nan


def _page(study: dict[str, Any], by_method: dict[str, list[dict[str, Any]]]) -> str:
    common = min(run["points"][-1][2] for runs in by_method.values() for run in runs)
    final = by_method["g2rpo"][0]["points"][-1][0] if "g2rpo" in by_method else None
    lines = [
        "# Four methods on shapes",
        "",
        f"Held-out gold score (mean over prompts of the share of satisfied test points), {len(study['runs'])} runs, "
        "mean over seeds with the 95 % interval of Student's t. All methods share prompts, initial noise, learning "
        "rate and evaluation noise; the training reward is gold's quality.",
        "",
        f"    {study['command']}",
        "",
        f"{study['device']}, torch {study['torch']}, flowrl {study['flowrl']} at {study['commit']}.",
        "",
        f"| method | gold before | gold after {final} iterations | gold at {common:,.0f} forwards | forwards | "
        "training forwards | seconds of training |",
        "|---|---|---|---|---|---|---|",
    ]
    for runs in by_method.values():
        before, after, equal = (
            _interval(values)
            for values in (
                [run["points"][0][1] for run in runs],
                [run["points"][-1][1] for run in runs],
                [_at_forwards(run["points"], common) for run in runs],
            )
        )
        cost = [sum(run["points"][-1][i] for run in runs) / len(runs) for i in (2, 3, 4)]
        lines.append(
            f"| {runs[0]['name']} | {before[0]:.3f} | {after[0]:.3f} ± {after[1]:.3f} | "
            f"{equal[0]:.3f} ± {equal[1]:.3f} | {cost[0]:,.0f} | {cost[1]:,.0f} | {cost[2]:.0f} |"
        )
    lines += ["", "Seconds are wall time of runs that shared the device.", "", "![curves](shapes_study.png)", ""]
    return "\n".join(lines)


def _plot(by_method: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, constrained_layout=True)
    for colour, runs in zip(("#0969da", "#bf3989", "#9a6700", "#1a7f37"), by_method.values(), strict=False):
        iterations = [point[0] for point in runs[0]["points"]]
        forwards = [sum(run["points"][i][2] for run in runs) / len(runs) for i in range(len(iterations))]
        gold = [_interval([run["points"][i][1] for run in runs]) for i in range(len(iterations))]
        mean = [value for value, _ in gold]
        low = [value - width for value, width in gold]
        high = [value + width for value, width in gold]
        for axis, x in zip(axes, (iterations, forwards), strict=True):
            axis.plot(x, mean, color=colour, label=runs[0]["name"], lw=1.6)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes[0].set(xlabel="iteration", ylabel="held-out gold score")
    axes[1].set(xlabel="forwards of the rollout", xscale="log")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("folder", type=Path)
    runner.add_argument("--iterations", type=int, default=60)
    runner.add_argument("--every", type=int, default=5)
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--jobs", type=int, default=4)
    runner.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    reporter = commands.add_parser("report")
    reporter.add_argument("study", type=Path)
    reporter.add_argument("output", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "run":
        run(chosen.folder, chosen.iterations, chosen.every, chosen.seeds, chosen.jobs, chosen.set)
    else:
        report(chosen.study, chosen.output)
