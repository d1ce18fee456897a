"""A table as tidy CSV: one line per cell, numbers unrounded."""

from __future__ import annotations

import csv
import io

from flowrl.bench.report import Cell, Report, Table
from flowrl.escape import spreadsheet

HEAD = (
    "report",
    "budget",
    "table",
    "group",
    "row",
    "column",
    "value",
    "low",
    "high",
    "paper",
    "runs",
    "note",
    "failed",
)


def tidy(report: Report, table: Table) -> str:
    """Numbers are written so that they are read back equal, and are shares where the table shows per cent."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEAD)
    for row in table.rows:
        for column in table.columns:
            cell = row.cells.get(column.key) or Cell()
            texts = (report.name, report.budget, table.name, row.group or "", row.title, column.key)
            numbers = (cell.value, cell.low, cell.high, cell.paper)
            rest = (" ".join(cell.runs), cell.note or "", row.failed or "")
            writer.writerow(
                [
                    *map(spreadsheet, texts),
                    *(spreadsheet(x) if isinstance(x, str) else "" if x is None else repr(x) for x in numbers),
                    *map(spreadsheet, rest),
                ]
            )
    return stream.getvalue()
