"""Methods at equal iterations, equal forwards and equal seconds: from the evaluations during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flowrl.bench.calibrate import Rates, find_rates
from flowrl.bench.report import Cell, Column, Row, Table
from flowrl.bench.results import History, ScoreGrid, read_history
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import INTERVALS, TITLES, cell, failure, rewards_name, rewards_title

Axis = Literal["iterations", "forwards", "seconds"]
AXES: tuple[Axis, ...] = ("iterations", "forwards", "seconds")


@dataclass(frozen=True)
class Histories:
    """The finished runs of one reward set: method -> seed -> its evaluations."""

    rewards: str
    by_method: Mapping[str, Mapping[int, History]]
    keys: Mapping[str, tuple[str, ...]]
    rates: Rates | None

    @property
    def pair_of_rates(self) -> tuple[float, float] | None:
        return None if self.rates is None else (self.rates.forwards, self.rates.training_forwards)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Seconds only where the rates of the runs' device are known."""
        return AXES if self.rates is not None else AXES[:2]

    def x(self, history: History, axis: Axis) -> np.ndarray:
        return history.axis(axis, self.pair_of_rates)

    def common(self, axis: Axis) -> float | None:
        """How far every run of every method has come: the largest value that all of them reach."""
        ends = [self.x(history, axis)[-1] for runs in self.by_method.values() for history in runs.values()]
        return float(min(ends)) if ends else None

    def scores(self) -> list[str]:
        """The held-out scores that every run has, gold first."""
        found = [list(history.scores) for runs in self.by_method.values() for history in runs.values()]
        shared = [name for name in (found[0] if found else []) if all(name in names for names in found)]
        return sorted(shared, key=lambda name: (name != "gold", name))

    def at(self, method: str, score: str, axis: Axis, where: float) -> ScoreGrid | None:
        """A method's score by seed and prompt where the axis is ``where``."""
        runs = self.by_method.get(method, {})
        return ScoreGrid.of({seed: run.at(score, self.x(run, axis), where) for seed, run in runs.items()})


def histories(study: Study, spec: TableSpec, rewards: str, methods: Sequence[str] | None = None) -> Histories:
    by_method: dict[str, dict[int, History]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    devices = []
    for method in methods or [name for name in spec.methods if study.is_trained(name)]:
        runs = study.runs(spec, method, rewards)
        found = {run.seed: read_history(run.folder, run.recipe.run.iterations) for run in runs}
        kept = {seed: history for seed, history in found.items() if history is not None}
        if kept:
            by_method[method] = kept
            keys[method] = tuple(run.key for run in runs)
            devices += [run.record.device for run in runs]
    rates = None
    if devices:
        recipe = study.recipe(next(iter(by_method)), rewards)
        rates = find_rates(study.store.folder, recipe, study.model, max(set(devices), key=devices.count))
    return Histories(rewards, by_method, keys, rates)


def compute_tables(study: Study, spec: TableSpec, rewards: str, found: Histories | None = None) -> list[Table]:
    """A table of every held-out score, gold first; none where no run was evaluated."""
    found = found or histories(study, spec, rewards)
    return [_table(study, spec, found, score) for score in found.scores()]


def _table(study: Study, spec: TableSpec, found: Histories, score: str) -> Table:
    """A held-out score at equal iterations, forwards and seconds, each less the reference method's in pairs."""
    columns: list[Column] = []
    for axis in found.axes:
        columns.append(Column(key=axis, title=f"at equal {axis}", better="higher"))
        if spec.reference in found.by_method:
            title = f"less {study.title(spec.reference or '')}, equal {axis}"
            columns.append(Column(key=f"{axis} less", title=title, digits=4))
    cost = [Column(key="spent_forwards", title="forwards", better="lower", digits=0)]
    cost += [Column(key="spent_training", title="training forwards", better="lower", digits=0)]
    cost += [Column(key="spent_seconds", title="seconds", better="lower", digits=1)] if found.rates else []
    rows = [
        _row(study, spec, found, method, score, group or None)
        for group, methods in spec.groups.items()
        for method in methods
        if study.is_trained(method)
    ]
    return Table(
        name=f"{spec.name}_compute_{rewards_name(found.rewards)}_{score}",
        title=f"Held-out {TITLES.get(score, score)} at equal compute, trained on {rewards_title(found.rewards)}",
        columns=(*columns, *cost),
        rows=tuple(rows),
        caption=_caption(study, spec, found),
    )


def _row(study: Study, spec: TableSpec, found: Histories, method: str, score: str, group: str | None) -> Row:
    cells: dict[str, Cell] = {}
    keys = found.keys.get(method, ())
    for axis in found.axes:
        where = found.common(axis)
        grid = None if where is None else found.at(method, score, axis, where)
        cells[axis] = cell(grid, runs=keys)
        if spec.reference is not None and spec.reference in found.by_method and where is not None:
            other = found.at(spec.reference, score, axis, where)
            cells[f"{axis} less"] = less(study, method, spec.reference, grid, other, keys)
    runs = list(found.by_method.get(method, {}).values())
    if runs:
        cells["spent_forwards"] = Cell(value=float(np.mean([run.forwards[-1] for run in runs])))
        cells["spent_training"] = Cell(value=float(np.mean([run.training_forwards[-1] for run in runs])))
        if found.rates is not None:
            cells["spent_seconds"] = Cell(value=float(np.mean([found.x(run, "seconds")[-1] for run in runs])))
    failed = failure(study, spec, method, found.rewards)
    return Row(title=study.title(method), cells=cells, group=group, failed=failed)


def less(
    study: Study,
    method: str,
    reference: str,
    one: ScoreGrid | None,
    other: ScoreGrid | None,
    runs: Sequence[str],
) -> Cell:
    """A method's scores (``one``) less the reference's, in pairs, with the verdict."""
    if study.bench.resolve(method) == study.bench.resolve(reference):
        return Cell(note="the reference")
    return called(cell(None if one is None or other is None else one.minus(other), runs=runs))


def called(found: Cell) -> Cell:
    """A difference with its verdict."""
    if found.low is None or found.high is None:
        return found
    verdict = "a difference" if found.low > 0 or found.high < 0 else "the interval includes 0"
    return found.model_copy(update={"note": verdict})


def _caption(study: Study, spec: TableSpec, found: Histories) -> str:
    reached = [(axis, where) for axis in found.axes if (where := found.common(axis)) is not None]
    digits = {axis: 1 if axis == "seconds" and where < 10 else 0 for axis, where in reached}
    at = ", ".join(f"{where:,.{digits[axis]}f} {axis}" for axis, where in reached)
    seconds = (
        f"Seconds are counted forwards and training forwards at {found.rates.describe()}; never wall time."
        if found.rates is not None
        else "Equal seconds are left out: the rates of the runs' device were not measured (flowrl bench calibrate)."
    )
    return (
        f"Held-out scores of evaluations every {study.scale.every} iterations, at what all runs have reached: {at}; "
        f"between two evaluations linear by prompt. {seconds} {study.describe_seeds(spec)}, "
        f"{study.scale.held_out or 'all'} prompts. {INTERVALS}"
    )
