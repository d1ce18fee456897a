"""Several worker processes on this machine: started, watched, told to end, and replaced where one dies."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from flowrl import atomic
from flowrl.bench.units import Agenda, Store, Unit
from flowrl.bench.worker import GRACE_VARIABLE
from flowrl.errors import RunFailed
from flowrl.launch import end_with_parent
from flowrl.progress import duration

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Resources:
    """How many workers, and the GPUs that they take turns on (none: the CPU)."""

    jobs: int
    devices: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Of each worker: the cores are shared out."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() else max(1, num_cores() // self.jobs)

    def environment(self, place: int) -> dict[str, str]:
        """Of the worker in a place."""
        env = dict(os.environ)
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        env["OMP_NUM_THREADS"] = str(self.threads)
        return env


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def resources(jobs: int | None) -> Resources:
    """What there is: by default a worker for each GPU, or for each core where there is none."""
    import torch

    if not torch.cuda.is_available():
        return Resources(jobs or num_cores())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return Resources(jobs or len(devices), tuple(devices))


@dataclass
class Outcome:
    """How it ended. ``left``: units neither done nor failed; ``stopped``: by a signal or the time limit."""

    done: int = 0
    failed: int = 0
    left: int = 0
    stopped: bool = False
    signal: int | None = None


@dataclass
class _Process:
    place: int
    popen: subprocess.Popen[bytes]
    unit: str | None = None
    buffer: bytes = b""
    open: bool = True
    """Whether more may be heard of it."""


@dataclass
class Pool:
    """Works on units until all are done, a signal arrives, or the time is over. Call :meth:`run` from the main thread.

    ``cost`` estimates a unit's seconds (for the time to go), ``say`` shows a line.
    """

    store: Store
    units: Sequence[Unit]
    resources: Resources
    cost: Callable[[Unit], float]
    say: Callable[[str], None]
    deadline: float | None = None
    """On the monotonic clock: all processes have ended by then."""
    margin: float = 60.0
    """Seconds before it that runs are told to save."""
    since: float = field(default_factory=time.time)
    _processes: list[_Process] = field(default_factory=list)
    _signals: list[int] = field(default_factory=list)
    _spent: float = 0.0
    _estimated: float = 0.0
    _told: int = 0

    @cached_property
    def agenda(self) -> Agenda:
        return Agenda(self.store, self.units, self.since)

    def run(self) -> Outcome:
        left = self.agenda.left()
        if not left:
            return self._outcome()
        with tempfile.TemporaryDirectory(prefix="flowrl-bench-") as folder, self._noting_signals():
            self.file = Path(folder) / "units.json"
            values = {"since": self.since, "units": [unit.to_json() for unit in self.units]}
            atomic.write_json(self.file, values)
            self.selector = selectors.DefaultSelector()
            try:
                for place in range(min(self.resources.jobs, len(left))):
                    self._start(place)
                while self._processes:
                    self._turn()
            finally:
                for process in self._processes:
                    process.popen.kill()
                    process.popen.wait()
        return self._outcome()

    def _turn(self) -> None:
        """Hear the workers, notice those that ended, pass on signals, mind the time."""
        for key, _ in self.selector.select(POLL_SECONDS):
            self._hear(key.data)
        for process in [p for p in self._processes if p.popen.poll() is not None]:
            self._ended(process)
        while self._told < len(self._signals):
            self._told += 1
            self._tell(signal.SIGTERM if self._told < 3 else signal.SIGKILL)
        if self.deadline is not None and self._processes:
            now = time.monotonic()
            if now > self.deadline:
                self._tell(signal.SIGKILL)
            elif now > self.deadline - self.margin and not self._signals:
                self.say("the time limit is near: runs save and end")
                self._signals.append(0)

    def _start(self, place: int) -> None:
        command = [sys.executable, "-m", "flowrl.bench.worker", str(self.store.folder), str(self.file)]
        popen = subprocess.Popen(
            command,
            env=self.resources.environment(place) | {GRACE_VARIABLE: str(self.margin / 2)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        process = _Process(place, popen)
        self._processes.append(process)
        self.selector.register(popen.stdout, selectors.EVENT_READ, process)

    def _hear(self, process: _Process) -> None:
        assert process.popen.stdout is not None
        found = process.popen.stdout.read()
        if not found:
            if found == b"":
                self.selector.unregister(process.popen.stdout)
                process.open = False
            return
        *lines, process.buffer = (process.buffer + found).split(b"\n")
        for line in lines:
            self._note(process, json.loads(line))

    def _note(self, process: _Process, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            process.unit = event["key"]
            return
        process.unit = None
        unit = next(unit for unit in self.units if unit.key == event["key"])
        if event["event"] == "done":
            self._spent += event["seconds"]
            self._estimated += self.cost(unit)
        self.say(f"{event['event']:7} {event['title']} ({duration(event['seconds'])})  {self.progress()}")

    def _ended(self, process: _Process) -> None:
        """A worker's end: of a death in the middle of a unit that unit failed, and the others go on in a new one."""
        while process.open:
            self._hear(process)
        self._processes.remove(process)
        code = process.popen.returncode
        if code == 0 or self._signals:
            return
        if process.unit is None:
            raise RunFailed(f"a worker process ended with {_meaning(code)} before it began anything")
        unit = next(unit for unit in self.units if unit.key == process.unit)
        log = self.store.log(unit.key)
        with log.open("a") as file:
            file.write(f"\nthe process ended with {_meaning(code)}\n")
        self.agenda.fail(unit, seconds=None, device="")
        self.say(f"failed  {unit.title}: its process ended with {_meaning(code)}  {self.progress()}")
        self._start(process.place)

    def _tell(self, number: int) -> None:
        for process in self._processes:
            process.popen.send_signal(number)

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if len(self._signals) == 1:
                os.write(2, b"\nending: runs save first; once more drops what is in flight\n")

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    # ---- what is shown

    def progress(self) -> str:
        """Runs done, running and left, and the time to go as the done ones suggest."""
        left = self.agenda.left()
        running = min(len(self._processes), len(left))  # one that has just ended a unit takes the next
        to_go = sum(map(self.cost, left)) * (self._spent / self._estimated if self._estimated else 1.0)
        when = duration(to_go / max(1, min(self.resources.jobs, len(left) or 1)))
        done, waiting = len(self.units) - len(left), len(left) - running
        return f"[{done} of {len(self.units)} done, {running} running, {waiting} left, {when} to go]"

    def _outcome(self) -> Outcome:
        done = sum(self.store.done(unit.key) for unit in self.units)
        failed = sum(self.store.failed_since(unit.key, self.since) for unit in self.units)
        given = [number for number in self._signals if number]
        left = len(self.units) - done - failed
        return Outcome(done, failed, left, bool(self._signals), given[0] if given else None)


def _meaning(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
