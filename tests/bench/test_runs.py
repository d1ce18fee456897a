"""Units are worked on once: reuse, isolation of failures, damage, sharing, the time limit, merging."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bench.benches import METHODS, arguments, start, study_of, write_bench
from runs import rows_of, write_recipe
from typer.testing import CliRunner

from flowrl.bench import calibrate
from flowrl.bench.archive import export, take_in
from flowrl.bench.files import load_report as load
from flowrl.bench.pool import Pool, Resources
from flowrl.bench.study import Study
from flowrl.bench.tables.compute import compute_tables
from flowrl.bench.units import Agenda, Unit
from flowrl.bench.worker import WORK, Worker
from flowrl.cli import app
from flowrl.data import PromptOrder, load_prompts
from flowrl.errors import UserError
from flowrl.recipe import load_recipe
from flowrl.trainer import Trainer


def work(study: Study, units: list[Unit] | None = None, since: float | None = None) -> list[dict[str, Any]]:
    """In this process; returns the events."""
    events: list[dict[str, Any]] = []
    units = units or study.units(list(study.bench.tables.values()))
    Worker(study.store, units, time.time() if since is None else since, events.append).run()
    return events


def ended(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events if event["event"] != "start"]


@pytest.fixture(autouse=True)
def _rates_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.bench.calibrate.SECONDS", 0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two methods, two seeds, all done."""
    study = study_of(write_bench(tmp_path_factory.mktemp("finished")))
    assert ended(work(study)) == ["done"] * 4
    return study


def test_what_is_done_is_not_done_again(finished: Study) -> None:
    assert work(finished) == []
    assert work(study_of(finished.bench.folder)) == []


def test_runs_keep_what_tables_are_made_from(finished: Study) -> None:
    spec = finished.bench.table("curves")
    runs = finished.runs(spec, "two", spec.rewards[0])
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert (run.folder / "weights").is_dir()
        assert not (run.folder / "checkpoints").exists()
        assert run.record.status == "done"
        assert "flowrl train" in run.record.command
    same = finished.runs(spec, "same", spec.rewards[0])
    assert [run.key for run in same] == [run.key for run in runs]


def test_a_damaged_run_is_named_and_done_again(tmp_path: Path) -> None:
    study = study_of(write_bench(tmp_path, scale={"seeds": 1, "iterations": 2, "every": 1}))
    work(study)
    units = study.units(list(study.bench.tables.values()))
    before = rows_of(study.store.path(units[0].key))
    (study.store.path(units[0].key) / "metrics.jsonl").write_text("{}\n")
    study.store.record_path(units[1].key).write_text("{")
    again = study_of(study.bench.folder)
    assert not again.store.done(units[0].key)
    assert not again.store.done(units[1].key)
    assert again.store.damaged == {
        units[0].key: "metrics.jsonl is not as it was written",
        units[1].key: f"{units[1].key}.json cannot be read",
    }
    assert ended(work(again)) == ["done", "done"]
    assert rows_of(study.store.path(units[0].key)) == before


def test_one_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    broken = {
        "recipe": "tiny_recipe.yaml",
        "title": "Broken",
        "overrides": ["rewards.a.broken_at=[0, 1, 2, 3, 4, 5, 6]"],
    }
    bench = write_bench(
        tmp_path, methods={"broken": broken, **METHODS}, scale={"seeds": 1, "iterations": 2, "every": 1}
    )
    result = CliRunner().invoke(app, arguments(bench, "--output", str(tmp_path / "out")))
    assert result.exit_code == 1, result.output
    assert "failed  broken on toy, seed 0" in result.output
    report = load(tmp_path / "out" / "curves.json")
    failed = [record for record in report.runs.values() if record.status == "failed"]
    assert len(failed) == 1
    assert "has no valid value" in str(failed[0].log)
    assert report.missing == (failed[0].title,)
    table = next(block for block in report.blocks if block.kind == "table")
    assert [row.title for row in table.rows if row.failed] == ["Broken"]
    assert all(row.cells["spent_forwards"].value for row in table.rows if not row.failed)


def test_a_failure_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    broken = {
        "recipe": "tiny_recipe.yaml",
        "title": "Broken",
        "overrides": ["rewards.a.broken_at=[0, 1, 2, 3, 4, 5, 6]"],
    }
    study = study_of(write_bench(tmp_path, methods={"broken": broken}, scale={"seeds": 1}))
    since = time.time()
    assert ended(work(study, since=since)) == ["failed"]
    assert work(study, since=since) == []
    assert ended(work(study)) == ["failed"]


def test_workers_share_what_there_is(tmp_path: Path) -> None:
    study = study_of(write_bench(tmp_path))
    units = study.units(list(study.bench.tables.values()))
    with study.store.claim(units[0].key) as mine, study.store.claim(units[1].key) as other:
        assert mine
        assert other
        with study_of(study.bench.folder).store.claim(units[0].key) as taken:
            assert not taken
        worker = Worker(study.store, units, time.time(), lambda event: None)
        assert worker._next() == "worked"  # the third
    assert [study.store.done(unit.key) for unit in units] == [False, False, True, False]


def test_a_unit_waits_for_its_run(tmp_path: Path) -> None:
    study = study_of(write_bench(tmp_path, scale={"seeds": 1}))
    unit = study.units(list(study.bench.tables.values()))[0]
    about = Unit("0" * 16, "measure", "about", 0, "", "", {}, needs="f" * 16)
    worker = Worker(study.store, [about], time.time(), lambda event: None)
    assert worker._next() == "over"  # the run is not among the units: it will not come
    worker = Worker(study.store, [Unit(**unit.to_json() | {"key": "f" * 16}), about], time.time(), lambda event: None)
    with study.store.claim("f" * 16):
        assert worker._next() == "waiting"


def test_the_reference_and_what_is_the_same_run_have_no_difference(finished: Study) -> None:
    spec = finished.bench.table("curves").model_copy(update={"reference": "two"})
    table, *_ = compute_tables(finished, spec, spec.rewards[0])
    notes = [row.cells["iterations less"].note for row in table.rows]
    assert notes[1:] == ["the reference", "the reference"]
    assert notes[0] in ("a difference", "the interval includes 0")


# ---- archives


def test_archives_merge(finished: Study, tmp_path: Path) -> None:
    other = study_of(finished.bench.folder)
    other.store = type(other.store)(tmp_path / "elsewhere")
    moved = export(finished.store, tmp_path / "runs.zip")
    assert len(moved.keys) == 4
    assert moved.size < 100_000
    assert len(take_in(other.store, tmp_path / "runs.zip").keys) == 4
    assert work(other) == []
    again = take_in(other.store, tmp_path / "runs.zip")
    assert not again.keys
    assert set(again.skipped.values()) == {"is here already"}
    spec = other.bench.table("curves")
    run = other.runs(spec, "two", spec.rewards[0])[0]
    assert not (run.folder / "weights").exists()


def test_archives_hold_weights_where_asked(finished: Study, tmp_path: Path) -> None:
    export(finished.store, tmp_path / "runs.zip", weights=True)
    other = study_of(finished.bench.folder)
    other.store = type(other.store)(tmp_path / "elsewhere")
    take_in(other.store, tmp_path / "runs.zip")
    spec = other.bench.table("curves")
    assert all((run.folder / "weights" / "tiny.pt").is_file() for run in other.runs(spec, "one", spec.rewards[0]))


@pytest.fixture
def bare(finished: Study, tmp_path: Path) -> tuple[Study, list[Unit]]:
    """Runs that an archive brought without weights, and something that needs those of the second."""
    export(finished.store, tmp_path / "runs.zip")
    study = study_of(finished.bench.folder)
    study.store = type(study.store)(tmp_path / "elsewhere")
    take_in(study.store, tmp_path / "runs.zip")
    units = study.units(list(study.bench.tables.values()))
    arguments = units[1].arguments | {"function": "bench.benches:seed_of", "options": {}}
    return study, [*units, Unit("0" * 16, "measure", "about", 1, "", "", arguments, needs=units[1].key)]


def test_a_run_without_weights_is_repeated_for_what_needs_them(bare: tuple[Study, list[Unit]]) -> None:
    study, units = bare
    run, about = units[1], units[-1]
    record = study.store.record_path(run.key).read_bytes()
    assert Agenda(study.store, units).left() == [run, about]
    assert [(event["key"], event["event"]) for event in work(study, units) if event["event"] != "start"] == [
        (run.key, "done"),
        (about.key, "done"),
    ]
    assert [unit for unit in units if study.store.has_weights(unit.key)] == [run]
    assert study.store.record_path(run.key).read_bytes() == record, "its results are those that tables were made from"
    assert work(study, units) == []


def test_a_repetition_that_fails_costs_what_needs_it_and_no_more(
    bare: tuple[Study, list[Unit]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, units = bare

    def fails(unit: Unit, output: Path) -> None:
        output.mkdir()
        raise RuntimeError("out of memory")

    monkeypatch.setitem(WORK, "train", fails)
    since = time.time()
    assert ended(work(study, units, since)) == ["failed"]
    assert all(study.store.done(unit.key) for unit in units[:-1])
    assert study.store.failed_since(units[-1].key, since)
    assert work(study, units, since) == [], "not tried again by the same command"
    monkeypatch.undo()
    assert ended(work(study, units)) == ["done", "done"]


def test_weights_may_follow(finished: Study, bare: tuple[Study, list[Unit]], tmp_path: Path) -> None:
    study, units = bare
    export(finished.store, tmp_path / "weights.zip", weights=True)
    assert len(take_in(study.store, tmp_path / "weights.zip").keys) == len(units) - 1
    assert all(study.store.has_weights(unit.key) for unit in units[:-1])
    assert ended(work(study, units)) == ["done"]


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("nothing")
    with pytest.raises(UserError, match="cannot read"):
        take_in(study_of(write_bench(tmp_path / "bench")).store, tmp_path / "x.zip")


def test_an_archive_that_would_be_too_large_is_refused(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowrl.bench.archive.LIMIT", 1000)
    with pytest.raises(UserError, match="name fewer tables"):
        export(finished.store, tmp_path / "runs.zip")
    assert not list(tmp_path.iterdir())


# ---- the command


def test_the_command_shows_its_plan_without_doing_anything(tmp_path: Path) -> None:
    bench = write_bench(tmp_path)
    result = CliRunner().invoke(app, arguments(bench, "--dry-run"))
    assert result.exit_code == 0, result.output
    units = study_of(bench).units(list(study_of(bench).bench.tables.values()))
    assert all(f"{unit.key}  to do" in result.output for unit in units)
    assert "4 in all, 0 done" in result.output
    assert not (tmp_path / "runs" / "runs").exists()


def test_tables_of_what_is_finished_are_written_without_running_anything(tmp_path: Path) -> None:
    bench = write_bench(tmp_path)
    study = study_of(bench)
    units = study.units(list(study.bench.tables.values()))
    Worker(study.store, units[:1], 0.0, lambda event: None).run()
    done = sum(study.store.done(unit.key) for unit in units)
    assert 0 < done < len(units)
    output = tmp_path / "tables"
    result = CliRunner().invoke(app, [*arguments(bench, "--tables-only"), "--output", str(output)])
    assert result.exit_code == 3, result.output
    assert sum(study.store.done(unit.key) for unit in units) == done
    assert f"partial: {len(units) - done} of {len(units)} parts missing" in (output / "curves.md").read_text()
    assert "1 of 2 seeds at most" in (output / "curves.md").read_text()


def test_rates_are_measured_alone(tmp_path: Path) -> None:
    bench = write_bench(tmp_path)
    options = {"--model": tmp_path / "models" / "toy.yaml", "--specs": bench, "--folder": tmp_path / "runs"}
    command = ["bench", "calibrate", "--budget", "smoke", *(str(word) for pair in options.items() for word in pair)]
    with calibrate.working(tmp_path / "runs"):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "on a device that does nothing else" in result.output
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "training forwards/s" in result.output
    assert "about" in CliRunner().invoke(app, arguments(bench, "--dry-run")).output  # the estimate


def test_rates_are_those_of_the_microbatch_that_a_run_chooses(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), overrides=["run.microbatch=auto"])
    trainer = Trainer(recipe, PromptOrder(load_prompts(recipe.data.train), recipe.rollout.prompts, recipe.run.seed))
    trainer.iterate()
    assert calibrate.measure(recipe, "tiny").microbatch == trainer.learner.microbatch > 1


def test_without_the_weights_plan_and_cost_are_shown_and_what_is_missing_is_named(tmp_path: Path) -> None:
    options = ["--model", "flux1_dev", "--budget", "full", "--seeds", "1", "--folder", str(tmp_path)]
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, ["bench", "--table", "main", *options, *more])
        assert result.exit_code == 2
        assert "g2rpo on hps_clip, seed 0: many steps" in result.output
        assert "FLOPs of the transformer to go" in result.output
        assert "hf download black-forest-labs/FLUX.1-dev" in result.output
        assert "xswu/HPSv2" in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_table_is_not_replaced_by_one_of_a_smaller_budget(finished: Study, tmp_path: Path) -> None:
    bench = finished.bench.folder
    outputs = [
        CliRunner().invoke(app, arguments(bench, "--budget", b, "--output", str(tmp_path))) for b in ("full", "smoke")
    ]
    assert [result.exit_code for result in outputs] == [0, 0]
    assert "is of budget full and stays" in outputs[1].output
    assert load(tmp_path / "curves.json").budget == "full"


@pytest.mark.slow
def test_the_time_limit_ends_a_run_in_good_order_and_the_next_command_goes_on(tmp_path: Path) -> None:
    slow = {"one": METHODS["one"] | {"overrides": ["rewards.a.seconds=0.05"]}}
    study = study_of(write_bench(tmp_path, methods=slow, scale={"seeds": 1, "iterations": 40, "every": 20}))
    units = study.units(list(study.bench.tables.values()))
    said: list[str] = []
    pool = Pool(study.store, units, Resources(1), lambda unit: 1.0, said.append, margin=30.0)
    metrics = study.store.path(units[0].key) / "metrics.jsonl"

    def end_soon() -> None:
        while not (metrics.is_file() and metrics.read_text().count("forwards") > 2):
            time.sleep(0.05)
        pool.deadline = time.monotonic() + 30.0  # within the margin: runs are told at once

    watcher = threading.Thread(target=end_soon, daemon=True)
    watcher.start()
    outcome = pool.run()
    assert (outcome.stopped, outcome.signal, outcome.left) == (True, None, 1)
    assert any(line.startswith("stopped one on toy") for line in said)
    outcome = Pool(study.store, units, Resources(1), lambda unit: 1.0, said.append).run()
    assert (outcome.stopped, outcome.done) == (False, 1)
    assert "resuming after iteration" in study.store.log(units[0].key).read_text()


@pytest.mark.slow
def test_killed_three_times_no_finished_run_is_lost(tmp_path: Path) -> None:
    slow = METHODS | {"one": METHODS["one"] | {"overrides": ["rewards.a.seconds=0.02"]}}
    bench = write_bench(tmp_path, methods=slow, scale={"seeds": 3, "iterations": 12, "every": 3})
    study = study_of(bench)
    units = study.units(list(study.bench.tables.values()))
    written: dict[str, float] = {}
    for wanted in (1, 2, 4):
        process = start(bench)
        while sum(study.store.done(unit.key) for unit in units) < wanted:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for unit in units:
            path = study.store.record_path(unit.key)
            if path.is_file():
                assert written.setdefault(unit.key, path.stat().st_mtime) == path.stat().st_mtime
        time.sleep(3)  # its workers save and end
    process = start(bench)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert all(study.store.done(unit.key) for unit in units)
    for key, when in written.items():
        assert study.store.record_path(key).stat().st_mtime == when
    alone = study_of(write_bench(tmp_path / "alone", methods=slow, scale={"seeds": 3, "iterations": 12, "every": 3}))
    work(alone)
    other = alone.units(list(alone.bench.tables.values()))
    for unit, undisturbed in zip(units, other, strict=True):
        rows = [json.dumps(row) for row in rows_of(study.store.path(unit.key))]
        assert rows == [json.dumps(row) for row in rows_of(alone.store.path(undisturbed.key))]


def test_where_all_is_finished_the_device_is_not_measured(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(calibrate, "calibrate", refused)
    result = CliRunner().invoke(app, [*arguments(finished.bench.folder), "--output", str(tmp_path / "tables")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "tables" / "curves.md").is_file()
