"""One run as N processes on this machine: start them, pass signals on, end all when one fails.

torchrun is not used because it kills its workers 30 seconds after a signal, which loses the iteration in flight: here
a signal reaches every process once and they may take the time they need (``flowrl train --grace`` limits it).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

FORWARDED = (signal.SIGINT, signal.SIGTERM)
USER_ERROR = 2
POLL_SECONDS = 0.05
SHOWN_LINES = 40
STARTED = "FLOWRL_LAUNCHED"
"""Is set in the environment of a rank that ``run`` starts."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(
    argv: Sequence[str],
    processes: int,
    *,
    command: Sequence[str] = (sys.executable, "-m", "flowrl"),
    grace: float = 10.0,
) -> int:
    """Run ``command argv`` as ``processes`` ranks that find each other through the environment, and wait for them.

    Returns 0 where all succeed, else the exit code of the first that failed (128 + n where signal n ended it). The
    others then have ``grace`` seconds to fail by themselves, as many to answer SIGTERM, and are killed. SIGINT and
    SIGTERM are passed on to every rank, twice; the third time kills them. Rank 0 writes to this terminal; the output of
    another rank is shown, with its rank in front, if it fails. Call from the main thread.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="flowrl-") as folder:
        ranks = _Ranks(Path(folder))
        with _signals_to(ranks.received):
            try:
                for rank in range(processes):
                    ranks.start([*command, *argv], environment(rank, processes, port, os.environ))
                ranks.wait(grace)
            finally:
                ranks.kill()
        ranks.show_failures()
        return ranks.exit_code


def is_rank() -> bool:
    """Whether this process is already one of several ranks, started by ``run`` or by another launcher."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_launched() -> bool:
    """Whether it was started by ``run``."""
    return STARTED in os.environ


def is_first_rank() -> bool:
    """Whether this process is the only one or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


def environment(rank: int, processes: int, port: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a rank finds in its environment: torch.distributed's variables and, unless set, its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        **inherited,
        STARTED: "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@dataclass
class _Ranks:
    """The processes of one run, by rank; what ranks other than 0 write goes to files in ``folder``."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    """What the user's signals are passed on as. The handler only notes them: one that arrives while ranks are being
    started then reaches each of them once, and not some twice."""
    num_passed_on: int = 0
    failed: dict[int, int] = field(default_factory=dict)
    """Exit codes of the ranks that failed before they were told to end, in the order in which that was seen."""

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the next rank, in a session of its own: the terminal's Ctrl-C reaches it through this process alone."""
        with self._log(len(self.processes)).open("wb") as log:
            is_first = not self.processes
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=None if is_first else log,
                stderr=None if is_first else subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        self.processes.append(process)

    def wait(self, grace: float) -> None:
        """Until all have ended or, once one has failed, the time of the others is over."""
        while self._running() and not self.failed:
            self._poll()
        if not self.failed:
            return
        self._wait_until(time.monotonic() + grace)
        self._send(signal.SIGTERM)
        self._wait_until(time.monotonic() + grace, note=False)

    def kill(self) -> None:
        """End what still runs, at once."""
        self._send(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def show_failures(self) -> None:
        """The last lines of each failed rank but the first, which has shown its own.

        A mistake of the user's ends every rank with the same message, which the first has shown.
        """
        for rank, code in self.failed.items():
            if rank == 0 or code == USER_ERROR == self.failed.get(0):
                continue
            lines = self._log(rank).read_text(errors="replace").splitlines()
            print(f"rank {rank} ended with {_meaning(code)}; its last lines:", file=sys.stderr)
            for line in lines[-SHOWN_LINES:]:
                print(f"[rank {rank}] {line}", file=sys.stderr)

    @property
    def exit_code(self) -> int:
        """Of the first that failed; where none did, of the first that ended otherwise than with 0."""
        codes = [*self.failed.values(), *(process.returncode for process in self.processes)]
        code = next((code for code in codes if code != 0), 0)
        return 128 - code if code < 0 else code

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes if process.poll() is None]

    def _wait_until(self, deadline: float, note: bool = True) -> None:
        while self._running() and time.monotonic() < deadline:
            self._poll(note)

    def _poll(self, note: bool = True) -> None:
        time.sleep(POLL_SECONDS)
        while self.num_passed_on < len(self.received):
            self._send(self.received[self.num_passed_on])
            self.num_passed_on += 1
        if note:
            for rank, process in enumerate(self.processes):
                if rank not in self.failed and self._has_failed(process.poll()):
                    self.failed[rank] = process.returncode

    def _has_failed(self, code: int | None) -> bool:
        """Whether a rank ended by a mistake. Ending by a signal that the user sent is none, however it is reported."""
        by_signal = {sign for number in self.received for sign in (-number, 128 + number)}
        return code is not None and code != 0 and code not in by_signal

    def _send(self, number: int) -> None:
        for process in self._running():
            process.send_signal(number)

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.txt"


@contextmanager
def _signals_to(received: list[int]) -> Iterator[None]:
    """Inside, the signals that users send are appended to ``received`` and do nothing else.

    The third is noted as SIGKILL: a rank that waits in a collective for one that is gone answers no other.
    """

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number if len(received) < 2 else signal.SIGKILL)

    previous = {number: signal.signal(number, note) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_with_parent() -> Callable[[], None] | None:
    """What a child runs before its program, so that SIGTERM reaches it if this process is killed (Linux only)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _meaning(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
