"""Denoise on every lambda-th level of the grid: multi-granularity denoising."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowrl.protocols import Continuation
from flowrl.sigmas import Grid
from flowrl.types import Path


class Strided(Continuation, kind="strided"):
    """One stream per lambda in Lambda (G2RPO, section 3.3, Eq. 10); lambda 1 is the ordinary ODE.

    From grid index ``start`` = k+1 the forwards run at these indices, the last of which jumps to sigma 0:

    - ``published``: L = [k+1] + range(k+2, T+1, lambda) without its last element (the released code; where L[-1] < T
      that index is skipped).
    - ``published_keep``: the same, but L[-1] < T is evaluated too.
    - ``paper``: k+1 and every i > k+1 with (T-1-i) mod lambda = 0 (Eq. 10 read as anchored at the clean end).
    """

    strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    grid: Literal["published", "published_keep", "paper"] = "published"

    def paths(self, grid: Grid, start: int) -> tuple[Path, ...]:
        return tuple(self._path(grid, start, stride) for stride in self.strides)

    def _path(self, grid: Grid, start: int, stride: int) -> Path:
        steps = grid.num_steps
        if start >= steps:
            return Path(grid.sigma[start:])
        if self.grid == "paper":
            evaluated = [start] + [i for i in range(start + 1, steps) if (steps - 1 - i) % stride == 0]
        else:
            visited = [start, *range(start + 1, steps + 1, stride)]
            keep = self.grid == "published_keep" and visited[-1] < steps
            evaluated = visited if keep else visited[:-1]
        return Path((*(grid.sigma[i] for i in evaluated), 0.0))
