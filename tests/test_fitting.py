"""Ranks that measured differently plan the same: for the largest need and the smallest memory."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.fitting import _worst
from flowrl.policies.memory import BlockBytes, plan_training

MEASURED = [
    ([BlockBytes(700, 17, 5)] * 2 + [BlockBytes(450, 17)] * 3, 20_000),
    ([BlockBytes(690, 18, 5)] * 2 + [BlockBytes(451, 17)] * 3, 9_000),
]
"""Of two ranks: blocks and budget."""


def test_all_ranks_come_to_the_same_plan() -> None:
    sent: list[Tensor] = []
    for blocks, budget in MEASURED:  # what each would send
        _worst(blocks, budget, lambda row: sent.append(row) or row, torch.device("cpu"))
    plans = []
    for blocks, budget in MEASURED:
        found, smallest = _worst(blocks, budget, lambda row: torch.cat(sent), torch.device("cpu"))
        assert found == [BlockBytes(700, 18, 5)] * 2 + [BlockBytes(451, 17)] * 3
        assert smallest == 9_000
        plans.append(plan_training(found, budget=smallest, num_rows=8, microbatch=None, checkpointed=None))
    assert plans[0] == plans[1]
    assert plans[0].fits
