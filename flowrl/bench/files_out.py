"""Where a report goes: never over one of a larger budget, nor over a more complete one of the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowrl import atomic
from flowrl.bench.files import load_report
from flowrl.bench.report import BUDGETS, Report
from flowrl.bench.write import write_report
from flowrl.errors import UserError


def save(report: Report, folder: Path, pictures: Mapping[str, bytes] | None = None) -> str:
    """Write a report in all its forms, unless what is there is worth more; returns the line that says what was done.

    ``pictures``: files that its gallery shows, by their names in ``folder``.
    """
    path = folder / f"{report.name}.json"
    there = _there(path)
    if there is not None:
        if BUDGETS.index(there.budget) > BUDGETS.index(report.budget):
            return f"{path} is of budget {there.budget} and stays; this one, of {report.budget}, is not written"
        if there.budget == report.budget and len(there.missing) < len(report.missing):
            return (
                f"{path} lacks {len(there.missing)} of its parts and stays; this one, which lacks "
                f"{len(report.missing)}, is not written"
            )
    for name, content in (pictures or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(folder / name, content)
    write_report(report, folder)
    lacking = f", without {len(report.missing)} parts that are not finished" if report.missing else ""
    return f"table {report.name} is in {path.with_suffix('.md')}{lacking}"


def _there(path: Path) -> Report | None:
    try:
        return load_report(path)
    except UserError:  # missing or damaged: it is replaced
        return None
