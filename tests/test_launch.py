import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowrl import launch


def run(code: str, processes: int, *argv: str, grace: float = 0.3) -> int:
    """Run Python ``code`` as ``processes`` ranks; it finds the rank as ``rank`` and the arguments as ``argv``."""
    return launch.run(argv, processes, command=(sys.executable, "-c", program(code)), grace=grace)


def program(code: str) -> str:
    return "import os, sys, time, signal\nrank, argv = int(os.environ['RANK']), sys.argv[1:]\n" + textwrap.dedent(code)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_every_rank_finds_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
    names = "LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
    open(f"{argv[0]}/{rank}", "w").write(" ".join(os.environ[name] for name in names))
    """
    assert run(code, 3, str(tmp_path)) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    for rank, (local, size, local_size, address, port, omp) in enumerate(found):
        assert (local, size, local_size, address) == (str(rank), "3", "3", "127.0.0.1")
        assert (int(port) > 0, port, omp) == (True, found[0][4], threads)


def test_threads_that_the_user_set_are_kept() -> None:
    assert launch.environment(0, 2, 1234, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert int(launch.environment(0, 10_000, 1234, {})["OMP_NUM_THREADS"]) == 1


def test_ranks_know_that_they_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not launch.is_rank()
    assert run("from flowrl.launch import is_rank; sys.exit(0 if is_rank() else 5)", 2) == 0


def test_only_the_first_rank_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("print('hello from', rank); print('warning', rank, file=sys.stderr)", 3) == 0
    out, err = capfd.readouterr()
    assert out == "hello from 0\n"
    assert err == "warning 0\n"


def test_the_failing_rank_is_shown_and_the_others_ended(capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert run("if rank == 1: print('what went wrong', file=sys.stderr); sys.exit(7)\ntime.sleep(60)", 3) == 7
    assert time.monotonic() - start < 5
    err = capfd.readouterr().err
    assert "rank 1 ended with exit code 7" in err
    assert "[rank 1] what went wrong" in err
    assert "rank 2" not in err


def test_ranks_that_ignore_sigterm_are_killed() -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank == 0: time.sleep(0.3); sys.exit(3)\ntime.sleep(60)"
    start = time.monotonic()
    assert run(code, 2, grace=0.2) == 3
    assert time.monotonic() - start < 5


def test_a_rank_ended_by_a_signal_is_reported_as_a_shell_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", 2) == 128 + 9
    assert "rank 1 ended with SIGKILL" in capfd.readouterr().err


def test_a_mistake_of_the_users_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("print('no such recipe', file=sys.stderr); sys.exit(2)", 3) == 2
    assert capfd.readouterr().err == "no such recipe\n"


def test_a_command_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        launch.run([], 2, command=("/no/such/program",))
    with pytest.raises(ValueError, match="at least 1"):
        launch.run([], 0)


RANKS = """
def note(number, frame):
    open(f"{argv[0]}/rank_{rank}", "a").write(f"{number} ")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
open(f"{argv[0]}/ready_{rank}", "w").close()
end = time.time() + 30
while time.time() < end:
    time.sleep(0.02)
    noted = f"{argv[0]}/rank_{rank}"
    if os.path.exists(noted) and len(open(noted).read().split()) == int(argv[1]):
        time.sleep(0.5 * (rank == 0))
        open(f"{argv[0]}/done_{rank}", "w").close()
        sys.exit(int(argv[2]))
"""


def launcher(folder: Path, num_signals: int, code: int) -> subprocess.Popen:
    """A process that runs two ranks, each of which exits with ``code`` after ``num_signals`` signals."""
    script = (
        "import sys; from flowrl import launch; "
        f"sys.exit(launch.run({[str(folder), str(num_signals), str(code)]!r}, 2, "
        f"command=(sys.executable, '-c', {program(RANKS)!r}), grace=0.1))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    wait_for(lambda: all((folder / f"ready_{rank}").exists() for rank in range(2)))
    return process


def test_each_signal_reaches_each_rank_once(tmp_path: Path) -> None:
    process = launcher(tmp_path, 2, 0)
    # Like a terminal's Ctrl-C: to the whole foreground group, in which the ranks are not.
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert {(tmp_path / f"rank_{rank}").read_text() for rank in range(2)} == {"2 15 "}


def test_the_third_signal_kills(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = launcher(tmp_path, 99, 0)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.15)
    assert process.wait(10) == 128 + 9
    assert (tmp_path / "rank_0").read_text() == "2 2 "
    assert "rank 1" not in capfd.readouterr().err


def test_a_rank_that_stops_as_asked_does_not_hurry_the_others(tmp_path: Path) -> None:
    process = launcher(tmp_path, 1, 143)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "done_0").exists()  # rank 0 takes 0.5 s longer than rank 1, five times the grace


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_ranks_are_told_when_the_launcher_is_killed(tmp_path: Path) -> None:
    process = launcher(tmp_path, 1, 0)
    process.kill()
    process.wait()
    wait_for(lambda: all((tmp_path / f"done_{rank}").exists() for rank in range(2)))
    assert (tmp_path / "rank_1").read_text() == "15 "
