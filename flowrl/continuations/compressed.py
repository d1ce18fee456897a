"""A short second-order tail: MixGRPO-Flash."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flowrl.protocols import Continuation
from flowrl.sigmas import Grid, shift_sigma
from flowrl.types import Path


class Compressed(Continuation, kind="compressed"):
    """DPM-Solver++(2M, midpoint) over fewer levels (MixGRPO, arXiv 2507.21802, section 3.3; arXiv 2211.01095).

    From grid index ``start`` the tail visits n = int(max((T - start) ratio, 1)) levels including 0 as published, so
    n - 1 steps (at least one), linear in the unshifted u from u[start] to 0, then shifted. ``history: decision`` takes
    the x0 of the last decision as history, so that the first step is already second order (published); ``none`` starts
    at first order. The final step is first order.
    """

    ratio: float = Field(default=0.4, gt=0, le=1)
    history: Literal["decision", "none"] = "decision"

    def paths(self, grid: Grid, start: int) -> tuple[Path, ...]:
        if start >= grid.num_steps:
            return (Path(grid.sigma[start:]),)
        steps = max(int(max((grid.num_steps - start) * self.ratio, 1)) - 1, 1)
        levels = [grid.u[start] * (1 - i / steps) for i in range(steps + 1)]
        sigmas = (grid.sigma[start], *(shift_sigma(u, grid.shift) for u in levels[1:]))
        return (Path(sigmas, solver="dpmpp_2m", history=self.history),)
