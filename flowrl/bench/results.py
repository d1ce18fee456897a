"""Finished runs and evaluations as numbers: by seed and prompt, so that methods are compared in pairs.

Axes: S seeds, P prompts, n evaluations of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowrl.evaluation import records
from flowrl.evaluation.results import PER_PROMPT
from flowrl.statistics import Interval, study_interval

ByPrompt = Mapping[int, float | None]
"""Prompt's index -> score, None where there is no answer."""


@dataclass(frozen=True)
class ScoreGrid:
    """Scores [S, P] of the prompts that every seed has an answer for."""

    seeds: tuple[int, ...]
    prompts: tuple[int, ...]
    values: np.ndarray

    @classmethod
    def of(cls, by_seed: Mapping[int, ByPrompt]) -> ScoreGrid | None:
        """None where no seed, or no prompt, has all."""
        if not by_seed:
            return None
        common = [
            index
            for index in next(iter(by_seed.values()))
            if all(found.get(index) is not None for found in by_seed.values())
        ]
        if not common:
            return None
        values = np.array([[found[index] for index in common] for found in by_seed.values()], dtype=np.float64)
        return cls(tuple(by_seed), tuple(common), values)

    def interval(self) -> Interval:
        return study_interval(self.values)

    def minus(self, other: ScoreGrid) -> ScoreGrid | None:
        """Paired by seed and prompt; None where the two have none in common."""
        seeds = tuple(seed for seed in self.seeds if seed in other.seeds)
        prompts = tuple(index for index in self.prompts if index in set(other.prompts))
        if not seeds or not prompts:
            return None
        return ScoreGrid(seeds, prompts, self._part(seeds, prompts) - other._part(seeds, prompts))

    def _part(self, seeds: Sequence[int], prompts: Sequence[int]) -> np.ndarray:
        place = {index: column for column, index in enumerate(self.prompts)}
        part: np.ndarray = self.values[[self.seeds.index(s) for s in seeds]][:, [place[index] for index in prompts]]
        return part


@dataclass(frozen=True)
class History:
    """The held-out evaluations of a run: what it had cost until each, and the scores [n, P] (NaN: no answer)."""

    iterations: np.ndarray
    forwards: np.ndarray
    training_forwards: np.ndarray
    prompts: tuple[int, ...]
    scores: Mapping[str, np.ndarray]

    def axis(self, name: str, rates: tuple[float, float] | None = None) -> np.ndarray:
        """[n] iterations, forwards, or seconds: forwards and training forwards by their ``rates``."""
        if name == "iterations":
            return self.iterations
        if name == "forwards":
            return self.forwards
        if rates is None:
            raise ValueError("seconds need the rates of a device")
        return self.forwards / rates[0] + self.training_forwards / rates[1]

    def at(self, score: str, x: np.ndarray, where: float) -> dict[int, float | None]:
        """A score by prompt where the axis ``x`` [n] is ``where``, linear between the evaluations beside it.

        Raises ValueError where that lies outside the run.
        """
        if not x[0] <= where <= x[-1] * (1 + 1e-9):
            raise ValueError(f"{where:g} lies outside the run, which is evaluated from {x[0]:g} to {x[-1]:g}")
        after = min(max(int(np.searchsorted(x, where)), 1), len(x) - 1) if len(x) > 1 else 0
        if after == 0:
            found = self.scores[score][0]
        else:
            share = min((where - x[after - 1]) / (x[after] - x[after - 1]), 1.0)
            found = (1 - share) * self.scores[score][after - 1] + share * self.scores[score][after]
        return {
            index: None if value != value else float(value) for index, value in zip(self.prompts, found, strict=True)
        }


def read_history(folder: Path, iterations: int) -> History | None:
    """Of a run's folder; None where it was not evaluated."""
    files = {0: folder / "evaluation" / "before.json", iterations: folder / "evaluation" / "after.json"}
    files |= {int(path.stem.split("_")[1]): path for path in (folder / "evaluation").glob("iteration_*.json")}
    found = {when: json.loads(path.read_text()) for when, path in sorted(files.items()) if path.is_file()}
    if len(found) < 2:
        return None
    names = [name for name in found[0]["scores"] if all(name in values["scores"] for values in found.values())]
    cost: dict[int, tuple[float, float]] = {0: (0.0, 0.0)}
    forwards = training = 0.0
    for row in (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()):
        forwards += row.get("forwards") or 0.0
        training += row.get("training_forwards") or 0.0
        cost[row["iteration"]] = forwards, training
    return History(
        iterations=np.array(list(found), dtype=np.float64),
        forwards=np.array([cost[when][0] for when in found]),
        training_forwards=np.array([cost[when][1] for when in found]),
        prompts=tuple(found[0]["index"]),
        scores={
            name: np.array(
                [[np.nan if v is None else v for v in values["scores"][name]] for values in found.values()],
                dtype=np.float64,
            )
            for name in names
        },
    )


def read_scores(folder: Path, metric: str) -> dict[int, float | None]:
    """A metric by prompt, of an evaluation's folder."""
    return {line["index"]: line["scores"].get(metric) for line in records.read(folder / PER_PROMPT)}
