"""Fidelity of credit for single actions, and the signal-to-noise of the gradient."""

from __future__ import annotations

from flowrl.bench import credit_report, gradients
from flowrl.bench.report import Block, Report
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import report as make
from flowrl.bench.tables.measured import by_title, keys_of, with_missing


def report(study: Study, spec: TableSpec) -> Report:
    """Correlations of the advantage with values of the action, compared; then the gradient's SNR."""
    blocks: list[Block] = []
    reference = None if spec.reference is None else study.title(spec.reference)
    found = {name: study.measured(spec, name) for name in spec.measure}
    if fidelity := found.get("fidelity"):
        keys = keys_of(fidelity)
        blocks += with_missing(study, spec, credit_report.blocks(by_title(fidelity), keys, reference), keys)
    if gradient := found.get("gradients"):
        keys = keys_of(gradient)
        blocks += with_missing(study, spec, [gradients.table(by_title(gradient), keys, reference)], keys)
    return make(study, spec, blocks)
