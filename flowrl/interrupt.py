"""Stopping a run in good order: the first signal asks for an end, the second, or the end of patience, enforces it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DropIteration(BaseException):
    """Raised in the main thread where the iteration in flight is to be dropped.

    Not an Exception, so that no handler of errors on the way swallows it.
    """


class Interrupt:
    """Ctrl-C and SIGTERM as a request that the training loop answers after the iteration in flight.

    The first signal sets ``requested``. A second one, or ``grace`` seconds after the first, sets ``dropping`` and,
    inside ``droppable()``, raises DropIteration in the main thread; elsewhere what has begun (an update, a save, a
    collective) is finished. Handlers and the timer are restored on leaving. Outside the main thread, where Python has
    no signal handlers, only ``request()`` sets ``requested``.

    >>> with Interrupt(grace=30.0) as interrupt:
    ...     while not interrupt.requested:
    ...         interrupt.request()
    """

    def __init__(self, grace: float | None = None, say: Callable[[str], None] | None = None) -> None:
        """``grace`` in seconds, None: no limit. ``say`` shows a line to the user; standard error by default."""
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be 0 seconds or more, got {grace}")
        self.grace = grace
        self.requested = False
        self.dropping = False
        self.signal: signal.Signals | None = None
        """The first signal that arrived, for the exit code."""
        self._say = say or _to_standard_error
        self._droppable = self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def request(self) -> None:
        """Ask for an end after the iteration in flight, as the first signal does (another rank was asked)."""
        self.requested = True

    @contextmanager
    def droppable(self, *, at_once: bool = False) -> Iterator[None]:
        """Inside, DropIteration may be raised: for work of which nothing remains if it ends half way.

        ``at_once``: by the first signal, where there is no iteration in flight to finish.
        """
        try:
            self._droppable, self._at_once = True, at_once
            if self.dropping or (at_once and self.requested):
                raise DropIteration("a stop was asked for before this began")
            yield
        finally:
            self._droppable = self._at_once = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._drop("again")
            return
        self.signal = signal.Signals(number)
        self.requested = True
        if self.grace == 0 or self._at_once:
            self._drop(self.signal.name)
            return
        limit = "" if self.grace is None else f" within {self.grace:g} seconds"
        self._say(f"{self.signal.name}: finishing the iteration{limit}, then saving; once more drops it")
        if self.grace is not None:
            signal.setitimer(signal.ITIMER_REAL, self.grace)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._drop(f"{self.grace:g} seconds are over")

    def _drop(self, reason: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.dropping = True
        if not self._droppable:
            self._say(f"{reason}: an update or a save that has begun is finished first")
            return
        what = "what is in flight" if self._at_once else "the iteration in flight"
        self._droppable = False  # a signal while the stack unwinds must not raise once more
        self._say(f"{reason}: dropping {what}")
        raise DropIteration(reason)


def _to_standard_error(line: str) -> None:
    """Unbuffered: a signal may arrive in the middle of a buffered write, which must not be entered twice."""
    os.write(2, f"\n{line}\n".encode())
