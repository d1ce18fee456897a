"""What is ready to run, as full batches: the highest first, rows of one kind together."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowrl.plan import Plan

Site = tuple[int, int]
"""A prompt, and a node of its plan."""
LANES = 2
"""Batches of paths that are under way at once, where paths are finished one after another. With one, the last batches
are not full; more finish the first ones later."""


class ReadyQueue:
    """Items by height (forwards still to run below them) and by kind; rows of different kinds cannot share a forward.

    Within a kind the highest go first, which advances the shared trunk and so keeps batches full (Hu's rule for trees).
    Among kinds those that fill a batch come before those that do not, then the highest: of a trunk that adds a row or
    two to its kind, no more is run than full batches need, so that fewer states and residuals are held at once.

    An item with a ``turn`` begins a path. It waits, by its turn, while ``lanes`` items are under way (None: it never
    does).

    >>> queue = ReadyQueue()
    >>> for name, kind, height in (("a", "x", 3), ("b", "y", 1), ("c", "y", 2)):
    ...     queue.push(name, kind=kind, height=height)
    >>> queue.pop(2), queue.pop(2), bool(queue)
    (['c', 'b'], ['a'], False)
    """

    def __init__(self, lanes: int | None = None) -> None:
        self._lanes = lanes
        self._heaps: dict[Hashable, list[tuple[int, Any]]] = {}
        self._waiting: list[tuple[Any, int, Any, Hashable]] = []
        self._under_way = 0

    def __bool__(self) -> bool:
        return bool(self._under_way or self._waiting)

    def push(self, item: Any, *, kind: Hashable, height: int, turn: Any = None) -> None:
        if turn is not None and self._lanes is not None:
            heapq.heappush(self._waiting, (turn, -height, item, kind))
            return
        heapq.heappush(self._heaps.setdefault(kind, []), (-height, item))
        self._under_way += 1

    def pop(self, max_batch: int) -> list[Any]:
        """Up to ``max_batch`` items of one kind; equally high ones in their own order."""
        while self._waiting and self._under_way < (self._lanes or 0):
            _, depth, item, kind = heapq.heappop(self._waiting)
            self.push(item, kind=kind, height=-depth)
        waiting = [heap for heap in self._heaps.values() if heap]
        full = [heap for heap in waiting if len(heap) >= max_batch]
        heap = min(full or waiting, key=lambda heap: heap[0])
        found = [heapq.heappop(heap)[1] for _ in range(min(max_batch, len(heap)))]
        self._under_way -= len(found)
        return found


def batches_of(plan: Plan, num_prompts: int, max_batch: int, *, in_turn: bool = False) -> Iterator[list[Site]]:
    """The velocity calls of a rollout, in order: the sites (prompt, node) of each. A batch's children have their states
    by the time that the next one is asked for.

    ``in_turn``: no more than ``LANES`` batches of paths are under way, prompt after prompt, so that leaves come during
    the whole rollout and what scores them beside it is neither idle at first nor late at the end. Else all advance
    together.
    """
    ready = ReadyQueue(LANES * max_batch if in_turn else None)
    there = [(p, root) for p in range(num_prompts) for root in plan.roots]
    while True:
        for p, node in there:
            if plan.children[node]:
                turn = p if plan.begins_path[node] else None
                ready.push((p, node), kind=plan.kind[node], height=plan.height[node], turn=turn)
        if not ready:
            return
        batch = ready.pop(max_batch)
        yield batch
        there = [(p, child) for p, node in batch for child in plan.children[node]]
