"""A process that is killed ends the run on all, whatever they wait for, and whoever has started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import start, write_recipe

from flowrl import launch

STALL = """
import os, pathlib, time

def stalled(*args, **kwargs):
    pathlib.Path({folder!r}, "stalled").write_text(str(os.getpid()))
    time.sleep(300)

if os.environ.get("RANK") == "1":
    import {module} as module
    module.{name} = stalled
"""
IN_A_COLLECTIVE = ("flowrl.learner", "Learner._terms")
IN_A_ROLLOUT = ("flowrl.trainer", "execute")


def stalling_recipe(folder: Path, module: str, name: str) -> Path:
    """The process of rank 1 stops at a place for good, so that the other comes to wait for it."""
    recipe = write_recipe(folder, plugins=["tiny", "stall"], evaluation={"scorers": {}})
    (folder / "stall.py").write_text(STALL.format(folder=str(folder), module=module, name=name))
    return recipe


def kill_the_stalled(folder: Path, *others: subprocess.Popen[str]) -> float:
    """Kill it once the others wait for it; returns when."""
    deadline = time.monotonic() + 120
    while not (folder / "stalled").is_file() or not (folder / "stalled").read_text():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in others), [process.communicate() for process in others]
        time.sleep(0.05)
    time.sleep(1)
    os.kill(int((folder / "stalled").read_text()), signal.SIGKILL)
    return time.monotonic()


def test_the_launcher_ends_a_run_whose_process_was_killed_in_a_collective(tmp_path: Path) -> None:
    process = start(stalling_recipe(tmp_path, *IN_A_COLLECTIVE), tmp_path / "out", "--processes", "2")
    began = kill_the_stalled(tmp_path, process)
    printed = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 60
    assert process.returncode == 128 + signal.SIGKILL, printed
    assert "rank 1 ended with SIGKILL" in printed


@pytest.mark.parametrize("where", [IN_A_ROLLOUT, pytest.param(IN_A_COLLECTIVE, marks=pytest.mark.slow)])
def test_processes_without_a_launcher_end_with_the_one_that_was_killed(tmp_path: Path, where: tuple[str, str]) -> None:
    """As on several machines, where no launcher sees all of them: they are started one by one."""
    recipe = stalling_recipe(tmp_path, *where)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "flowrl", "train", str(recipe), "--output", str(tmp_path / "out")]
    ranks = [
        subprocess.Popen(
            command,
            env=launch.environment(rank, 2, port, os.environ | {"OMP_NUM_THREADS": "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        began = kill_the_stalled(tmp_path, *ranks)
        printed = ranks[0].communicate(timeout=60)[0]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert time.monotonic() - began < 60
    assert ranks[0].returncode == 1, printed
    assert "process 1 failed, so process 0 ends too" in printed or "Connection closed by peer" in printed
