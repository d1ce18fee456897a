"""Noise inside a window that moves over the grid as training proceeds: MixGRPO."""

from __future__ import annotations

import math
import random
from typing import Literal

from pydantic import Field

from flowrl.protocols import Schedule
from flowrl.seeds import derive_seed
from flowrl.types import Arm


class SlidingWindow(Schedule, kind="sliding_window"):
    """``width`` stochastic steps from a start that moves by ``stride`` every ``hold`` iterations (MixGRPO,
    arXiv 2507.21802, section 3.2). The group of G leaves the ODE prefix at the window's first step.

    - ``strategy``: ``progressive`` holds every place equally long; ``decay`` shortens the hold linearly from ``hold``
      to ``min_hold`` with the start; ``exp_decay`` holds ``hold exp(-rate relu(start - threshold))``; ``random`` draws
      a seeded start for every hold, from all of the grid or its first half (Flow-GRPO-Fast); ``frozen`` stays at
      step 0, whatever the hold (MixGRPO-Flash*).
    - ``hold: sweep`` spreads the run's iterations evenly, so that a run of any length visits every full window once
      (25 iterations a place at the paper's 300 iterations, T = 16, w = 4).
    - ``last_step`` bounds the noisy steps: T-2 (what the published comment intends) or T-3 (what its code does).
    - ``roll_back`` starts again at 0 after the end; otherwise the last window stays. Where the published scheduler
      runs past the end into an empty window, the last non-empty one is kept, the timing unchanged.
    """

    width: int = Field(default=4, ge=1)
    stride: int = Field(default=1, ge=1)
    strategy: Literal["progressive", "random", "decay", "exp_decay", "frozen"] = "progressive"
    hold: int | Literal["sweep"] = "sweep"
    min_hold: int = Field(default=1, ge=1)
    rate: float = Field(default=0.1, gt=0)
    threshold: int = Field(default=13, ge=0)
    random_from: Literal["all", "first_half"] = "all"
    roll_back: bool = True
    last_step: Literal["T-2", "T-3"] = "T-2"

    def arms(self, *, num_steps: int, group: int, iteration: int, iterations: int, seed: int) -> tuple[Arm, ...]:
        end = num_steps - 1 - (self.last_step == "T-3")
        if self.width > end:
            raise ValueError(
                f"sliding_window.width {self.width} does not fit a {num_steps}-step grid with last_step "
                f"{self.last_step}: allowed are 1..{end}"
            )
        if self.hold != "sweep" and self.hold < 1:
            raise ValueError(f"sliding_window.hold must be 1 or more, or sweep; got {self.hold}")
        if self.hold == "sweep" and self.strategy in ("decay", "exp_decay"):
            raise ValueError(f"sliding_window.strategy {self.strategy} shortens a hold that is a number; hold is sweep")
        start = self._start(end, num_steps, iteration, iterations, seed)
        window = range(start, min(start + self.width, end))
        return (Arm({**dict.fromkeys(window, 1), start: group}),)

    def _start(self, end: int, num_steps: int, iteration: int, iterations: int, seed: int) -> int:
        if self.strategy == "frozen":
            return 0
        if self.strategy == "random":
            held = 1 if self.hold == "sweep" else self.hold
            highest = end - self.width
            if self.random_from == "first_half":
                highest = min(highest, max(num_steps // 2 - self.width, 0))
            draw = random.Random(derive_seed(seed, "sliding_window", iteration // held))
            return draw.randint(0, highest)
        if self.hold == "sweep":
            starts = range(0, end - self.width + 1, self.stride)
            return starts[iteration * len(starts) // iterations]
        places = [(start, self._hold(start, end)) for start in range(0, end + 1, self.stride)]
        if self.roll_back:
            iteration %= sum(hold for _, hold in places)
        passed, last = 0, 0
        for start, hold in places:
            last = start if start < end else last
            passed += hold
            if iteration < passed:
                break
        return last

    def _hold(self, start: int, end: int) -> int:
        assert self.hold != "sweep"
        if self.strategy == "decay":
            return int(self.hold - (self.hold - self.min_hold) * start / end)
        if self.strategy == "exp_decay":
            return math.ceil(self.hold * math.exp(-self.rate * max(start - self.threshold, 0)))
        return self.hold
