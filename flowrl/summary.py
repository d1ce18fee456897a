"""How a run ended: held-out scores before and after, its cost, where everything is."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowrl import __version__
from flowrl.monitors import WEIGHTS_BEST, Best, Hacking
from flowrl.progress import duration
from flowrl.statistics import Interval, difference_interval, mean_interval


@dataclass(frozen=True)
class Change:
    """A held-out score before and after training, and the paired difference, each with its 95 % interval.

    They are over the ``prompts`` that both evaluations have an answer to.
    """

    before: Interval
    after: Interval
    difference: Interval
    prompts: int


@dataclass(frozen=True)
class Summary:
    """How a run ended. ``signal`` is the number of the signal that stopped it; ``resume`` says how to go on; ``best``
    is what weights_best/ holds; ``hacking`` what ``evaluation.stop`` found; ``scorers`` what each scorer is."""

    name: str
    output: Path
    iteration: int
    iterations: int
    held_out: dict[str, Change]
    num_prompts: int
    forwards: float
    training_forwards: float
    seconds: float
    device: str
    signal: int | None = None
    resume: str | None = None
    best: Best | None = None
    hacking: Hacking | None = None
    scorers: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.resume is None


def changes(output: Path) -> dict[str, Change]:
    """The held-out scores of a finished run, over the prompts that both evaluations have an answer for."""
    folder = output / "evaluation"
    if not all((folder / f"{when}.json").is_file() for when in ("before", "after")):
        return {}
    before, after = (json.loads((folder / f"{when}.json").read_text())["scores"] for when in ("before", "after"))
    found = {}
    for name in [name for name in before if name in after]:  # a resumed run may have other scorers
        pairs = [(b, a) for b, a in zip(before[name], after[name], strict=True) if b is not None and a is not None]
        if pairs:
            b, a = zip(*pairs, strict=True)
            found[name] = Change(mean_interval(b), mean_interval(a), difference_interval(b, a), len(pairs))
    return found


def plain(summary: Summary) -> dict[str, Any]:
    """The summary as JSON values, with what produced it."""
    values = asdict(summary) | {"output": str(summary.output)}
    values["held_out"] = {
        name: {part: getattr(change, part)._asdict() for part in ("before", "after", "difference")}
        | {"prompts": change.prompts}
        for name, change in summary.held_out.items()
    }
    values["best"] = None if summary.best is None else summary.best._asdict()
    values["hacking"] = None if summary.hacking is None else summary.hacking._asdict()
    versions = {"flowrl": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return values | {"versions": versions}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def describe(summary: Summary) -> Iterator[str]:
    """The lines that ``flowrl train`` ends with."""
    if summary.resume:
        yield f"{summary.name}: stopped after {summary.iteration} of {summary.iterations} iterations"
        yield summary.resume
        return
    yield f"{summary.name}: {summary.iteration} iterations in {duration(summary.seconds)} on {summary.device}"
    if summary.hacking is not None:
        early = summary.iteration < summary.iterations
        yield f"ended early, after {summary.iteration} of {summary.iterations} iterations:" if early else "at the end:"
        yield f"  {summary.hacking}"
    for name, change in summary.held_out.items():
        partial = f" of {summary.num_prompts}" if change.prompts < summary.num_prompts else ""
        yield f"held-out {name}, {change.prompts}{partial} prompts, 95 % bootstrap intervals:"
        for when, interval in (("before", change.before), ("after", change.after)):
            yield f"  {when:6} {interval.mean:.3f}  [{interval.low:.3f}, {interval.high:.3f}]"
        gained = change.difference
        verdict = "the interval excludes 0" if gained.excludes_zero else "the interval includes 0"
        yield f"  change {gained.mean:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}], {verdict}"
    if summary.best is not None:
        monitor, iteration, value = summary.best
        yield f"best held-out {monitor}: {value:.3f} after iteration {iteration}, kept in {WEIGHTS_BEST}/"
    yield f"cost: {summary.forwards:,.0f} forwards and {summary.training_forwards:,.0f} training forwards"
    yield f"everything is in {summary.output}: curves.png, before_after.png, metrics.csv, weights/"
