"""Which attention kernel a policy's transformer uses, chosen by trial at the policy's own shape.

A kernel may crash, and a crash on a GPU takes the process's whole state with it. So the trials run in a process of
their own (:mod:`flowrl.policies.attention_probe`), and what crashes, hangs or answers wrongly is not used for what it
failed at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.compiler import config as compiler_config
from torch.nn.attention import sdpa_kernel
from torch.overrides import TorchFunctionMode

import flowrl
from flowrl import atomic
from flowrl.errors import UserError
from flowrl.hub import cache_dir
from flowrl.policies.attention_probe import BACKENDS

Setting = Literal["auto", "native", "flash", "cudnn", "efficient", "math"]
"""auto: the fastest that works on a GPU, PyTorch's choice elsewhere; native: PyTorch's choice."""
Use = Literal["rollout", "training"]
USES: tuple[Use, ...] = ("rollout", "training")
CANDIDATES: tuple[tuple[str, Use], ...] = (
    *(("flash", "rollout"), ("cudnn", "rollout"), ("efficient", "rollout")),
    *(("flash", "training"), ("efficient", "training")),
)
"""Those with a fused kernel; math keeps tokens^2 numbers a head, and is what is left if none works.

cuDNN's is not among them for training: on one stack (torch 2.11, H100) its backward pass answers rightly in a trial and
ends with an illegal memory access in compiled blocks, which hand it gradients in another layout.
"""
BOUNDS = {"float32": 1e-2, "bfloat16": 5e-2, "float16": 5e-2}
"""Largest relative error. The kernels' rounding is below (in float32 some use TF32); a wrong answer is near 1."""
PROBE = (sys.executable, "-m", "flowrl.policies.attention_probe")
TIMEOUT = 180.0
"""Seconds that one process of trials may take: usually 10, most of them for starting it."""
VERSION = 1
TAG = compiler_config.cache_key_tag
"""Of the disk cache, before anything is chosen."""
NO_START = "the trial could not start"
UNTRIED = ("flash", "efficient", "math")
"""Where no trial can start: the kernels that no harm is known of."""
OTHERS = ("efficient", "math")
"""Below a named kernel: PyTorch's switches are the process's, and what the scoring thread runs meanwhile (a VAE's heads
of 512, scorers in float32) the named one may not serve."""
PASSING = ("timed out", "out of memory", NO_START)
"""Reasons that may be gone the next time: what failed for one of them is tried again by the next run."""


@dataclass(frozen=True)
class AttentionShape:
    """Of the calls of a policy: queries, keys and values are [batch, heads, tokens, head_dim] in ``dtype``."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    dtype: str

    def of_rows(self, rows: int) -> AttentionShape:
        """That of so many rows where this is that of one."""
        return replace(self, batch=rows * self.batch)

    def __str__(self) -> str:
        return f"{self.batch} x {self.heads} heads x {self.tokens} tokens x {self.head_dim} in {self.dtype}"


@dataclass(frozen=True)
class Trial:
    """What came of a backend for a use: ``seconds`` and ``error``, or the ``reason`` why it is not used."""

    backend: str
    use: Use
    seconds: float | None = None
    error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """Backends by preference for each use; none: PyTorch's choice."""

    rollout: tuple[str, ...] = ()
    training: tuple[str, ...] = ()


class Attention:
    """The choice of one policy. It is made when the shape is known, by :meth:`decide`, and held for the run."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        self.choice: Choice | None = None
        if setting == "native" or (setting == "auto" and device.type != "cuda"):
            self.choice = Choice()
        elif setting == "math":
            self.choice = Choice(("math",), ("math",))

    def decide(self, shape: AttentionShape) -> str:
        """Try the candidates, unless that was done here before; returns a line about it.

        Raises UserError where one that the setting names does not work.
        """
        candidates = CANDIDATES if self.setting == "auto" else tuple((self.setting, use) for use in USES)
        trials = tried(shape, self.device, candidates)
        if self.setting == "auto":
            self.choice = choose(trials)
            return f"attention, {shape}: {summary(trials)}"
        failed = [trial for trial in trials if trial.reason]
        if failed:
            reasons = "; ".join(f"{trial.use}: {trial.reason}" for trial in failed)
            raise UserError(
                f"model.attention {self.setting} does not work here at {shape}: {reasons}. "
                "Allowed are auto (tries all), native, flash, cudnn, efficient, math"
            )
        names = tuple(dict.fromkeys((self.setting, *OTHERS)))
        self.choice = Choice(names, names)
        return f"attention, {shape}: {summary(trials)}"

    def context(self) -> AbstractContextManager[None]:
        """Inside, attention uses what was chosen: for training where gradients are enabled, else for the rollout.

        What is compiled inside keeps the choice of that moment. PyTorch's cache of compiled code on disk does not know
        that the code depends on it, and would give what was compiled under another: hence the tag.
        """
        names = () if self.choice is None else self.choice.training if torch.is_grad_enabled() else self.choice.rollout
        compiler_config.cache_key_tag = "-".join(("attention", *names)) if names else TAG
        if not names:
            return nullcontext()
        context: AbstractContextManager[None] = sdpa_kernel([BACKENDS[name] for name in names], set_priority=True)
        return context


def choose(trials: Sequence[Trial]) -> Choice:
    """The backends that work, the fastest first, then math."""
    if all(trial.reason and trial.reason.startswith(NO_START) for trial in trials):
        return Choice(UNTRIED, UNTRIED)
    found: dict[str, tuple[str, ...]] = {}
    for use in USES:
        works = [trial for trial in trials if trial.use == use and trial.reason is None]
        found[use] = (*(trial.backend for trial in sorted(works, key=lambda trial: trial.seconds or 0.0)), "math")
    return Choice(**found)


def summary(trials: Sequence[Trial]) -> str:
    """One line: per use the milliseconds of what works, the fastest first, and why the others do not.

    >>> summary([Trial("flash", "rollout", 2e-3, 1e-3), Trial("cudnn", "rollout", reason="ended by SIGSEGV")])
    'rollout: flash 2.00 ms, cudnn not used (ended by SIGSEGV)'
    """
    parts = []
    for use in USES:
        of_use = [trial for trial in trials if trial.use == use]
        of_use.sort(key=lambda trial: float("inf") if trial.reason else trial.seconds or 0.0)
        texts = [
            f"{trial.backend} not used ({trial.reason})" if trial.reason else f"{trial.backend} {_ms(trial)}"
            for trial in of_use
        ]
        if texts:
            parts.append(f"{use}: {', '.join(texts)}")
    return "; ".join(parts)


def _ms(trial: Trial) -> str:
    return f"{1000 * (trial.seconds or 0.0):.2f} ms"


# ---- the shape


class _Recorder(TorchFunctionMode):
    """Notes the shapes of all attention calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[AttentionShape] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            kind = query.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
            batch, heads, tokens, head_dim = query.shape
            self.shapes.append(AttentionShape(batch, heads, tokens, head_dim, str(dtype).removeprefix("torch.")))
        return function(*args, **kwargs)


@torch.no_grad()
def recorded_shape(call: Callable[[], object]) -> AttentionShape:
    """The attention call with the most tokens that ``call`` makes."""
    with _Recorder() as recorder:
        call()
    return max(recorder.shapes, key=lambda shape: shape.tokens)


# ---- trials


def tried(
    shape: AttentionShape,
    device: torch.device,
    candidates: Sequence[tuple[str, Use]],
    *,
    command: Sequence[str] = PROBE,
    folder: Path | None = None,
    timeout: float = TIMEOUT,
) -> list[Trial]:
    """What the candidates do, from the records in ``folder`` (default: the cache) or by trial.

    One process at a time tries; those that wait for it, the other ranks of a run, then read its record.
    """
    key = {"version": VERSION, "shape": asdict(shape), "candidates": list(candidates), **_machine(device)}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = (folder or cache_dir("attention")) / f"{name}.json"
    with _locked(path.with_suffix(".lock")):
        known = _read(path)
        if known is not None:
            return known
        trials = run_trials(shape, device, candidates, command=command, timeout=timeout)
        if not any(trial.reason and trial.reason.startswith(PASSING) for trial in trials):
            with suppress(OSError):  # of a folder that cannot be written: the next run tries again
                atomic.write_json(path, {"key": key, "trials": [asdict(trial) for trial in trials]})
        return trials


def run_trials(
    shape: AttentionShape,
    device: torch.device,
    candidates: Sequence[tuple[str, Use]],
    *,
    command: Sequence[str] = PROBE,
    timeout: float = TIMEOUT,
) -> list[Trial]:
    """Every candidate, a backend for a use, in as many processes as it takes: one that ends early is blamed on the
    trial it was at, and the next goes on after that."""
    found: dict[tuple[str, Use], Trial] = {}
    while waiting := [trial for trial in candidates if trial not in found]:
        argument = json.dumps({"device": str(device), "shape": asdict(shape), "trials": waiting})
        lines, ending = _run([*command, argument], timeout)
        begun: tuple[str, Use] | None = None
        for line in lines:
            if "begin" in line:
                begun = (line["begin"][0], line["begin"][1])
            elif "backend" in line:
                trial = _judged(Trial(**line), BOUNDS[shape.dtype])
                found[trial.backend, trial.use] = trial
                begun = None
        if begun is not None:
            found[begun] = Trial(*begun, reason=ending)
        elif not any(trial in found for trial in waiting):  # it did not come to its first trial, and never will
            found |= {trial: Trial(*trial, reason=f"{NO_START}: {ending}") for trial in waiting}
    return [found[trial] for trial in candidates]


def _judged(trial: Trial, bound: float) -> Trial:
    if trial.reason or (trial.error is not None and trial.error <= bound):
        return trial
    return Trial(trial.backend, trial.use, trial.seconds, trial.error, f"wrong: relative error {trial.error}")


def _run(command: Sequence[str], timeout: float) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that a program says, and how it ended."""
    home = str(Path(flowrl.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
        ending = _ending(process.returncode, err)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        ending = f"timed out after {timeout:g} s"
    except BaseException:
        process.kill()
        process.wait()
        raise
    return list(_json_lines(out)), ending


def _ending(code: int, stderr: str) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"exit code {code}: {last}"


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # a line that was cut, or a library's own
            continue
        if isinstance(value, dict):
            yield value


def _machine(device: torch.device) -> dict[str, Any]:
    """What else a result depends on."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
    }


def _read(path: Path) -> list[Trial] | None:
    """A record; None where there is none, or none that can be read."""
    try:
        return [Trial(**trial) for trial in json.loads(path.read_text(encoding="utf-8"))["trials"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("w")), fcntl.LOCK_EX)
        yield
