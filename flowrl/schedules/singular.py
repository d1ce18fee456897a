"""Noise at a single step, one arm per step: G2RPO's singular stochastic sampling."""

from __future__ import annotations

from typing import Literal

from flowrl.protocols import Schedule
from flowrl.types import Arm


class Singular(Schedule, kind="singular"):
    """For each step k in M, G siblings leave the shared ODE prefix at k and are denoised without noise
    (G2RPO, section 3.2). ``steps``: ``first_half`` is M = 0..ceil(T/2)-1 (8 of 16 as in the code and section 11),
    or a list of grid steps."""

    steps: Literal["first_half"] | tuple[int, ...] = "first_half"

    def arms(self, *, num_steps: int, group: int, iteration: int, iterations: int, seed: int) -> tuple[Arm, ...]:
        if not self.steps:
            raise ValueError("singular.steps is empty: name at least one grid step")
        steps = range((num_steps + 1) // 2) if self.steps == "first_half" else self.steps
        outside = [k for k in steps if not 0 <= k < num_steps - 1]
        if outside:
            raise ValueError(
                f"singular.steps {outside} cannot be trained on a {num_steps}-step grid: allowed are "
                f"0..{num_steps - 2} (the last step ends at sigma 0, where noise would stay in the picture)"
            )
        return tuple(Arm({k: group}) for k in dict.fromkeys(steps))
