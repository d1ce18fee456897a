"""Training reward against gold over long training: which method games its reward, how soon, and by how much.

Everything is read from the rows of a run's metrics.jsonl. The gold score is a held-out monitor (``test/gold``), the
reward the weighted sum that was trained on; both are the run's own. Of a run with evaluations after iterations
i_0 < ... < i_n and gold values m_0, ..., m_n, b the first highest:

    best, end, drop    m_b, m_n, m_b - m_n
    reward rise        mean reward over the last interval (i_{n-1}, i_n] minus that over the first (i_0, i_1]
    ended at           the evaluation at which ``evaluation.stop`` would have ended the run (flowrl/monitors.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from flowrl.bench.report import Block, Cell, Column, Figure, Line, Panel, Row, Table
from flowrl.bench.within import cell, ends, seeds_in_words
from flowrl.monitors import first_end, read_scores
from flowrl.statistics import Interval, study_interval
from flowrl.tracking import read_rows

PATIENCE, MIN_DROP = 2, 0.03
"""Of the rule by default: the values of docs/reward_hacking.md."""


# ---- measuring


def measure(
    folder: Path, *, method: str, seed: int, monitor: str = "gold", patience: int = PATIENCE, min_drop: float = MIN_DROP
) -> dict[str, Any]:
    """What a run's folder says; JSON values. Raises ValueError where the monitor was not evaluated twice."""
    rows = read_rows(folder)
    gold = {row["iteration"]: row[f"test/{monitor}"] for row in rows if row.get(f"test/{monitor}") is not None}
    if len(gold) < 2:
        raise ValueError(f"{folder}: test/{monitor} was logged {len(gold)} times, two evaluations are the least")
    rewards = {row["iteration"]: row["reward"] for row in rows if row.get("reward") is not None}
    at = sorted(gold)
    means = []
    for before, after in pairwise(at):
        between = [value for iteration, value in rewards.items() if before < iteration <= after]
        means.append(fmean(between) if between else None)
    rule = {"monitor": monitor, "reward": None, "patience": patience, "min_drop": min_drop}
    ended = first_end(rows, **rule, scores=read_scores(folder, monitor))
    return {
        "kind": "hacking",
        "method": method,
        "seed": seed,
        "monitor": monitor,
        "rule": rule,
        "iterations": at,
        "gold": [gold[iteration] for iteration in at],
        "reward": means,
        "ended": None if ended is None else ended.iteration,
    }


# ---- what it says


def blocks(measurements: Sequence[Mapping[str, Any]], runs: Mapping[str, tuple[str, ...]] | None = None) -> list[Block]:
    """A table and a figure. ``runs``: method -> keys of its runs."""
    runs = runs or {}
    methods = dict.fromkeys(found["method"] for found in measurements)
    of_method = {name: [found for found in measurements if found["method"] == name] for name in methods}
    return [_table(of_method, runs), _figure(of_method, runs)]


def over_seeds(values: Sequence[float]) -> Interval:
    """One value a seed: their mean and the 95 % interval of Student's t, infinite for one seed."""
    return study_interval([[value] for value in values])


_VALUES = {
    "best": lambda found: max(found["gold"]),
    "end": lambda found: found["gold"][-1],
    "drop": lambda found: max(found["gold"]) - found["gold"][-1],
    "best_at": lambda found: found["iterations"][found["gold"].index(max(found["gold"]))],
    "rise": lambda found: _known(found["reward"])[-1] - _known(found["reward"])[0],
}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _table(of_method: Mapping[str, Sequence[Mapping[str, Any]]], runs: Mapping[str, tuple[str, ...]]) -> Table:
    rows = []
    for name, found in of_method.items():
        keys = runs.get(name, ())
        values = {key: cell(over_seeds([value(one) for one in found]), keys) for key, value in _VALUES.items()}
        rows.append(Row(title=name, cells=values | {"ended": _ended(found, keys)}))
    first = next(iter(of_method.values()))[0]
    monitor, rule = first["monitor"], first["rule"]
    return Table(
        name="hacking",
        title="Who games the reward",
        columns=(
            Column(key="best", title=f"{monitor}, best", better="higher"),
            Column(key="end", title=f"{monitor}, end", better="higher"),
            Column(key="drop", title="drop", better="lower"),
            Column(key="best_at", title="best after iteration", digits=0),
            Column(key="rise", title="rise of the reward"),
            Column(key="ended", title="monitor ends it after iteration", digits=0),
        ),
        rows=tuple(rows),
        caption=f"{max(first['iterations'])} iterations, {seeds_in_words([*chain(*of_method.values())])}: means with "
        f"the 95 % interval of Student's t over seeds. The monitor ends a run once held-out {monitor} has been more "
        f"than {rule['min_drop']:g} below its best for {rule['patience']} evaluations while the reward rose.",
    )


def _ended(found: Sequence[Mapping[str, Any]], runs: tuple[str, ...]) -> Cell:
    """The mean of where the rule ends runs, and of how many."""
    ended = [one["ended"] for one in found if one["ended"] is not None]
    note = f"{len(ended)} of {len(found)} runs"
    if not ended:
        return Cell(note=note, runs=runs)
    return Cell(value=fmean(ended), note=note, runs=runs)


def _figure(of_method: Mapping[str, Sequence[Mapping[str, Any]]], runs: Mapping[str, tuple[str, ...]]) -> Figure:
    first = next(iter(of_method.values()))[0]
    panels = []
    for key, title in (("reward", "training reward"), ("gold", f"held-out {first['monitor']}")):
        lines = []
        for name, found in of_method.items():
            points = [point for iteration in _iterations(found) if (point := _at(found, key, iteration)) is not None]
            if points:
                x, mean, low, high = zip(*points, strict=True)
                lines.append(Line(title=name, x=x, mean=mean, low=low, high=high, runs=runs.get(name, ())))
        panels.append(Panel(title=title, x="iteration", y=title, lines=tuple(lines)))
    return Figure(
        name="hacking_curves",
        title="Training reward and held-out gold",
        panels=tuple(panels),
        caption="Means over seeds with the 95 % interval of Student's t. The reward is the mean since the evaluation "
        "before.",
        description="Two panels against the iteration, a line per method: the training reward, and the held-out score "
        "that nobody trains on.",
    )


def _iterations(found: Sequence[Mapping[str, Any]]) -> list[int]:
    """Those after which every run was evaluated."""
    return sorted(set.intersection(*(set(one["iterations"]) for one in found)))


def _at(
    found: Sequence[Mapping[str, Any]], key: str, iteration: int
) -> tuple[float, float, float | None, float | None] | None:
    """A point with its band over seeds; None where a run has no value. Of one seed there is no band."""
    shift = 1 if key == "reward" else 0  # the first evaluation precedes all training
    values = []
    for one in found:
        place = one["iterations"].index(iteration) - shift
        value = one[key][place] if place >= 0 else None
        if value is None:
            return None
        values.append(value)
    return float(iteration), *ends(over_seeds(values))
