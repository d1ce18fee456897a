"""Tables of measurements, through the runner: measured once, every method a row, failures told."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from bench.benches import METHODS, study_of, write_bench

from flowrl.bench import credit, granularity
from flowrl.bench.command import make_report
from flowrl.bench.files import check
from flowrl.bench.markdown import markdown
from flowrl.bench.report import Report, Table
from flowrl.bench.spec import load_bench
from flowrl.bench.study import Measured, Study
from flowrl.bench.tables import gallery
from flowrl.bench.units import Store
from flowrl.bench.worker import Worker

SMALL = {"seeds": 2, "iterations": 2, "every": 1, "long": 3}
BROKEN = {"recipe": "tiny_recipe.yaml", "title": "Broken", "overrides": ["rewards.a.broken_at=[0, 1, 2, 3, 4, 5, 6]"]}


def made(folder: Path, name: str, methods: dict[str, Any] | None = None, **table: Any) -> tuple[Study, Report]:
    """A bench whose only table is ``name``'s, worked through."""
    table = {"report": f"flowrl.bench.tables.{name}:report", "train": False} | table
    study = study_of(write_bench(folder, methods=methods, scale=SMALL, table=table))
    events: list[dict[str, Any]] = []
    Worker(study.store, study.units(list(study.bench.tables.values())), time.time(), events.append).run()
    report = make_report(study, study.bench.table("curves"))
    check(report)
    return study, report


def tables(report: Report) -> dict[str, Table]:
    return {block.name: block for block in report.blocks if isinstance(block, Table)}


def test_credit(tmp_path: Path) -> None:
    measure = {
        "fidelity": {"function": "flowrl.bench.credit:measure", "options": {"num_prompts": 2, "samples": 2}},
        "gradients": {"function": "flowrl.bench.gradients:measure", "options": {"num_prompts": 3, "repetitions": 2}},
    }
    study, report = made(tmp_path, "credit", {"one": METHODS["one"], "broken": BROKEN}, measure=measure)
    found = tables(report)
    assert set(found) == {"credit_ranks", "credit_values", "credit_snr"}
    for table in found.values():
        one, broken = table.rows
        assert (one.title, one.failed) == ("One", None)
        assert broken.title == "Broken"
        assert broken.failed.lower().startswith("broken on ")
    keys = found["credit_ranks"].rows[0].cells["sde"].runs
    assert sorted(report.runs[key].seed for key in keys) == [0, 1]
    assert len(report.missing) == 2, "of the broken one, by seed"
    values = study.measured(study.bench.table("curves"), "fidelity")[0].values
    assert values["forwards"] == study.recipe("one", study.bench.table("curves").rewards[0]).plan().num_forwards


def test_what_others_are_compared_with_has_no_row_among_their_differences(tmp_path: Path) -> None:
    measure = {"fidelity": {"function": "flowrl.bench.credit:measure", "options": {"num_prompts": 2, "samples": 2}}}
    methods = {"one": METHODS["one"], "two": METHODS["two"], "broken": BROKEN}
    _, report = made(tmp_path, "credit", methods, measure=measure, reference="two")
    found = tables(report)
    assert [row.title for row in found["credit_ranks"].rows] == ["One", "Two", "Broken"]
    assert [row.title for row in found["credit_differences"].rows] == ["One", "Broken"]


def test_what_is_not_finished_is_no_failure(tmp_path: Path) -> None:
    measure = {"fidelity": {"function": "flowrl.bench.credit:measure", "options": {"num_prompts": 2, "samples": 2}}}
    study, _ = made(tmp_path, "credit", {"one": METHODS["one"], "two": METHODS["two"]}, measure=measure)
    spec = study.bench.table("curves")
    for measured in study.measured(spec, "fidelity"):
        if measured.title == "Two":
            study.store.forget(measured.key)
    report = make_report(study, spec)
    _, two = tables(report)["credit_ranks"].rows
    assert two.failed is None
    assert {cell.note for cell in two.cells.values()} == {"not finished"}
    assert "partial: 2 of 4 parts missing)" in markdown(report).splitlines()[0]


def test_a_measurement_that_fails_is_a_row_that_says_so(tmp_path: Path) -> None:
    measure = {"fidelity": {"function": "flowrl.bench.credit:measure", "options": {"num_prompts": 99}}}
    _, report = made(tmp_path, "credit", {"one": METHODS["one"]}, measure=measure)
    assert report.blocks == ()
    assert len(report.missing) == 2


def test_granularity(tmp_path: Path) -> None:
    measure = {"granularity": {"function": "flowrl.bench.granularity:measure", "options": {"num_prompts": 2}}}
    _, report = made(tmp_path, "granularity", {"two": METHODS["two"]}, measure=measure)
    assert set(tables(report)) == {"granularity_pairs", "granularity_variance"}
    assert not report.missing


def test_hacking(tmp_path: Path) -> None:
    _, report = made(tmp_path, "hacking", train=True, long=True)
    table = tables(report)["hacking"]
    assert [row.title for row in table.rows] == ["One", "Two", "Two again"]
    assert all(row.cells["best"].value is not None for row in table.rows)
    assert "a, best" in [column.title for column in table.columns], "the tiny recipe's only monitor"


def test_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"base": {"title": "untrained"}, "one": METHODS["one"], "two": METHODS["two"]}
    study = study_of(write_bench(tmp_path, methods=methods, table={"reference": "two"}))
    spec = study.bench.table("curves")

    def measured(self: Study, spec: Any, name: str) -> list[Measured]:
        def one(method: str, values: list[float]) -> Measured:
            prompts = [[i, f"prompt {i}"] for i in range(len(values))]
            picture = base64.b64encode(method.encode()).decode()
            found = {"values": values, "prompts": prompts, "score": "gold", "noise": 0}
            found |= {"pictures": [picture] * len(values)}
            return Measured(f"{name}-{method}", method, study.title(method), "r", 0, found, record)

        record: Any = None
        return [one("base", [0.5, 0.5, 0.5]), one("one", [0.1, 0.2, 0.3]), one("two", [0.4, 0.5, 0.6])]

    monkeypatch.setattr(Study, "measured", measured)
    (shown,) = gallery.report(study, spec).blocks
    assert shown.kind == "gallery"
    assert [c.prompt for c in shown.comparisons] == ["prompt 2", "prompt 1", "prompt 0"]
    assert [p.label for p in shown.comparisons[0].pictures] == ["untrained", "One", "Two"]
    assert [p.score for p in shown.comparisons[0].pictures] == [0.5, 0.3, 0.6]
    assert {p.file for c in shown.comparisons for p in c.pictures} == set(study.pictures)
    assert study.pictures[shown.comparisons[0].pictures[1].file] == b"one"
    monkeypatch.setattr(Study, "measured", lambda *_: [])
    assert gallery.report(study, spec).blocks == ()


@pytest.mark.parametrize("name", ["credit", "granularity", "hacking", "gallery"])
def test_the_shipped_tables_are_whole(name: str) -> None:
    """Every unit can be made, at every budget, with options that its function takes."""
    from importlib import import_module
    from inspect import signature

    bench = load_bench()
    spec = bench.table(name)
    for budget in ("smoke", "small", "full"):
        study = Study(bench, "shapes", budget, Store(Path("nowhere")))
        units = study.units([spec])
        assert units
        for unit in (unit for unit in units if unit.kind == "measure"):
            module, _, function = unit.arguments["function"].partition(":")
            signature(getattr(import_module(module), function)).bind("recipe", **unit.arguments["options"])


def test_measurements_of_the_untrained_model_say_what_they_cost(tmp_path: Path) -> None:
    study = Study(load_bench(), "shapes", "smoke", Store(tmp_path))
    recipe = study.recipe("g2rpo", "hps_clip")
    assert granularity.forwards(recipe, num_prompts=2) == 2 * granularity.singular_plan(recipe).num_forwards
    assert credit.forwards(recipe, num_prompts=1, samples=2) > recipe.plan().num_forwards
