"""What stands in a table's cells, whatever the format: numbers as text, the best and the second of a group, notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from flowrl.bench.report import Cell, Column, Report, Row, Table

Rank = Literal["best", "second"]
ARROWS = {"higher": "↑", "lower": "↓"}


class Entry(NamedTuple):
    """A cell as text. ``note`` is the mark of the note that it has; ``value`` what it is sorted by."""

    text: str
    interval: str | None = None
    paper: str | None = None
    rank: Rank | None = None
    note: str | None = None
    value: float | None = None
    runs: tuple[str, ...] = ()


class Line(NamedTuple):
    """A row as text, its entries in the order of the columns."""

    title: str
    entries: tuple[Entry, ...]
    failed: str | None


class Sheet(NamedTuple):
    """A table as text: groups with a heading (None: without), and notes by their marks."""

    groups: tuple[tuple[str | None, tuple[Line, ...]], ...]
    notes: Mapping[str, str]
    textual: tuple[bool, ...]
    """Of each column: whether it holds no number; such columns are aligned to the left."""

    @property
    def lines(self) -> Iterator[Line]:
        return (line for _, lines in self.groups for line in lines)

    @property
    def entries(self) -> Iterator[Entry]:
        return (entry for line in self.lines for entry in line.entries)

    def legend(self, best: str, second: str) -> str:
        """What the marks that the table has mean; ``best`` and ``second`` say how a format shows them."""
        entries = list(self.entries)
        ranks = {entry.rank for entry in entries}
        where = "of its group" if len(self.groups) > 1 else "of the column"
        parts = []
        if "best" in ranks:
            parts.append(f"{best}: the best {where}" + (f", {second}: the second." if "second" in ranks else "."))
        if any(entry.interval for entry in entries):
            parts.append("In brackets: the 95 % interval.")
        if any(entry.paper for entry in entries):
            parts.append("Paper: what the paper reports, of its own model.")
        return " ".join(parts)


def sheet(table: Table) -> Sheet:
    """``table`` as text."""
    grouped: dict[str | None, list[Row]] = {}
    for row in table.rows:
        grouped.setdefault(row.group, []).append(row)
    texts = dict.fromkeys(cell.note for row in table.rows for cell in row.cells.values() if cell.note)
    marks = {text: _mark(i) for i, text in enumerate(texts) if text}
    groups = []
    for group, rows in grouped.items():
        ranks = {column.key: _ranks(column, rows) for column in table.columns}
        lines = [
            Line(
                row.title,
                tuple(_entry(column, row, ranks[column.key].get(i), marks) for column in table.columns),
                row.failed,
            )
            for i, row in enumerate(rows)
        ]
        groups.append((group, tuple(lines)))
    lines = [line for _, of_group in groups for line in of_group]
    textual = tuple(all(line.entries[i].value is None for line in lines) for i in range(len(table.columns)))
    return Sheet(tuple(groups), {mark: text for text, mark in marks.items()}, textual)


def number(value: float, column: Column) -> str:
    """A number as its column shows it.

    >>> number(0.1234, Column(key="gold", title="Gold", digits=1, percent=True))
    '12.3 %'
    """
    return f"{100 * value:z,.{column.digits}f} %" if column.percent else f"{value:z,.{column.digits}f}"


def heading(column: Column) -> str:
    """A column's title with its unit and the direction of the better."""
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.title}{unit}" + (f" {ARROWS[column.better]}" if column.better else "")


def titled(report: Report, title: str) -> str:
    """``title``, and whether what it heads is less than a full and complete measurement."""
    reasons = [f"{report.budget} budget"] if report.budget != "full" else []
    if report.missing:
        done = sum(run.status == "done" for run in report.runs.values())
        reasons.append(f"partial: {len(report.missing)} of {len(report.missing) + done} parts missing")
    return f"{title} ({'; '.join(reasons)})" if reasons else title


def interval(low: float | None, high: float | None, column: Column) -> str | None:
    """``[low, high]``, or None where either is not known."""
    if low is None or high is None:
        return None
    return f"[{number(low, column)}, {number(high, column)}]"


def _entry(column: Column, row: Row, rank: Rank | None, marks: Mapping[str, str]) -> Entry:
    cell = row.cells.get(column.key) or Cell()
    note = marks[cell.note] if cell.note else None
    paper = None if cell.paper is None else number(cell.paper, column)
    if cell.value is None:
        return Entry("failed" if row.failed else "–", paper=paper, note=note, runs=cell.runs)
    if isinstance(cell.value, str):
        return Entry(cell.value, paper=paper, note=note, runs=cell.runs)
    ends = interval(cell.low, cell.high, column)
    return Entry(number(cell.value, column), ends, paper, rank, note, cell.value, cell.runs)


def _ranks(column: Column, rows: list[Row]) -> dict[int, Rank]:
    """Row -> its place, by the numbers as they are shown: what reads the same is marked the same."""
    if column.better is None:
        return {}
    shown: dict[int, float] = {}
    for i, row in enumerate(rows):
        value = row.cells[column.key].value if column.key in row.cells else None
        if isinstance(value, int | float):
            shown[i] = round(value, column.digits + (2 if column.percent else 0))
    order = sorted(set(shown.values()), reverse=column.better == "higher")
    if len(order) < 2:
        return {}
    places: dict[float, Rank] = {order[0]: "best", order[1]: "second"}
    return {i: places[value] for i, value in shown.items() if value in places}


def _mark(i: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_mark(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
