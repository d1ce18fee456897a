"""Tables in Markdown that read well in a terminal too."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterator, Sequence

WIDEST = 44
"""A column is padded no wider: one long cell does not push the others out of sight."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> Iterator[str]:
    """The lines of a table, the columns in ``left`` aligned to the left and the others to the right.

    Cells are Markdown: text from elsewhere goes through :func:`flowrl.escape.markdown` first.

    >>> print("\\n".join(table(["metric", "mean"], [["gold", "0.5"]])))
    | metric | mean |
    | ------ | ---: |
    | gold   |  0.5 |
    """
    widths = [min(WIDEST, max(3, *(_width(line[i]) for line in (head, *rows)))) for i in range(len(head))]
    yield _line([_padded(cell, width, i in left) for i, (cell, width) in enumerate(zip(head, widths, strict=True))])
    yield _line(["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    for row in rows:
        yield _line([_padded(cell, width, i in left) for i, (cell, width) in enumerate(zip(row, widths, strict=True))])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _padded(cell: str, width: int, left: bool) -> str:
    space = " " * (width - _width(cell))
    return cell + space if left else space + cell


def _width(text: str) -> int:
    """In columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
