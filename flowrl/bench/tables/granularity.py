"""Figure 3 made a measurement: how much a reward and its ranking within a group vary with granularity."""

from __future__ import annotations

from flowrl.bench import granularity
from flowrl.bench.report import Block, Report
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import report as make


def report(study: Study, spec: TableSpec) -> Report:
    """Pairs of granularities, parts of variance, and two figures by grid step."""
    found = study.measured(spec, "granularity")
    blocks: list[Block] = []
    if found:
        blocks = granularity.blocks([one.values for one in found], tuple(one.key for one in found))
    return make(study, spec, blocks)
