"""Seconds by phase, without stopping the device in between.

On a GPU a phase is the time between two events in the stream of the thread that runs it; nothing waits for them until
the seconds are read, so measuring changes what is measured by microseconds a call. On a CPU it is the clock's.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """``seconds`` by phase of the thread that made it, ``beside`` those of others; what runs inside a phase is that
    phase's. ``calls`` counts both."""

    def __init__(self, device: torch.device) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self._device = device
        self._thread, self._here, self._lock = threading.get_ident(), threading.local(), threading.Lock()
        self._spans: list[tuple[str, bool, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if getattr(self._here, "inside", False):
            yield
            return
        self._here.inside = True
        began = self._now()
        try:
            yield
        finally:
            ended = self._now()
            with self._lock:
                self._spans.append((name, threading.get_ident() == self._thread, began, ended))
                self.calls[name] += 1
            self._here.inside = False

    def timed(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as a phase, whose name may depend on when it is called."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return wrapped

    @property
    def seconds(self) -> dict[str, float]:
        return self._sums(of_main=True)

    @property
    def beside(self) -> dict[str, float]:
        """Of other threads. On a GPU whose stream they share with the main thread, its work is in it too."""
        return self._sums(of_main=False)

    def clear(self) -> None:
        self._spans.clear()
        self.calls.clear()

    def _sums(self, of_main: bool) -> dict[str, float]:
        synchronise(self._device)
        found: dict[str, float] = defaultdict(float)
        for name, is_main, began, ended in self._spans:
            if is_main == of_main:
                found[name] += began.elapsed_time(ended) / 1000 if self._is_cuda else ended - began
        return dict(found)

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def matmul_peak(device: torch.device, size: int, dtype: torch.dtype = torch.bfloat16, count: int = 20) -> float:
    """TFLOP/s of ``size``^3 matrix products of random numbers: the median of ``count``, after three that warm up."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    found = [seconds_of(lambda: a @ b, device) for _ in range(count + 3)][3:]
    return 2 * size**3 / sorted(found)[len(found) // 2] / 1e12
