"""Table 1: reward sets and methods by every metric, beside the paper's numbers; and the same at equal compute."""

from __future__ import annotations

from flowrl.bench.report import Block, Claim, Report, Row, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import (
    caption,
    columns_of,
    metric_row,
    metrics_of,
    order_claims,
    order_column,
    rewards_title,
    simple_table,
)
from flowrl.bench.tables.common import (
    report as make,
)
from flowrl.bench.tables.compute import compute_tables


def report(study: Study, spec: TableSpec) -> Report:
    """A group of rows for each reward set."""
    rows: list[Row] = []
    claims: list[Claim] = []
    for rewards in spec.rewards:
        orders = order_claims(study, spec, "many", rewards, rewards)
        group = f"trained on {rewards_title(rewards)}"
        rows += [
            metric_row(study, spec, "many", method, rewards, group=group, key=rewards, orders=orders)
            for method in spec.methods
        ]
        claims += [claim for found in orders.values() for claim in found]
    what = f"After training, {study.scale.steps.many} denoising steps, {study.scale.prompts or 'all'} prompts,"
    columns = (*columns_of(metrics_of(study)), order_column(study, spec))
    blocks: list[Block] = [simple_table("main", spec.title, columns, rows, caption(study, spec, what))]
    for rewards in spec.rewards:
        blocks += compute_tables(study, spec, rewards)[:1]
    blocks.append(Text(name="main_claims", title="Orders of the paper's Table 1", claims=tuple(claims)))
    return make(study, spec, blocks)
