"""Processes that watch each other, without torch: what one hears of another, and that it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, time, pathlib, socket
from flowrl.errors import RunFailed
from flowrl.watch import Watch

class Files:
    def set(self, key, value):
        path = folder / key
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)
    def wait(self, keys, timeout):
        while not all((folder / key).exists() for key in keys):
            time.sleep(0.01)
    def get(self, key):
        return (folder / key).read_bytes()

folder, rank, world = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def arrive():
    (folder / f"here_{rank}").touch()
    while len(list(folder.glob("here_*"))) < world:
        time.sleep(0.01)
with Watch(rank, world, Files(), "localhost", grace=0.3) as watch:
    arrive()
    time.sleep(0.3)  # connections are taken in
"""


def start(folder: Path, code: str, world: int = 3) -> list[subprocess.Popen[str]]:
    """``world`` processes that run ``code`` inside a watch."""
    program = PROGRAM + textwrap.indent(textwrap.dedent(code), "    ")
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(rank), str(world)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each, which all end soon."""
    try:
        printed = [process.communicate(timeout=30)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_all(tmp_path: Path, victim: int) -> None:
    processes = start(tmp_path, "time.sleep(60)")
    while len(list(tmp_path.glob("here_*"))) < 3:
        time.sleep(0.02)
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(processes[victim].pid, signal.SIGKILL)
    found = ends(processes)
    assert time.monotonic() - began < 10
    for rank, (code, text) in enumerate(found):
        if rank != victim:
            assert code == 1
            assert f"process {victim} failed, so process {rank} ends too: it ended without a word" in text


@pytest.mark.parametrize("failing", [0, 2])
def test_the_error_of_one_is_told_to_all(tmp_path: Path, failing: int) -> None:
    found = ends(start(tmp_path, f"if rank == {failing}: raise RunFailed('the disk is full')\ntime.sleep(60)"))
    for rank, (code, text) in enumerate(found):
        assert code == 1
        assert "the disk is full" in text
        assert (f"process {rank} ends too" in text) == (rank != failing)


def test_what_all_fail_by_is_told_by_each_itself(tmp_path: Path) -> None:
    for code, text in ends(start(tmp_path, "raise RunFailed('the loss is nan')")):
        assert code == 1
        assert "ends too" not in text


def test_one_that_has_failed_itself_may_take_its_time_to_close(tmp_path: Path) -> None:
    code = """
    try:
        with watch.telling():
            raise RunFailed("the loss is nan")
    finally:
        time.sleep(1.5 * (rank == 0))
        print("closed", file=sys.stderr)
    """
    for returncode, text in ends(start(tmp_path, code)):
        assert returncode == 1
        assert "closed" in text
        assert "ends too" not in text


def test_one_that_is_done_leaves_the_others_alone(tmp_path: Path) -> None:
    for code, text in ends(start(tmp_path, "time.sleep([0, 0.6, 1.2][rank])")):
        assert (code, text) == (0, "")


def test_a_stranger_at_the_port_is_none_of_the_run(tmp_path: Path) -> None:
    code = """
    if rank == 1:
        port = json.loads((folder / "watch-0").read_text())["port"]
        for hello in (b"", b"GET / HTTP/1.1\\n", b'{"rank": 1, "token": "guessed"}\\n'):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(hello)
    time.sleep(1)
    """
    for returncode, text in ends(start(tmp_path, code, world=2)):
        assert (returncode, text) == (0, "")
