"""What an iteration, a forward and a training step of FLUX.1-dev's size cost: the published way, and ours.

    python benchmarks/throughput.py --size flux --recipe g2rpo --output g2rpo.json \\
        --published bf16 autocast --parts 0 3 7 --variant "bf16" --variant "fp8 continuation.precision=fp8"
    python benchmarks/throughput.py --size flux --what forward --batches 1 4 12 --variant "eager model.compile=none"
    python benchmarks/throughput.py --size flux --what train --batches 1 4 --variant "eager model.compile=none"
    python benchmarks/throughput.py --size flux --what images --batches 1 4
    python benchmarks/throughput.py --size flux --processes 4 --published --output four.json
    python benchmarks/throughput.py merge *.json -o reports/performance.json
    python benchmarks/throughput.py report reports/performance.json -o reports/performance.md
    python benchmarks/throughput.py rates reports/performance.json     # lines for flowrl/rates.yaml

Weights are random (benchmarks/random_flux.py): speed does not depend on them. The matmul peak is measured first. Ours
is one iteration of the trainer, its phases timed by events that nothing waits for; ``--without-phases`` adds an
iteration without them, so that what the measuring costs is seen. The published way (benchmarks/published_loop.py) runs
the parts named, and is scaled to the whole by counted forwards, images and training forwards; their spread is printed.
Every line is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import performance_report
import throughput_iteration as iteration
import torch
from phases import matmul_peak
from random_flux import SIZES
from throughput_forward import forwards, images
from throughput_work import Line, Work, device_name, free, is_first, say

from flowrl import parallel
from flowrl.atomic import write_json
from flowrl.errors import UserError
from flowrl.hub import cache_dir
from flowrl.launch import is_rank, run

SCORED = ("iteration", "images")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch", "triton")


def main(argv: list[str]) -> int:
    if argv and argv[0] in ("merge", "report", "rates"):
        return performance_report.main(argv)
    options = parser().parse_args(argv)
    if options.processes > 1 and not is_rank():
        return run(argv, options.processes, command=(sys.executable, str(Path(__file__).resolve())))
    measured(options, argv)
    parallel.leave()
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--size", choices=SIZES, default="tiny")
    found.add_argument("--what", choices=["iteration", "forward", "train", "images"], default="iteration")
    found.add_argument("--recipe", default="g2rpo")
    found.add_argument("--model", default="flux1_dev", help="the model fragment whose values are used")
    found.add_argument("--tune", choices=["lora", "full"], default="lora")
    found.add_argument("--published", nargs="*", choices=iteration.EAGER, default=None, metavar="WEIGHTS")
    found.add_argument("--parts", nargs="*", type=int, help="steps k (G2RPO) or samples; by default all")
    found.add_argument("--variant", action="append", metavar="'NAME KEY=VALUE ...'", help="ours; may be repeated")
    found.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of every line")
    found.add_argument("--set-published", nargs="*", default=[], metavar="KEY=VALUE")
    found.add_argument("--batches", nargs="*", type=int, default=[1, 4, 12])
    found.add_argument("--scorers", choices=["full", "small"], help="by default full where flux needs any")
    found.add_argument("--without-phases", action="store_true")
    found.add_argument("--processes", type=int, default=1)
    found.add_argument("--minutes", type=float, default=9.0, help="no line is begun after so many")
    found.add_argument("--folder", type=Path, default=None, help="of random scorer weights, written once")
    found.add_argument("--output", type=Path)
    return found


def measured(options: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Everything that was asked for; what is written, too."""
    began = time.monotonic()
    size = SIZES[options.size]
    device = _device()
    peak = matmul_peak(device, size.matmul)
    work = Work(
        size=size,
        folder=options.folder or cache_dir("benchmark"),
        recipe=options.recipe,
        model=options.model,
        scorers=options.scorers or ("full" if options.size == "flux" and options.what in SCORED else "small"),
        lora=options.tune == "lora",
        overrides=tuple(options.set),
        world=int(os.environ.get("WORLD_SIZE", "1")),
        peak=peak,
    )
    found = provenance(argv, device) | {"size": options.size, "matmul_tflops": peak, "lines": []}
    say(f"{found['device']}: {peak:.1f} TFLOP/s of {size.matmul}^3 products")

    def add(line: Line) -> None:
        free()
        found["lines"].append(line)
        say(performance_report.in_words(line))
        if options.output is not None and is_first():
            write_json(options.output, performance_report.plain(found))

    for name, overrides in _variants(options.variant):
        for line in _parts(work, options, name, overrides):
            add(line)
    if options.what == "iteration":
        _iterations(work, options, add, began)
    return found


def _parts(work: Work, options: argparse.Namespace, name: str, overrides: list[str]) -> list[Line]:
    """What a variant's forwards or images take; of an iteration nothing."""
    if options.what == "images":
        return images(work, name, overrides, options.batches)
    if options.what == "iteration":
        return []
    return forwards(work, name, overrides, options.batches, backward=options.what == "train")


def _iterations(work: Work, options: argparse.Namespace, add: Any, began: float) -> None:
    """Ours first, then the published way with each of its weights, and every ratio."""
    done: list[iteration.Measured] = []

    def attempt(name: str, run: Callable[[], iteration.Measured]) -> list[iteration.Measured]:
        if time.monotonic() - began > 60 * options.minutes:
            say(f"{name}: not begun, {options.minutes:g} minutes are over")
            return []
        found = []
        with suppress(torch.cuda.OutOfMemoryError):
            found.append(run())
        add(found[0].line if found else {"what": "iteration", "name": name, "failed": "memory"})
        return found

    for name, overrides in _variants(options.variant):
        done += attempt(name, partial(iteration.ours, work, name, overrides, without_phases=options.without_phases))
    weights = ["fp32" if options.size == "tiny" else "bf16"] if options.published is None else options.published
    for kind in weights if work.world == 1 else []:
        for slow in attempt(kind, partial(iteration.published, work, kind, options.parts, options.set_published)):
            for fast in done:
                add(iteration.compare(slow, fast))
    for fast in done[1:]:
        add(iteration.compare(done[0], fast))


def _variants(asked: list[str] | None) -> list[tuple[str, list[str]]]:
    found = []
    for words in map(shlex.split, asked or ["ours"]):
        names, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
        found.append((" ".join(names) or " ".join(overrides), overrides))
    return found


def provenance(argv: list[str], device: torch.device) -> dict[str, Any]:
    """Where a number comes from: command, commit, device, versions, day."""
    return {
        "command": shlex.join(["python", "benchmarks/throughput.py", *argv]),
        "commit": os.environ.get("FLOWRL_COMMIT") or _commit(),
        "device": device_name(device),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | _versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of this file's repository, marked where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
