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
    """Fills the rows of a velocity call up to the nearest size; without sizes it leaves them as they are.

    ``rollout`` are the sizes of calls without gradients, ``training`` those with. More rows than the largest size are
    asked for in parts. The rows that fill are copies of the first; what comes of them is dropped, and no gradient comes
    from them. ``num_rows`` counts what was evaluated, ``num_padded`` how much of it was dropped.

    >>> padding = RowPadding(training=(1, 4))
    >>> seen = []
    >>> def velocity(x, sigma, cond): seen.append(len(x)); return x + sigma
    >>> padding(velocity, torch.zeros(6), torch.arange(6), Cond()).tolist(), seen, padding.num_padded
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [4, 4], 2)
    """

    rollout: tuple[int, ...] = ()
    training: tuple[int, ...] = ()
    num_rows: int = 0
    num_padded: int = 0

    def expect(self, *, rollout: Iterable[int] = (), training: Iterable[int] = ()) -> None:
        """Serve these sizes too."""
        self.rollout = tuple(sorted({*self.rollout, *rollout}))
        self.training = tuple(sorted({*self.training, *training}))

    def __call__(self, velocity: Velocity, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """What ``velocity`` makes of x [B, ...] at sigma [B], cond [B]."""
        sizes = self.training if torch.is_grad_enabled() else self.rollout
        if not sizes or len(x) in sizes:
            self.num_rows += len(x)
            return velocity(x, sigma, cond)
        parts = []
        for rows in torch.arange(len(x)).split(sizes[-1]):
            filled = self.fill(rows)
            at = filled.to(x.device)
            parts.append(velocity(x[at], sigma[at], cond[filled])[: len(rows)])
        return torch.cat(parts)

    def fill(self, rows: Tensor) -> Tensor:
        """The indices ``rows``, and the first of them again, up to the nearest size; counted as evaluated.

        As they are where there is no size so large.
        """
        sizes = self.training if torch.is_grad_enabled() else self.rollout
        size = next((size for size in sizes if size >= len(rows)), len(rows))
        self.num_rows += size
        self.num_padded += size - len(rows)
        return torch.cat([rows, rows[:1].expand(size - len(rows))])
