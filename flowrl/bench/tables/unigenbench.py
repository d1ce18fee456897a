"""Table 5: UniGenBench++ in its ten dimensions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowrl.bench.report import Cell, Column, Report, Row, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Evaluation, Study
from flowrl.bench.tables.common import (
    cell,
    failure,
    order_cell,
    order_column,
    orders,
    paper_rows,
    rewards_title,
    simple_table,
)
from flowrl.bench.tables.common import report as make
from flowrl.evaluation.unigenbench.dimensions import COLUMNS
from flowrl.statistics import Interval, study_interval

NAMES = {"Overall": "Overall", **COLUMNS}
Summaries = Mapping[int, Mapping[str, Any]]
"""Seed -> what ``flowrl eval --metrics unigenbench`` found."""


def report(study: Study, spec: TableSpec) -> Report:
    """A row for each method, a column for each dimension; shares are shown in percent."""
    rewards = spec.rewards[0]
    reported = paper_rows(spec, rewards)
    found = {method: study.evaluations(spec, "benchmark", method, rewards) for method in spec.methods}
    summaries = {method: {e.seed: _summary(e) for e in evaluations} for method, evaluations in found.items()}
    found_orders = orders(
        study,
        spec,
        reported,
        NAMES,
        "UniGenBench++",
        lambda method, name: _difference(summaries[spec.reference or method], summaries[method], name),
    )
    rows = []
    for method, evaluations in found.items():
        theirs = reported.get(study.bench.methods[method].paper or "", {})
        keys = tuple(evaluation.key for evaluation in evaluations)
        cells = {name: _cell(summaries[method], name, keys, theirs.get(name)) for name in NAMES}
        cells |= {"order": order_cell(found_orders[method])} if method in found_orders else {}
        rows.append(Row(title=study.title(method), cells=cells, failed=failure(study, spec, method, rewards)))
    columns = [Column(key=name, title=title, better="higher", digits=2, percent=True) for name, title in NAMES.items()]
    columns.append(order_column(study, spec))
    claims = tuple(claim for of_method in found_orders.values() for claim in of_method)
    text = (
        f"Share of testpoints granted, trained on {rewards_title(rewards)}, {study.scale.benchmark_prompts or 'all'} "
        f"prompts with {study.scale.benchmark_images} images each, {study.describe_seeds(spec)}. Overall is the mean "
        "of the ten dimensions. 95 % intervals of Student's t over seeds; with one seed a bootstrap over prompts."
    )
    return make(
        study,
        spec,
        [
            simple_table("unigenbench", spec.title, columns, rows, text),
            Text(name="unigenbench_claims", title="Orders of the paper's Table 5", claims=claims),
        ],
    )


def _summary(evaluation: Evaluation) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((evaluation.folder / "unigenbench" / "unigenbench.json").read_text())
    return found


def _value(summary: Mapping[str, Any], name: str) -> float | None:
    value: float | None = summary["overall"] if name == "Overall" else summary["dimensions"][name]["accuracy"]
    return value


def _cell(summaries: Summaries, name: str, keys: tuple[str, ...], reported: float | None) -> Cell:
    theirs = None if reported is None else reported / 100
    values = [_value(summary, name) for summary in summaries.values()]
    if not values or None in values:
        note = "no testpoint of a seed was counted" if values else "not finished"
        return cell(None, runs=keys, reported=theirs, note=note)
    numbers = np.array(values, dtype=np.float64)
    if len(numbers) > 1:
        return cell(study_interval(numbers[:, None]), runs=keys, reported=theirs)
    summary = next(iter(summaries.values()))
    ends = summary["overall_interval"] if name == "Overall" else summary["dimensions"][name]["interval"]
    low, high = ends if ends is not None else (-np.inf, np.inf)
    return cell(Interval(float(numbers[0]), low, high), runs=keys, reported=theirs)


def _difference(one: Summaries, two: Summaries, name: str) -> Interval | None:
    """Paired by seed."""
    pairs = [(_value(one[seed], name), _value(two[seed], name)) for seed in one if seed in two]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    return study_interval(np.array(known)[:, None]) if known else None
