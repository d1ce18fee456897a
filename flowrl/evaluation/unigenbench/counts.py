"""From the judge's answers to the benchmark's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flowrl.evaluation.unigenbench.answers import Reading
from flowrl.evaluation.unigenbench.benchmark import BenchPrompt
from flowrl.evaluation.unigenbench.dimensions import COLUMNS, DIMENSIONS, Language, by_name
from flowrl.statistics import Interval

Row = tuple[BenchPrompt, Reading]
"""An image's prompt and what the judge said of the image."""
RESAMPLES = 10_000


class Tally(NamedTuple):
    """Testpoints x images of a dimension: passed, counted, and asked (more than counted where answers failed)."""

    correct: int
    total: int
    asked: int

    @property
    def accuracy(self) -> float | None:
        """The micro average, as the official program forms it: failed answers are no part of it."""
        return self.correct / self.total if self.total else None

    @property
    def at_least(self) -> float | None:
        """The same with every testpoint of a failed answer as not passed."""
        return self.correct / self.asked if self.asked else None


@dataclass(frozen=True)
class Counts:
    """The numbers of one judged set of images.

    ``outcomes``: images by outcome (counted, lost, unreadable). ``primary`` and ``sub``: tallies by English name, in
    the order of the paper's table. ``intervals``: 95 % over prompts, of the overall mean (``"Overall"``) and the
    primary dimensions, where everything could be counted at least once.
    """

    outcomes: Mapping[str, int]
    primary: Mapping[str, Tally]
    sub: Mapping[str, Tally]
    intervals: Mapping[str, Interval]

    @property
    def asked(self) -> int:
        """Images that the judge was asked about."""
        return sum(self.outcomes.values())

    @property
    def counted(self) -> int:
        """Images whose answer is part of the numbers."""
        return self.outcomes["counted"]

    @property
    def coverage(self) -> float:
        """Images counted / images asked about."""
        return self.counted / self.asked

    @property
    def overall(self) -> float | None:
        """The unweighted mean of the ten primary accuracies; None where one of them has none."""
        return _mean([tally.accuracy for tally in self.primary.values()])

    @property
    def overall_at_least(self) -> float | None:
        """The same with every testpoint of a failed answer as not passed."""
        return _mean([tally.at_least for tally in self.primary.values()])

    @property
    def micro(self) -> Tally:
        """All testpoints together."""
        return Tally(*(sum(column) for column in zip(*self.primary.values(), strict=True)))


def count(rows: Sequence[Row], language: Language, seed: int = 0) -> Counts:
    """Adds up what was said of every image that was asked about, at least one."""
    known = by_name(language)
    correct, total, asked = Counter[str](), Counter[str](), Counter[str]()
    for prompt, reading in rows:
        names = [known[name].en for name in prompt.names]
        asked.update(names)
        if reading.outcome == "counted":
            total.update(names)
            correct.update(name for name, passed in zip(names, reading.passed, strict=True) if passed)
    sub = {
        d.en: Tally(correct[d.en], total[d.en], asked[d.en])
        for name in COLUMNS
        for d in DIMENSIONS
        if d.primary == name
    }
    primary = {name: _sum(sub[d.en] for d in DIMENSIONS if d.primary == name) for name in COLUMNS}
    outcomes = Counter(reading.outcome for _, reading in rows)
    kinds = {kind: outcomes[kind] for kind in ("counted", "lost", "unreadable")}
    return Counts(kinds, primary, sub, _intervals(rows, language, seed))


def official_scores(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """The official summary: the benchmark's own names (of a primary dimension, what stands before the first "-", a
    space included), primary dimensions in order of appearance, sub-dimensions sorted, accuracies to four places."""
    primary: dict[str, list[int]] = {}
    sub: dict[str, list[int]] = {}
    for prompt, reading in rows:
        for name, passed in zip(prompt.names, reading.passed, strict=False):
            for stats in (primary.setdefault(name.split("-", 1)[0], [0, 0]), sub.setdefault(name, [0, 0])):
                stats[0] += passed
                stats[1] += 1
    return {
        "primary_dimensions": {name: _official(*stats) for name, stats in primary.items()},
        "sub_dimensions": {name: _official(*stats) for name, stats in sorted(sub.items())},
    }


def _official(correct: int, total: int) -> dict[str, Any]:
    return {"correct": correct, "total": total, "accuracy": round(correct / total, 4)}


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*(sum(column) for column in zip(*tallies, strict=True)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _intervals(rows: Sequence[Row], language: Language, seed: int) -> dict[str, Interval]:
    """Percentile bootstrap over prompts: a prompt is drawn with all its images and testpoints, as the images of one
    prompt are not independent. Draws in which a dimension does not occur are left out of that dimension."""
    known, places = by_name(language), {name: place for place, name in enumerate(COLUMNS)}
    prompts: dict[int, int] = {}
    per_prompt = np.zeros((2, len({prompt.index for prompt, _ in rows}), len(COLUMNS)))
    for prompt, reading in rows:
        place = prompts.setdefault(prompt.index, len(prompts))
        for name, passed in zip(prompt.names, reading.passed, strict=False):
            per_prompt[:, place, places[known[name].primary]] += passed, 1
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=RESAMPLES)
    with np.errstate(invalid="ignore"):
        drawn = (weights @ per_prompt[0]) / (weights @ per_prompt[1])
        found = per_prompt[0].sum(0) / per_prompt[1].sum(0)
    columns = {"Overall": (found.mean(), drawn.mean(1))}
    columns |= {name: (found[place], drawn[:, place]) for name, place in places.items()}
    return {
        name: Interval(float(value), *(float(end) for end in np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])))
        for name, (value, draws) in columns.items()
        if np.isfinite(value)
    }
