"""Runs in the corners: stops at bad moments, resumes with other values, updates that have nothing to train."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from runs import final_parameters, rows_of, run, start, write_recipe

from flowrl import checkpoint
from flowrl.errors import RunFailed, UserError
from flowrl.tracking import read_rows

SLOW = {"a": {"kind": "tiny", "seconds": 0.2}}


def wait_until(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


# ---- stops


@pytest.mark.parametrize("grace", ["0", pytest.param("0.5", marks=pytest.mark.slow)])
def test_two_processes_drop_an_iteration_together(tmp_path, grace):
    """A process that drops alone would leave the other in a collective for ever, and what is finished unsaved."""
    recipe = write_recipe(tmp_path, rewards=SLOW, run={"iterations": 50, "checkpoint_every": 1000})
    process = start(recipe, tmp_path / "out", "--processes", "2", "--grace", grace)
    wait_until(process, lambda: any("reward" in row for row in read_rows(tmp_path / "out")))
    time.sleep(0.3)  # now the second iteration is in flight
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "iteration 1 is kept" in printed
    assert "--resume --processes 2" in printed
    assert "Traceback" not in printed
    assert "Warning" not in printed
    assert checkpoints(tmp_path / "out") == ["iteration_000001"]


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "before"), (signal.SIGTERM, "after")])
def test_a_signal_outside_the_iterations_ends_at_once_and_says_how_to_go_on(tmp_path, number, when):
    out = tmp_path / "out"
    if when == "after":
        run(write_recipe(tmp_path, run={"iterations": 2}), out)
    slow = {"scorers": {"b": {"kind": "tiny", "seconds": 30}}}
    recipe = write_recipe(tmp_path, run={"iterations": 2}, evaluation=slow)
    process = start(recipe, out, *(["--resume"] if when == "after" else []))
    began = out / ("metrics.csv" if when == "before" else "weights")
    before = began.stat().st_mtime if began.exists() else 0.0
    wait_until(process, lambda: began.exists() and began.stat().st_mtime > before)
    time.sleep(0.5)
    process.send_signal(number)
    printed = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + number, printed
    assert "go on with: flowrl train" in printed
    assert ("No iteration was finished" if when == "before" else "iteration 2 is kept") in printed
    assert "Traceback" not in printed


def test_a_failure_keeps_the_iterations_before_it(tmp_path):
    """Prompt 2 is first met in the second iteration: nothing of that iteration has reached the weights."""
    broken = {"a": {"kind": "tiny", "broken_at": [2]}}
    recipe = write_recipe(tmp_path, rewards=broken, rollout={"prompts": 1}, run={"checkpoint_every": 1000, "seed": 1})
    with pytest.raises(RunFailed, match=r"train 2.*State after iteration \d is kept; go on with"):
        run(recipe, tmp_path / "out", "run.iterations=8")
    done = max(row["iteration"] for row in read_rows(tmp_path / "out"))
    assert checkpoints(tmp_path / "out") == [f"iteration_{done:06d}"]
    summary = run(recipe, tmp_path / "out", "run.iterations=8", "run.non_finite=skip_group", resume=True)
    assert summary.finished
    run(recipe, tmp_path / "whole", "run.iterations=8", "run.non_finite=skip_group")
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "out")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_failure_between_two_updates_saves_nothing_half_done(tmp_path, monkeypatch):
    from flowrl.trainer import Trainer

    original = Trainer._step

    def poisoned(self, loss):
        poisoned.calls += 1
        return original(self, float("nan") if poisoned.calls == 4 else loss)

    poisoned.calls = 0
    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(RunFailed, match=r"iteration 2: the loss is nan.*No iteration was finished"):
        run(write_recipe(tmp_path, run={"checkpoint_every": 1000}), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoints").exists()


# ---- resuming


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"ema": 0.9, "warmup": 3, "schedule": "cosine"}},
        {"loss": {"beta": 0.1}, "optimizer": {"warmup": 5}},
        {
            "rewards": {"a": {"kind": "tiny", "broken_at": [2, 3]}},
            "run": {"non_finite": "skip_group"},
            "evaluation": {"every": 1},
        },
        {
            "schedule": {"kind": "all_steps"},
            "advantage": {"kind": "broadcast"},
            "train": {"updates": 3, "split": "sample", "fraction": 0.6},
        },
    ],
    ids=["ema, warm-up, cosine", "reference", "skipped groups, evaluations", "three updates of a fraction"],
)
def test_resuming_is_exact(tmp_path, changes):
    recipe = write_recipe(tmp_path, **changes)
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", stop_after=1)
    run(recipe, tmp_path / "parts", stop_after=3, resume=True)
    run(recipe, tmp_path / "parts", resume=True)
    whole, parts = (checkpoint.load(checkpoint.newest(tmp_path / n / "checkpoints").path) for n in ("whole", "parts"))
    assert all(torch.equal(whole.parameters[name], parts.parameters[name]) for name in whole.parameters)
    assert all(torch.equal(whole.ema[name], parts.ema[name]) for name in whole.ema)
    assert whole.scheduler == parts.scheduler
    for index, moments in whole.optimizer["state"].items():
        assert all(torch.equal(moments[name], parts.optimizer["state"][index][name]) for name in moments)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_a_finished_run_that_is_resumed_is_as_it_was(tmp_path):
    recipe = write_recipe(tmp_path)
    first = run(recipe, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    again = run(recipe, tmp_path / "out", resume=True)
    assert read_rows(tmp_path / "out") == rows
    assert again == first


def test_scorers_may_come_and_go_on_resuming(tmp_path):
    recipe = write_recipe(tmp_path, evaluation={"scorers": {"a": {"kind": "tiny"}, "gone": {"kind": "tiny"}}})
    run(recipe, tmp_path / "out", stop_after=2)
    with pytest.raises(UserError, match=r"evaluation\.scorers\.a\.channel: 0 -> 1"):
        run(recipe, tmp_path / "out", "evaluation.scorers.a.channel=1", resume=True)
    recipe = write_recipe(tmp_path, evaluation={"scorers": {"a": {"kind": "tiny"}, "new": {"kind": "tiny"}}})
    summary = run(recipe, tmp_path / "out", "evaluation.every=3", resume=True)
    assert list(summary.held_out) == ["a"], "only what was measured before and after is compared"
    assert [row["iteration"] for row in read_rows(tmp_path / "out") if "test/new" in row] == [3, 4]


def test_a_run_without_an_iteration_begins_anew_with_other_values(tmp_path):
    """What was measured of the model before is of another evaluation then."""
    recipe = write_recipe(tmp_path, rewards={"a": {"kind": "tiny", "broken_at": list(range(7))}})
    with pytest.raises(RunFailed, match="No iteration was finished"):
        run(recipe, tmp_path / "out")
    summary = run(write_recipe(tmp_path), tmp_path / "out", "evaluation.num_steps=3", resume=True)
    fresh = run(write_recipe(tmp_path), tmp_path / "fresh", "evaluation.num_steps=3")
    assert summary.held_out == fresh.held_out
    assert [row["iteration"] for row in read_rows(tmp_path / "out") if "test/a" in row] == [0, 4]


def test_the_printed_command_goes_on_from_anywhere(tmp_path):
    """The snapshot has the recipe's plugins beside it, and the folder's name may hold a space."""
    recipe = write_recipe(tmp_path / "own", run={"iterations": 2})
    output = tmp_path / "a run"
    printed = start(recipe, output, "--stop-after", "1").communicate(timeout=60)[0]
    command = printed.strip().rpartition("go on with: flowrl ")[2]
    done = subprocess.run(f"{sys.executable} -m flowrl {command}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny: 2 iterations" in done.stdout


# ---- updates, precision, evaluation


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_update_may_have_nothing_to_train(tmp_path, processes):
    """One action of each of two samples is drawn from five steps: some updates, and some ranks, get none."""
    changes = {
        "schedule": {"kind": "all_steps"},
        "advantage": {"kind": "broadcast"},
        "train": {"updates": 5, "split": "step", "fraction": 0.1},
        "rollout": {"prompts": processes, "group": 2},
    }
    recipe = write_recipe(tmp_path, **changes)
    run(recipe, tmp_path / "one")
    rows = [row for row in read_rows(tmp_path / "one") if "reward" in row]
    assert [row["actions"] for row in rows] == [2 * processes] * 4
    if processes > 1:
        process = start(recipe, tmp_path / "two", "--processes", "2")
        printed = process.communicate(timeout=120)[0]
        assert process.returncode == 0, printed
        one, two = final_parameters(tmp_path / "one"), final_parameters(tmp_path / "two")
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=0.05 * 1e-3)


def test_runs_of_two_precisions_in_one_process(tmp_path):
    recipe = write_recipe(tmp_path, run={"iterations": 1})
    for precision in ("fp32", "bf16", "fp32"):
        assert run(recipe, tmp_path / f"out{time.monotonic_ns()}", f"run.precision={precision}").finished


def test_what_is_evaluated_during_training_is_the_average_as_at_the_end(tmp_path):
    recipe = write_recipe(tmp_path, optimizer={"ema": 0.999, "lr": 0.1}, evaluation={"every": 2})
    run(recipe, tmp_path / "out")
    before, during, after = (row["test/a"] for row in read_rows(tmp_path / "out") if "test/a" in row)
    assert abs(during - before) < 0.01, "an average of two steps is where it began"
    assert abs(after - before) < 0.01


# ---- mistakes


def test_an_output_that_cannot_be_written(tmp_path):
    recipe = write_recipe(tmp_path)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "below", Path("/proc/none/below")):
        with pytest.raises(UserError, match="cannot be written"):
            run(recipe, output)


def test_a_disk_that_is_full_is_told_without_a_traceback(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(RunFailed, match=r"No space left.*No iteration was finished; go on with"):
        run(write_recipe(tmp_path), tmp_path / "out")


def test_missing_weights_are_told_before_prompts_are_fetched(tmp_path):
    recipe = write_recipe(tmp_path, model={"kind": "flux", "source": "no-one/no-model"})
    values = yaml.safe_load(recipe.read_text())
    values["data"] = {"train": "hf:no-one/no-prompts"}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="hf download no-one/no-model"):
        run(recipe, tmp_path / "out")
