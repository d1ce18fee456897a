"""A report as files: its JSON, a Markdown page, CSV and LaTeX of every table, PNG and PDF of every figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flowrl import atomic
from flowrl.bench.figures import draw
from flowrl.bench.files import check, load_reports
from flowrl.bench.latex import latex
from flowrl.bench.markdown import markdown
from flowrl.bench.page import write_page
from flowrl.bench.report import Figure, Report, Table
from flowrl.bench.tidy import tidy
from flowrl.errors import UserError


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write everything that is made from ``report`` alone, each file whole or not at all; the JSON comes first.

    ``NAME.json`` and ``NAME.md`` are named after the report, the others after their blocks. A gallery's pictures are in
    the folder already. Raises UserError where the report contradicts itself, before anything is written.
    """
    check(report)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{report.name}.json"]
    atomic.write_json(written[0], report.model_dump(mode="json"))
    for block in report.blocks:
        if isinstance(block, Table):
            written += [folder / f"{block.name}.csv", folder / f"{block.name}.tex"]
            atomic.write_text(written[-2], tidy(report, block))
            atomic.write_text(written[-1], latex(report, block))
        elif isinstance(block, Figure):
            written += draw(block, folder / block.name)
    written.append(folder / f"{report.name}.md")
    atomic.write_text(written[-1], markdown(report))
    return written


def rebuild(folder: Path, say: Callable[[str], None] = lambda _: None) -> list[Path]:
    """Write all files and the page, last, from the reports in ``folder``; what is left out, ``say`` tells.

    Raises UserError where a report cannot be read, before anything is written, or where the folder cannot be written.
    """
    reports = load_reports(folder)
    try:
        written = [path for report in reports for path in write_report(report, folder)]
        return [*written, write_page(folder, say)]
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
