"""A few batch sizes serve a whole run: what a compiled policy is asked for is filled up to the nearest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.types import Cond

Velocity = Callable[[Tensor, Tensor, Cond], Tensor]


@dataclass
class RowPadding:
    """Fills the rows of a velocity call up to the nearest of ``sizes``; without sizes it leaves them as they are.

    More rows than the largest size are asked for in parts. The rows that fill are copies of the first; what comes of
    them is dropped, and no gradient with it. ``num_rows`` counts what was evaluated, ``num_padded`` how much of it was
    dropped.

    >>> padding = RowPadding(sizes=(1, 4))
    >>> seen = []
    >>> def velocity(x, sigma, cond): seen.append(len(x)); return x + sigma
    >>> padding(velocity, torch.zeros(6), torch.arange(6), Cond()).tolist(), seen, padding.num_padded
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [4, 4], 2)
    """

    sizes: tuple[int, ...] = ()
    num_rows: int = 0
    num_padded: int = 0

    def expect(self, sizes: Iterable[int]) -> None:
        """Serve these sizes too."""
        self.sizes = tuple(sorted({*self.sizes, *sizes}))

    def __call__(self, velocity: Velocity, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """What ``velocity`` makes of x [B, ...] at sigma [B], cond [B]."""
        if not self.sizes:
            self.num_rows += len(x)
            return velocity(x, sigma, cond)
        parts = [self._part(velocity, x, sigma, cond, rows) for rows in torch.arange(len(x)).split(self.sizes[-1])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, velocity: Velocity, x: Tensor, sigma: Tensor, cond: Cond, rows: Tensor) -> Tensor:
        size = next(size for size in self.sizes if size >= len(rows))
        self.num_rows += size
        if size == len(rows) == len(x):
            return velocity(x, sigma, cond)
        self.num_padded += size - len(rows)
        filled = torch.cat([rows, rows[:1].expand(size - len(rows))])
        at = filled.to(x.device)
        return velocity(x[at], sigma[at], cond[filled])[: len(rows)]
