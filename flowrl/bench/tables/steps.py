"""Table 3: the same runs drawn in few, medium and many denoising steps."""

from __future__ import annotations

from flowrl.bench.report import Report, Row, Text
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


def report(study: Study, spec: TableSpec) -> Report:
    """A group of rows for each number of steps; the paper's 10, 20 and 50 stand beside few, medium and many."""
    rewards = spec.rewards[0]
    rows: list[Row] = []
    claims = []
    for which in spec.steps:
        reported = paper_rows(spec, which) or paper_rows(spec.model_copy(update={"name": "main"}), rewards)
        group = f"{which}: {getattr(study.scale.steps, which)} steps"
        for method in spec.methods:
            theirs = reported.get(study.bench.methods[method].paper or "", {})
            rows.append(metric_row(study, spec, which, method, rewards, group=group, reported=theirs))
        claims += order_claims(study, spec, which, rewards, which)
    what = f"Trained on {rewards_title(rewards)}, {study.scale.prompts or 'all'} prompts,"
    table = simple_table("steps", spec.title, columns_of(metrics_of(study)), rows, caption(study, spec, what))
    return make(
        study, spec, [table, Text(name="steps_claims", title="Orders of the paper's Table 3", claims=tuple(claims))]
    )
