"""What a judge said, read and counted as the benchmark's own program does: its published outcome, case by case."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from flowrl.evaluation.unigenbench.answers import read_answer
from flowrl.evaluation.unigenbench.benchmark import BenchPrompt
from flowrl.evaluation.unigenbench.counts import official_scores

CASES = json.loads((Path(__file__).parents[1] / "golden/judges/unigenbench_parse_cases.json").read_text("utf-8"))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 34


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_read_and_counted_as_officially(name: str) -> None:
    case = CASES[name]
    names = tuple(case["testpoint"])
    reading = read_answer(case["text"], len(names))
    if "raises" in case:  # ends the official program; here the question is asked again
        assert reading.outcome == "unreadable"
        return
    assert (reading.outcome != "unreadable") == case["ok"]
    if not case["ok"]:
        assert reading.official_json("a fox", names) == "null"
        return
    assert repr(reading.score) == case["score"]
    scores = official_scores([(BenchPrompt(0, "a fox", names, names), reading)])["sub_dimensions"]
    assert {key: [value["correct"], value["total"]] for key, value in scores.items()} == case["counted"]


@pytest.mark.parametrize(
    "score",
    [
        "...",
        "{1, 0}",
        "b'ab'",
        "[1j, 0]",
        "{[]: 1, 2: 3}",
        "[1, '\\ud800']",
        "[" * 300 + "]" * 300,
        "{(1, 2): 3, 4: 5}",
    ],
)
def test_what_would_end_the_official_program_is_asked_again(score: str) -> None:
    assert read_answer(f"<analysis>['a', 'b']</analysis><score>{score}</score>", 2).outcome == "unreadable"


@pytest.mark.parametrize(
    ("analysis", "score"),
    [("['a', None]", "[1, 0]"), ("['a', True]", "[1, 0]"), ("['a', 'b']", "[1e999, 0]"), ("['a', 'b']", "'10'")],
)
def test_what_json_and_python_write_differently_is_lost(analysis: str, score: str) -> None:
    reading = read_answer(f"<analysis>{analysis}</analysis><score>{score}</score>", 2)
    assert reading.outcome == "lost"
    assert reading.passed == []
    assert json.loads(reading.official_json("a fox", ["x", "y"]))["analysis"] == ast.literal_eval(analysis)
