"""Noise at every step: DanceGRPO and Flow-GRPO."""

from __future__ import annotations

from typing import Literal

from flowrl.protocols import Schedule
from flowrl.types import Arm


class AllSteps(Schedule, kind="all_steps"):
    """Steps 0..T-2 are stochastic (``last: ode``), or 0..T-1 (``last: sde``, Flow-GRPO's own sampler; the noise of the
    last step stays in the picture and is not an action).

    ``roots: shared`` fans one initial noise out at step 0 (DanceGRPO's ``init_same_noise``); ``own`` gives each of the
    group its own (Flow-GRPO).
    """

    last: Literal["ode", "sde"] = "ode"
    roots: Literal["shared", "own"] = "shared"

    def arms(self, *, num_steps: int, group: int, iteration: int, iterations: int, seed: int) -> tuple[Arm, ...]:
        count = num_steps - (self.last == "ode")
        if count < 1:
            raise ValueError(f"all_steps with last: {self.last} needs num_steps >= 2, got {num_steps}")
        fanout = dict.fromkeys(range(count), 1)
        if self.roots == "own":
            return (Arm(fanout, roots=group),)
        return (Arm({**fanout, 0: group}),)
