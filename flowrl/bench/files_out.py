"""Where a report goes: never over one of a larger budget, nor over a more complete one of the same."""

from __future__ import annotations

import json
from pathlib import Path

from flowrl import atomic
from flowrl.bench.report import BUDGETS, Report


def save(report: Report, folder: Path) -> str:
    """Write a report, unless what is there is worth more; returns the line that says what was done."""
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
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, report.model_dump(mode="json"))
    lacking = f", without {len(report.missing)} parts that are not finished" if report.missing else ""
    return f"table {report.name} is in {path}{lacking}"


def load(path: Path) -> Report:
    """A report from its JSON. Raises OSError or ValueError where it is none."""
    return Report.model_validate(json.loads(path.read_bytes()))


def _there(path: Path) -> Report | None:
    try:
        return load(path)
    except (OSError, ValueError):
        return None
