"""Figure 1a: held-out reward and gold against iterations, forwards and seconds."""

from __future__ import annotations

from math import isfinite

from flowrl.bench.report import Block, Figure, Line, Panel, Report
from flowrl.bench.results import ScoreGrid
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import TITLES, rewards_name, rewards_title
from flowrl.bench.tables.common import report as make
from flowrl.bench.tables.compute import Axis, Histories, compute_tables, histories

LABELS: dict[Axis, str] = {
    "iterations": "iteration",
    "forwards": "forwards of the rollouts",
    "seconds": "seconds, by measured rates",
}


def report(study: Study, spec: TableSpec) -> Report:
    """A figure for each reward set and score, and the table of what its curves say at equal compute."""
    blocks: list[Block] = []
    for rewards in spec.rewards:
        found = histories(study, spec, rewards)
        blocks += [_figure(study, found, score) for score in found.scores()]
        blocks += compute_tables(study, spec, rewards, found)
    return make(study, spec, blocks)


def _figure(study: Study, found: Histories, score: str) -> Figure:
    panels = [
        Panel(
            title=f"against {axis}",
            x=LABELS[axis],
            y=f"held-out {TITLES.get(score, score)}",
            lines=tuple(_line(study, found, method, score, axis) for method in found.by_method),
            log_x=axis != "iterations",
        )
        for axis in found.axes
    ]
    ends = {method: _line(study, found, method, score, "iterations").mean[-1] for method in found.by_method}
    ranked = ", ".join(
        f"{study.title(method)} {value:.3f}" for method, value in sorted(ends.items(), key=lambda e: -e[1])
    )
    name = TITLES.get(score, score)
    return Figure(
        name=f"curves_{rewards_name(found.rewards)}_{score}",
        title=f"Held-out {name} of training on {rewards_title(found.rewards)}",
        panels=tuple(panels),
        caption=(
            f"Means over seeds and prompts with 95 % intervals for new seeds and prompts; evaluations every "
            f"{study.scale.every} iterations on {study.scale.held_out or 'all'} prompts. "
            + ("" if found.rates is None else f"Seconds: counted forwards at {found.rates.describe()}.")
        ),
        description=f"Held-out {name} rises or falls with training. At the end: {ranked}.",
    )


def _line(study: Study, found: Histories, method: str, score: str, axis: Axis) -> Line:
    """The evaluations of a method's runs; before the first update a logarithmic axis has no place for 0."""
    runs = found.by_method[method]
    first = next(iter(runs.values()))
    start = 0 if axis == "iterations" else 1
    x: list[float] = []
    mean: list[float] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for place in range(start, len(first.iterations)):
        where = float(first.iterations[place])
        grid = ScoreGrid.of({seed: run.at(score, run.iterations, where) for seed, run in runs.items()})
        if grid is None:
            continue
        interval = grid.interval()
        x.append(float(sum(found.x(run, axis)[place] for run in runs.values()) / len(runs)))
        mean.append(interval.mean)
        known = isfinite(interval.low) and isfinite(interval.high)
        low.append(interval.low if known else None)
        high.append(interval.high if known else None)
    return Line(
        title=study.title(method),
        x=tuple(x),
        mean=tuple(mean),
        low=tuple(low),
        high=tuple(high),
        runs=found.keys[method],
    )
