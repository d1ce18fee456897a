"""What the tables share: cells with intervals, comparisons in pairs, what is missing, what a run was."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flowrl.bench.report import Block, Cell, Claim, Column, Report, Row, RunRecord, Table
from flowrl.bench.results import ScoreGrid, read_scores
from flowrl.bench.search import Trials, search_table
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Evaluated, Study
from flowrl.evaluation.results import Provenance
from flowrl.numerics import NUMERICS
from flowrl.statistics import Interval

TITLES = {
    "hps": "HPS-v2.1",
    "clip": "CLIP",
    "pickscore": "PickScore",
    "image_reward": "ImageReward",
    "unified_reward": "UnifiedReward",
    "gold": "gold",
}
ORDER = tuple(TITLES)
INTERVALS = (
    "Means over seeds and prompts; 95 % intervals for new seeds and new prompts (two-way random effects, t with "
    "Satterthwaite's degrees of freedom; with one seed over prompts alone). Methods are compared in pairs, by seed and "
    "prompt; a difference is called one only where its interval excludes 0."
)


@cache
def paper() -> dict[str, Any]:
    """The paper's numbers."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "paper.yaml").read_text(encoding="utf-8"))
    return found


def paper_rows(spec: TableSpec, key: str) -> Mapping[str, Mapping[str, float]]:
    """The paper's rows of a table for a reward set or, of table steps, a number of steps; empty where it has none."""
    found: Mapping[str, Mapping[str, float]] = paper().get(spec.name, {}).get(key, {})
    if spec.name == "steps" and key == "many":
        found = paper()["main"]["hps_clip"]  # Table 1's 50 steps
    return found


def metrics_of(study: Study) -> list[str]:
    """In the paper's order, gold last."""
    return sorted(study.metrics, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def columns_of(metrics: Iterable[str]) -> tuple[Column, ...]:
    return tuple(Column(key=name, title=TITLES.get(name, name), better="higher") for name in metrics)


def rewards_name(rewards: str) -> str:
    """Of a fragment's name or file.

    >>> rewards_name("own/hps_clip.yaml"), rewards_title("hps_clip")
    ('hps_clip', 'HPS & CLIP')
    """
    return Path(rewards).stem


def rewards_title(rewards: str) -> str:
    return " & ".join(part.upper() for part in rewards_name(rewards).split("_"))


def cell(
    found: ScoreGrid | Interval | None,
    *,
    runs: Sequence[str] = (),
    reported: float | None = None,
    note: str | None = None,
) -> Cell:
    """A mean with its interval, the paper's number beside it."""
    if found is None:
        return Cell(value=None, paper=reported, note=note or "not finished", runs=tuple(runs))
    interval = found.interval() if isinstance(found, ScoreGrid) else found
    known = isfinite(interval.low) and isfinite(interval.high)
    low, high = (interval.low, interval.high) if known else (None, None)
    return Cell(value=interval.mean, low=low, high=high, paper=reported, runs=tuple(runs), note=note)


# ---- evaluations after training


def evaluated(
    study: Study, spec: TableSpec, which: Evaluated, method: str, rewards: str, metric: str
) -> tuple[ScoreGrid | None, tuple[str, ...]]:
    """A metric by seed and prompt, and the keys of the evaluations."""
    found = study.evaluations(spec, which, method, rewards)
    grid = ScoreGrid.of({evaluation.seed: read_scores(evaluation.folder, metric) for evaluation in found})
    return grid, tuple(evaluation.key for evaluation in found)


def metric_row(
    study: Study,
    spec: TableSpec,
    which: Evaluated,
    method: str,
    rewards: str,
    *,
    group: str | None,
    key: str,
    orders: Mapping[str, Sequence[Claim]],
) -> Row:
    """A method's scores by every metric, the paper's beside them (its rows under ``key``), and what of the paper's
    orders is reproduced."""
    reported = paper_rows(spec, key).get(study.bench.methods[method].paper or "", {})
    cells: dict[str, Cell] = {}
    for metric in metrics_of(study):
        grid, keys = evaluated(study, spec, which, method, rewards, metric)
        cells[metric] = cell(grid, runs=keys, reported=reported.get(metric))
    cells |= {"order": order_cell(orders[method])} if method in orders else {}
    return Row(title=study.title(method), cells=cells, group=group, failed=failure(study, spec, method, rewards))


class Group(NamedTuple):
    """Rows under a heading: which evaluation, of runs on which rewards, and the paper's rows beside them by their
    ``key``."""

    title: str
    which: Evaluated
    rewards: str
    key: str


def method_rows(study: Study, spec: TableSpec, groups: Iterable[Group]) -> tuple[list[Row], list[Claim]]:
    """A row for each method in each group, and the claims on their orders."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for title, which, rewards, key in groups:
        orders = order_claims(study, spec, which, rewards, key)
        rows += [
            metric_row(study, spec, which, method, rewards, group=title, key=key, orders=orders)
            for method in spec.methods
        ]
        claims += [claim for found in orders.values() for claim in found]
    return rows, claims


def order_column(study: Study, spec: TableSpec) -> Column:
    return Column(key="order", title=f"the paper's order against {study.title(spec.reference or '')}")


def order_cell(claims: Sequence[Claim]) -> Cell:
    """How many of the paper's orders are reproduced (yes), contradicted (no) and open."""
    count = {
        "yes": sum(claim.reproduced is True for claim in claims),
        "no": sum(claim.reproduced is False for claim in claims),
        "open": sum(claim.reproduced is None for claim in claims),
    }
    text = ", ".join(f"{number} {name}" for name, number in count.items() if number)
    return Cell(value=text, note="by how many metrics ours is the paper's (yes), the other (no), or undecided (open)")


def failure(study: Study, spec: TableSpec, method: str, rewards: str) -> str | None:
    """Why runs of a method failed: the first of them, with its log."""
    found = study.failures(spec, method, rewards)
    if not found:
        return None
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].title}{more}: {found[0].log}"


def order_claims(study: Study, spec: TableSpec, which: Evaluated, rewards: str, key: str) -> dict[str, list[Claim]]:
    """Method -> for every metric the paper's order of it and the reference method, beside our paired difference."""

    def ours(method: str, metric: str) -> Interval | None:
        return pair(study, spec, which, spec.reference or method, method, rewards, metric)

    return orders(study, spec, paper_rows(spec, key), metrics_of(study), rewards_title(rewards), ours)


def orders(
    study: Study,
    spec: TableSpec,
    reported: Mapping[str, Mapping[str, float]],
    metrics: Iterable[str],
    where: str,
    ours: Callable[[str, str], Interval | None],
) -> dict[str, list[Claim]]:
    """The same of any scores: ``reported`` are the paper's rows, ``ours(method, metric)`` is reference - method."""
    reference = spec.reference or ""
    theirs = "" if not reference else study.bench.methods[reference].paper or ""
    rivals = {method: study.bench.methods[method].paper or "" for method in spec.methods}
    claims: dict[str, list[Claim]] = {}
    for method, other in rivals.items():
        if other == theirs or other not in reported or theirs not in reported:
            continue
        for metric in (name for name in metrics if name in reported[other]):
            a, b = reported[theirs][metric], reported[other][metric]
            found = claim(study, spec, metric, (reference, a), (method, b), ours(method, metric), where)
            claims.setdefault(method, []).append(found)
    return claims


def pair(
    study: Study, spec: TableSpec, which: Evaluated, method: str, other: str, rewards: str, metric: str
) -> Interval | None:
    """method - other, paired by seed and prompt."""
    one, _ = evaluated(study, spec, which, method, rewards, metric)
    two, _ = evaluated(study, spec, which, other, rewards, metric)
    grid = None if one is None or two is None else one.minus(two)
    return None if grid is None else grid.interval()


def claim(
    study: Study,
    spec: TableSpec,
    metric: str,
    one: tuple[str, float],
    two: tuple[str, float],
    ours: Interval | None,
    where: str,
) -> Claim:
    """An order of two methods in the paper, and what our difference says of it."""
    (method, a), (other, b) = one, two
    relation = "above" if a > b else "below" if a < b else "equal to"
    text = (
        f"{where}, {TITLES.get(metric, metric)}: {study.title(method)} {relation} {study.title(other)}, {a:g} and {b:g}"
    )
    reproduced, measured = None, "not finished"
    if ours is not None:
        measured = f"difference {ours.mean:+.4f} [{ours.low:+.4f}, {ours.high:+.4f}]"
        if ours.excludes_zero and a != b:
            reproduced = (ours.mean > 0) == (a > b)
        elif not ours.excludes_zero:
            measured += ", which includes 0"
    return Claim(claim=text, source=f"arXiv 2510.01982, {spec.source}", measured=measured, reproduced=reproduced)


# ---- the report


def report(study: Study, spec: TableSpec, blocks: Sequence[Block], note: str = "") -> Report:
    """The blocks with the search for learning rates, all runs behind them and what is missing."""
    found = study.search_units([spec])
    table = search_table(study, found, f"{spec.name}_learning_rates")
    everything = [*blocks, *([table] if table is not None else [])]
    records, missing = runs_of(study, spec, found)
    return Report(
        name=spec.name,
        title=spec.title,
        model=study.model,
        budget=study.budget,
        missing=missing,
        blocks=tuple(everything),
        runs=records,
        provenance=provenance(study, records, note),
    )


def runs_of(study: Study, spec: TableSpec, trials: Trials) -> tuple[dict[str, RunRecord], tuple[str, ...]]:
    """Key -> record of everything behind a table, and the titles of what is not finished."""
    units = {unit.key: unit for found in trials.values() for _, unit in found}
    units |= {unit.key: unit for unit in study.units([spec])}
    records, missing = {}, []
    for key, unit in units.items():
        record = study.store.record(key)
        if record is not None:
            records[key] = record.run
        if record is None or record.run.status != "done":
            missing.append(unit.title)
    return records, tuple(missing)


def provenance(study: Study, records: Mapping[str, RunRecord], note: str = "") -> dict[str, Any]:
    """What made a report."""
    devices = sorted({record.device for record in records.values() if record.device})
    values = {
        "command": study.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "program": Provenance.here().model_dump(mode="json"),
        "numerics": NUMERICS,
        "devices": devices,
        "machine": platform.machine(),
        "budget": study.scale.model_dump(mode="json"),
        "learning_rates": dict(study.rates),
    }
    return values | ({"note": note} if note else {})


def caption(study: Study, spec: TableSpec, what: str) -> str:
    """What is measured, over how many seeds and prompts, and how the intervals are made."""
    return f"{what} {study.describe_seeds(spec)}. {INTERVALS}"


def simple_table(name: str, title: str, columns: Sequence[Column], rows: Sequence[Row], text: str) -> Table:
    return Table(name=name, title=title, columns=tuple(columns), rows=tuple(rows), caption=text)
