"""Whole runs of a tiny policy: what they leave behind, resuming, signals, several processes, values gone wrong."""

from __future__ import annotations

import json
import signal
import time

import pytest
import torch
from runs import final_parameters, rows_of, run, start, write_recipe

from flowrl.errors import RunFailed, UserError
from flowrl.tracking import read_rows


def test_a_run_leaves_everything(tmp_path):
    summary = run(write_recipe(tmp_path), tmp_path / "out")
    out = tmp_path / "out"
    assert summary.finished
    assert set(summary.held_out) == {"a"}
    names = {"recipe.yaml", "metrics.jsonl", "metrics.csv", "curves.png", "before_after.png", "summary.json"}
    assert names <= {path.name for path in out.iterdir()}
    assert (out / "weights" / "tiny.pt").is_file()
    assert (out / "weights_ema" / "tiny.pt").is_file()
    rows = [row for row in read_rows(out) if "reward" in row]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    plan_forwards = 4 * rows[0]["forwards"] / 4
    assert summary.forwards == 4 * plan_forwards
    assert json.loads((out / "summary.json").read_text())["held_out"]["a"]["difference"]["mean"] == pytest.approx(
        summary.held_out["a"].difference.mean
    )
    again = run(out / "recipe.yaml", tmp_path / "again")
    assert again.held_out == summary.held_out, "the snapshot is the recipe"


def test_a_repeat_is_equal_and_a_stopped_run_resumes_bit_for_bit(tmp_path):
    recipe = write_recipe(tmp_path)
    run(recipe, tmp_path / "whole")
    stopped = run(recipe, tmp_path / "parts", stop_after=2)
    assert not stopped.finished
    assert "--resume" in stopped.resume
    resumed = run(recipe, tmp_path / "parts", "rollout.max_batch=16", "run.checkpoint_every=3", resume=True)
    assert resumed.finished
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", stop_after=3)
    damaged = tmp_path / "parts" / "checkpoints" / "iteration_000003" / "parameters.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    run(recipe, tmp_path / "parts", resume=True)
    assert "iteration_000003" in capsys.readouterr().out
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_does_not_fit_the_run_is_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    run(recipe, tmp_path / "out", stop_after=1)
    with pytest.raises(UserError, match="in use"):
        run(recipe, tmp_path / "out")
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.001 -> 0\.01"):
        run(recipe, tmp_path / "out", "optimizer.lr=0.01", resume=True)
    with pytest.raises(UserError, match="holds no run"):
        run(recipe, tmp_path / "elsewhere", resume=True)
    with pytest.raises(UserError, match="stop-after"):
        run(recipe, tmp_path / "other", stop_after=0)


def test_iterations_may_grow(tmp_path):
    recipe = write_recipe(tmp_path)
    run(recipe, tmp_path / "whole", "run.iterations=6")
    run(recipe, tmp_path / "parts")
    run(recipe, tmp_path / "parts", "run.iterations=6", resume=True)
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_reward_that_is_not_finite_stops_the_run_or_its_group(tmp_path):
    broken = {"a": {"kind": "tiny", "broken_at": [2]}}
    recipe = write_recipe(tmp_path, rewards=broken)
    with pytest.raises(RunFailed, match=r"(?s)'a'.*train 2.*skip_group"):
        run(recipe, tmp_path / "fails")
    summary = run(recipe, tmp_path / "skips", "run.non_finite=skip_group")
    rows = [row for row in read_rows(tmp_path / "skips") if "reward" in row]
    assert summary.finished
    assert sum(row["skipped_groups"] for row in rows) > 0
    assert all(torch.isfinite(p).all() for p in final_parameters(tmp_path / "skips").values())


def test_a_held_out_prompt_without_an_answer_is_left_out(tmp_path):
    scorers = {"a": {"kind": "tiny", "broken_at": [1]}}
    summary = run(write_recipe(tmp_path, evaluation={"scorers": scorers, "every": 2}), tmp_path / "out")
    answers = json.loads((tmp_path / "out" / "evaluation" / "after.json").read_text())["scores"]["a"]
    assert [i for i, answer in enumerate(answers) if answer is None] == [1]
    kept = [answer for answer in answers if answer is not None]
    assert summary.held_out["a"].after.mean == pytest.approx(sum(kept) / 4)
    assert [row["iteration"] for row in read_rows(tmp_path / "out") if "test/a" in row] == [0, 2, 4]


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    from flowrl.trainer import Trainer

    original = Trainer._step

    def poisoned(self, loss):
        next(iter(self.parameters.values())).grad.fill_(float("inf"))
        return original(self, loss)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    recipe = write_recipe(tmp_path)
    with pytest.raises(RunFailed, match="gradient norm"):
        run(recipe, tmp_path / "fails")
    run(recipe, tmp_path / "skips", "run.non_finite=skip_group", stop_after=1)
    (row,) = (row for row in read_rows(tmp_path / "skips") if "reward" in row)
    assert row["skipped_updates"] == 2
    assert all(torch.isfinite(p).all() for p in final_parameters(tmp_path / "skips").values())


def test_the_self_check_stops_a_policy_that_differs_in_training(tmp_path, monkeypatch):
    from flowrl.learner import Learner

    original = Learner._terms

    def drifting(self, plan, rollout, cond, advantage, sites):
        return original(self, plan, rollout, cond[torch.zeros(4, dtype=torch.long)], advantage, sites)

    monkeypatch.setattr(Learner, "_terms", drifting)
    with pytest.raises(RunFailed, match="self-check"):
        run(write_recipe(tmp_path), tmp_path / "out")


def wait_for_iteration(process, output, iteration):
    deadline = time.monotonic() + 120
    while not any(row["iteration"] >= iteration and "reward" in row for row in read_rows(output)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_finishes_the_iteration_saves_and_says_how_to_go_on(tmp_path):
    recipe = write_recipe(tmp_path, run={"iterations": 5000, "checkpoint_every": 1000}, optimizer={"ema": None})
    process = start(recipe, tmp_path / "out")
    wait_for_iteration(process, tmp_path / "out", 2)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume" in printed
    assert "Traceback" not in printed
    done = max(row["iteration"] for row in read_rows(tmp_path / "out"))
    assert f"iteration {done} is kept" in printed


@pytest.mark.parametrize("arguments", [(), ("--grace", "0.5")], ids=["second signal", "grace"])
def test_an_iteration_is_dropped_and_those_before_it_are_kept(tmp_path, arguments):
    """Each iteration takes about two seconds, and only every 1000th would be saved by itself."""
    slow = {"a": {"kind": "tiny", "seconds": 0.2}}
    recipe = write_recipe(tmp_path, rewards=slow, run={"iterations": 50, "checkpoint_every": 1000})
    process = start(recipe, tmp_path / "out", *arguments)
    wait_for_iteration(process, tmp_path / "out", 1)
    time.sleep(0.7)  # now the second iteration is in flight
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    if not arguments:
        process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT, printed
    assert "dropping the iteration" in printed
    assert "iteration 1 is kept" in printed
    (rows,) = [[row["iteration"] for row in read_rows(tmp_path / "out") if "reward" in row]]
    assert rows == [1]
    whole = run(recipe, tmp_path / "whole", stop_after=2)
    resumed = run(recipe, tmp_path / "out", resume=True, stop_after=2)
    assert whole.iteration == resumed.iteration == 2
    a, b = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_are_one(tmp_path):
    """The same updates with the same global batch: 4 prompts on 1 process, 2 + 2 on two, 3 + padding on odd counts."""
    for prompts in (4, 3):
        settings = {"iterations": 3, "sample_every": 3, "num_samples": 5}
        recipe = write_recipe(tmp_path / f"p{prompts}", rollout={"prompts": prompts}, run=settings)
        one, two = tmp_path / f"one{prompts}", tmp_path / f"two{prompts}"
        run(recipe, one)
        process = start(recipe, two, "--processes", "2")
        printed = process.communicate(timeout=120)[0]
        assert process.returncode == 0, printed
        a, b = final_parameters(one), final_parameters(two)
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=0.05 * 1e-3)
        pictures = [torch.load(out / "evaluation" / "before.pt", weights_only=True) for out in (one, two)]
        torch.testing.assert_close(torch.stack(pictures[0]), torch.stack(pictures[1]), rtol=0, atol=1e-6)
        assert (two / "samples" / "iteration_000003.png").is_file()
        first, second = ([row for row in read_rows(out) if "reward" in row] for out in (one, two))
        for x, y in zip(first, second, strict=True):
            assert y["reward"] == pytest.approx(x["reward"], abs=1e-6)
            assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-4)
            assert y["actions"] == x["actions"]
            assert y["a/mean"] == pytest.approx(x["a/mean"], abs=1e-6)
