"""What a run does with its held-out monitors: it keeps the best weights, and ends where the reward is being gamed.

A monitor is a scorer of ``evaluation.scorers``; its value after an iteration is the mean over the held-out prompts, as
it is logged (``test/NAME``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from flowrl import atomic

WEIGHTS_BEST = "weights_best"
RECORD = "best.json"


class Best(NamedTuple):
    """What ``weights_best/`` holds: the weights after ``iteration`` iterations, at which the monitor was ``value``."""

    monitor: str
    iteration: int
    value: float


class Hacking(NamedTuple):
    """The monitor fell from its best ``highest`` (after iteration ``since``) to ``lowest`` (after ``iteration``), while
    the reward rose from ``reward_before`` to ``reward_after``."""

    monitor: str
    since: int
    highest: float
    iteration: int
    lowest: float
    reward_before: float
    reward_after: float

    def __str__(self) -> str:
        return (
            f"reward hacking: held-out {self.monitor} fell from {self.highest:.4g} after iteration {self.since} to "
            f"{self.lowest:.4g} after iteration {self.iteration}, while the reward rose from {self.reward_before:.4g} "
            f"to {self.reward_after:.4g}"
        )


def read_best(output: Path) -> Best | None:
    """What a run's ``weights_best/`` holds, None where there is none."""
    record = output / WEIGHTS_BEST / RECORD
    return Best(**json.loads(record.read_text())) if record.is_file() else None


def is_better(candidate: Best, output: Path) -> bool:
    """Whether a candidate is better than what a run's ``weights_best/`` holds; by another monitor, anything is."""
    held = read_best(output)
    same = held is not None and held.monitor == candidate.monitor
    return not (math.isnan(candidate.value) or (held is not None and same and candidate.value <= held.value))


def keep_if_best(output: Path, candidate: Best, save: Callable[[Path], None]) -> bool:
    """Have ``save`` write the weights into ``weights_best/`` where the candidate is better than what is there.

    Equal is not better, so the earliest of equals stays. The folder says itself what it holds, and is whole or not
    there. A run that is resumed comes by the same candidates again, and so ends with the same folder; one that is not
    repeatable keeps the best that it ever measured.
    """
    if not is_better(candidate, output):
        return False
    with atomic.new_folder(output / WEIGHTS_BEST) as folder:
        save(folder)
        atomic.write_json(folder / RECORD, candidate._asdict())
    return True


def reward_hacking(
    rows: Sequence[Mapping[str, Any]], *, monitor: str, reward: str | None, patience: int, min_drop: float
) -> Hacking | None:
    """Whether a run should end after its last evaluation, told from its rows alone.

    Let m_0, ..., m_n be the monitor's values after iterations i_0 < ... < i_n, m_b the highest (the earliest of
    equals), and R(i, j] the mean of the reward over iterations i + 1 to j. It should, if

        m_k < m_b - min_drop  for each of the last ``patience`` evaluations k, all after b, and
        R(i_{n - patience}, i_n]  >  R(i_{b - 1}, i_b]   (for b = 0: R(i_0, i_1]).

    ``reward``: the name of one, or None for the weighted sum.
    """
    values = {row["iteration"]: row[f"test/{monitor}"] for row in rows if _is_number(row.get(f"test/{monitor}"))}
    at = sorted(values)
    b = max(range(len(at)), key=lambda k: (values[at[k]], -k), default=0)
    recent = range(len(at) - patience, len(at))
    if recent.start <= b or not all(values[at[k]] < values[at[b]] - min_drop for k in recent):
        return None
    column = "reward" if reward is None else f"reward/{reward}"
    rewards = [(row["iteration"], row[column]) for row in rows if _is_number(row.get(column))]
    first = max(b, 1)
    before = [value for iteration, value in rewards if at[first - 1] < iteration <= at[first]]
    after = [value for iteration, value in rewards if at[recent.start - 1] < iteration <= at[-1]]
    if not before or not after or fmean(after) <= fmean(before):
        return None
    return Hacking(monitor, at[b], values[at[b]], at[-1], values[at[-1]], fmean(before), fmean(after))


def first_end(rows: Sequence[Mapping[str, Any]], **rule: Any) -> Hacking | None:
    """What ``evaluation.stop`` would have ended the run for: the first of its evaluations at which the rule holds."""
    evaluations = sorted({row["iteration"] for row in rows if f"test/{rule['monitor']}" in row})
    for iteration in evaluations:
        found = reward_hacking([row for row in rows if row["iteration"] <= iteration], **rule)
        if found is not None:
            return found
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
