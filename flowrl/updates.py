"""How an iteration's actions are divided among optimiser updates. Pure, so that every rank knows every rank's share."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flowrl.plan import Plan
from flowrl.seeds import derive_seed


class Updates(BaseModel):
    """``updates`` ordered optimiser steps an iteration, its actions divided by grid step or by sample (leaf);
    ``fraction`` of each sample's actions are trained (DanceGRPO: 0.6), at least one, drawn anew for every sample.

    Published: DanceGRPO 3 by sample, MixGRPO 4 by sample, Flow-GRPO 2 by sample, G2RPO 1 or K by step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    updates: int = Field(default=1, ge=1)
    split: Literal["step", "sample"] = "step"
    fraction: float = Field(default=1.0, gt=0, le=1)

    def partition(self, plan: Plan, *, seed: int, iteration: int, position: int) -> tuple[tuple[int, ...], ...]:
        """[updates] the actions (positions in ``plan.actions``) that each update trains, for the prompt at this place
        of the global batch. Raises ValueError where there are more updates than steps or samples to divide."""
        keys = plan.sample_of_action if self.split == "sample" else [plan.step[n] for n in plan.actions]
        order = sorted(set(keys))
        if self.updates > len(order):
            raise ValueError(
                f"train.updates {self.updates} by {self.split} needs as many {self.split}s, but the plan has "
                f"{len(order)}: allowed are 1..{len(order)}"
            )
        update_of = {key: i * self.updates // len(order) for i, key in enumerate(order)}
        found: list[list[int]] = [[] for _ in range(self.updates)]
        for action in self._trained(plan, seed, iteration, position):
            found[update_of[keys[action]]].append(action)
        return tuple(map(tuple, found))

    def _trained(self, plan: Plan, seed: int, iteration: int, position: int) -> list[int]:
        samples: dict[int, list[int]] = {}
        for action, sample in enumerate(plan.sample_of_action):
            samples.setdefault(sample, []).append(action)
        trained: list[int] = []
        for sample, actions in samples.items():
            count = max(1, int(self.fraction * len(actions) + 1e-9))
            draw = random.Random(derive_seed(seed, "fraction", iteration, position, sample))
            trained += actions if count == len(actions) else draw.sample(actions, count)
        return sorted(trained)


def decisions_of(plan: Plan, actions: tuple[int, ...]) -> dict[int, list[int]]:
    """Decision -> its trained actions: one training forward each."""
    found: dict[int, list[int]] = {}
    for action in actions:
        found.setdefault(plan.decision_of_action[action], []).append(action)
    return found
