"""Training reward against gold over long training."""

from __future__ import annotations

from flowrl.bench import hacking
from flowrl.bench.report import Report
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import report as make
from flowrl.bench.tables.measured import with_missing


def report(study: Study, spec: TableSpec) -> Report:
    """A table and curves, of the methods whose runs are finished."""
    monitor = study.monitor_name(spec.rewards[0])
    runs = [run for method in spec.methods for run in study.runs(spec, method, spec.rewards[0])]
    found = [hacking.measure(run.folder, method=run.title, seed=run.seed, monitor=monitor) for run in runs]
    keys = {run.title: tuple(other.key for other in runs if other.title == run.title) for run in runs}
    return make(study, spec, with_missing(study, spec, hacking.blocks(found, keys) if found else [], keys))
