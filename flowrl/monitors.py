"""What a run does with its held-out monitors: it keeps the best weights, and ends where the reward is being gamed.

A monitor is a scorer of ``evaluation.scorers``; its value after an iteration is the mean over the held-out prompts that
it answered, as it is logged (``test/NAME``). Two evaluations are compared over the prompts that both have an answer to,
so that what a judge leaves unanswered makes neither better.
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
BEST_SCORES = "best_scores.json"
EVALUATION = "evaluation"

PromptScores = Sequence[float | None]
"""A monitor's score of each held-out prompt, None where it has no answer."""


class Best(NamedTuple):
    """What ``weights_best/`` holds: the weights after ``iteration`` iterations, at which the monitor was ``value``."""

    monitor: str
    iteration: int
    value: float


class Hacking(NamedTuple):
    """The monitor fell from its best ``highest`` (after iteration ``since``) to ``lowest`` (after ``iteration``), while
    the reward rose from ``reward_before`` to ``reward_after``. Both are over the ``prompts`` that both evaluations
    have an answer to; None: over all."""

    monitor: str
    since: int
    highest: float
    iteration: int
    lowest: float
    reward_before: float
    reward_after: float
    prompts: int | None = None

    def __str__(self) -> str:
        over = "" if self.prompts is None else f" (over the {self.prompts} prompts answered both times)"
        return (
            f"reward hacking: held-out {self.monitor} fell from {self.highest:.4g} after iteration {self.since} to "
            f"{self.lowest:.4g} after iteration {self.iteration}{over}, while the reward rose from "
            f"{self.reward_before:.4g} to {self.reward_after:.4g}"
        )


class Pair(NamedTuple):
    """Means of two evaluations over the ``prompts`` that both have an answer to; None: over all."""

    left: float
    right: float
    prompts: int | None = None


def paired(left: PromptScores, right: PromptScores) -> Pair | None:
    """Two evaluations over the prompts that both have an answer to; None where there is no such prompt.

    >>> paired([1.0, None, 3.0], [2.0, 9.0, 4.0])
    Pair(left=2.0, right=3.0, prompts=2)
    """
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if not both:
        return None
    a, b = zip(*both, strict=True)
    return Pair(fmean(a), fmean(b), None if len(both) == len(left) else len(both))


def read_scores(output: Path, monitor: str) -> dict[int, PromptScores]:
    """Iteration -> the monitor's scores by prompt, of a run's evaluations."""
    found: dict[int, PromptScores] = {}
    for path in sorted((output / EVALUATION).glob("*.json")):
        values = json.loads(path.read_text())
        if "iteration" in values and monitor in values["scores"]:
            found[values["iteration"]] = values["scores"][monitor]
    return found


def read_best(output: Path) -> Best | None:
    """What a run's ``weights_best/`` holds, None where there is none."""
    record = output / WEIGHTS_BEST / RECORD
    return Best(**json.loads(record.read_text())) if record.is_file() else None


def is_better(candidate: Best, scores: PromptScores, output: Path) -> bool:
    """Whether a candidate is better than what a run's ``weights_best/`` holds; by another monitor, anything is.

    ``scores`` are the candidate's by prompt. The two are compared over the prompts that both have an answer to; without
    any the candidate is not better.
    """
    held = read_best(output)
    if math.isnan(candidate.value) or held is None or held.monitor != candidate.monitor:
        return not math.isnan(candidate.value)
    record = output / WEIGHTS_BEST / BEST_SCORES
    if not record.is_file():  # kept by an older version
        return candidate.value > held.value
    pair = paired(scores, json.loads(record.read_text()))
    return pair is not None and pair.left > pair.right


def keep_if_best(output: Path, candidate: Best, scores: PromptScores, save: Callable[[Path], None]) -> bool:
    """Have ``save`` write the weights into ``weights_best/`` where the candidate is better than what is there.

    Equal is not better, so the earliest of equals stays. The folder says itself what it holds, and is whole or not
    there. A run that is resumed comes by the same candidates again, and so ends with the same folder; one that is not
    repeatable keeps the best that it ever measured.
    """
    if not is_better(candidate, scores, output):
        return False
    with atomic.new_folder(output / WEIGHTS_BEST) as folder:
        save(folder)
        atomic.write_json(folder / RECORD, candidate._asdict())
        atomic.write_json(folder / BEST_SCORES, list(scores))
    return True


def reward_hacking(
    rows: Sequence[Mapping[str, Any]],
    *,
    monitor: str,
    reward: str | None,
    patience: int,
    min_drop: float,
    scores: Mapping[int, PromptScores] | None = None,
) -> Hacking | None:
    """Whether a run should end after its last evaluation, told from its rows and the scores by prompt.

    Let i_0 < ... < i_n be the iterations after which there is a value of the monitor, m_k(j) the mean of evaluation k
    over the prompts that k and j both have an answer to, and R(i, j] the mean of the reward over iterations i + 1 to j.
    The best b is the last k with m_k(b) > m_b(k) for the best b before it, beginning with 0: where every prompt is
    answered, the earliest of the highest. The run should end, if

        m_k(b) < m_b(k) - min_drop  for each of the last ``patience`` evaluations k, all after b, and
        R(i_{n - patience}, i_n]  >  R(i_{b - 1}, i_b]   (for b = 0: R(i_0, i_1]).

    ``reward``: the name of one, or None for the weighted sum. ``scores``: iteration -> the monitor's, by prompt;
    without them an evaluation that leaves a prompt unanswered can be compared with none.
    """
    compare = _Evaluations(rows, monitor, scores or {})
    at = compare.at
    b = 0
    for k in range(1, len(at)):
        pair = compare(k, b)
        b = k if pair is not None and pair.left > pair.right else b
    recent = range(len(at) - patience, len(at))
    if recent.start <= b:
        return None
    pairs = [compare(k, b) for k in recent]
    last = pairs[-1]
    if last is None or not all(pair is not None and pair.left < pair.right - min_drop for pair in pairs):
        return None
    column = "reward" if reward is None else f"reward/{reward}"
    rewards = [(row["iteration"], row[column]) for row in rows if _is_number(row.get(column))]
    first = max(b, 1)
    before = [value for iteration, value in rewards if at[first - 1] < iteration <= at[first]]
    after = [value for iteration, value in rewards if at[recent.start - 1] < iteration <= at[-1]]
    if not before or not after or fmean(after) <= fmean(before):
        return None
    return Hacking(monitor, at[b], last.right, at[-1], last.left, fmean(before), fmean(after), last.prompts)


class _Evaluations:
    """The evaluations of a monitor; called with two of their numbers, it compares them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], monitor: str, scores: Mapping[int, PromptScores]) -> None:
        mean, share = f"test/{monitor}", f"coverage/test/{monitor}"
        evaluated = {row["iteration"]: row for row in rows if _is_number(row.get(mean))}
        self.scores = scores
        self.at = sorted(evaluated)
        self.means = {iteration: float(row[mean]) for iteration, row in evaluated.items()}
        self.partial = {iteration for iteration, row in evaluated.items() if row.get(share, 1.0) < 1}

    def __call__(self, left: int, right: int) -> Pair | None:
        """None where they have no prompt in common, or it cannot be told."""
        i, j = self.at[left], self.at[right]
        if not {i, j} & self.partial:
            return Pair(self.means[i], self.means[j])
        return paired(self.scores[i], self.scores[j]) if i in self.scores and j in self.scores else None


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
