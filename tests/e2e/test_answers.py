"""Runs whose reward asks a judge: what it says is kept, and what it leaves unanswered is told and compared fairly."""

from __future__ import annotations

import json

import pytest
from judges.http_double import completion, playing, question_of
from runs import run, start, write_recipe

from flowrl.errors import UserError
from flowrl.monitors import read_best
from flowrl.tracking import read_rows

REFUSAL = b"no such thing " * 100
UNANSWERED = ("train 3", "test 2")


def answers(stage, body):
    """A score, but for two prompts."""
    if any(prompt in question_of(body) for prompt in UNANSWERED):
        stage.send(400, REFUSAL)
    else:
        stage.send(200, completion("Final Score: 3.5"))


def asking(folder, url, **changes):
    judge = {"kind": "endpoint", "url": url, "model": "m", "retries": 0}
    scorer = {"kind": "unified_reward", "judge": judge}
    settings = {"every": 1, "scorers": {"judge": scorer | {"text_first": True}}, "keep_best": "judge"}
    values = {"rewards": {"judge": scorer, "a": {"kind": "tiny"}}, "evaluation": settings}
    return write_recipe(folder, run={"iterations": 2, "non_finite": "skip_group"}, **values | changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_kept_and_their_share_is_told(tmp_path, capsys):
    with playing(answers) as double:
        run(asking(tmp_path, double.url), tmp_path / "out")
        asked = len(double.bodies)
    kept, of_monitor = (lines(tmp_path / "out" / "answers" / name) for name in ("judge.jsonl", "test/judge.jsonl"))
    assert len(kept) + len(of_monitor) == asked
    assert len(of_monitor) == 3 * 5, "before, once during, after; five prompts"
    failed = [line for line in of_monitor if line["error"]]
    assert [line["prompt"] for line in failed] == ["test 2"] * 3
    assert {line["body"] for line in failed} == {REFUSAL.decode()}
    assert {line["text"] for line in kept if not line["error"]} == {"Final Score: 3.5"}

    trained = [row for row in read_rows(tmp_path / "out") if "reward" in row]
    per_iteration = len(kept) // 2
    for number, row in enumerate(trained):
        errors = sum(bool(line["error"]) for line in kept[number * per_iteration :][:per_iteration])
        assert row["coverage/judge"] == pytest.approx(1 - errors / per_iteration)
        assert row["coverage/a"] == 1
    assert min(row["coverage/judge"] for row in trained) < 1
    evaluated = [row for row in read_rows(tmp_path / "out") if "test/judge" in row]
    assert [row["coverage/test/judge"] for row in evaluated] == [0.8] * 3
    for name, iteration in (("before", 0), ("iteration_000001", 1), ("iteration_000002", 2), ("after", 2)):
        found = json.loads((tmp_path / "out" / "evaluation" / f"{name}.json").read_text())
        assert (found["iteration"], found["coverage"]) == (iteration, {"judge": 0.8})
    assert read_best(tmp_path / "out").iteration == 0, "equal is not better"
    printed = capsys.readouterr().out
    assert "judge 3.5000 (4 of 5 answered)" in printed
    assert "judge answered 75.0 % of images" in printed


def test_each_process_has_a_file_of_its_own(tmp_path):
    with playing(answers) as double:
        process = start(asking(tmp_path, double.url), tmp_path / "out", "--processes", "2")
        printed = process.communicate(timeout=120)[0]
        asked = len(double.bodies)
    assert process.returncode == 0, printed
    files = {path.name: lines(path) for path in (tmp_path / "out" / "answers").glob("*.jsonl")}
    assert set(files) == {"judge.jsonl", "judge.process_1.jsonl"}
    of_monitor = [line for path in (tmp_path / "out" / "answers" / "test").iterdir() for line in lines(path)]
    assert sum(map(len, files.values())) + len(of_monitor) == asked
    evaluated = [row for row in read_rows(tmp_path / "out") if "test/judge" in row]
    assert [row["coverage/test/judge"] for row in evaluated] == [0.8] * 3


def test_one_that_names_a_log_keeps_it_and_one_that_is_both_is_kept_by_the_rewards_name(tmp_path):
    with playing(answers) as double:
        judge = {"kind": "endpoint", "url": double.url, "model": "m", "retries": 0}
        scorer = {"kind": "unified_reward", "judge": judge}
        logged = scorer | {"log": str(tmp_path / "mine.jsonl"), "text_first": True}
        evaluation = {"every": 0, "scorers": {"same": scorer, "logged": logged}}
        run(asking(tmp_path, double.url, evaluation=evaluation), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "answers").rglob("*")] == ["judge.jsonl"]
    assert len(lines(tmp_path / "mine.jsonl")) == 2 * 5
    assert sum(line["prompt"].startswith("test") for line in lines(tmp_path / "out" / "answers" / "judge.jsonl")) == 10


def test_a_run_that_cannot_begin_leaves_no_answers(tmp_path):
    with pytest.raises(UserError, match="nothing answers"):
        run(asking(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
