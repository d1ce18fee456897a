"""Figures 4 to 8: the same prompts and noise drawn by every method, chosen by a rule."""

from __future__ import annotations

from typing import Any

from flowrl.bench import gallery
from flowrl.bench.report import Report
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import report as make
from flowrl.bench.tables.measured import by_title


def report(study: Study, spec: TableSpec) -> Report:
    """The gallery, its pictures in ``study.pictures``; without the untrained model or the reference there is none."""
    base = next(study.title(method) for method in spec.methods if not study.is_trained(method))
    reference = study.title(spec.reference or "")
    of_method: dict[str, list[dict[str, Any]]] = {}
    for one in by_title(study.measured(spec, "pictures")):
        of_method.setdefault(one["method"], []).append(one)
    if not {base, reference} <= of_method.keys():
        return make(study, spec, [])
    shown, files = gallery.gallery(of_method, base=base, reference=reference)
    study.pictures.update(files)
    return make(study, spec, [shown])
