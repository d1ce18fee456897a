"""What is ready to run, as full batches: the highest first, rows of one kind together."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Any


class ReadyQueue:
    """Items by height (forwards still to run below them) and by kind; rows of different kinds cannot share a forward.

    Within a kind the highest go first, which advances the shared trunk and so keeps batches full (Hu's rule for trees).
    Among kinds those that fill a batch come before those that do not, then the highest: of a trunk that adds a row or
    two to its kind, no more is run than full batches need, so that fewer states and residuals are held at once.

    >>> queue = ReadyQueue()
    >>> for name, kind, height in (("a", "x", 3), ("b", "y", 1), ("c", "y", 2)):
    ...     queue.push(name, kind=kind, height=height)
    >>> queue.pop(2), queue.pop(2), bool(queue)
    (['c', 'b'], ['a'], False)
    """

    def __init__(self) -> None:
        self._heaps: dict[Hashable, list[tuple[int, Any]]] = {}

    def __bool__(self) -> bool:
        return any(self._heaps.values())

    def push(self, item: Any, *, kind: Hashable, height: int) -> None:
        heapq.heappush(self._heaps.setdefault(kind, []), (-height, item))

    def pop(self, max_batch: int) -> list[Any]:
        """Up to ``max_batch`` items of one kind; equally high ones in their own order."""
        waiting = [heap for heap in self._heaps.values() if heap]
        full = [heap for heap in waiting if len(heap) >= max_batch]
        heap = min(full or waiting, key=lambda heap: heap[0])
        return [heapq.heappop(heap)[1] for _ in range(min(max_batch, len(heap)))]
