"""What tables of measurements share: a method's title in its measurements, and rows of what is not there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flowrl.bench.report import Block, Cell, Row, Table
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


def with_missing(study: Study, spec: TableSpec, blocks: Sequence[Block], measured: Collection[str]) -> list[Block]:
    """The blocks of what was ``measured`` (titles of methods), with a row in their tables of methods for every other
    method: it failed, or is not finished."""
    return [_completed(study, spec, block, measured) if isinstance(block, Table) else block for block in blocks]


def _completed(study: Study, spec: TableSpec, table: Table, measured: Collection[str]) -> Table:
    titles = [study.title(method) for method in spec.methods]
    there = {row.title: row for row in table.rows}
    if not set(there) <= set(titles):
        return table  # its rows are not methods
    rows = []
    for method, title in zip(spec.methods, titles, strict=True):
        if title in measured and title not in there:
            continue  # what the others are compared with
        failed = failure(study, spec, method, spec.rewards[0])
        nothing = {} if failed else {column.key: Cell(note="not finished") for column in table.columns}
        rows.append(there.get(title, Row(title=title, cells=nothing)).model_copy(update={"failed": failed}))
    return table.model_copy(update={"rows": tuple(rows)})
