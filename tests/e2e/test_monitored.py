"""Runs with monitors: the best weights are kept, a run that games its reward ends, resumed or on several processes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import final_parameters, rows_of, run, start, write_recipe

from flowrl import checkpoint
from flowrl.errors import RunFailed, UserError
from flowrl.interrupt import DropIteration
from flowrl.monitors import read_best
from flowrl.recipe import load_recipe
from flowrl.summary import describe
from flowrl.tracking import read_rows

CONTRARY = {"kind": "tiny", "sign": -1}
"""A monitor that falls as much as the reward rises."""
STOP = {"monitor": "contrary", "patience": 2}


def monitored(folder, **evaluation):
    """A reward that rises fast, and a monitor that falls with it."""
    scorers = {"a": {"kind": "tiny"}, "contrary": CONTRARY}
    settings = {"every": 2, "scorers": scorers, "stop": STOP, "keep_best": "contrary"} | evaluation
    changes = {"optimizer": {"lr": 0.02, "ema": None}, "loss": {"clip": 0.2}, "rewards": {"a": {"kind": "tiny"}}}
    return write_recipe(folder, evaluation=settings, run={"iterations": 12, "checkpoint_every": 3}, **changes)


def monitor_of(output, name="contrary"):
    return [(row["iteration"], row[f"test/{name}"]) for row in read_rows(output) if f"test/{name}" in row]


def best_weights(output):
    return torch.load(output / "weights_best" / "tiny.pt", weights_only=True)


def test_a_run_that_games_its_reward_ends_early_and_says_so(tmp_path, capsys):
    summary = run(monitored(tmp_path), tmp_path / "out")
    assert summary.finished
    assert 4 <= summary.iteration < 12
    found = summary.hacking
    assert found is not None
    assert found.iteration == summary.iteration
    evaluations = [row for row in read_rows(tmp_path / "out") if "test/contrary" in row]
    assert [row["early_stop"] for row in evaluations] == [0.0] * (len(evaluations) - 1) + [1.0]
    assert evaluations[-1]["iteration"] == summary.iteration
    text = "\n".join(describe(summary))
    assert f"ended early, after {summary.iteration} of 12 iterations" in text
    assert "reward hacking: held-out contrary fell" in text
    assert "reward hacking" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["hacking"]["since"] == found.since
    assert written["best"] == read_best(tmp_path / "out")._asdict()
    assert {"weights", "weights_best", "curves.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_best_weights_are_those_of_the_best_evaluation(tmp_path):
    recipe = monitored(tmp_path, stop=None, keep_best="a")
    run(recipe, tmp_path / "out", "run.iterations=6", "run.checkpoint_every=1", "run.keep_checkpoints=9")
    best = read_best(tmp_path / "out")
    values = monitor_of(tmp_path / "out", "a")
    assert (best.iteration, best.value) == max(values, key=lambda point: point[1])
    assert best.iteration > 0
    saved = checkpoint.load(tmp_path / "out" / "checkpoints" / f"iteration_{best.iteration:06d}").parameters
    assert all(torch.equal(best_weights(tmp_path / "out")[name], saved[name]) for name in saved)


def test_the_average_is_kept_where_the_average_is_evaluated(tmp_path):
    run(monitored(tmp_path, stop=None, keep_best="a"), tmp_path / "out", "run.iterations=4", "optimizer.ema=0.5")
    best = read_best(tmp_path / "out")
    assert best.iteration == 4
    average = torch.load(tmp_path / "out" / "weights_ema" / "tiny.pt", weights_only=True)
    assert all(torch.equal(best_weights(tmp_path / "out")[name], average[name]) for name in average)


@pytest.mark.parametrize(("monitor", "stop_after"), [("contrary", 1), ("a", 2), ("contrary", 3)])
def test_a_resumed_run_keeps_and_ends_as_one_that_was_not_stopped(tmp_path, monitor, stop_after):
    recipe = monitored(tmp_path, keep_best=monitor)
    whole = run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", stop_after=stop_after)
    parts = run(recipe, tmp_path / "parts", resume=True)
    assert (parts.iteration, parts.best, parts.hacking) == (whole.iteration, whole.best, whole.hacking)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    one, two = best_weights(tmp_path / "whole"), best_weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = run(recipe, tmp_path / "parts", resume=True)
    assert again == parts, "an ended run that is resumed stays ended"
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    on = run(recipe, tmp_path / "parts", "evaluation.stop=null", resume=True)
    assert on.iteration == 12


def test_a_run_that_goes_back_to_an_older_checkpoint_ends_alike(tmp_path):
    """As after a crash: the best weights are of an evaluation that is still to come."""
    recipe = monitored(tmp_path, stop=None, keep_best="a")
    settings = ("run.iterations=6", "run.checkpoint_every=1", "run.keep_checkpoints=9")
    whole = run(recipe, tmp_path / "whole", *settings)
    run(recipe, tmp_path / "parts", *settings, stop_after=4)
    for iteration in (2, 3, 4):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"iteration_{iteration:06d}")
    assert read_best(tmp_path / "parts").iteration > 1
    assert run(recipe, tmp_path / "parts", *settings, resume=True).best == whole.best
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_an_evaluation_that_was_dropped_is_made_up_for(tmp_path, monkeypatch):
    from flowrl import run as module

    recipe = monitored(tmp_path, stop=None)
    settings = ("run.iterations=5", "run.checkpoint_every=1")
    run(recipe, tmp_path / "whole", *settings)
    evaluate = module.evaluate

    def dropped(trainer, *arguments, **options):
        if trainer.iteration == 2:
            raise DropIteration
        return evaluate(trainer, *arguments, **options)

    monkeypatch.setattr(module, "evaluate", dropped)
    assert run(recipe, tmp_path / "parts", *settings).iteration == 2
    monkeypatch.undo()
    run(recipe, tmp_path / "parts", *settings, resume=True)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_two_processes_end_and_keep_as_one(tmp_path):
    recipe = monitored(tmp_path)
    whole = run(recipe, tmp_path / "one")
    process = start(recipe, tmp_path / "two", "--processes", "2", "rollout.score_ahead=2")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert f"ended early, after {whole.iteration} of 12 iterations" in printed
    best = read_best(tmp_path / "two")
    assert best.iteration == whole.best.iteration
    assert best.value == pytest.approx(whole.best.value, abs=1e-4)
    again = start(recipe, tmp_path / "two", "--processes", "2", "--resume")
    printed = again.communicate(timeout=120)[0]
    assert again.returncode == 0, printed
    assert f"ended early, after {whole.iteration} of 12 iterations" in printed


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    from flowrl import run as module

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "keep_if_best", full)
    with pytest.raises(RunFailed, match=r"after iteration 0 cannot be written.*No space left"):
        run(monitored(tmp_path), tmp_path / "out")


def test_where_a_run_would_have_ended_is_found_afterwards(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("hacking", Path(__file__).parents[2] / "benchmarks" / "hacking.py")
    hacking = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hacking)
    recipe = monitored(tmp_path)
    ended = run(recipe, tmp_path / "ended")
    whole = run(recipe, tmp_path / "whole", "evaluation.stop=null")
    assert whole.iteration == 12
    rule = {"monitor": "contrary", "reward": None, "patience": 2, "min_drop": 0.0}
    assert hacking.first_end(read_rows(tmp_path / "whole"), **rule) == ended.hacking
    capsys.readouterr()
    hacking.plot(tmp_path / "whole", tmp_path / "hacking.png", **rule)
    assert str(ended.hacking) in capsys.readouterr().out
    assert (tmp_path / "hacking.png").is_file()
    with pytest.raises(SystemExit, match=r"test/gold \(known: test/a, test/contrary\)"):
        hacking.plot(tmp_path / "whole", tmp_path / "other.png", **rule | {"monitor": "gold"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.keep_best=contrari"], "keep_best: there is no 'contrari'; did you mean 'contrary'"),
        (["evaluation.stop.monitor=gold"], r"stop.monitor: there is no 'gold' \(known: a, contrary\)"),
        (["evaluation.stop.reward=c"], r"stop.reward: there is no 'c' \(known: a, b\) among the rewards"),
        (["evaluation.every=0"], "set evaluation.every"),
        (["data.test=null"], "set data.test"),
        (["evaluation.stop.pateince=2"], "did you mean 'patience'"),
    ],
)
def test_mistakes(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        load_recipe(monitored(tmp_path), overrides=overrides)


# ---- what the scorers are


def test_what_scorers_lack_is_told_before_anything_is_loaded(tmp_path):
    """Of all of them, rewards and monitors; and nothing of the run is there yet."""
    missing = [f"{where}.missing={what}" for where, what in (("rewards.a", "x.pt"), ("evaluation.scorers.a", "y.pt"))]
    with pytest.raises(UserError, match=r"(?s)x\.pt is missing.*y\.pt is missing"):
        run(monitored(tmp_path), tmp_path / "out", *missing)
    assert not (tmp_path / "out").exists()


def test_a_run_records_what_its_scorers_are(tmp_path, monkeypatch):
    import tiny

    recipe = monitored(tmp_path, stop=None)
    run(recipe, tmp_path / "out", "run.iterations=2", stop_after=1)
    recorded = json.loads((tmp_path / "out" / "scorers.json").read_text())
    assert recorded["rewards"]["a"]["kind"] == "tiny"
    assert recorded["evaluation"]["contrary"]["sign"] == -1
    scorer = type(load_recipe(recipe).rewards["a"].scorer)
    monkeypatch.setattr(scorer, "identity", lambda self: {"kind": "tiny", "sha256": "0" * 64})
    assert scorer.__name__ == tiny.TinyReward.__name__
    with pytest.raises(UserError, match="reward a is not what the run"):
        run(recipe, tmp_path / "out", "run.iterations=2", resume=True)
    monkeypatch.undo()
    run(recipe, tmp_path / "out", "run.iterations=2", resume=True)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scorers"] == recorded


# ---- scoring beside the rollout, several rewards


def test_a_run_that_scores_beside_the_rollout_is_the_same_run(tmp_path):
    """Bit for bit however many chunks wait; rounding apart where all is in line, since paths then take no turns."""
    recipe = write_recipe(tmp_path, evaluation={"every": 2})
    run(recipe, tmp_path / "in line")
    run(recipe, tmp_path / "one", "rollout.score_ahead=1")
    run(recipe, tmp_path / "beside", "rollout.score_ahead=2", "rollout.decode_batch=8", stop_after=2)
    run(recipe, tmp_path / "beside", "rollout.score_ahead=1", resume=True)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "beside")
    in_line, one, two = (final_parameters(tmp_path / name) for name in ("in line", "one", "beside"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in one:
        torch.testing.assert_close(one[name], in_line[name], rtol=0, atol=1e-5)


MIXINGS = ("sum_of_advantages", "weighted_advantages", "weighted_rewards")


@pytest.mark.parametrize("mixing", MIXINGS)
def test_two_rewards_with_each_mixing(tmp_path, mixing):
    recipe = write_recipe(tmp_path, advantage={"mixing": mixing}, run={"iterations": 2})
    run(recipe, tmp_path / "out")
    rows = [row for row in read_rows(tmp_path / "out") if "reward" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/a"] + 0.5 * row["reward/b"])
        assert row["reward/a"] == pytest.approx(row["a/mean"])
        assert row["skipped_groups"] == 0
        assert row["grad_norm"] > 0
    weightless = run(recipe, tmp_path / "weightless", "rewards.b.weight=0")
    alone = run(recipe, tmp_path / "alone", "rewards.b=null")
    assert weightless.finished
    assert alone.finished
    one, two, both = (final_parameters(tmp_path / name) for name in ("weightless", "alone", "out"))
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-6) for name in one), "a weight of 0 is no reward"
    assert not all(torch.allclose(both[name], two[name], rtol=0, atol=1e-6) for name in both)


def test_weighted_advantages_divide_by_the_sum_of_the_weights(tmp_path):
    recipe = write_recipe(tmp_path)
    run(
        recipe, tmp_path / "divided", "advantage.mixing=weighted_advantages", "rewards.a.weight=3", "rewards.b.weight=1"
    )
    run(recipe, tmp_path / "summed", "rewards.a.weight=0.75", "rewards.b.weight=0.25")
    one, two = final_parameters(tmp_path / "divided"), final_parameters(tmp_path / "summed")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_groups_in_which_one_of_two_rewards_has_no_answer(tmp_path, mixing):
    """Of separate advantages the other reward's remains; a sum of rewards without a summand is none at all."""
    rewards = {"a": {"kind": "tiny"}, "b": {"kind": "tiny", "channel": 1, "broken_at": list(range(7))}}
    recipe = write_recipe(tmp_path, advantage={"mixing": mixing}, rewards=rewards)
    with pytest.raises(RunFailed, match="reward 'b' has no valid value"):
        run(recipe, tmp_path / "fails")
    run(recipe, tmp_path / "out", "run.non_finite=skip_group")
    rows = [row for row in read_rows(tmp_path / "out") if "reward" in row]
    plan = load_recipe(recipe).plan()
    groups = 4 * len(set(plan.peers("parent")))
    for row in rows:
        assert row["skipped_groups"] == groups
        assert row["reward"] == pytest.approx(row["reward/a"])
        assert row["reward/b"] == 0
        assert (row["advantage_abs"] == 0) == (mixing == "weighted_rewards")
