"""What tables of measurements share: a method's title in its measurements, and rows of what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowrl.bench.report import Block, Row, Table
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Measured, Study
from flowrl.bench.tables.common import failure


def by_title(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The measurements, each under the title that its method has in the bench."""
    return [{**one.values, "method": one.title} for one in found]


def keys_of(found: Sequence[Measured]) -> dict[str, tuple[str, ...]]:
    """Method's title -> keys of its measurements."""
    keys: dict[str, tuple[str, ...]] = {}
    for one in found:
        keys[one.title] = (*keys.get(one.title, ()), one.key)
    return keys


def with_missing(study: Study, spec: TableSpec, blocks: Sequence[Block]) -> list[Block]:
    """The blocks with a row for every method that has none in a table of methods: it failed, or is not finished."""
    titles = [study.title(method) for method in spec.methods]
    return [_completed(study, spec, block, titles) if isinstance(block, Table) else block for block in blocks]


def _completed(study: Study, spec: TableSpec, table: Table, titles: Sequence[str]) -> Table:
    there = {row.title: row for row in table.rows}
    if not set(there) <= set(titles):
        return table  # its rows are not methods
    rows = []
    for method, title in zip(spec.methods, titles, strict=True):
        failed = failure(study, spec, method, spec.rewards[0])
        row = there.get(title, Row(title=title, cells={}, failed=failed or "not finished"))
        rows.append(row.model_copy(update={"failed": failed}) if failed else row)
    return table.model_copy(update={"rows": tuple(rows)})
