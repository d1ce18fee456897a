"""Table 2 and beyond: what each part of G2RPO adds."""

from __future__ import annotations

from flowrl.bench.report import Block, Cell, Column, Report, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import (
    caption,
    columns_of,
    evaluated,
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
from flowrl.bench.tables.compute import compute_tables, less


def report(study: Study, spec: TableSpec) -> Report:
    """A group of rows for each thing that is varied; the last column is the difference to the reference."""
    rewards = spec.rewards[0]
    orders = order_claims(study, spec, "many", rewards, rewards)
    judge = metrics_of(study)[-1]
    rows = []
    for group, methods in spec.groups.items():
        for method in methods:
            row = metric_row(study, spec, "many", method, rewards, group=group, key=rewards, orders=orders)
            rows.append(row.model_copy(update={"cells": dict(row.cells) | {"less": _less(study, spec, method, judge)}}))
    difference = Column(key="less", title=f"{judge} less {study.title(spec.reference or '')}", digits=4)
    what = (
        f"Variants of G2RPO trained on {rewards_title(rewards)}, {study.scale.steps.many} denoising steps, "
        f"{study.scale.prompts or 'all'} prompts; rows that are the same run by construction share its numbers."
    )
    columns = (*columns_of(metrics_of(study)), difference, order_column(study, spec))
    blocks: list[Block] = [simple_table("ablation", spec.title, columns, rows, caption(study, spec, what))]
    blocks += compute_tables(study, spec, rewards)[:1]
    claims = tuple(claim for found in orders.values() for claim in found)
    notes = tuple(
        f"{study.title(method)}: {note}." for method in spec.methods if (note := study.bench.methods[method].note)
    )
    blocks.append(Text(name="ablation_claims", title="Orders of the paper's Table 2", paragraphs=notes, claims=claims))
    return make(study, spec, blocks)


def _less(study: Study, spec: TableSpec, method: str, metric: str) -> Cell:
    rewards, reference = spec.rewards[0], spec.reference or method
    one, keys = evaluated(study, spec, "many", method, rewards, metric)
    two, _ = evaluated(study, spec, "many", reference, rewards, metric)
    return less(study, method, reference, one, two, keys)
