"""Table 1: reward sets and methods by every metric, beside the paper's numbers; and the same at equal compute."""

from __future__ import annotations

from flowrl.bench.report import Block, Report, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import (
    Group,
    caption,
    columns_of,
    method_rows,
    metrics_of,
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
    groups = [Group(f"trained on {rewards_title(rewards)}", "many", rewards, key=rewards) for rewards in spec.rewards]
    rows, claims = method_rows(study, spec, groups)
    what = f"After training, {study.scale.steps.many} denoising steps, {study.scale.prompts or 'all'} prompts,"
    columns = (*columns_of(metrics_of(study)), order_column(study, spec))
    blocks: list[Block] = [simple_table("main", spec.title, columns, rows, caption(study, spec, what))]
    for rewards in spec.rewards:
        blocks += compute_tables(study, spec, rewards)[:1]
    blocks.append(Text(name="main_claims", title="Orders of the paper's Table 1", claims=tuple(claims)))
    return make(study, spec, blocks)
