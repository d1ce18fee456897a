"""How a plan's forwards fall into batches: the engine's order, without an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flowrl.plan import Kind, Plan
from flowrl.ready import Site, batches_of


class Batch(NamedTuple):
    """Rows that run together, and how."""

    kind: Kind
    rows: int


class Packing(NamedTuple):
    """The velocity calls of a rollout, and the residuals held at once where blocks are reused."""

    batches: tuple[Batch, ...]
    peak_residuals: int

    @property
    def rows(self) -> list[int]:
        """Of each call."""
        return [batch.rows for batch in self.batches]


def pack(plan: Plan, num_prompts: int, max_batch: int, *, in_turn: bool = False) -> Packing:
    """The calls of a rollout of so many prompts, in the order in which :func:`flowrl.engine.execute` makes them.

    >>> from flowrl.plan import compile_plan
    >>> from flowrl.sigmas import Grid
    >>> from flowrl.types import Arm, Path
    >>> plan = compile_plan(Grid(2), [Arm({0: 3})], lambda grid, start: [Path(grid.sigma[start:])])
    >>> pack(plan, num_prompts=2, max_batch=4).rows
    [2, 4, 2]
    """
    found = []
    uses: Counter[Site] = Counter()
    held = peak = 0
    for batch in batches_of(plan, num_prompts, max_batch, in_turn=in_turn):
        found.append(Batch(plan.kind[batch[0][1]], len(batch)))
        for p, node in batch:
            for source in plan.residuals_of[node]:
                uses[p, source] -= 1
                held -= uses[p, source] == 0
            if node in plan.residual_uses:
                uses[p, node] = plan.residual_uses[node]
                held += 1
        peak = max(peak, held)
    return Packing(tuple(found), peak)


WORTH = 0.01
"""Of an iteration's rows: for less padding no second batch size is compiled."""


def batch_sizes(rows: Sequence[int], num_prompts: int, max_batch: int) -> tuple[int, ...]:
    """To what a rollout's calls of so many ``rows`` are filled up where every size has to be compiled: ``max_batch``
    and, where by that alone the padding is not small, what the rollout begins with, a row of each prompt.

    >>> batch_sizes([1] + 15 * [12], num_prompts=1, max_batch=12), batch_sizes([1] + 150 * [12], 1, 12)
    ((1, 12), (12,))
    """
    small, padded = min(num_prompts, max_batch), num_padded(rows, [max_batch])
    spares = small < max_batch and any(count <= small for count in rows)
    return (small, max_batch) if spares and padded >= WORTH * sum(rows) else (max_batch,)


def num_padded(rows: Iterable[int], sizes: Sequence[int]) -> int:
    """Rows that filling up calls of so many ``rows`` to the nearest of ``sizes`` adds, as
    :class:`flowrl.policies.row_padding.RowPadding` does; no call has more than the largest.

    >>> num_padded([1, 5, 12], sizes=[1, 12])
    7
    """
    return sum(min(size for size in sizes if size >= count) - count for count in rows)
