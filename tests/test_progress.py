import io
import re

import pytest
from rich.console import Console

from flowrl.progress import Progress, duration


def show(rows: list[dict], iterations: int, done: int = 0, terminal: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None, highlight=False)
    with Progress(iterations, done, console=console) as progress:
        progress.note("a note [not markup]")
        for row in rows:
            progress.stage("rollout")
            progress.update(row)
    return file.getvalue()


ROWS: list[dict] = [
    {"iteration": 9, "reward": 0.41234, "gold/score": 0.5, "forwards": 3520.0, "seconds": 4.0},
    {"iteration": 10, "reward": None, "forwards": 3520, "seconds": 6.0, "non_finite": ["reward"]},
]


def test_elsewhere_than_on_a_terminal_it_is_one_plain_line_an_iteration() -> None:
    assert show(ROWS, 12, done=8).splitlines() == [
        "a note [not markup]",
        "iteration  9/12  reward 0.4123  gold 0.5000  forwards 3,520  4.0 s  ETA 0:12",
        "iteration 10/12  forwards 3,520  not finite: reward  6.0 s  ETA 0:10",
    ]


def test_a_narrow_log_does_not_wrap() -> None:
    assert len(show(ROWS, 12, width=20).splitlines()) == 3


def test_on_a_terminal_the_lines_stay_and_a_bar_runs_below() -> None:
    text = show(ROWS, 12, done=8, terminal=True, width=100)
    assert "reward 0.4123" in text
    assert re.search(r"rollout .*10/12 +ETA 0:10", text)


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(3, enabled=False) as progress:
        progress.stage("rollout")
        progress.note("x")
        progress.update({"iteration": 1})
    assert capsys.readouterr().out == ""


def test_without_seconds_it_measures_them() -> None:
    (line,) = show([{"iteration": 1}], 2).splitlines()[1:]
    assert re.fullmatch(r"iteration 1/2  0\.\d s  ETA 0:00", line)


def test_durations() -> None:
    assert [duration(s) for s in (0, 9.6, 61, 3600, 90061)] == ["0:00", "0:10", "1:01", "1:00:00", "25:01:01"]
