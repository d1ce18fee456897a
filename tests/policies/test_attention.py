"""Backends that crash, hang or lie are not used for what they failed at, and their trial harms nobody."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from flowrl.errors import UserError
from flowrl.policies import attention
from flowrl.policies.attention import (
    CANDIDATES,
    Attention,
    AttentionShape,
    Choice,
    Trial,
    choose,
    recorded_shape,
    run_trials,
    summary,
    tried,
)

CPU = torch.device("cpu")
SHAPE = AttentionShape(2, 4, 80, 16, "bfloat16")
FAKE = """
import json, os, sys, time
wanted = json.loads(sys.argv[-1])
with open({count!r}, "a") as file:
    file.write("started\\n")
print("a library says hello")
for backend, use in wanted["trials"]:
    print(json.dumps({{"begin": [backend, use]}}), flush=True)
    seconds = {{"flash": 2.0, "cudnn": 1.0}}.get(backend, 3.0)
    found = {{"backend": backend, "use": use, "seconds": seconds, "error": 1e-3}}
    {behaviour}
    print(json.dumps(found), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path):
    """A program in place of the trials that behaves as told at some of them."""

    def make(behaviour: str = "pass") -> tuple[str, ...]:
        path = tmp_path / "fake.py"
        path.write_text(FAKE.format(count=str(tmp_path / "starts"), behaviour=behaviour))
        return (sys.executable, str(path))

    return make


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts").read_text().splitlines())


def test_the_fastest_that_works_comes_first(fake, tmp_path: Path) -> None:
    trials = run_trials(SHAPE, CPU, CANDIDATES, command=fake())
    assert [(trial.backend, trial.use) for trial in trials] == list(CANDIDATES)
    assert choose(trials) == Choice(("cudnn", "flash", "efficient", "math"), ("flash", "efficient", "math"))
    assert starts(tmp_path) == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("os.abort()", "ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("time.sleep(60)", "timed out after"),
        ("raise ValueError('bad kernel')", "exit code 1: ValueError: bad kernel"),
        ("found['error'] = float('nan')", "wrong: relative error nan"),
        ("found['error'] = 0.7", "wrong: relative error 0.7"),
        ("found = {'backend': backend, 'use': use, 'reason': 'no such kernel'}", "no such kernel"),
    ],
)
def test_what_fails_in_training_alone_still_serves_the_rollout(fake, behaviour: str, reason: str) -> None:
    command = fake(f"if (backend, use) == ('flash', 'training'): {behaviour}")
    trials = run_trials(SHAPE, CPU, CANDIDATES, command=command, timeout=3.0)
    assert choose(trials) == Choice(rollout=("cudnn", "flash", "efficient", "math"), training=("efficient", "math"))
    assert [trial.backend for trial in trials if trial.reason and reason in trial.reason] == ["flash"]
    assert f"flash not used ({reason}" in summary(trials)


def test_all_may_crash(fake, tmp_path: Path) -> None:
    trials = run_trials(SHAPE, CPU, CANDIDATES, command=fake("os.abort()"))
    assert choose(trials) == Choice(("math",), ("math",))
    assert starts(tmp_path) == len(CANDIDATES)  # each was blamed once


def test_a_program_that_cannot_start_is_not_started_again(fake, tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no module')")
    trials = run_trials(SHAPE, CPU, CANDIDATES, command=command)
    assert {trial.reason for trial in trials} == {"the trial could not start: exit code 1: no module"}
    assert choose(trials) == Choice(*[("flash", "efficient", "math")] * 2)


def test_results_are_kept_unless_they_may_pass(fake, tmp_path: Path) -> None:
    crashing = fake("if backend == 'cudnn': os.abort()")
    first = tried(SHAPE, CPU, CANDIDATES, command=crashing, folder=tmp_path / "cache")
    assert tried(SHAPE, CPU, CANDIDATES, command=("false",), folder=tmp_path / "cache") == first
    other = AttentionShape(3, 4, 80, 16, "bfloat16")
    assert tried(other, CPU, CANDIDATES, command=("false",), folder=tmp_path / "cache") != first
    path = next((tmp_path / "cache").glob("*.json"))
    assert json.loads(path.read_text())["key"]["shape"]["tokens"] == 80
    path.write_text("{")
    hanging = fake("if backend == 'cudnn': time.sleep(60)")
    again = tried(SHAPE, CPU, CANDIDATES, command=hanging, folder=tmp_path / "cache", timeout=1.5)
    assert any(trial.reason and trial.reason.startswith("timed out") for trial in again)
    assert path.read_text() == "{"  # not recorded: it may go better next time


def test_the_real_program_on_a_cpu() -> None:
    trials = run_trials(SHAPE, CPU, CANDIDATES)
    works = {trial.backend for trial in trials if trial.reason is None}
    assert works == {"flash"}  # a CPU has no other
    assert all(0 < (trial.error or 0) < 0.02 for trial in trials if trial.backend == "flash")
    assert choose(trials) == Choice(*[("flash", "math")] * 2)


# ---- the choice


def test_on_a_cpu_auto_is_pytorchs_choice_without_a_trial() -> None:
    for setting in ("auto", "native"):
        assert Attention(setting, CPU).choice == Choice()
    assert Attention("native", torch.device("cuda")).choice == Choice()
    assert Attention("auto", torch.device("cuda")).choice is None  # until the shape is known


def test_a_named_backend_that_fails_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial("cudnn", "rollout", 1.0, 0.0), Trial("cudnn", "training", reason="ended by SIGSEGV")]
    monkeypatch.setattr(attention, "tried", lambda *args: trials)
    with pytest.raises(UserError, match=r"model\.attention cudnn does not work here .*training: ended by SIGSEGV"):
        Attention("cudnn", CPU).decide(SHAPE)
    named = Attention("flash", CPU)
    monkeypatch.setattr(attention, "tried", lambda *args: [Trial("flash", "rollout", 1.0, 0.0)])
    assert "rollout: flash 1000.00 ms" in named.decide(SHAPE)
    assert named.choice == Choice(*[("flash", "efficient", "math")] * 2)


def test_the_two_uses_have_their_own() -> None:
    chosen = Attention("auto", torch.device("cuda"))
    chosen.choice = Choice(rollout=("math",), training=("efficient",))
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    with torch.no_grad(), chosen.context():
        scaled_dot_product_attention(x, x, x)
    with chosen.context(), pytest.raises(RuntimeError, match=r"No (viable backend|available kernel)"):
        scaled_dot_product_attention(x, x, x)  # a CPU has no such kernel: it was asked for


def test_beside_a_named_backend_others_run_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches are the whole process's, and scorers run at the same time in another thread."""
    monkeypatch.setattr(attention, "tried", lambda *args: [Trial("efficient", "rollout", 1.0, 0.0)])
    named = Attention("efficient", CPU)
    named.decide(SHAPE)
    assert named.choice == Choice(*[("efficient", "math")] * 2)
    x = torch.randn(1, 2, 8, 4)
    found: list[torch.Tensor] = []
    with named.context():
        thread = threading.Thread(target=lambda: found.append(scaled_dot_product_attention(x, x, x)))
        thread.start()
        thread.join()
    assert found[0].shape == x.shape, "a CPU has no efficient kernel"


@pytest.mark.slow
def test_code_compiled_under_another_choice_is_not_taken_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.randn(1, 2, 8, 4)
    hits = []
    for name in ("flash", "math", "flash"):
        chosen = Attention("auto", CPU)
        chosen.choice = Choice((name,), (name,))
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(lambda x: scaled_dot_product_attention(x, x, x) * 2, fullgraph=True)
        with torch.no_grad(), chosen.context():
            compiled(x)
        hits.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert hits == [0, 0, 1]
    torch._dynamo.reset()


@pytest.mark.parametrize("autocast", [False, True])
def test_the_shape_is_that_of_the_calls(autocast: bool) -> None:
    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for tokens in (4, 9):
                x = torch.randn(2, 3, tokens, 8)
                scaled_dot_product_attention(query=x, key=x, value=x)

    shape = recorded_shape(call)
    assert shape == AttentionShape(2, 3, 9, 8, "bfloat16" if autocast else "float32")
    assert shape.of_rows(6).batch == 12


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_trials_on_this_gpu(dtype: str, tmp_path: Path) -> None:
    """FLUX.1-dev's shape at 720x720. This process's own device state survives whatever happens in the trials."""
    device = torch.device("cuda", torch.cuda.current_device())
    trials = tried(AttentionShape(2, 24, 2537, 128, dtype), device, CANDIDATES, folder=tmp_path)
    print(summary(trials))
    choice = choose(trials)
    assert len(choice.rollout) > 1
    assert len(choice.training) > 1
    assert torch.ones(2, device=device).sum().item() == 2.0


def test_nothing_of_the_trials_is_left(fake) -> None:
    run_trials(SHAPE, CPU, (("flash", "rollout"),), command=fake("time.sleep(60)"), timeout=0.5)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
