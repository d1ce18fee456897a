"""Every shipped table end to end on the embedded world, as small as it can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flowrl.bench.files import load_reports
from flowrl.bench.report import Report, Table
from flowrl.bench.spec import shipped_benchmarks
from flowrl.cli import app

KEPT = {"base", "mix_grpo", "g2rpo", "g2rpo_wo_mgai", "lambda_1", "lambda_123", "sum_mgai", "peers_step"}
LESS = {
    "iterations": 1,
    "held_out": 2,
    "prompts": 2,
    "benchmark_prompts": 1,
    "long": 2,
    "steps": {"few": 1, "medium": 2, "many": 3},
    "overrides": ["rollout.prompts=1", "rollout.group=2"],
}


def write_small_bench(folder: Path) -> Path:
    """The shipped files with fewer methods and less of everything."""
    folder.mkdir()
    for path in shipped_benchmarks().glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        if path.name == "budgets.yaml":
            values["smoke"] |= LESS
        elif "groups" in values:
            groups = {name: [m for m in methods if m in KEPT] for name, methods in values["groups"].items()}
            values["groups"] = {name: methods for name, methods in groups.items() if methods}
            values["rewards"] = values["rewards"][-1:]
        (folder / path.name).write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def tables(report: Report) -> dict[str, Table]:
    return {block.name: block for block in report.blocks if isinstance(block, Table)}


@pytest.mark.slow
def test_every_table_is_made_and_a_second_time_from_what_is_there(tmp_path: Path) -> None:
    bench = write_small_bench(tmp_path / "bench")
    folders = {"--specs": bench, "--folder": tmp_path / "runs", "--output": tmp_path}
    options = ["--budget", "smoke", *(str(word) for pair in folders.items() for word in pair)]
    result = CliRunner().invoke(app, ["bench", "--table", "all", *options])
    assert result.exit_code == 0, result.output
    reports = {report.name: report for report in load_reports(tmp_path)}
    assert reports.keys() == {path.stem for path in bench.glob("*.yaml")} - {"methods", "budgets"}
    assert not [report.missing for report in reports.values() if report.missing]
    main = tables(reports["main"])["main"]
    metrics = {"hps", "clip", "pickscore", "image_reward", "unified_reward", "gold"}
    assert metrics <= {column.key for column in main.columns}
    for row in main.rows:
        assert all(cell.value is not None for cell in row.cells.values()), row.title
        assert all(key in reports["main"].runs for cell in row.cells.values() for key in cell.runs)
    assert main.rows[0].cells["hps"].paper == 0.305
    steps = tables(reports["steps"])["steps"]
    assert {row.group for row in steps.rows} == {"few: 1 steps", "medium: 2 steps", "many: 3 steps"}
    ablation = {row.title: row.cells for row in tables(reports["ablation"])["ablation"].rows}
    assert ablation["G2RPO, {1, 2, 3}"]["gold"].runs == ablation["MGAI, compared within the step"]["gold"].runs
    shares = [row.cells["Style"].value for row in tables(reports["unigenbench"])["unigenbench"].rows]
    assert len(shares) == 4
    assert (tmp_path / "index.html").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "records").iterdir()}
    again = CliRunner().invoke(app, ["bench", "--table", "all", *options])
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "records").iterdir()} == before
