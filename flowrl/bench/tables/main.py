"""Table 1: reward sets and methods by every metric, beside the paper's numbers; and the same at equal compute."""

from __future__ import annotations

from flowrl.bench.report import Block, Report, Row, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import (
    caption,
    columns_of,
    metric_row,
    metrics_of,
    order_claims,
    paper_rows,
    rewards_title,
    simple_table,
)
from flowrl.bench.tables.common import (
    report as make,
)
from flowrl.bench.tables.compute import compute_table


def report(study: Study, spec: TableSpec) -> Report:
    """A group of rows for each reward set."""
    rows: list[Row] = []
    claims = []
    for rewards in spec.rewards:
        reported = paper_rows(spec, rewards)
        for method in spec.methods:
            theirs = reported.get(study.bench.methods[method].paper or "", {})
            group = f"trained on {rewards_title(rewards)}"
            rows.append(metric_row(study, spec, "many", method, rewards, group=group, reported=theirs))
        claims += order_claims(study, spec, "many", rewards, rewards)
    what = f"After training, {study.scale.steps.many} denoising steps, {study.scale.prompts or 'all'} prompts,"
    blocks: list[Block] = [
        simple_table("main", spec.title, columns_of(metrics_of(study)), rows, caption(study, spec, what))
    ]
    blocks += [table for rewards in spec.rewards if (table := compute_table(study, spec, rewards)) is not None]
    blocks.append(Text(name="main_claims", title="Orders of the paper's Table 1", claims=tuple(claims)))
    return make(study, spec, blocks)
