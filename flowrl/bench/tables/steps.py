"""Table 3: the same runs drawn in few, medium and many denoising steps."""

from __future__ import annotations

from flowrl.bench.report import Report, Text
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


def report(study: Study, spec: TableSpec) -> Report:
    """A group of rows for each number of steps; the paper's 10, 20 and 50 stand beside few, medium and many."""
    rewards = spec.rewards[0]
    steps = study.scale.steps
    groups = [Group(f"{which}: {getattr(steps, which)} steps", which, rewards, key=which) for which in spec.steps]
    rows, claims = method_rows(study, spec, groups)
    what = f"Trained on {rewards_title(rewards)}, {study.scale.prompts or 'all'} prompts,"
    columns = (*columns_of(metrics_of(study)), order_column(study, spec))
    table = simple_table("steps", spec.title, columns, rows, caption(study, spec, what))
    text = Text(name="steps_claims", title="Orders of the paper's Tables 1 and 3", claims=tuple(claims))
    return make(study, spec, [table, text])
