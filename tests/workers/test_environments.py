"""Environments of other packages: when one is built, what it stands on, and that nothing half built stays."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.errors import RunFailed, UserError
from flowrl.workers import environments


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What would be run; pip's part is left out."""
    run, seen = environments._run, []

    def without_pip(command: Sequence[str], what: str) -> None:
        seen.append(command)
        if "install" not in command:
            run([*command, "--without-pip"], what)

    monkeypatch.setattr(environments, "_run", without_pip)
    monkeypatch.setitem(environments._table()["hpsv2"], "copy", {})
    return seen


def test_pins_are_exact() -> None:
    for name in environments.names():
        assert all(pin.count("==") == 1 for pin in environments.pins(name))


def test_one_is_built_once_and_stands_on_this_environment(tmp_path: Path, commands: list) -> None:
    assert not environments.is_built("hpsv2", tmp_path)
    python = environments.build("hpsv2", tmp_path)
    assert python == environments.interpreter("hpsv2", tmp_path)
    script = "import torch, sys; print(torch.__file__, sys.prefix)"
    said = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == [torch.__file__, str(tmp_path / "hpsv2")]
    assert set(environments.pins("hpsv2")) < set(commands[1])
    assert "--no-deps" in commands[1]
    environments.build("hpsv2", tmp_path)
    assert len(commands) == 2


def test_one_is_built_again_when_its_pins_change(tmp_path: Path, commands: list, monkeypatch) -> None:
    environments.build("hpsv2", tmp_path)
    monkeypatch.setitem(environments._table()["hpsv2"], "pins", ["hpsv2==9.9"])
    with pytest.raises(UserError, match="flowrl scorers environments hpsv2"):
        environments.interpreter("hpsv2", tmp_path)
    environments.build("hpsv2", tmp_path)
    assert "hpsv2==9.9" in commands[-1]
    assert json.loads((tmp_path / "hpsv2" / environments.STAMP).read_text())["pins"] == ["hpsv2==9.9"]


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path, commands: list, monkeypatch) -> None:
    environments.build("hpsv2", tmp_path)
    monkeypatch.setitem(environments._table()["hpsv2"], "copy", {"open_clip/no_such_file": "x"})
    with pytest.raises(FileNotFoundError):
        environments.build("hpsv2", tmp_path)
    assert (tmp_path / "hpsv2" / "bin" / "python").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"hpsv2", ".lock-hpsv2"}


def test_a_command_that_fails_is_shown_with_its_words() -> None:
    command = [sys.executable, "-c", "import sys; print('WARNING: x'); sys.exit('no such version')"]
    with pytest.raises(RunFailed, match=r"environment x; its last lines:\n  \| no such version"):
        environments._run(command, "environment x")


def test_what_it_stands_on_has_to_be_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(environments._table()["hpsv2"], "needs", ["torch", "no_such_package"])
    with pytest.raises(UserError, match="lacks no_such_package"):
        environments.build("hpsv2", tmp_path)


def test_a_python_without_tkinter_gets_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = types.ModuleType("flowrl_worker")
    worker.serve, worker.Image, worker.Score = (lambda *args, **kwargs: None), None, None
    for name, module in (("flowrl_worker", worker), ("_tkinter", None), ("tkinter", None)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "turtle", raising=False)
    from flowrl.workers import official_hpsv2

    official_hpsv2.stand_in_for_turtle()
    from turtle import forward

    assert forward is None
    del sys.modules["turtle"], sys.modules["flowrl.workers.official_hpsv2"]


@pytest.mark.slow
@pytest.mark.network
def test_the_official_packages_and_ours_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds both environments; needs a package index."""
    from flowrl.parity import verify

    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    report = verify("tiny", None, tmp_path / "parity")
    assert report.passed, report.markdown()
    assert json.loads((tmp_path / "parity" / "parity.json").read_text())["passed"]
