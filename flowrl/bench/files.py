"""The reports in a folder: read with what is wrong told clearly, and checked before anything is made from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from flowrl.bench.report import Figure, Gallery, Report, Table
from flowrl.errors import UserError

FORMAT = 1
ORDER = (
    "main",
    "ablation",
    "steps",
    "unigenbench",
    "cost",
    "curves",
    "hacking",
    "granularity",
    "credit",
    "gallery",
    "settings",
)
"""In which reports are read; others follow by their names."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def load_reports(folder: Path, say: Callable[[str], None] = lambda _: None) -> list[Report]:
    """The reports in ``folder``, in reading order. JSON files that are something else are named by ``say``.

    Raises UserError where one cannot be read, is of a newer format, or there is none.
    """
    if not folder.is_dir():
        raise UserError(f"no reports: {folder} does not exist or is no folder")
    reports = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        values = _values(path)
        if isinstance(values, dict) and "format" in values and "blocks" in values:
            reports.append(_report(values, path))
        else:
            say(f"{path} is not a report: left out")
    if not reports:
        raise UserError(f"{folder} holds no report (NAME.json, as flowrl bench writes them)")
    check_together(reports)
    return sorted(reports, key=lambda report: (_place(report.name), report.name))


def load_report(path: Path) -> Report:
    """Raises UserError where ``path`` is missing, damaged, of a newer format or something else."""
    values = _values(path)
    if not isinstance(values, dict) or "format" not in values or "blocks" not in values:
        raise UserError(f"{path} is not a report: it lacks 'format' and 'blocks'")
    return _report(values, path)


def _values(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is not JSON: {error}; make it again with flowrl bench") from error


def _report(values: dict[str, Any], path: Path) -> Report:
    found = values["format"]
    if isinstance(found, int) and found > FORMAT:
        raise UserError(f"{path} is of format {found}, this flowrl reads {FORMAT}: it was made by a newer one; update")
    try:
        report = Report.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged: {where}: {first['msg']}; make it again with flowrl bench") from error
    if report.name != path.stem:
        raise UserError(f"{path} holds the report {report.name!r}; it belongs into {report.name}.json")
    check(report)
    return report


def check(report: Report) -> None:
    """Raise UserError where a report contradicts itself; it says what, not where it was read."""
    faults = list(_faults(report))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"the report {report.name!r} is at odds with itself: {faults[0]}{more}")


def check_together(reports: Sequence[Report]) -> None:
    """Raise UserError where two reports would write the same file."""
    owner: dict[str, str] = {}
    for report in reports:
        for name in dict.fromkeys((report.name, *(block.name for block in report.blocks))):
            if owner.setdefault(name.lower(), report.name) != report.name:
                raise UserError(f"the reports {owner[name.lower()]!r} and {report.name!r} both have files named {name}")


def _faults(report: Report) -> Iterator[str]:
    names = [(block.kind, block.name) for block in report.blocks]
    for name in (report.name, *(name for _, name in names)):
        if not _NAME.fullmatch(name):
            yield f"{name!r} is no name of files: letters, digits, '.', '_' and '-'"
    for kind, name in {entry for entry in names if names.count(entry) > 1}:
        yield f"two blocks of kind {kind} are named {name}"
    for key, run in report.runs.items():
        if key != run.key:
            yield f"the run {run.key} stands under {key}"
    for block in report.blocks:
        if isinstance(block, Table):
            yield from _of_table(block, report)
        elif isinstance(block, Figure):
            yield from _of_figure(block, report)
        elif isinstance(block, Gallery):
            files = (picture.file for comparison in block.comparisons for picture in comparison.pictures)
            yield from (
                f"{block.name}: the picture {file!r} is not inside the folder" for file in files if not _is_inside(file)
            )


def _of_table(table: Table, report: Report) -> Iterator[str]:
    keys = {column.key for column in table.columns}
    if len(keys) < len(table.columns):
        yield f"{table.name}: two columns have the same key"
    for row in table.rows:
        yield from (f"{table.name}: {row.title} has a cell {key!r} but no column" for key in row.cells.keys() - keys)
        runs = [key for cell in row.cells.values() for key in cell.runs]
        yield from (
            f"{table.name}: {row.title} comes from an unknown run {key}" for key in runs if key not in report.runs
        )


def _of_figure(figure: Figure, report: Report) -> Iterator[str]:
    for panel in figure.panels:
        for line in panel.lines:
            lengths = {len(line.x), len(line.mean), *(len(ends) for ends in (line.low, line.high) if ends)}
            if len(lengths) > 1:
                yield f"{figure.name}: {line.title} has x, mean, low and high of different lengths"
            unknown = [key for key in line.runs if key not in report.runs]
            yield from (f"{figure.name}: {line.title} comes from an unknown run {key}" for key in unknown)


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return bool(file) and not path.is_absolute() and ".." not in path.parts and "\\" not in file and "\0" not in file


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)
