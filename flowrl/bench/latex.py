r"""A table in LaTeX, with ``\usepackage{booktabs}`` alone: the best bold, the second underlined, as in the paper.

Under a row stand its 95 % intervals, and under those what the paper reports, each only where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flowrl.bench.entries import Entry, Line, heading, sheet, titled
from flowrl.bench.report import Report, Table
from flowrl.escape import latex as escaped

PREAMBLE = r"""\documentclass[twocolumn]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage{booktabs}
"""
"""Of a document that one of the tables is put into."""


def latex(report: Report, table: Table) -> str:
    r"""A ``table*`` to ``\input``."""
    found = sheet(table)
    lines = [
        rf"% {' '.join(PREAMBLE.splitlines()[1:])}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_caption(report, table)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\footnotesize",
        rf"\begin{{tabular}}{{l{''.join('l' if textual else 'r' for textual in found.textual)}}}",
        r"\toprule",
        _line(["", *(escaped(heading(column)) for column in table.columns)]),
    ]
    for group, rows in found.groups:
        lines.append(r"\midrule")
        if group is not None:
            lines.append(rf"\multicolumn{{{1 + len(table.columns)}}}{{l}}{{\textit{{{escaped(group)}}}}} \\")
        for row in rows:
            lines += _row(row)
    lines += [r"\bottomrule", r"\end{tabular}"]
    below = [rf"\textsuperscript{{{mark}}} {escaped(note)}" for mark, note in found.notes.items()]
    below += [f"{escaped(row.title)} failed: {escaped(row.failed)}" for row in found.lines if row.failed]
    lines += [rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {text}}}" for text in below]
    return "\n".join([*lines, r"\end{table*}", ""])


def _caption(report: Report, table: Table) -> str:
    parts = [titled(report, table.title).rstrip(".") + ".", table.caption, sheet(table).legend("Bold", "underlined")]
    return " ".join(escaped(part) for part in parts if part)


def _row(row: Line) -> Iterator[str]:
    yield _line([escaped(row.title), *map(_entry, row.entries)])
    yield from _below("", row.entries, lambda entry: entry.interval)
    yield from _below(r"\quad paper", row.entries, lambda entry: entry.paper)


def _below(title: str, entries: Sequence[Entry], what: Callable[[Entry], str | None]) -> Iterator[str]:
    texts = [what(entry) for entry in entries]
    if any(texts):
        style = r"\scriptsize\itshape" if title else r"\scriptsize"
        yield _line(
            [title and rf"{{{style} {title}}}", *(f"{{{style} {escaped(text)}}}" if text else "" for text in texts)]
        )


def _entry(entry: Entry) -> str:
    text = escaped(entry.text)
    marked = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", None: text}[entry.rank]
    return marked + (rf"\textsuperscript{{{entry.note}}}" if entry.note else "")


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
