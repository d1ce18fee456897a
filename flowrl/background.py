"""Calls beside the main thread, one after another, a bounded number at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch

PATIENCE = 5.0
"""Seconds that an abandoned call is given to end: one that computes should not outlive the program, one that waits for
an answer from elsewhere may."""


class Background:
    """Makes calls in their order, each when the one before it has ended, so that what they change is as in line.

    :meth:`wait_for_room` before the input of a call is made holds the caller up until fewer than ``limit`` calls are
    unfinished, so no more than ``limit`` inputs exist at once. With ``limit`` 0 a call is made at once, in the caller's
    thread. After an exception of a call no other is made, and the caller is given it at its next wait.

    Left by an exception of the caller's (a signal's too), it drops the calls that wait.

    On CUDA the calls have a stream of their own, so that their kernels run beside the caller's. A call begins when what
    the caller had started before is done; its tensors are not given to others before it has ended; and it has ended
    when its kernels have.

    >>> said = []
    >>> with Background(limit=2) as background:
    ...     for word in ("one", "two", "three"):
    ...         background.wait_for_room()
    ...         background.call(said.append, word)
    >>> said
    ['one', 'two', 'three']
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"limit must be 0 or more, got {limit}")
        self._limit = limit
        self._room = threading.Semaphore(limit)
        self._calls: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...], torch.Event | None] | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._abandoned = False
        self._started = False
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._abandon()

    def wait_for_room(self) -> None:
        """Wait until another call may be added. Raises what an earlier call raised."""
        if self._limit:
            self._room.acquire()  # signals interrupt it
            self._raise()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Have ``function(*args)`` called; :meth:`wait_for_room` goes before each."""
        if not self._limit:
            function(*args)
            return
        if not self._started:
            self._started = True
            self._ended.clear()
            stream = _stream(torch.cuda.current_device()) if torch.cuda.is_available() else None
            threading.Thread(target=self._work, args=(stream,), name="scoring", daemon=True).start()
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        self._calls.put((function, args, ready))

    def finish(self) -> None:
        """Wait until all calls have ended. Raises what one of them raised."""
        if not self._started:
            return
        try:
            for _ in range(self._limit):  # not join(), which an exception in a signal's handler leaves half done
                self._room.acquire()
        except BaseException:
            self._abandon()
            raise
        self._calls.put(None)
        self._started = False
        self._room = threading.Semaphore(self._limit)
        self._raise()

    def _abandon(self) -> None:
        if self._started:
            self._abandoned = True
            self._calls.put(None)
            self._ended.wait(PATIENCE)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self, stream: torch.cuda.Stream | None) -> None:
        room = self._room
        with torch.cuda.stream(stream):  # None: as it is
            while (call := self._calls.get()) is not None:
                function, args, ready = call
                try:
                    if self._error is None and not self._abandoned:
                        with _in_order(stream, ready, args):
                            function(*args)
                except BaseException as error:  # is raised in the caller's thread
                    self._error = error
                del call, function, args  # frees the input before there is room for another
                room.release()
        self._ended.set()


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The one that all calls on a GPU have: what PyTorch keeps for a stream, memory and workspaces, stays with it."""
    return torch.cuda.Stream(device)


@contextmanager
def _in_order(stream: torch.cuda.Stream | None, ready: torch.Event | None, args: Iterable[Any]) -> Iterator[None]:
    """Around a call whose kernels go to ``stream``: after ``ready``, its tensors kept, and until they are done."""
    if stream is None or ready is None:
        yield
        return
    stream.wait_event(ready)
    for value in args:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(stream)  # the allocator knows only of the caller's stream, on which it was made
    yield
    stream.synchronize()
