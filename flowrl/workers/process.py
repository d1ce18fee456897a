"""The parent's end of a worker: starts the child, exchanges frames with a deadline, and never waits longer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.workers import flowrl_worker
from flowrl.workers.flowrl_worker import HEAD, MAGIC, PROTOCOL, pack

TAIL = 20
"""Lines of the child's standard error that an error shows."""
LONGEST_ANSWER = 1 << 26
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Of this environment, and wrong in another."""


class WorkerFailed(Exception):  # noqa: N818 - reads as what happened
    """What a child did wrong, and the tail of its standard error. ``again``: a new child may do better."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


class Picture(NamedTuple):
    """A picture on its way: raw RGB bytes, or a PNG."""

    width: int
    height: int
    is_png: bool
    data: bytes


class WorkerProcess:
    """One child process. Any failure kills it, with the processes that it started; it is not started again.

    >>> import sys, tempfile
    >>> script = Path(tempfile.mkdtemp()) / "ones.py"
    >>> _ = script.write_text("from flowrl_worker import serve; serve(lambda o, d: lambda images, prompts: [1.0])")
    >>> worker = WorkerProcess(sys.executable, script, options={}, device="cpu", timeout=60)
    >>> worker.ask([Picture(1, 1, False, bytes(3))], ["black"], timeout=60)
    ([1.0], [None])
    """

    def __init__(
        self,
        python: str,
        script: Path,
        *,
        options: Mapping[str, Any],
        device: str,
        timeout: float,
        identify: bool = False,
    ) -> None:
        """Starts it and waits until it has loaded or, to ``identify`` it alone, until it says what it is.

        Raises WorkerFailed.
        """
        environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        self._name = script.name
        try:
            self._child = subprocess.Popen(
                [python, "-u", flowrl_worker.__file__, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=True,  # an interrupt from the terminal is the parent's to handle
            )
        except OSError as error:
            raise WorkerFailed(f"{python} cannot be started: {error.strerror}", again=False) from error
        to, from_ = self._child.stdin, self._child.stdout
        assert to is not None
        assert from_ is not None
        self._to, self._from = to.fileno(), from_.fileno()
        os.set_blocking(self._to, False)
        self._said: deque[bytes] = deque(maxlen=TAIL)
        self._listener = threading.Thread(target=_listen, args=(self._child.stderr, self._said), daemon=True)
        self._listener.start()
        self.close = weakref.finalize(self, _end, self._child, self._listener)
        first = {"options": dict(options), "device": device, "identify": identify}
        hello = self._exchange(first, b"", timeout, "loading")
        if hello.get("protocol") != PROTOCOL:
            raise self._failed(f"speaks protocol {hello.get('protocol')!r}, not {PROTOCOL}", again=False)
        self.identity: dict[str, Any] = hello.get("identity") or {}

    @property
    def alive(self) -> bool:
        return self.close.alive

    def ask(
        self, pictures: Sequence[Picture], prompts: Sequence[str], timeout: float
    ) -> tuple[list[float | None], list[str | None]]:
        """A score or an error for each picture. Raises WorkerFailed."""
        header = {
            "images": [(picture.width, picture.height, picture.is_png, len(picture.data)) for picture in pictures],
            "prompts": list(prompts),
        }
        what = f"scoring {len(pictures)} images"
        answer = self._exchange(header, b"".join(picture.data for picture in pictures), timeout, what)
        if not _is_answer(answer, len(pictures)):
            raise self._failed(f"answered garbage while {what}: {json.dumps(answer)[:200]}")
        return answer["scores"], answer["errors"]

    def _exchange(self, header: dict[str, Any], body: bytes, timeout: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        try:
            self._write(pack(header, body), deadline)
            magic = self._read(len(MAGIC), deadline)
            if magic != MAGIC:
                raise self._failed(f"wrote garbage to the channel while {what}: {magic!r}...")
            _, num_text, num_body = HEAD.unpack(magic + self._read(HEAD.size - len(MAGIC), deadline))
            if num_body or num_text > LONGEST_ANSWER:
                raise self._failed(f"wrote garbage to the channel while {what}: a frame of {num_text} bytes")
            answer = json.loads(self._read(num_text, deadline))
        except TimeoutError:
            raise self._failed(f"gave no answer in {timeout:g} s while {what}") from None
        except (EOFError, OSError):
            raise self._failed(f"ended with {self._exit()} while {what}") from None
        except ValueError as error:
            raise self._failed(f"wrote garbage to the channel while {what}: {error}") from None
        if not isinstance(answer, dict) or "failure" in answer:
            said = answer["failure"] if isinstance(answer, dict) else f"{answer!r:.200}"
            raise self._failed(f"failed while {what}: {said}", again=False)
        return answer

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._to, select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                rest = rest[os.write(self._to, rest) :]

    def _read(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            _wait(self._from, select.POLLIN, deadline)
            chunk = os.read(self._from, count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def _exit(self) -> str:
        """How the child ended: exit code or signal."""
        try:
            code = self._child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "its channel closed"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _failed(self, message: str, *, again: bool = True) -> WorkerFailed:
        """Ends the child, and says what it did and what it last wrote."""
        self.close()
        lines = [line.decode(errors="replace").rstrip() for line in self._said]
        said = "".join(f"\n  | {line}" for line in lines) or " nothing"
        return WorkerFailed(f"{self._name} {message}; its last lines:{said}", again=again)


def _is_answer(answer: Mapping[str, Any], count: int) -> bool:
    """Lists of ``count`` numbers or None, and of texts where there is no number."""
    scores, errors = answer.get("scores"), answer.get("errors")
    if not isinstance(scores, list) or not isinstance(errors, list) or not len(scores) == len(errors) == count:
        return False
    pairs = zip(scores, errors, strict=True)
    return all(isinstance(error, str) if score is None else isinstance(score, float | int) for score, error in pairs)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Raises TimeoutError where the descriptor is not ready by the deadline."""
    poll = select.poll()
    poll.register(descriptor, event)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(left * 1000):
        raise TimeoutError


def _listen(stream: Any, said: deque[bytes]) -> None:
    """Keeps the last lines, cut to a width; progress bars that never end a line do not pile up."""
    with suppress(ValueError, OSError):
        while line := stream.readline(4096):
            said.append(line[-400:])


def _end(child: subprocess.Popen[bytes], listener: threading.Thread) -> None:
    """Close the channel, which ends the child; what remains of its session after a second is killed."""
    for stream in (child.stdin, child.stdout):
        if stream:
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=1)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    listener.join(timeout=1)
    if child.stderr and not listener.is_alive():
        child.stderr.close()
